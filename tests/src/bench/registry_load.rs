//! Load on a registry: some connections, some requests in flight on each.
//! Everything that needs a key is signed before the clock starts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use ed25519_dalek::{Signer, SigningKey};
use pilot_wire::NodeId;
use pilot_wire::registry::{
    FrameBuffer, PublicKey, Registered, Request, Signature, challenge, parse_reply,
};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Nodes that exist while lookups and heartbeats are counted.
const NODES: u64 = 10_000;
/// Read buffer.
const BUFFER: usize = 64 << 10;

/// Connections that ask while others write.
const PROBES: u32 = 8;
/// Time between two questions of each, so that what is measured is not their own
/// load.
const PROBE_PAUSE: Duration = Duration::from_millis(5);

/// `registry ADDRESS KIND COUNT CONNECTIONS PIPELINED SEED`; KIND is register,
/// lookup or heartbeat. The seed makes the keys, so that runs do not meet.
/// `registry ADDRESS probe SECONDS NODES`: single lookups of the first so many
/// nodes, one at a time.
pub(super) async fn run(args: &[&str]) -> Result<()> {
    if let [addr, "probe", seconds, nodes] = args {
        return probe(addr, Duration::from_secs(seconds.parse()?), nodes.parse()?).await;
    }
    let [addr, kind, count, connections, pipelined, seed] = args else {
        bail!("registry role needs six words, got {args:?}")
    };
    let (count, connections): (u64, u64) = (count.parse()?, connections.parse()?);
    let (pipelined, seed): (usize, u64) = (pipelined.parse()?, seed.parse()?);
    let frames = match *kind {
        "register" => registrations(seed, count)?.1,
        "lookup" => {
            register_nodes(addr, seed, connections, pipelined).await?;
            (0..count)
                .map(|n| frame(&Request::Lookup { node_id: node(n % NODES + 1) }))
                .collect::<Result<_>>()?
        }
        "heartbeat" => {
            let nodes = register_nodes(addr, seed, connections, pipelined).await?;
            let all: Vec<Vec<u8>> = nodes
                .iter()
                .map(|(node_id, key)| {
                    let text = challenge::heartbeat(*node_id);
                    let signature = Signature(key.sign(text.as_bytes()).to_bytes());
                    frame(&Request::Heartbeat { node_id: *node_id, signature })
                })
                .collect::<Result<_>>()?;
            all.iter().cycle().take(usize::try_from(count)?).cloned().collect()
        }
        other => bail!("unknown kind {other}"),
    };
    let start = Instant::now();
    ask(addr, frames, connections, pipelined, false).await?;
    println!("{}", json!({ "per_second": count as f64 / start.elapsed().as_secs_f64() }));
    Ok(())
}

fn node(n: u64) -> NodeId {
    NodeId(u32::try_from(n).unwrap_or(u32::MAX))
}

fn frame(request: &Request<'_>) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    request.append_to(&mut out)?;
    Ok(out)
}

/// Keys and the requests that register them.
fn registrations(seed: u64, count: u64) -> Result<(Vec<SigningKey>, Vec<Vec<u8>>)> {
    let mut keys = Vec::new();
    let mut frames = Vec::new();
    for n in 0..count {
        let mut secret = [0; 32];
        secret[..8].copy_from_slice(&seed.to_le_bytes());
        secret[8..16].copy_from_slice(&n.to_le_bytes());
        let key = SigningKey::from_bytes(&secret);
        frames.push(frame(&Request::Register {
            listen_addr: "127.0.0.1:4000",
            public_key: PublicKey(key.verifying_key().to_bytes()),
            owner: "",
            hostname: "",
            timestamp: None,
            proof: None,
        })?);
        keys.push(key);
    }
    Ok((keys, frames))
}

/// Registers [`NODES`] nodes and says which key has which number.
async fn register_nodes(
    addr: &str,
    seed: u64,
    connections: u64,
    pipelined: usize,
) -> Result<Vec<(NodeId, SigningKey)>> {
    let (keys, frames) = registrations(seed, NODES)?;
    let bodies = ask(addr, frames, connections, pipelined, true).await?;
    keys.into_iter()
        .zip(bodies)
        .map(|(key, body)| Ok((parse_reply::<Registered>(&body)?.node_id, key)))
        .collect()
}

/// Sends every frame over `connections`, at most `pipelined` unanswered on
/// each; returns the replies in the order of the frames if `keep`.
async fn ask(
    addr: &str,
    frames: Vec<Vec<u8>>,
    connections: u64,
    pipelined: usize,
    keep: bool,
) -> Result<Vec<Vec<u8>>> {
    let connections = usize::try_from(connections)?.max(1);
    let share = frames.len().div_ceil(connections).max(1);
    let frames = Arc::new(frames);
    let mut tasks = JoinSet::new();
    for start in (0..frames.len()).step_by(share) {
        let (frames, addr) = (frames.clone(), addr.to_owned());
        tasks.spawn(async move {
            let end = (start + share).min(frames.len());
            let replies = converse(&addr, &frames[start..end], pipelined, keep).await?;
            anyhow::Ok((start, replies))
        });
    }
    let mut parts = Vec::new();
    while let Some(done) = tasks.join_next().await {
        parts.push(done??);
    }
    parts.sort_unstable_by_key(|(start, _)| *start);
    Ok(parts.into_iter().flat_map(|(_, replies)| replies).collect())
}

async fn converse(
    addr: &str,
    frames: &[Vec<u8>],
    pipelined: usize,
    keep: bool,
) -> Result<Vec<Vec<u8>>> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let mut replies = Vec::new();
    let mut incoming = FrameBuffer::new();
    let mut out = Vec::new();
    let (mut sent, mut answered) = (0, 0);
    while answered < frames.len() {
        out.clear();
        while sent < frames.len() && sent - answered < pipelined {
            out.extend_from_slice(&frames[sent]);
            sent += 1;
        }
        if !out.is_empty() {
            stream.write_all(&out).await?;
        }
        let n = stream.read_buf(incoming.space(BUFFER)).await?;
        ensure!(n > 0, "the registry closed the connection");
        while let Some(body) = incoming.next_body()? {
            answered += 1;
            let failed = body.windows(8).any(|w| w == b"\"error\":");
            ensure!(!failed, "refused: {}", String::from_utf8_lossy(body));
            if keep {
                replies.push(body.to_vec());
            }
        }
    }
    Ok(replies)
}

/// Asks at fixed times, and says how long answers took since then.
async fn probe(addr: &str, span: Duration, nodes: u64) -> Result<()> {
    let mut tasks = JoinSet::new();
    for lane in 0..PROBES {
        let addr = addr.to_owned();
        tasks.spawn(async move {
            let mut stream = TcpStream::connect(&addr).await?;
            stream.set_nodelay(true)?;
            let mut incoming = FrameBuffer::new();
            let mut times = Vec::new();
            let start = Instant::now();
            for n in 0.. {
                // Not all at the same moment.
                let due = start + PROBE_PAUSE * n + PROBE_PAUSE / PROBES * lane;
                if due >= start + span {
                    break;
                }
                tokio::time::sleep_until(due.into()).await;
                let wanted = node((u64::from(n) * u64::from(PROBES) + u64::from(lane)) % nodes + 1);
                stream.write_all(&frame(&Request::Lookup { node_id: wanted })?).await?;
                while incoming.next_body()?.is_none() {
                    let read = stream.read_buf(incoming.space(BUFFER)).await?;
                    ensure!(read > 0, "the registry closed the connection");
                }
                times.push(due.elapsed());
            }
            anyhow::Ok(times)
        });
    }
    let mut times = Vec::new();
    while let Some(done) = tasks.join_next().await {
        times.extend(done??);
    }
    times.sort_unstable();
    ensure!(!times.is_empty(), "nothing was asked");
    let at =
        |part: usize| times[(times.len() * part / 100).min(times.len() - 1)].as_secs_f64() * 1e3;
    println!("{}", json!({ "lookups": times.len(), "p50_ms": at(50), "p99_ms": at(99) }));
    Ok(())
}
