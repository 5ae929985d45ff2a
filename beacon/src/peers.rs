//! Finds peer beacons through a registry: every 30 s over a fresh connection,
//! `beacon_register` then `beacon_list`.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use pilot_wire::registry::{
    BeaconList, BeaconRegistered, FrameBuffer, FrameError, Reply, ReplyError, Request, parse_reply,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::config::MAX_PEERS;

const INTERVAL: Duration = Duration::from_secs(30);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const TOTAL_LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
enum PeersError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Reply(#[from] ReplyError),
    #[error("no answer in time")]
    Timeout(#[from] tokio::time::error::Elapsed),
}

/// Reports the registry's beacons other than `id`, for ever. While the
/// registry does not answer, the last list stands.
pub(crate) async fn watch(
    registry: &str,
    id: u32,
    local: SocketAddr,
    found: &mpsc::Sender<Vec<SocketAddr>>,
) {
    let mut interval = tokio::time::interval(INTERVAL);
    loop {
        interval.tick().await;
        match timeout(TOTAL_LIMIT, ask(registry, id, local)).await {
            Ok(Ok(peers)) => {
                if found.send(peers).await.is_err() {
                    return;
                }
            }
            Ok(Err(e)) => tracing::warn!(registry, "cannot ask for peer beacons: {e}"),
            Err(_) => tracing::warn!(registry, "cannot ask for peer beacons: no answer in time"),
        }
    }
}

async fn ask(registry: &str, id: u32, local: SocketAddr) -> Result<Vec<SocketAddr>, PeersError> {
    let mut stream = timeout(CONNECT_LIMIT, TcpStream::connect(registry)).await??;
    let ip = if local.ip().is_unspecified() { stream.local_addr()?.ip() } else { local.ip() };
    let addr = SocketAddr::new(ip.to_canonical(), local.port()).to_string();
    let mut out = Vec::new();
    Request::BeaconRegister { beacon_id: id, addr: &addr }.append_to(&mut out)?;
    Request::BeaconList {}.append_to(&mut out)?;
    stream.write_all(&out).await?;
    let mut buffer = FrameBuffer::new();
    read_reply::<BeaconRegistered>(&mut stream, &mut buffer).await?;
    let list = read_reply::<BeaconList>(&mut stream, &mut buffer).await?;
    let mut peers = Vec::new();
    for beacon in list.beacons.into_iter().filter(|b| b.id != id).take(MAX_PEERS) {
        match tokio::net::lookup_host(&beacon.addr).await.map(|mut a| a.next()) {
            Ok(Some(addr)) => peers.push(SocketAddr::new(addr.ip().to_canonical(), addr.port())),
            _ => {
                tracing::debug!(id = beacon.id, addr = beacon.addr, "peer beacon does not resolve")
            }
        }
    }
    Ok(peers)
}

async fn read_reply<T: Reply>(
    stream: &mut TcpStream,
    buffer: &mut FrameBuffer,
) -> Result<T, PeersError> {
    loop {
        if let Some(body) = buffer.next_body()? {
            return Ok(parse_reply(body)?);
        }
        if stream.read_buf(buffer.space(4096)).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
}
