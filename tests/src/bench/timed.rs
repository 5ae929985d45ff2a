//! One stream written as fast as it goes for a window: the programs on both
//! sides, and what they say arrived when. There is one such measurement for
//! every transport.

use std::io::BufRead;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::client::{pattern, pour};
use super::server::TIMED;
use super::transport::{Connector, Stream, now};

/// What is received is noted in spans of this.
pub(super) const BUCKET: Duration = Duration::from_millis(10);
/// What was inside the path when the MTU dropped has come out after this:
/// queue and delay, and a little for late wake-ups.
const DRAINED: Duration = Duration::from_millis(60);
/// Goodput is compared over this.
const COMPARED: Duration = Duration::from_millis(100);
/// What lets the client begin.
pub(super) const GO: &str = "go";

/// What arrived when.
#[derive(Debug)]
pub(super) struct Received {
    /// When the first byte was written, since the Unix epoch.
    pub(super) start: Duration,
    /// Bytes in each [`BUCKET`] since.
    pub(super) buckets: Vec<u64>,
}

impl Received {
    pub(super) fn parse(line: &Value) -> Result<Self> {
        let start = line["start"].as_u64().context("no start")?;
        let buckets = line["buckets"].as_array().context("no buckets")?;
        let buckets = buckets.iter().map(|b| b.as_u64().context("not a count of bytes"));
        let buckets = buckets.collect::<Result<_>>()?;
        Ok(Self { start: Duration::from_nanos(start), buckets })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// From a change at `at` until the end of the first [`COMPARED`] span, none
    /// of it from before the change, with half of the goodput that was before.
    pub(super) fn recovery(&self, at: Duration) -> Option<Duration> {
        let index = |d: Duration| (d.as_nanos() / BUCKET.as_nanos()) as usize;
        let (change, compared) = (index(at), index(COMPARED));
        // Over a second, so that one wave of the window does not decide.
        let past = &self.buckets.get(change.saturating_sub(100)..change)?;
        let usual = past.iter().sum::<u64>() as f64 / past.len().max(1) as f64;
        let first = change + 1 + index(DRAINED);
        let after = self.buckets.get(first..)?;
        let enough =
            |span: &[u64]| span.iter().sum::<u64>() as f64 >= usual * compared as f64 / 2.0;
        let found = after.windows(compared).position(enough)?;
        let end = BUCKET * u32::try_from(first + found + compared).ok()?;
        Some(end.saturating_sub(at))
    }
}

/// The client's side: says when the path is known, waits until told to go, then
/// writes until the window ends.
pub(super) async fn give(to: &Connector, millis: u64) -> Result<()> {
    let data = pattern(1 << 20);
    to.settled().await?;
    println!("{}", json!({ "ready": "timed" }));
    told_to_go().await?;
    let mut stream = to.connect().await?;
    stream.write_u8(TIMED).await?;
    stream.write_u64(millis).await?;
    let start = now();
    stream.write_u64(u64::try_from(start.as_nanos())?).await?;
    let window = Duration::from_millis(millis);
    match tokio::time::timeout(window, pour(&mut stream, &data, u64::MAX)).await {
        Ok(Err(error)) => Err(error),
        Ok(Ok(())) => bail!("wrote all there is"),
        Err(_) => Ok(()),
    }
}

/// Elsewhere than on the runtime, which goes on with what the transport does.
async fn told_to_go() -> Result<()> {
    let line = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line).map(|_| line)
    });
    let line = line.await?.context("cannot read standard input")?;
    ensure!(line.trim() == GO, "told {line:?} instead of {GO:?}");
    Ok(())
}

/// The server's side: takes what comes until the window ends and prints it. Not
/// through the stream, whose path is what is measured.
pub(super) async fn take(stream: &mut Stream) -> Result<()> {
    let window = Duration::from_millis(stream.read_u64().await?);
    let start = Duration::from_nanos(stream.read_u64().await?);
    let count = usize::try_from(window.as_nanos() / BUCKET.as_nanos())?;
    let mut buckets = vec![0u64; count];
    let mut buffer = vec![0; 256 << 10];
    loop {
        let left = (start + window).saturating_sub(now());
        if left.is_zero() {
            break;
        }
        // A stream that has ended or stands still gives what came so far.
        let Ok(read) = tokio::time::timeout(left, stream.read(&mut buffer)).await else { break };
        let n = read?;
        if n == 0 {
            break;
        }
        let index = now().saturating_sub(start).as_nanos() / BUCKET.as_nanos();
        if let Some(bucket) = usize::try_from(index).ok().and_then(|i| buckets.get_mut(i)) {
            *bucket += n as u64;
        }
    }
    println!("{}", json!({ "start": u64::try_from(start.as_nanos())?, "buckets": buckets }));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goodput of 1,000 bytes a bucket, with `gap` (buckets) after `at` in
    /// which nothing comes, and `then` bytes a bucket after it.
    fn received(at: usize, gap: usize, then: u64) -> Received {
        let mut buckets = vec![1000; at];
        buckets.extend(vec![0; gap]);
        buckets.extend(vec![then; 1000]);
        Received { start: Duration::ZERO, buckets }
    }

    #[test]
    fn recovery_ends_with_half_of_the_goodput() {
        let at = BUCKET * 300;
        // Half of a span at the old rate is enough.
        let back = received(300, 100, 1000).recovery(at).unwrap();
        assert_eq!(back, Duration::from_millis(1050));
        let back = received(300, 100, 500).recovery(at).unwrap();
        assert_eq!(back, Duration::from_millis(1100));
        assert_eq!(received(300, 100, 499).recovery(at), None);
    }

    #[test]
    fn what_was_under_way_is_no_recovery() {
        let mut received = received(300, 100, 1000);
        // Five more buckets come out of the path after the change.
        received.buckets[300..305].fill(5000);
        let back = received.recovery(BUCKET * 300).unwrap();
        assert_eq!(back, Duration::from_millis(1050));
    }

    #[test]
    fn no_outage_is_a_short_recovery() {
        let back = received(300, 0, 1000).recovery(BUCKET * 300).unwrap();
        assert_eq!(back, BUCKET + DRAINED + COMPARED);
    }

    #[test]
    fn a_report_is_read_back() {
        let line = json!({ "start": 5, "buckets": [1, 2] });
        let received = Received::parse(&line).unwrap();
        assert_eq!((received.start, received.bytes()), (Duration::from_nanos(5), 3));
        assert!(Received::parse(&json!({ "start": 5 })).is_err());
    }
}
