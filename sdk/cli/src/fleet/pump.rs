//! Many requests over some connections, some unanswered on each. What is asked
//! is [`Work`]'s business.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use pilot_tls::{Pin, Stream};
use pilot_wire::registry::{ErrorReply, FrameBuffer, FrameError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet, spawn_blocking};
use tokio::time::{sleep_until, timeout};

use super::measure::{Phase, Tally};
use crate::failure::Failure;
use crate::registry;

/// Frames of one batch.
const BATCH: u64 = 64;
/// Read at once.
const READ_SIZE: usize = 32 << 10;
/// How long nothing may come while something is unanswered, and how long
/// connecting may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is asked, and what becomes of the answers.
pub(crate) trait Work: Send + Sync + 'static {
    /// Appends the frame of a request. May take a while: keys and signatures
    /// are made here, on a thread of its own.
    fn request(&self, index: u64, out: &mut Vec<u8>) -> Result<(), FrameError>;

    /// Takes the answer to it, which is no refusal.
    fn answered(&self, index: u64, body: &[u8]) -> Result<(), Failure> {
        let _ = (index, body);
        Ok(())
    }
}

/// How requests are sent.
pub(super) struct Load {
    pub(super) name: &'static str,
    pub(super) registry: String,
    pub(super) pin: Option<Pin>,
    pub(super) connections: u32,
    pub(super) pipelined: u32,
    /// Requests a second at most, on all connections.
    pub(super) rate: Option<f64>,
    /// When sending ends.
    pub(super) until: Option<Instant>,
}

impl Load {
    /// Sends requests 0 to `count`, or as many as there is time for.
    pub(super) async fn run(
        self,
        work: Arc<dyn Work>,
        count: u64,
        bar: &ProgressBar,
    ) -> Result<Phase, Failure> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let connections = u64::from(self.connections).min(count.max(1));
        let name = self.name;
        let shared = Arc::new(Shared {
            load: self,
            work,
            makers: Semaphore::new(cores),
            count,
            connections,
        });
        let start = Instant::now();
        let mut tasks = JoinSet::new();
        for first in 0..connections {
            let lane = Lane::new(Arc::clone(&shared), first, start, bar.clone())?;
            tasks.spawn(lane.converse());
        }
        let mut all = Tally::new()?;
        while let Some(done) = tasks.join_next().await {
            let tally = done.map_err(|e| Failure::internal(format!("{name}: {e}")))??;
            all.add(&tally)?;
        }
        Ok(Phase::new(name, start.elapsed(), all))
    }
}

struct Shared {
    load: Load,
    work: Arc<dyn Work>,
    /// As many batches are made at a time as there are cores.
    makers: Semaphore,
    count: u64,
    connections: u64,
}

/// Frames one after the other, and where each ends.
struct Batch {
    bytes: Vec<u8>,
    ends: VecDeque<usize>,
    taken: usize,
}

impl Batch {
    fn next(&mut self, out: &mut Vec<u8>) -> bool {
        let Some(end) = self.ends.pop_front() else { return false };
        out.extend_from_slice(&self.bytes[self.taken..end]);
        self.taken = end;
        true
    }
}

type Making = JoinHandle<Result<Batch, FrameError>>;

/// One connection: every `connections`th request, beginning with `first`.
struct Lane {
    shared: Arc<Shared>,
    first: u64,
    /// Requests put into batches, and sent.
    made: u64,
    sent: u64,
    batch: Batch,
    ahead: Option<Making>,
    start: Instant,
    /// Unanswered: which, and since when.
    open: VecDeque<(u64, Instant)>,
    tally: Tally,
    bar: ProgressBar,
}

impl Lane {
    fn new(
        shared: Arc<Shared>,
        first: u64,
        start: Instant,
        bar: ProgressBar,
    ) -> Result<Self, Failure> {
        let batch = Batch { bytes: Vec::new(), ends: VecDeque::new(), taken: 0 };
        let (open, tally) = (VecDeque::new(), Tally::new()?);
        Ok(Self { shared, first, made: 0, sent: 0, batch, ahead: None, start, open, tally, bar })
    }

    async fn converse(mut self) -> Result<Tally, Failure> {
        let shared = Arc::clone(&self.shared);
        let load = &shared.load;
        let mut stream = connect(&load.registry, load.pin.as_ref()).await?;
        let mut frames = FrameBuffer::new();
        let mut out = Vec::new();
        loop {
            self.fill(&mut out).await?;
            if !out.is_empty() {
                send(&mut stream, &out).await.map_err(|e| broken(load, &e))?;
                out.clear();
            }
            if self.open.is_empty() && self.is_over() {
                return Ok(self.tally);
            }
            let due = self.due().filter(|_| self.has_room() && !self.is_over());
            let pause = sleep_until(due.unwrap_or_else(Instant::now).into());
            tokio::select! {
                // With nothing unanswered only the pause ends this.
                n = timeout(PATIENCE, stream.read_buf(frames.space(READ_SIZE))),
                    if !self.open.is_empty() => match n {
                    Ok(Ok(0)) => return Err(broken(load, &io::ErrorKind::UnexpectedEof.into())),
                    Ok(Ok(_)) => self.take(&mut frames)?,
                    Ok(Err(e)) => return Err(broken(load, &e)),
                    Err(_) => return Err(silent(load)),
                },
                () = pause, if due.is_some() => {}
            }
        }
    }

    /// The index of this lane's request.
    fn index(&self, n: u64) -> u64 {
        self.first + n * self.shared.connections
    }

    /// Whether nothing more is to be sent.
    fn is_over(&self) -> bool {
        self.index(self.sent) >= self.shared.count
            || self.shared.load.until.is_some_and(|end| Instant::now() >= end)
    }

    fn has_room(&self) -> bool {
        self.open.len() < self.shared.load.pipelined as usize
    }

    /// When the next request may be sent, if there is a rate.
    fn due(&self) -> Option<Instant> {
        let rate = self.shared.load.rate?;
        Some(self.start + Duration::from_secs_f64(self.index(self.sent) as f64 / rate))
    }

    /// Appends the requests that may be sent now.
    async fn fill(&mut self, out: &mut Vec<u8>) -> Result<(), Failure> {
        while self.has_room() && !self.is_over() {
            let (due, now) = (self.due(), Instant::now());
            if due.is_some_and(|due| due > now) {
                return Ok(());
            }
            while !self.batch.next(out) {
                let ahead = self.ahead.take();
                let making = ahead.unwrap_or_else(|| self.make());
                let made = making.await.map_err(|e| Failure::internal(e.to_string()))?;
                self.batch = made.map_err(|e| Failure::internal(e.to_string()))?;
                self.ahead = Some(self.make());
            }
            // A request that is sent late has waited since it was due.
            self.open.push_back((self.index(self.sent), due.unwrap_or(now)));
            self.sent += 1;
        }
        Ok(())
    }

    /// Begins with a batch.
    fn make(&mut self) -> Making {
        let from = self.made;
        self.made += BATCH;
        let (shared, first) = (Arc::clone(&self.shared), self.first);
        tokio::spawn(async move {
            // Never closed.
            let _turn = shared.makers.acquire().await;
            let batch = Arc::clone(&shared);
            let made = spawn_blocking(move || make_batch(&batch, first, from));
            made.await.unwrap_or(Err(FrameError::Unserialisable))
        })
    }

    /// Takes the answers that have come.
    fn take(&mut self, frames: &mut FrameBuffer) -> Result<(), Failure> {
        let garbled = |e: &dyn std::fmt::Display| {
            let at = &self.shared.load.registry;
            Failure::connection(format!("what listens on {at} is not a registry")).reason(e)
        };
        while let Some(body) = frames.next_body().map_err(|e| garbled(&e))? {
            let Some((index, since)) = self.open.pop_front() else {
                return Err(garbled(&"it answered more than was asked"));
            };
            self.tally.took(since.elapsed());
            if let Some(reply) = refusal(body) {
                if reply.code.as_deref() == Some("rate_limited") {
                    return Err(throttled(&self.shared.load.registry));
                }
                self.tally.refused(&reply);
            } else {
                self.shared.work.answered(index, body)?;
            }
            if self.shared.load.until.is_none() {
                self.bar.inc(1);
            }
        }
        if self.shared.load.until.is_some() {
            self.bar.set_position(self.start.elapsed().as_secs());
        }
        Ok(())
    }
}

fn make_batch(shared: &Shared, first: u64, from: u64) -> Result<Batch, FrameError> {
    let mut batch = Batch { bytes: Vec::new(), ends: VecDeque::new(), taken: 0 };
    for n in from..from + BATCH {
        let index = first + n * shared.connections;
        if index >= shared.count {
            break;
        }
        shared.work.request(index, &mut batch.bytes)?;
        batch.ends.push_back(batch.bytes.len());
    }
    Ok(batch)
}

/// A refusal, if it is one. The parser is only asked when the key is there.
pub(super) fn refusal(body: &[u8]) -> Option<ErrorReply> {
    const KEY: &[u8] = b"\"error\":";
    body.windows(KEY.len()).any(|w| w == KEY).then(|| serde_json::from_slice(body).ok())?
}

pub(super) async fn connect(address: &str, pin: Option<&Pin>) -> Result<Stream, Failure> {
    let late = || registry::unreachable(address).reason("it takes too long to connect");
    timeout(PATIENCE, registry::connect(address, pin)).await.unwrap_or_else(|_| Err(late()))
}

pub(super) async fn send(stream: &mut Stream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

fn broken(load: &Load, error: &io::Error) -> Failure {
    Failure::connection(format!("{}: the registry ended a connection", load.name))
        .reason(error)
        .hint("see its log, and whether -max-connections allows so many")
}

fn silent(load: &Load) -> Failure {
    Failure::timeout(format!("{}: no answer within {} s", load.name, PATIENCE.as_secs()))
        .hint("see the registry's log, or ask with fewer --connections and --pipelined")
}

pub(super) fn throttled(address: &str) -> Failure {
    Failure::connection(format!("the registry at {address} lets few nodes register a minute"))
        .reason("rate_limited")
        .hint("start it with -register-rate 0 for this")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_from_an_answer() {
        let body = br#"{"type":"error","error":"request failed","code":"private"}"#;
        assert_eq!(refusal(body).expect("a refusal").code.as_deref(), Some("private"));
        assert_eq!(refusal(br#"{"type":"register_ok","hostname_error":"taken"}"#), None);
    }
}
