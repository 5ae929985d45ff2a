//! `bench`: how fast data goes to a peer's echo port and back.

use std::time::{Duration, Instant};

use pilot_sdk::{Address, ReadHalf, WriteHalf};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::args::{Args, number};
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::Answer;
use crate::spec::{Flag, Spec};
use crate::{peer, progress};

pub(crate) const SPEC: Spec = Spec {
    name: "bench",
    usage: "bench <address|hostname> [size_mb] [--timeout <dur>]",
    about: "Measure the throughput to a peer's echo port and back",
    returns: "target, sent_bytes, recv_bytes, send_duration_ms, total_duration_ms, send_mbps, total_mbps (MiB/s)",
    flags: &[Flag::value("timeout", "dur", "for everything, default 120s")],
    positionals: (1, 2),
    run: |cx, args| Box::pin(run(cx, args)),
};

/// The echo port.
const PORT: u16 = 7;
/// Bytes of one write.
const BLOCK: usize = 64 * 1024;
const MIB: f64 = 1_048_576.0;

async fn run(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let size_mb: f64 = args.get(1).map_or(Ok(1.0), |text| number("size_mb", text))?;
    if !size_mb.is_finite() || size_mb <= 0.0 || size_mb > 1e9 {
        return Err(Failure::invalid(format!("invalid size_mb \"{size_mb}\""))
            .hint("write a number of MiB above 0, like 100 or 0.5"));
    }
    // Within f64's exact integers, as checked above.
    let size = (size_mb * MIB) as u64;
    let patience = args.duration("timeout", Duration::from_secs(120))?;
    let client = cx.client().await?;
    let address = peer::resolve(cx, &client, args.at(0)?).await?;
    let stream = peer::dial(&client, address, PORT).await?;
    let bar = progress::bar(&cx.out, "echo", size);
    let (read, mut write) = stream.into_split();
    let start = Instant::now();
    // Both directions at once: an echo that nobody reads stops the sender.
    let both = async {
        tokio::try_join!(send(&mut write, size, start, address), receive(read, size, &bar, address))
    };
    let result = timeout(patience, both).await;
    let total = start.elapsed();
    let received = bar.position();
    bar.finish_and_clear();
    let sent_in = match result {
        Ok(Ok((sent_in, ()))) => sent_in,
        Ok(Err(failure)) => return Err(failure),
        Err(_) => {
            return Err(Failure::timeout(format!(
                "{address} echoed {received} of {size} bytes within {} s",
                patience.as_secs_f64()
            ))
            .hint(format!("increase with --timeout, or check peer: pilotctl ping {address}")));
        }
    };
    let rate = |duration: Duration| size as f64 / MIB / duration.as_secs_f64().max(1e-9);
    let data = json!({
        "target": address,
        "sent_bytes": size,
        "recv_bytes": received,
        "send_duration_ms": milliseconds(sent_in),
        "total_duration_ms": milliseconds(total),
        "send_mbps": rate(sent_in),
        "total_mbps": rate(total),
    });
    let text = cx.out.fields(&[
        (
            "sent",
            format!("{size} bytes in {:.3} s, {:.1} MiB/s", sent_in.as_secs_f64(), rate(sent_in)),
        ),
        (
            "echoed",
            format!("{received} bytes in {:.3} s, {:.1} MiB/s", total.as_secs_f64(), rate(total)),
        ),
    ]);
    Ok(Answer::new(data, text))
}

/// A block that does not repeat within itself.
fn block() -> Vec<u8> {
    let byte = |i: u32| i.wrapping_mul(0x9E37_79B1).to_be_bytes()[0];
    (0..BLOCK as u32).map(byte).collect()
}

/// Gives the time until everything was written. The stream stays open: a peer
/// of the published protocol would take its end for the end of both sides.
async fn send(
    to: &mut WriteHalf,
    size: u64,
    start: Instant,
    address: Address,
) -> Result<Duration, Failure> {
    let block = block();
    let mut left = size;
    while left > 0 {
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(BLOCK);
        let written = to.write_all(&block[..len]).await;
        written.map_err(|e| peer::broken(address, "sending to", &e))?;
        left -= len as u64;
    }
    to.flush().await.map_err(|e| peer::broken(address, "sending to", &e))?;
    Ok(start.elapsed())
}

async fn receive(
    mut from: ReadHalf,
    size: u64,
    bar: &indicatif::ProgressBar,
    address: Address,
) -> Result<(), Failure> {
    let expected = block();
    let mut buffer = vec![0; BLOCK];
    let mut received = 0u64;
    while received < size {
        // The rest of the current block, so that blocks compare as a whole.
        let at = usize::try_from(received % BLOCK as u64).unwrap_or(0);
        let n = from.read(&mut buffer[..BLOCK - at]).await;
        let n = n.map_err(|e| peer::broken(address, "hearing from", &e))?;
        if n == 0 {
            return Err(Failure::connection(format!(
                "{address} closed after echoing {received} of {size} bytes"
            )));
        }
        if buffer[..n] != expected[at..at + n] {
            return Err(Failure::internal(format!(
                "the echo of {address} differs from what was sent, near byte {received}"
            )));
        }
        received += n as u64;
        bar.inc(n as u64);
    }
    Ok(())
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
