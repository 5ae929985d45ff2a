//! One connection to the receiver: TCP, a proxy's tunnel, TLS, HTTP/1.1.

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::client::explain;
use crate::settings::Settings;
use crate::target::Proxy;

/// Longest head of a proxy's answer, in bytes.
const MAX_PROXY_HEAD: usize = 16 * 1024;

/// A connection that takes requests; dropped, it is closed.
pub(crate) struct Connection {
    pub(crate) sender: SendRequest<Full<Bytes>>,
    task: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        // It may wait for a peer that does not read.
        self.task.abort();
    }
}

/// Connects.
///
/// # Errors
/// What failed, naming the host and port that it failed with.
pub(crate) async fn open(settings: &Settings) -> Result<Connection, String> {
    let target = &settings.target;
    let (host, port, place) = match &settings.proxy {
        Some(proxy) => (proxy.host.as_str(), proxy.port, format!("proxy {}", proxy.place())),
        None => (target.host.as_str(), target.port, target.place()),
    };
    let mut stream = TcpStream::connect((host, port))
        .await
        .map_err(|why| format!("cannot connect to {place}: {why}"))?;
    // A request is written at once; there is nothing to gather.
    let _ = stream.set_nodelay(true);
    let Some(secure) = &settings.secure else { return start(stream, &place).await };
    if let Some(proxy) = &settings.proxy {
        tunnel(&mut stream, proxy, &target.place()).await?;
    }
    let stream = secure
        .connector
        .connect(secure.name.clone(), stream)
        .await
        .map_err(|why| format!("TLS with {}: {}", target.place(), explain(&why)))?;
    start(stream, &target.place()).await
}

async fn start(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    place: &str,
) -> Result<Connection, String> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|why| format!("{place}: {}", explain(&why)))?;
    // Its error comes to the request as well.
    let task = tokio::spawn(async move { drop(connection.await) });
    Ok(Connection { sender, task })
}

/// Asks a proxy for a tunnel (RFC 9110, section 9.3.6).
async fn tunnel(stream: &mut TcpStream, proxy: &Proxy, target: &str) -> Result<(), String> {
    let place = proxy.place();
    let failed = |why: std::io::Error| format!("proxy {place}: {why}");
    let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n").into_bytes();
    if let Some(authorization) = &proxy.authorization {
        request.extend_from_slice(b"Proxy-Authorization: ");
        request.extend_from_slice(authorization.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    stream.write_all(&request).await.map_err(failed)?;

    let mut head = Vec::new();
    // By byte: what follows belongs to the tunnel. Servers of TLS speak second,
    // so this costs a few hundred reads once.
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == MAX_PROXY_HEAD {
            return Err(format!("proxy {place}: its answer has no end"));
        }
        head.push(stream.read_u8().await.map_err(failed)?);
    }
    let line = head.split(|b| *b == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let status = line.split(' ').nth(1).and_then(|code| code.parse::<u16>().ok());
    match status {
        Some(200..300) if line.starts_with("HTTP/1.") => Ok(()),
        Some(407) => Err(format!("proxy {place}: {line:?}; set user and password in `proxy`")),
        _ => Err(format!("proxy {place} made no tunnel to {target}: {line:?}")),
    }
}
