//! How the journal and its sinks stand, for `pilotctl` and tests.

use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;

use crate::events::Timestamp;

/// How the journal stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct JournalStatus {
    /// Why nothing can be written now, with the file; absent when all is well.
    /// Events wait in memory meanwhile, and are counted as lost beyond its bound.
    pub failing: Option<String>,
    /// When it began to fail, RFC 3339.
    pub failing_since: Option<String>,
    /// The number of the next event.
    pub next_event_id: u64,
    /// Events emitted since the start.
    pub emitted: u64,
    /// Events since the start that found no room in memory.
    pub lost: u64,
    /// Events in memory, not yet on disk.
    pub in_memory: u64,
    /// Where a damaged database was moved to since the start.
    pub moved_aside: Option<PathBuf>,
    /// The sinks, in the order of their names.
    pub sinks: Vec<SinkStatus>,
    /// Of the emitted, those that are on disk or for nobody.
    #[serde(skip)]
    pub(super) settled: u64,
}

/// What a sink is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SinkState {
    /// Nothing waits.
    Idle,
    /// Events are gathered for a batch.
    Gathering,
    /// It has a batch.
    Delivering,
    /// It failed, and is tried again later.
    BackingOff,
    /// Nobody delivers; events are kept.
    #[default]
    Detached,
}

/// How a sink stands. Counts are since the start of this process.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SinkStatus {
    /// Its name.
    pub sink: String,
    /// What it is doing.
    pub state: SinkState,
    /// Whether it failed several times in a row and has not recovered.
    pub failing: bool,
    /// Events that wait for it, on disk or about to be.
    pub waiting: u64,
    /// Their bytes.
    pub waiting_bytes: u64,
    /// Age of the oldest of them, in milliseconds.
    pub oldest_ms: Option<u64>,
    /// The last failure.
    pub last_error: Option<String>,
    /// When it was, RFC 3339.
    pub last_error_at: Option<String>,
    /// Failed attempts of the batch that is next.
    pub attempts: u64,
    /// When it is tried again, in milliseconds.
    pub retry_in_ms: Option<u64>,
    /// Events that it took.
    pub delivered: u64,
    /// Events that were dropped for it.
    pub dropped: u64,
    /// Events that it refused or that were given up.
    pub rejected: u64,
    #[serde(skip)]
    pub(super) slot: u64,
    #[serde(skip)]
    pub(super) oldest_at: Option<u64>,
    #[serde(skip)]
    pub(super) retry_at: Option<Instant>,
}

/// What the journal's thread last said.
pub(super) type Published = JournalStatus;

impl SinkStatus {
    /// With what depends on the time.
    pub(super) fn at(mut self, now: Instant, time: Timestamp) -> Self {
        let millis =
            |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        self.oldest_ms = self.oldest_at.map(|at| time.0.saturating_sub(at) / 1_000_000);
        self.retry_in_ms = self.retry_at.map(|at| millis(at.saturating_duration_since(now)));
        self
    }
}
