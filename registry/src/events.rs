//! Where the registry says what happens: a journal on disk, from which sinks of
//! plugins take it. Saying something never waits, and costs a look at a flag
//! while there is no sink and no listener. What commands mean as events is in `effects`.

mod effects;
mod live;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pilot_host::events::Happening;
use pilot_host::journal::{Journal, JournalError, JournalLimits};
use pilot_host::{Deliver, SinkHandle, Sinks};
use serde_json::Value;

pub(crate) use effects::Before;
pub(crate) use live::Live;

/// Refusals of one code that become events in a second; what is refused beyond
/// it is in the `count` of the next one.
const REFUSALS: u32 = 10;
/// Longest wait for the journal to write its rest at the end.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// A way to say what happens. Cheap to clone; by default nobody listens.
#[derive(Clone, Default)]
pub(crate) struct Events {
    log: Option<Arc<Log>>,
    live: Live,
    /// By code, of which there are few.
    refusals: Arc<Mutex<BTreeMap<&'static str, Told>>>,
}

struct Log {
    journal: Journal,
    /// There is a sink, or there was one that may come back.
    wanted: AtomicBool,
}

/// What was said of refusals for one reason.
#[derive(Clone, Copy)]
struct Told {
    since: Instant,
    /// In this second.
    told: u32,
    /// Since the last that was told.
    untold: u64,
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("journal", &self.log.is_some()).finish_non_exhaustive()
    }
}

impl Events {
    /// Opens the journal in `folder`, which is made if it is missing.
    ///
    /// # Errors
    /// When the folder cannot be used, or another process uses it.
    pub(crate) fn open(folder: &Path) -> Result<Self, JournalError> {
        let (journal, found) = Journal::open(folder, JournalLimits::default())?;
        if let Some((aside, problem)) = found.moved_aside {
            tracing::warn!(
                "events: the journal was damaged ({problem}) and begins anew; what there was is {}",
                aside.display()
            );
        }
        let wanted = AtomicBool::new(!found.sinks.is_empty());
        Ok(Self { log: Some(Arc::new(Log { journal, wanted })), ..Self::default() })
    }

    /// Whether anybody listens.
    pub(crate) fn wanted(&self) -> bool {
        self.log().is_some() || self.live.wanted()
    }

    /// For who listens without a sink.
    pub(crate) const fn live(&self) -> &Live {
        &self.live
    }

    /// Says what happened; it is made only when somebody listens.
    pub(crate) fn emit(&self, happening: impl FnOnce() -> Happening) {
        if self.wanted() {
            self.say(happening());
        }
    }

    /// Waits until what was said is on disk, for as long as a sink wants it.
    /// Blocks.
    ///
    /// # Errors
    /// When the disk does not take it now; it is still tried.
    pub(crate) fn flush(&self) -> Result<(), JournalError> {
        self.log().map_or(Ok(()), |log| log.journal.flush())
    }

    /// Says that something was refused, at a bounded rate for each `code`.
    pub(crate) fn refused(&self, code: &'static str, source: SocketAddr, reason: impl Display) {
        self.refused_at(code, source, reason, Instant::now());
    }

    fn refused_at(
        &self,
        code: &'static str,
        source: SocketAddr,
        reason: impl Display,
        now: Instant,
    ) {
        if !self.wanted() {
            return;
        }
        let count = {
            let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
            let told = refusals.entry(code).or_insert(Told { since: now, told: 0, untold: 0 });
            if now.saturating_duration_since(told.since) >= Duration::from_secs(1) {
                (told.since, told.told) = (now, 0);
            }
            told.untold += 1;
            if told.told >= REFUSALS {
                return;
            }
            told.told += 1;
            std::mem::take(&mut told.untold)
        };
        self.say(Happening::RegistryRefused {
            code: code.to_owned(),
            count,
            reason: reason.to_string(),
            source: source.to_string(),
        });
    }

    fn say(&self, happening: Happening) {
        self.live.tell(&happening);
        if let Some(log) = self.log() {
            log.journal.emit(happening);
        }
    }

    /// By which sinks of plugins take events; none without a journal.
    pub(crate) fn sinks(&self) -> Option<Arc<dyn Sinks>> {
        self.log.clone().map(|log| log as Arc<dyn Sinks>)
    }

    /// Writes what was said, and ends.
    pub(crate) async fn close(&self) {
        let Some(log) = self.log.clone() else { return };
        let close = tokio::task::spawn_blocking(move || log.journal.close(Duration::ZERO));
        match tokio::time::timeout(CLOSE_LIMIT, close).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("events: closing was interrupted: {error}"),
            Err(_) => tracing::warn!("events: the disk did not take the rest in time"),
        }
    }

    /// The log, when anybody listens.
    fn log(&self) -> Option<&Arc<Log>> {
        self.log.as_ref().filter(|log| log.wanted.load(Ordering::Relaxed))
    }
}

impl Sinks for Log {
    fn attach(
        &self,
        sink: &str,
        settings: &Value,
        deliver: Deliver,
    ) -> Result<Box<dyn SinkHandle>, String> {
        // Before: what happens from now on is for this sink.
        let before = self.wanted.swap(true, Ordering::Relaxed);
        let attached = Sinks::attach(&self.journal, sink, settings, deliver);
        if attached.is_err() {
            self.wanted.store(before, Ordering::Relaxed);
        }
        attached
    }
}
