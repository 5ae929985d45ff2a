//! The data: sent in blocks, echoed, compared. Both directions at once, since
//! an echo that nobody reads stops the sender.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use pilot_sdk::{Address, ReadHalf, WriteHalf};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

use crate::failure::Failure;
use crate::peer;

/// Bytes of one write.
const BLOCK: usize = 64 * 1024;

/// How much is sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Amount {
    Bytes(u64),
    Time(Duration),
}

/// How far it is. Written by the transfer, read by whoever watches.
pub(super) struct Progress {
    pub(super) start: Instant,
    amount: Amount,
    sent: AtomicU64,
    received: AtomicU64,
    /// Everything was sent; [`Self::sent`] is final.
    complete: AtomicBool,
    /// That became so.
    completed: Notify,
}

/// Since the start until everything was sent, and until it was back.
pub(super) struct Times {
    pub(super) sent: Duration,
    pub(super) total: Duration,
}

impl Progress {
    pub(super) fn new(amount: Amount) -> Self {
        Self {
            start: Instant::now(),
            amount,
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            complete: AtomicBool::new(false),
            completed: Notify::new(),
        }
    }

    pub(super) fn amount(&self) -> Amount {
        self.amount
    }

    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    pub(super) fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }

    /// What is to come back, once that is known.
    pub(super) fn total(&self) -> Option<u64> {
        match self.amount {
            Amount::Bytes(size) => Some(size),
            Amount::Time(_) => self.complete.load(Relaxed).then(|| self.sent()),
        }
    }

    /// Bytes that may still be sent now, at most a block.
    fn next(&self) -> usize {
        match self.amount {
            Amount::Bytes(size) => {
                usize::try_from(size - self.sent()).unwrap_or(usize::MAX).min(BLOCK)
            }
            Amount::Time(limit) if self.start.elapsed() < limit => BLOCK,
            Amount::Time(_) => 0,
        }
    }
}

/// Moves everything there and back.
///
/// # Errors
/// When the stream breaks, or what comes back is not what was sent.
pub(super) async fn both(
    read: &mut ReadHalf,
    write: &mut WriteHalf,
    progress: &Progress,
    address: Address,
) -> Result<Times, Failure> {
    // Neither is ended here: a peer of the published protocol would take the end
    // of one for the end of both.
    let (sent, ()) =
        tokio::try_join!(send(write, progress, address), receive(read, progress, address))?;
    Ok(Times { sent, total: progress.start.elapsed() })
}

/// A block that does not repeat within itself.
fn block() -> Vec<u8> {
    let byte = |i: u32| i.wrapping_mul(0x9E37_79B1).to_be_bytes()[0];
    (0..BLOCK as u32).map(byte).collect()
}

/// Gives the time until everything was written.
async fn send(
    to: &mut WriteHalf,
    progress: &Progress,
    address: Address,
) -> Result<Duration, Failure> {
    let block = block();
    loop {
        let len = progress.next();
        if len == 0 {
            break;
        }
        let written = to.write_all(&block[..len]).await;
        written.map_err(|e| peer::broken(address, "sending to", &e))?;
        progress.sent.fetch_add(len as u64, Relaxed);
    }
    to.flush().await.map_err(|e| peer::broken(address, "sending to", &e))?;
    progress.complete.store(true, Relaxed);
    progress.completed.notify_one();
    Ok(progress.start.elapsed())
}

async fn receive(
    from: &mut ReadHalf,
    progress: &Progress,
    address: Address,
) -> Result<(), Failure> {
    let expected = block();
    let mut buffer = vec![0; BLOCK];
    loop {
        let received = progress.received();
        if progress.total().is_some_and(|total| received >= total) {
            return Ok(());
        }
        // The rest of the current block, so that blocks compare as a whole.
        let at = usize::try_from(received % BLOCK as u64).unwrap_or(0);
        let n = tokio::select! {
            n = from.read(&mut buffer[..BLOCK - at]) => n,
            // Nothing may be left to come.
            () = progress.completed.notified() => continue,
        };
        let n = n.map_err(|e| peer::broken(address, "hearing from", &e))?;
        if n == 0 {
            let sent = progress.total().unwrap_or(progress.sent());
            return Err(Failure::connection(format!(
                "{address} closed after echoing {received} of {sent} bytes"
            )));
        }
        if buffer[..n] != expected[at..at + n] {
            return Err(Failure::internal(format!(
                "the echo of {address} differs from what was sent, near byte {received}"
            )));
        }
        progress.received.fetch_add(n as u64, Relaxed);
    }
}
