//! `GET /healthz` over TCP: 200 and `ok`. Nothing else is served.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// A request must be complete after so long, or it is cut off.
const TIME_LIMIT: Duration = Duration::from_secs(2);
/// Longest request head; a longer one is cut off.
const MAX_HEAD: usize = 4096;

pub(crate) async fn bind(addr: &str) -> io::Result<TcpListener> {
    let candidates = crate::server::listen_candidates(addr).await?;
    TcpListener::bind(candidates.as_slice()).await
}

/// Answers one connection after the other: a probe is short and time-limited.
pub(crate) async fn serve(listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                if tokio::time::timeout(TIME_LIMIT, answer(stream)).await.is_err() {
                    tracing::debug!("health request timed out");
                }
            }
            Err(e) => {
                tracing::warn!("health listener: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(mut stream: TcpStream) -> io::Result<()> {
    let mut head = Vec::with_capacity(512);
    while !head.windows(4).any(|w| w == b"\r\n\r\n") {
        if head.len() > MAX_HEAD || stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let (status, body) = if head.starts_with(b"GET /healthz ") {
        ("200 OK", "ok")
    } else {
        ("404 Not Found", "not found")
    };
    let length = body.len();
    let response = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    stream.write_all(response.as_bytes()).await?;
    stream.shutdown().await
}
