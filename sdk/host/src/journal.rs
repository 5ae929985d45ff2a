//! The durable journal of events: numbers what is emitted, keeps it on disk
//! until every sink that wants it has it, and delivers it (`docs/EVENTS.md`).
//! Knows nothing of plugins: a sink is a function that takes a batch.

mod courier;
mod dead_letter;
mod inbox;
mod keeper;
mod outlet;
mod settings;
mod sinks;
mod status;
mod store;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use pilot_wire::NodeId;

pub use courier::Deliver;
use inbox::{Inbox, Order, Reply};
use keeper::Keeper;
pub use settings::{BATCH_MAX, FILTER_MAX, SettingsError, SinkSettings, Size, Span};
pub use status::{JournalStatus, SinkState, SinkStatus};

use crate::events::{Happening, Timestamp};

/// Most sinks of one journal, those that are not attached now included; one
/// more cannot be attached.
pub const SINKS_MAX: usize = 64;

/// Longest line of an event, in bytes. In the place of a longer one stands an
/// `events.dropped`.
pub const LINE_MAX: usize = 1 << 20;

/// Bytes of events in memory, on their way to the disk, and as many that are
/// being written. What does not fit is counted, as with [`JournalLimits::queue`].
pub const QUEUE_BYTES: usize = 64 << 20;

/// What a journal may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalLimits {
    /// Events in memory, on their way to the disk. What does not fit is counted,
    /// and an `events.dropped` event stands in its place.
    pub queue: usize,
    /// Bytes of the database. When it is full events wait in memory.
    pub disk_bytes: u64,
}

impl Default for JournalLimits {
    fn default() -> Self {
        Self { queue: 65_536, disk_bytes: 4 << 30 }
    }
}

/// Why the journal did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// The disk does not take or give it.
    #[error(
        "{}: {reason}; events cannot be kept: make it a writable folder on a disk with space",
        .file.display()
    )]
    Disk {
        /// The file or folder.
        file: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// Another process uses it.
    #[error("{} is in use by another process; two must not number the same events", .file.display())]
    InUse {
        /// The file.
        file: PathBuf,
    },
    /// It was written by a later version of Pilot.
    #[error(
        "{} has tables of version {found}, and this Pilot knows version {known}: use the later \
         Pilot, or move the file away", .file.display()
    )]
    Version {
        /// The file.
        file: PathBuf,
        /// Its version.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// A setting that cannot be.
    #[error("sink {sink}: {error}")]
    Settings {
        /// The sink.
        sink: String,
        /// Which setting.
        error: SettingsError,
    },
    /// Somebody else delivers to this sink.
    #[error("sink {0} is attached already: two sinks need two names")]
    Attached(String),
    /// There are [`SINKS_MAX`] sinks.
    #[error("sink {0} is one too many: a journal has at most {SINKS_MAX}; forget one")]
    TooMany(String),
    /// The journal was closed.
    #[error("the journal is closed")]
    Closed,
}

/// What was found when a journal was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Sinks that events are kept for; [`Journal::forget`] those that will not
    /// come back.
    pub sinks: Vec<String>,
    /// Where a damaged database was moved to, and what was wrong with it.
    pub moved_aside: Option<(PathBuf, String)>,
}

/// A handle to the journal; clones are the same journal. When the last is
/// dropped what was emitted is written and the journal ends; a sink's function
/// that holds one keeps it open until [`Journal::close`].
#[derive(Clone)]
pub struct Journal(Arc<Handle>);

struct Handle {
    inbox: Arc<Inbox>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Journal {
    /// Opens the journal in `folder`, which is made when it is not there. A
    /// damaged database is moved aside, and sinks that attach see a gap.
    ///
    /// # Errors
    /// When the folder cannot be used, or another process uses it.
    pub fn open(folder: &Path, limits: JournalLimits) -> Result<(Self, Recovered), JournalError> {
        let inbox = Arc::new(Inbox::new(limits.queue, QUEUE_BYTES));
        let (keeper, recovered) = Keeper::open(folder, limits, inbox.clone())?;
        let thread = thread::Builder::new()
            .name("journal".into())
            .spawn(move || keeper.run())
            .map_err(|error| JournalError::Disk {
                file: folder.to_owned(),
                reason: format!("no thread for the journal: {error}"),
            })?;
        let thread = Mutex::new(Some(thread));
        Ok((Self(Arc::new(Handle { inbox, thread })), recovered))
    }

    /// Takes an event; its time is now. Never blocks: what does not fit becomes
    /// a visible gap.
    pub fn emit(&self, event: Happening) {
        self.0.inbox.emit(event);
    }

    /// The number that events carry from now on.
    pub fn set_node(&self, node: NodeId) {
        self.0.inbox.set_node(node);
    }

    /// Waits until what was emitted before is recorded: on disk, for as long as
    /// a sink wants it.
    ///
    /// # Errors
    /// When the disk does not take it now; it is still tried.
    pub async fn flushed(&self) -> Result<(), JournalError> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        self.0.inbox.order(Order::Flush(Box::new(move |result| {
            let _ = reply.send(result);
        })));
        answer.await.unwrap_or(Err(JournalError::Closed))
    }

    /// [`Journal::flushed`] for threads that may block.
    ///
    /// # Errors
    /// As there.
    pub fn flush(&self) -> Result<(), JournalError> {
        self.ask(Order::Flush)
    }

    /// Delivers events to a sink: those that were kept for this name since it
    /// was attached last, or those from now on when it never was. Blocks for one
    /// write to the disk.
    ///
    /// # Errors
    /// When the settings cannot be, the name is attached, or the disk fails.
    pub fn attach(
        &self,
        name: &str,
        settings: SinkSettings,
        deliver: Deliver,
    ) -> Result<Attached, JournalError> {
        check(name, &settings)?;
        let (name, settings) = (name.to_owned(), Box::new(settings));
        let slot =
            self.ask(|reply| Order::Attach { name: name.clone(), settings, deliver, reply })?;
        Ok(Attached { journal: self.clone(), name, slot })
    }

    /// Keeps nothing for this sink any more. No error when there is none.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn forget(&self, sink: &str) -> Result<(), JournalError> {
        self.ask(|reply| Order::Forget { name: sink.to_owned(), reply })
    }

    /// How the journal and its sinks stand.
    pub fn status(&self) -> JournalStatus {
        let mut status = self.published();
        let (now, time) = (Instant::now(), Timestamp::now());
        status.sinks = status.sinks.into_iter().map(|sink| sink.at(now, time)).collect();
        (status.emitted, status.lost) = self.0.inbox.counts();
        // What the thread has taken and not written is in memory too. Asked for
        // after what it said, so that this is never too little.
        status.in_memory = status.emitted.saturating_sub(status.lost + status.settled);
        status
    }

    /// Writes what was emitted, waits up to `wait` for sinks that have a batch,
    /// and ends. What is emitted later is lost.
    pub fn close(&self, wait: Duration) {
        self.0.close(wait);
    }

    fn published(&self) -> JournalStatus {
        self.0.inbox.published.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn ask<T: Send + 'static>(
        &self,
        order: impl FnOnce(Reply<T>) -> Order,
    ) -> Result<T, JournalError> {
        let (reply, answer) = mpsc::sync_channel(1);
        self.0.inbox.order(order(Box::new(move |result| {
            let _ = reply.send(result);
        })));
        answer.recv().unwrap_or(Err(JournalError::Closed))
    }
}

impl Handle {
    fn close(&self, wait: Duration) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(thread) = thread else { return };
        self.inbox.close(wait);
        // The journal's own thread drops sinks' functions, and they may hold the
        // last handle: it cannot wait for itself.
        if thread.thread().id() != thread::current().id() {
            let _ = thread.join();
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.close(Duration::ZERO);
    }
}

/// A sink that events are delivered to. Dropping it detaches it.
pub struct Attached {
    journal: Journal,
    name: String,
    slot: u64,
}

impl Attached {
    /// The sink's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How it stands.
    pub fn status(&self) -> SinkStatus {
        let sinks = self.journal.published().sinks;
        let found = sinks.into_iter().find(|sink| sink.slot == self.slot);
        found.unwrap_or_default().at(Instant::now(), Timestamp::now())
    }

    /// Delivers with other settings through another function, from the next
    /// batch on. A filter applies to what waits as well. Blocks for one write to
    /// the disk.
    ///
    /// # Errors
    /// When the settings cannot be or the disk fails; nothing changes then.
    pub fn replace(&self, settings: SinkSettings, deliver: Deliver) -> Result<(), JournalError> {
        check(&self.name, &settings)?;
        let settings = Box::new(settings);
        self.journal.ask(|reply| Order::Replace { slot: self.slot, settings, deliver, reply })
    }

    /// Delivers no more; the answer to a batch under way still counts. Events are
    /// kept for the next time that the name is attached.
    pub fn detach(self) {}

    /// Delivers no more, and keeps nothing for this name.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn forget(self) -> Result<(), JournalError> {
        self.journal.forget(&self.name)
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.journal.0.inbox.order(Order::Detach { slot: self.slot });
    }
}

fn check(sink: &str, settings: &SinkSettings) -> Result<(), JournalError> {
    settings.check().map_err(|error| JournalError::Settings { sink: sink.to_owned(), error })
}
