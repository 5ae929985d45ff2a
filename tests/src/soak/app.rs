//! The applications at both ends: the one that dials says how much it will
//! send and wants back, and both hash what they get.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pilot_sdk::{Client, Stream};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use crate::harness::{Daemon, Pattern, drain, pour};

pub(super) const PORT: u16 = 1000;
/// Seed and length of what is wanted back.
const REQUEST: usize = 16;
const HASH: usize = 32;
/// Errors kept; further ones are mostly the same.
const ERRORS: usize = 20;
/// A connection is written in this many pieces over its life.
const PIECES: u32 = 8;
/// One connection in this many is dropped in the middle.
const ABANDONED: usize = 16;
/// Longest that a connection may stand still beyond its life.
const STILL: Duration = Duration::from_secs(45);

/// What happened so far.
#[derive(Debug, Default)]
pub(super) struct Counts {
    made: AtomicU64,
    whole: AtomicU64,
    abandoned: AtomicU64,
    bytes: AtomicU64,
    errors: Mutex<Vec<String>>,
}

impl Counts {
    pub(super) fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }

    pub(super) fn whole(&self) -> u64 {
        self.whole.load(Ordering::Relaxed)
    }

    pub(super) fn abandoned(&self) -> u64 {
        self.abandoned.load(Ordering::Relaxed)
    }

    /// Payload bytes that arrived and were right.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn errors(&self) -> Vec<String> {
        self.errors.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn fail(&self, error: String) {
        let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        if errors.len() < ERRORS {
            errors.push(error);
        }
    }
}

/// One connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Visit {
    seed: u64,
    up: u64,
    down: u64,
    life: Duration,
    abandon: bool,
}

impl Visit {
    pub(super) fn random(pattern: &mut Pattern, longest: Duration) -> Self {
        let size = |pattern: &mut Pattern| match pattern.below(8) {
            0 => 0,
            1..=5 => pattern.below(100_000),
            _ => pattern.below(1_000_000),
        } as u64;
        let permille = u32::try_from(pattern.below(1000)).unwrap_or(0);
        Self {
            seed: pattern.word(),
            up: size(pattern),
            down: size(pattern),
            life: longest * permille / 1000,
            abandon: pattern.below(ABANDONED) == 0,
        }
    }
}

/// Makes the connection, and counts how it went.
pub(super) async fn visit(client: Arc<Client>, target: String, visit: Visit, counts: Arc<Counts>) {
    counts.made.fetch_add(1, Ordering::Relaxed);
    let made = tokio::time::timeout(visit.life + STILL, talk(&client, &target, visit));
    match made.await {
        Ok(Ok(())) if visit.abandon => _ = counts.abandoned.fetch_add(1, Ordering::Relaxed),
        Ok(Ok(())) => {
            counts.whole.fetch_add(1, Ordering::Relaxed);
            counts.bytes.fetch_add(visit.up + visit.down, Ordering::Relaxed);
        }
        Ok(Err(error)) => counts.fail(format!("{visit:?}: {error:#}")),
        Err(_) => counts.fail(format!("{visit:?}: still not done after its life and {STILL:?}")),
    }
}

async fn talk(client: &Client, target: &str, visit: Visit) -> Result<()> {
    let stream = client.dial(target).await.context("dialling")?;
    let (mut read, mut write) = tokio::io::split(stream);
    let writer = async {
        write.write_all(&visit.seed.to_be_bytes()).await?;
        write.write_all(&visit.down.to_be_bytes()).await?;
        let mut hash = Sha256::new();
        let mut pattern = Pattern::new(!visit.seed);
        let pieces = if visit.abandon { PIECES / 2 } else { PIECES };
        for piece in 0..pieces {
            let (from, to) = (part(visit.up, piece), part(visit.up, piece + 1));
            let bytes = pattern.bytes(usize::try_from(to - from)?);
            hash.update(&bytes);
            write.write_all(&bytes).await?;
            write.flush().await?;
            tokio::time::sleep(visit.life / PIECES).await;
        }
        if !visit.abandon {
            write.shutdown().await?;
        }
        anyhow::Ok(hash.finalize())
    };
    if visit.abandon {
        // Nothing is read, and both halves are dropped with data under way.
        writer.await.context("writing")?;
        return Ok(());
    }
    let reader = async {
        let mut back = Vec::new();
        read.read_to_end(&mut back).await?;
        anyhow::Ok(back)
    };
    let (sent, back) = tokio::join!(writer, reader);
    let (sent, back) = (sent.context("writing")?, back.context("reading back")?);
    let wanted = pour(&mut tokio::io::sink(), visit.seed, visit.down).await?;
    let data = back.len().checked_sub(HASH).context("no hash came back")?;
    ensure!(data as u64 == visit.down, "{data} of {} bytes came back", visit.down);
    ensure!(Sha256::digest(&back[..data])[..] == wanted, "what came back is not what was sent");
    ensure!(back[data..] == sent[..], "what arrived is not what was sent");
    Ok(())
}

/// Where a piece begins.
fn part(len: u64, piece: u32) -> u64 {
    len * u64::from(piece) / u64::from(PIECES)
}

/// Sends back what it is asked for, and the hash of what it got.
pub(super) struct Server {
    task: JoinHandle<()>,
}

impl Server {
    pub(super) async fn start(daemon: &Daemon, counts: Arc<Counts>) -> Result<Self> {
        let client = daemon.client().await?;
        let listener = client.listen(PORT).await?;
        let task = tokio::spawn(async move {
            // The listener lives as long as the client it came from.
            let _client = client;
            loop {
                match listener.accept().await {
                    // An error here is one of the dialler's too, or it was
                    // abandoned.
                    Ok((stream, _)) => _ = tokio::spawn(serve(stream)),
                    Err(error) => return counts.fail(format!("accepting: {error}")),
                }
            }
        });
        Ok(Self { task })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(stream: Stream) -> Result<()> {
    let (mut read, mut write) = tokio::io::split(stream);
    let mut request = [0; REQUEST];
    read.read_exact(&mut request).await?;
    let [seed, down] = [0, 8].map(|at| {
        let mut number = [0; 8];
        number.copy_from_slice(&request[at..at + 8]);
        u64::from_be_bytes(number)
    });
    let (got, poured) = tokio::join!(drain(&mut read), pour(&mut write, seed, down));
    poured?;
    write.write_all(&got?.1).await?;
    write.shutdown().await?;
    Ok(())
}
