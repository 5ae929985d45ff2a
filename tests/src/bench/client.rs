//! The client application: one workload, its figures as one line of JSON.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use super::server::{DATAGRAM_PORT, DATAGRAMS, IDLE, ONE_BYTE, PING, SINK, SINK_HASHED};
use super::transport::{Connector, Others, Stream, now};

/// Bytes of each write.
const WRITE: usize = 64 << 10;

/// Runs `WORKLOAD` against a place: `client PLACE... WORKLOAD NUMBERS...`.
pub(super) async fn run(args: &[&str], others: Others<'_>) -> Result<()> {
    let (to, rest) = Connector::new(args, others).await?;
    let [workload, numbers @ ..] = rest else { bail!("no workload") };
    let numbers: Vec<u64> = numbers.iter().map(|n| n.parse()).collect::<Result<_, _>>()?;
    let answer = match (*workload, numbers.as_slice()) {
        ("oneway", [bytes, streams]) => oneway(&to, *bytes, *streams).await?,
        ("verify", [bytes]) => verify(&to, *bytes).await?,
        ("echo", [bytes, port]) => echo(&to, *bytes, *port).await?,
        ("queries", [count]) => queries(&to, *count).await?,
        ("burst", [bytes, rounds]) => burst(&to, *bytes, *rounds).await?,
        ("pingpong", [rounds]) => ping_pong(&to, *rounds).await?,
        ("dials", [count, at_once]) => dials(&to, *count, *at_once).await?,
        ("idle", [count]) => return idle(&to, *count).await,
        ("timed", [millis]) => {
            super::timed::give(&to, *millis).await?;
            return to.close().await;
        }
        ("datagrams", [count]) => datagrams(&to, *count).await?,
        _ => bail!("unknown workload {workload} {numbers:?}"),
    };
    println!("{answer}");
    to.close().await
}

/// Bytes that neither repeat within a megabyte nor compress.
pub(super) fn pattern(len: usize) -> Vec<u8> {
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Writes `len` bytes of `pattern`, over and over, in writes of [`WRITE`].
pub(super) async fn pour(
    stream: &mut (impl AsyncWriteExt + Unpin),
    pattern: &[u8],
    len: u64,
) -> Result<()> {
    let mut left = len;
    for part in pattern.chunks(WRITE).cycle() {
        if left == 0 {
            break;
        }
        let part = &part[..usize::try_from(left).map_or(part.len(), |l| l.min(part.len()))];
        stream.write_all(part).await?;
        left -= part.len() as u64;
    }
    stream.flush().await?;
    Ok(())
}

/// One stream into the sink; when it started and when its last byte was read.
async fn one(to: &Connector, pattern: &[u8], bytes: u64) -> Result<(Duration, Duration)> {
    let mut stream = to.connect().await?;
    stream.write_u8(SINK).await?;
    stream.write_u64(bytes).await?;
    stream.flush().await?;
    let start = now();
    pour(&mut stream, pattern, bytes).await?;
    let end = Duration::from_nanos(stream.read_u64().await?);
    Ok((start, end))
}

async fn oneway(to: &Connector, bytes: u64, streams: u64) -> Result<serde_json::Value> {
    let pattern: Arc<[u8]> = pattern(1 << 20).into();
    let mut tasks = JoinSet::new();
    for _ in 0..streams {
        let (to, pattern) = (to.clone(), pattern.clone());
        tasks.spawn(async move { one(&to, &pattern, bytes / streams).await });
    }
    let (mut start, mut end) = (Duration::MAX, Duration::ZERO);
    while let Some(done) = tasks.join_next().await {
        let (s, e) = done??;
        start = start.min(s);
        end = end.max(e);
    }
    Ok(json!({ "seconds": end.saturating_sub(start).as_secs_f64(), "bytes": bytes }))
}

/// The separate run that checks the content.
async fn verify(to: &Connector, bytes: u64) -> Result<serde_json::Value> {
    let pattern = pattern(1 << 20);
    let mut stream = to.connect().await?;
    stream.write_u8(SINK_HASHED).await?;
    stream.write_u64(bytes).await?;
    pour(&mut stream, &pattern, bytes).await?;
    stream.read_u64().await?;
    let mut theirs = [0; 32];
    stream.read_exact(&mut theirs).await?;
    let mut hash = Sha256::new();
    let mut left = bytes;
    while left > 0 {
        let n = left.min(pattern.len() as u64);
        hash.update(&pattern[..usize::try_from(n)?]);
        left -= n;
    }
    ensure!(theirs[..] == hash.finalize()[..], "the content arrived changed");
    Ok(json!({ "bytes": bytes }))
}

/// Through the echo port and back, both directions at once.
async fn echo(to: &Connector, bytes: u64, port: u64) -> Result<serde_json::Value> {
    let (client, target) = to.pilot()?;
    let address = target.rsplit_once(':').context("target without a port")?.0;
    let stream = client.dial(&format!("{address}:{port}")).await?;
    let (mut read, mut write) = tokio::io::split(stream);
    let start = Instant::now();
    let writer = tokio::spawn(async move {
        pour(&mut write, &pattern(1 << 20), bytes).await?;
        write.shutdown().await?;
        anyhow::Ok(())
    });
    let mut buffer = vec![0; 256 << 10];
    let mut back = 0;
    loop {
        match read.read(&mut buffer).await? {
            0 => break,
            n => back += n as u64,
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    writer.await??;
    ensure!(back == bytes, "{back} of {bytes} bytes came back");
    Ok(json!({ "seconds": seconds, "bytes": bytes }))
}

/// Names that a nameserver is asked for, one a line, without waiting for answers.
async fn queries(to: &Connector, count: u64) -> Result<serde_json::Value> {
    let (client, target) = to.pilot()?;
    let address = target.rsplit_once(':').context("target without a port")?.0;
    let own = client.info().await?.address;
    let stream = client.dial(&format!("{address}:53")).await?;
    let (read, mut write) = tokio::io::split(stream);
    let mut read = tokio::io::BufReader::with_capacity(256 << 10, read);
    write.write_all(format!("REGISTER A bench {own}\n").as_bytes()).await?;
    let mut line = String::new();
    read.read_line(&mut line).await?;
    ensure!(line.trim_end() == "OK", "the nameserver said {line:?}");
    let expected = format!("A bench {own}\n");
    let start = Instant::now();
    let writer = tokio::spawn(async move {
        let many = "QUERY A bench\n".repeat(4096);
        let one = many.len() / 4096;
        let mut left = count;
        while left > 0 {
            let now = left.min(4096);
            write.write_all(&many.as_bytes()[..usize::try_from(now)? * one]).await?;
            left -= now;
        }
        write.shutdown().await?;
        anyhow::Ok(())
    });
    for _ in 0..count {
        line.clear();
        read.read_line(&mut line).await?;
        ensure!(line == expected, "the nameserver said {line:?}");
    }
    let per_s = count as f64 / start.elapsed().as_secs_f64();
    writer.await??;
    Ok(json!({ "per_s": per_s }))
}

/// A new stream for each burst, opened before the clock starts.
async fn burst(to: &Connector, bytes: u64, rounds: u64) -> Result<serde_json::Value> {
    let payload = pattern(usize::try_from(bytes)?);
    let hash = Sha256::digest(&payload);
    let mut rates = Vec::new();
    for _ in 0..rounds {
        let mut stream = to.connect().await?;
        stream.write_u8(SINK_HASHED).await?;
        stream.write_u64(bytes).await?;
        stream.flush().await?;
        let start = now();
        stream.write_all(&payload).await?;
        stream.flush().await?;
        let end = Duration::from_nanos(stream.read_u64().await?);
        let mut theirs = [0; 32];
        stream.read_exact(&mut theirs).await?;
        ensure!(theirs[..] == hash[..], "the content arrived changed");
        rates.push(bytes as f64 / 1e6 / end.saturating_sub(start).as_secs_f64());
    }
    Ok(json!({ "mb_per_s": super::report::median(&mut rates) }))
}

async fn ping_pong(to: &Connector, rounds: u64) -> Result<serde_json::Value> {
    let mut stream = to.connect().await?;
    stream.write_u8(PING).await?;
    let mut buffer = [7; 64];
    let mut times = Vec::with_capacity(usize::try_from(rounds)?);
    // The first tenth warms up and is not counted.
    for round in 0..rounds + rounds / 10 {
        let start = Instant::now();
        stream.write_all(&buffer).await?;
        stream.flush().await?;
        stream.read_exact(&mut buffer).await?;
        if round >= rounds / 10 {
            times.push(start.elapsed());
        }
    }
    times.sort_unstable();
    let at = |percent: usize| {
        let index = (times.len() * percent / 100).min(times.len().saturating_sub(1));
        times.get(index).map_or(0.0, |t| t.as_secs_f64() * 1e6)
    };
    Ok(json!({ "p50_us": at(50), "p99_us": at(99) }))
}

async fn one_byte_each_way(to: &Connector) -> Result<()> {
    let mut stream = to.connect().await?;
    stream.write_u8(ONE_BYTE).await?;
    stream.flush().await?;
    let answer = stream.read_u8().await?;
    ensure!(answer == ONE_BYTE, "unexpected answer");
    stream.shutdown().await?;
    Ok(())
}

async fn dials(to: &Connector, count: u64, at_once: u64) -> Result<serde_json::Value> {
    let left = Arc::new(AtomicUsize::new(usize::try_from(count)?));
    one_byte_each_way(to).await?;
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..at_once {
        let (to, left) = (to.clone(), left.clone());
        tasks.spawn(async move {
            while left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
                .is_ok()
            {
                one_byte_each_way(&to).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(json!({ "per_second": count as f64 / start.elapsed().as_secs_f64() }))
}

/// Opens `count` streams and holds them until killed.
async fn idle(to: &Connector, count: u64) -> Result<()> {
    let mut open: Vec<Stream> = Vec::with_capacity(usize::try_from(count)?);
    let mut tasks = JoinSet::new();
    for started in 0..count {
        let to = to.clone();
        tasks.spawn(async move {
            let mut stream = to.connect().await?;
            stream.write_u8(IDLE).await?;
            stream.flush().await?;
            anyhow::Ok(stream)
        });
        if started >= 64
            && let Some(done) = tasks.join_next().await
        {
            open.push(done??);
        }
    }
    while let Some(done) = tasks.join_next().await {
        open.push(done??);
    }
    println!("{}", json!({ "ready": "idle", "open": open.len() }));
    std::future::pending::<()>().await;
    Ok(())
}

async fn datagrams(to: &Connector, count: u64) -> Result<serde_json::Value> {
    let (client, target) = to.pilot()?;
    let address = target.rsplit_once(':').context("target without a port")?.0;
    let place = format!("{address}:{DATAGRAM_PORT}");
    let payload = pattern(64);
    for n in 0..count {
        client.send_datagram(&place, &payload).await?;
        if n % 64 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let mut stream = to.connect().await?;
    stream.write_u8(DATAGRAMS).await?;
    stream.flush().await?;
    let delivered = stream.read_u64().await?;
    let seconds = Duration::from_nanos(stream.read_u64().await?).as_secs_f64();
    ensure!(delivered > 1, "no datagram arrived");
    Ok(json!({ "per_second": delivered as f64 / seconds, "delivered": delivered, "sent": count }))
}
