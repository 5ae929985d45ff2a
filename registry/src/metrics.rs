//! What the registry counts. Counting is a few additions to memory that hardly
//! any other thread writes to; whoever wants sums adds up. Knows nothing of
//! who asks for them, and of no request's content.

mod histogram;
mod meter;
mod text;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

pub(crate) use histogram::Histogram;
pub(crate) use meter::{Kind, Meter};
pub(crate) use text::{Gauge, render};

use meter::Requests;

/// Bounds of durations of the store, in seconds.
const STORE_SECONDS: [f64; 12] =
    [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 10.0];
/// Bounds of the number of commands in a batch.
const BATCH: [f64; 8] = [1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 8192.0];

/// All counts of one registry.
#[derive(Debug)]
pub(crate) struct Metrics {
    started: Instant,
    requests: Requests,
    /// Connections of the registry's own port.
    pub(crate) connections: Connections,
    /// What the writer does.
    pub(crate) store: Store,
    /// What the administration answers.
    pub(crate) admin: Admin,
}

/// Counts of connections.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    /// Open now.
    pub(crate) open: AtomicU64,
    /// Accepted since the start.
    pub(crate) accepted: AtomicU64,
    /// Closed at once, as there were too many.
    pub(crate) refused: AtomicU64,
    /// Batches of news sent on sessions.
    pub(crate) pushes: AtomicU64,
    /// TLS handshakes that came to nothing.
    pub(crate) failed_handshakes: AtomicU64,
}

/// Counts of the administration.
#[derive(Debug, Default)]
pub(crate) struct Admin {
    /// Requests answered, by the first digit of the status.
    pub(crate) answers: [AtomicU64; 6],
    /// Wrong tokens and certificates.
    pub(crate) denied: AtomicU64,
    /// Listeners of live events that were dropped as too slow.
    pub(crate) slow: AtomicU64,
}

/// Counts of the writer.
#[derive(Debug)]
pub(crate) struct Store {
    batch: Histogram<8>,
    commit: Histogram<12>,
    checkpoint: Histogram<12>,
    errors: AtomicU64,
    failing: AtomicBool,
    /// Why; looked at only while it fails.
    reason: Mutex<String>,
    log: AtomicU64,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            requests: Requests::default(),
            connections: Connections::default(),
            store: Store {
                batch: Histogram::new(BATCH),
                commit: Histogram::new(STORE_SECONDS),
                checkpoint: Histogram::new(STORE_SECONDS),
                errors: AtomicU64::new(0),
                failing: AtomicBool::new(false),
                reason: Mutex::default(),
                log: AtomicU64::new(0),
            },
            admin: Admin::default(),
        }
    }
}

impl Metrics {
    /// Time since the start.
    pub(crate) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Requests answered since the start.
    pub(crate) fn total_requests(&self) -> u64 {
        Kind::all().map(|kind| self.requests.total(kind).count).sum()
    }

    /// Requests of this type that succeeded since the start.
    pub(crate) fn succeeded(&self, kind: &str) -> u64 {
        let total = self.requests.total(Kind::of(kind));
        total.count.saturating_sub(total.errors)
    }

    pub(crate) const fn requests(&self) -> &Requests {
        &self.requests
    }
}

impl Store {
    /// Commands are durable, or not because of `error`.
    pub(crate) fn committed(
        &self,
        commands: usize,
        took: Duration,
        error: Option<&dyn std::fmt::Display>,
    ) {
        self.health(error);
        if error.is_none() {
            self.batch.observe(commands as f64);
            self.commit.observe(took.as_secs_f64());
            self.log.fetch_add(commands as u64, Relaxed);
        }
    }

    /// The log was shortened, or not because of `error`.
    pub(crate) fn checkpointed(&self, took: Duration, error: Option<&dyn std::fmt::Display>) {
        self.health(error);
        if error.is_none() {
            self.checkpoint.observe(took.as_secs_f64());
            self.log.store(0, Relaxed);
        }
    }

    /// Why the last write failed; none when it did not.
    pub(crate) fn failing(&self) -> Option<String> {
        self.failing
            .load(Relaxed)
            .then(|| self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    fn health(&self, error: Option<&dyn std::fmt::Display>) {
        match error {
            None => {
                if self.failing.load(Relaxed) {
                    self.failing.store(false, Relaxed);
                }
            }
            Some(error) => {
                *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = error.to_string();
                self.failing.store(true, Relaxed);
                self.errors.fetch_add(1, Relaxed);
            }
        }
    }
}
