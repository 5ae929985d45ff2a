//! The server application: does what the first byte of each stream asks for.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;
use pilot_sdk::Client;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::transport::{Acceptor, Others, Stream, now};

/// Takes as many bytes as announced and says when the last one came.
pub(super) const SINK: u8 = b'S';
/// The same, and says their SHA-256.
pub(super) const SINK_HASHED: u8 = b'H';
/// Sends back what comes.
pub(super) const PING: u8 = b'P';
/// Answers with one byte and closes.
pub(super) const ONE_BYTE: u8 = b'C';
/// Stays open until the other side closes.
pub(super) const IDLE: u8 = b'I';
/// Waits until no datagram has come for a moment and says how many came.
pub(super) const DATAGRAMS: u8 = b'D';
/// Takes what comes for a span and prints what came when.
pub(super) const TIMED: u8 = b'T';
/// The port that counts datagrams.
pub(super) const DATAGRAM_PORT: u16 = 5001;
/// Up to here bytes are kept and hashed after the clock has stopped.
const KEEP: u64 = 1 << 20;
/// Read buffer.
const BUFFER: usize = 256 << 10;

/// Datagrams seen: how many, when the first and when the last.
#[derive(Clone, Copy, Default)]
struct Seen {
    count: u64,
    first: Duration,
    last: Duration,
}

/// Serves until killed.
pub(super) async fn run(args: &[&str], others: Others<'_>) -> Result<()> {
    let (mut acceptor, at) = Acceptor::new(args, others).await?;
    let local = tokio::task::LocalSet::new();
    let seen = Rc::new(Cell::new(Seen::default()));
    local
        .run_until(async {
            if let Some(client) = acceptor.client() {
                tokio::task::spawn_local(count_datagrams(client, seen.clone()));
            }
            println!("{}", json!({ "ready": "bench", "at": at }));
            loop {
                let stream = acceptor.accept().await?;
                let seen = seen.clone();
                tokio::task::spawn_local(async move {
                    // A client that goes away ends its stream, not the server.
                    if let Err(e) = serve(stream, &seen).await {
                        eprintln!("stream: {e:#}");
                    }
                });
            }
        })
        .await
}

async fn count_datagrams(client: Client, seen: Rc<Cell<Seen>>) {
    let mut datagrams = client.datagrams();
    while let Ok(datagram) = datagrams.recv().await {
        if datagram.destination_port == DATAGRAM_PORT {
            let mut s = seen.get();
            s.last = now();
            if s.count == 0 {
                s.first = s.last;
            }
            s.count += 1;
            seen.set(s);
        }
    }
}

async fn serve(mut stream: Stream, seen: &Cell<Seen>) -> Result<()> {
    match stream.read_u8().await? {
        kind @ (SINK | SINK_HASHED) => {
            let len = stream.read_u64().await?;
            sink(&mut stream, len, kind == SINK_HASHED).await?;
        }
        PING => {
            let mut buffer = [0; 64];
            while stream.read_exact(&mut buffer).await.is_ok() {
                stream.write_all(&buffer).await?;
                stream.flush().await?;
            }
        }
        ONE_BYTE => {
            stream.write_u8(ONE_BYTE).await?;
            stream.shutdown().await?;
            let _ = stream.read_u8().await;
        }
        TIMED => super::timed::take(&mut stream).await?,
        DATAGRAMS => {
            loop {
                let before = seen.get().count;
                tokio::time::sleep(Duration::from_millis(300)).await;
                if seen.get().count == before {
                    break;
                }
            }
            let s = seen.replace(Seen::default());
            stream.write_u64(s.count).await?;
            stream.write_u64(nanos(s.last.saturating_sub(s.first))).await?;
            stream.shutdown().await?;
        }
        _ => {
            // IDLE: hold it until the other side lets go.
            let _ = stream.read_u8().await;
        }
    }
    Ok(())
}

async fn sink(stream: &mut Stream, len: u64, hashed: bool) -> Result<()> {
    let mut buffer = vec![0; BUFFER];
    let mut kept = Vec::new();
    let mut hash = Sha256::new();
    let mut left = len;
    if hashed && len <= KEEP {
        kept.reserve_exact(usize::try_from(len)?);
    }
    while left > 0 {
        let n = stream.read(&mut buffer).await?;
        anyhow::ensure!(n > 0, "ended {left} bytes early");
        left = left.saturating_sub(n as u64);
        if hashed && len <= KEEP {
            kept.extend_from_slice(&buffer[..n]);
        } else if hashed {
            hash.update(&buffer[..n]);
        }
    }
    let at = now();
    stream.write_u64(nanos(at)).await?;
    if hashed {
        hash.update(&kept);
        stream.write_all(&hash.finalize()).await?;
    }
    stream.shutdown().await?;
    Ok(())
}

fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}
