//! Where commands become durable, behind [`CommandLog`]; and how a state comes
//! back from one ([`restore`]). Knows nothing of requests and connections.

mod memory;
mod sqlite;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

pub use memory::MemoryLog;
pub use sqlite::{Reader, SqliteLog, Summary, backup};
pub(crate) use sqlite::{beside, install, resolve};

use crate::audit::{Audit, AuditError, Replay};
use crate::state::{Command, Loading, Row, SnapshotError, State, StateError};
use crate::writer::Outcome;

/// A log of commands under a checkpoint of the state that the older ones made.
///
/// This is the one seam between the state machine and where its commands are
/// kept: the writer thread knows nothing else of it, so another store (a
/// replicated one, say) can stand behind it. What such a store guarantees:
///
/// - **Order.** Commands come back in the order of their numbers, from 1,
///   without a gap.
/// - **All or none.** The commands of one [`append`](Self::append) are durable
///   together, before it returns `Ok`. So are the rows of one
///   [`checkpoint`](Self::checkpoint) and the end of the commands under it.
/// - **Known ends.** After an error of which
///   [`ends_the_log`](StoreError::ends_the_log) is false, nothing was written.
///   After any other the store does not know; it takes no more commands, and
///   whoever opens it next reads what is durable.
/// - **Fencing.** Once another writer has opened the log, `append` and
///   `checkpoint` change nothing and fail with [`StoreError::Fenced`].
pub trait CommandLog: Send {
    /// Streams what the log held when it was opened: the rows of the
    /// checkpoint, its end, the batches after it. Called once, before anything
    /// else.
    ///
    /// # Errors
    /// When what is stored cannot be read, is not whole, or is refused by
    /// `into`; it is left as it is.
    fn restore(&mut self, into: &mut dyn Restoring) -> Result<(), RestoreError>;

    /// Makes commands durable, all or none; `first` is the number of the first
    /// one, counting from 1.
    ///
    /// # Errors
    /// When they are not durable, or not known to be.
    fn append(&mut self, first: u64, commands: &[Command]) -> Result<(), StoreError>;

    /// Whether the log has grown so long that a checkpoint is worth its cost.
    fn wants_checkpoint(&self) -> bool;

    /// Writes the rows that changed since the last checkpoint, each once, and
    /// drops the commands that made them. `applied` is the number of the last
    /// command appended.
    ///
    /// # Errors
    /// When it is not durable. If the log has not ended, it is then as before,
    /// and the rows have to come again with the next checkpoint.
    fn checkpoint(&mut self, applied: u64, rows: &[Row]) -> Result<(), StoreError>;

    /// Whether the rows of checkpoints are kept at all; if not, nobody has to
    /// note which change.
    fn keeps_rows(&self) -> bool {
        true
    }

    /// Where the audit log was at the last [`note_audited`](Self::note_audited).
    fn audited(&self) -> Option<&Audited> {
        None
    }

    /// Keeps where the audit log is, durably, so that an end that is cut off is
    /// missed.
    ///
    /// # Errors
    /// As for [`append`](Self::append).
    fn note_audited(&mut self, _head: Option<Audited>) -> Result<(), StoreError> {
        Ok(())
    }
}

/// Number and hash (hex) of a record of the audit log.
pub type Audited = (u64, String);

/// Takes what a log holds, piece by piece.
pub trait Restoring {
    /// One row of the checkpoint, in order of table and key.
    ///
    /// # Errors
    /// When it cannot be part of a state.
    fn row(&mut self, row: Row) -> Result<(), RestoreError>;

    /// All rows were given; they are the effect of so many commands.
    ///
    /// # Errors
    /// When the rows contradict each other.
    fn checkpoint(&mut self, applied: u64) -> Result<(), RestoreError>;

    /// Commands after it, one batch; `first` is the number of the first one.
    ///
    /// # Errors
    /// When it is not the next batch.
    fn batch(&mut self, first: u64, commands: &[Command]) -> Result<(), RestoreError>;
}

/// Why state cannot be read or written. Each names the file.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has the file open.
    #[error("state file {}: in use by another process; stop it or choose another file with -store", .0.display())]
    InUse(PathBuf),
    /// It cannot be opened for writing.
    #[error("state file {}: cannot be opened for writing: {source}; check the folder and its permissions", path.display())]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It cannot be read.
    #[error("state file {}: cannot be read: {source}; check the path and its permissions", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It is a link that leads nowhere.
    #[error("state file {}: is a link to {}, which is not there; mount it or remove the link", path.display(), to.display())]
    Dangling {
        /// The link.
        path: PathBuf,
        /// Where it leads.
        to: PathBuf,
    },
    /// It could not be read because somebody wrote all the time.
    #[error("state file {}: it was busy the whole time; try again", .0.display())]
    Busy(PathBuf),
    /// It is something else, or damaged. It is never overwritten.
    #[error("state file {}: not a sound registry state: {problem}; restore a backup (and remove files of the same name ending in -wal and -shm), or move it away to start empty", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A later version has written it.
    #[error("state file {}: it has layout {layout}, written by version {program}, and this is version {}, which knows layouts up to {known}; run that version, or restore a backup made before the upgrade", path.display(), env!("CARGO_PKG_VERSION"))]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its layout.
        layout: i32,
        /// The newest layout known here.
        known: i32,
        /// Which version wrote it.
        program: String,
    },
    /// An earlier version has written it, and it is only to be read.
    #[error("state file {}: it has layout {layout} of an earlier version; start the registry with it once, which keeps a copy and rewrites it", path.display())]
    Older {
        /// The file.
        path: PathBuf,
        /// Its layout.
        layout: i32,
    },
    /// A write failed while running, and nothing was written.
    #[error("state file {}: cannot be written: {source}; nothing was changed; make room on the disk", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The file, or a part of it, is not where it was.
    #[error("state file {}: it was moved, deleted or replaced while in use; nothing is written until it is back in its place", .0.display())]
    Gone(PathBuf),
    /// Commands or rows do not continue what is stored.
    #[error("state file {}: the next command is number {expected}, not {found}", path.display())]
    Order {
        /// The file.
        path: PathBuf,
        /// The number that comes next.
        expected: u64,
        /// The number that came.
        found: u64,
    },
    /// A write failed and may be on disk in spite of it.
    #[error("state file {}: a write failed and it is not known what of it is on disk: {source}; the registry ends here; check the disk, then start it again, and it reads what is there", path.display())]
    Lost {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What cannot be audited is not done.
    #[error("the audit log cannot be written, as it says; changes are refused until it can be")]
    Unaudited,
    /// Another writer owns the log.
    #[error("state file {}: another registry has opened it and owns it now; this one ends; run one registry for each file", .0.display())]
    Fenced(PathBuf),
}

impl StoreError {
    /// Whether the log takes no more commands: what it holds is unknown, or
    /// another writer's. The registry has to end.
    pub const fn ends_the_log(&self) -> bool {
        matches!(self, Self::Lost { .. } | Self::Fenced(_))
    }
}

/// Why restored data do not make a state.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The log cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The rows of the checkpoint are refused.
    #[error(transparent)]
    State(#[from] StateError),
    /// The snapshot of a file of layout 1 is.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The rows are not those of the noted command.
    #[error("the rows are the effect of {found} commands, and should be of {expected}")]
    Applied {
        /// Where the checkpoint should be.
        expected: u64,
        /// Where the rows are.
        found: u64,
    },
    /// A command that was applied once cannot be applied.
    #[error(
        "applying command {command} failed: {problem}; nothing was changed; restore a backup from before it, and report this"
    )]
    Failed {
        /// Its number.
        command: u64,
        /// What the program said.
        problem: String,
    },
    /// Records that are to be made again cannot be kept.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// A batch is missing.
    #[error("commands {expected} to {} are missing", found - 1)]
    Gap {
        /// The number that should come.
        expected: u64,
        /// The number that came.
        found: u64,
    },
    /// Rows or commands came when they could not.
    #[error("the log gives rows after the end of the checkpoint, or commands before it")]
    Sequence,
}

/// Rebuilds the state from a log. What the audit log has not kept of the
/// commands that are replayed is made again and given to it.
///
/// A new state gets its name here, which is durable before anybody hears it. So
/// does one that was put back to an earlier command, as the audit log tells, and
/// a copy: who followed the other history must not go on with this one.
///
/// # Errors
/// When the log is unreadable, contradicts itself or has gaps.
pub fn restore(log: &mut dyn CommandLog, audit: &Audit) -> Result<State, RestoreError> {
    let mut replay = Replay::new(audit);
    let mut apply = |state: &mut State, command: &Command| replay.apply(state, command);
    let mut builder = Builder::new(&mut apply);
    log.restore(&mut builder)?;
    let mut state = builder.finish()?;
    state.track_dirty(log.keeps_rows());
    if let Some(noted) = log.audited()
        && !audit.continues(noted)?
    {
        // Another log was begun, and cannot have it.
        log.note_audited(None)?;
    }
    // The audit log has the records of all commands that this checkpoint drops.
    // It comes first: once the audit log has a record of it, nobody would know.
    if audit.last_command() > state.applied() {
        name(log, &mut state)?;
    }
    replay.end(&state)?;
    if state.epoch().is_empty() {
        name(log, &mut state)?;
    }
    Ok(state)
}

/// Gives a state a name of its own, durably.
fn name(log: &mut dyn CommandLog, state: &mut State) -> Result<(), StoreError> {
    state.new_epoch(hex::encode(rand::random::<[u8; 8]>()));
    let rows = state.take_dirty();
    log.checkpoint(state.applied(), &rows)
}

/// Makes a state of what comes, row by row and command by command, without a
/// second copy of it.
struct Builder<'a> {
    stage: Stage,
    /// Applies a command in its turn.
    apply: &'a mut Apply<'a>,
}

type Apply<'a> = dyn FnMut(&mut State, &Command) -> Outcome + 'a;

enum Stage {
    Empty,
    Rows(Box<Loading>),
    Commands(Box<State>),
}

impl<'a> Builder<'a> {
    const fn new(apply: &'a mut Apply<'a>) -> Self {
        Self { stage: Stage::Empty, apply }
    }

    fn finish(self) -> Result<State, RestoreError> {
        match self.stage {
            Stage::Commands(state) => Ok(*state),
            Stage::Empty | Stage::Rows(_) => Err(RestoreError::Sequence),
        }
    }
}

impl Restoring for Builder<'_> {
    fn row(&mut self, row: Row) -> Result<(), RestoreError> {
        match &mut self.stage {
            Stage::Rows(loading) => loading.row(row)?,
            Stage::Commands(_) => return Err(RestoreError::Sequence),
            Stage::Empty => {
                let mut loading = Box::<Loading>::default();
                loading.row(row)?;
                self.stage = Stage::Rows(loading);
            }
        }
        Ok(())
    }

    fn checkpoint(&mut self, applied: u64) -> Result<(), RestoreError> {
        let mut state = match std::mem::replace(&mut self.stage, Stage::Empty) {
            Stage::Empty => State::default(),
            Stage::Rows(loading) => loading.finish()?,
            Stage::Commands(_) => return Err(RestoreError::Sequence),
        };
        if state.applied() != applied {
            let found = state.applied();
            return Err(RestoreError::Applied { expected: applied, found });
        }
        // From here on, so that the next checkpoint has what is replayed.
        state.track_dirty(true);
        self.stage = Stage::Commands(Box::new(state));
        Ok(())
    }

    fn batch(&mut self, first: u64, commands: &[Command]) -> Result<(), RestoreError> {
        let Stage::Commands(state) = &mut self.stage else { return Err(RestoreError::Sequence) };
        let expected = state.applied() + 1;
        if first != expected {
            return Err(RestoreError::Gap { expected, found: first });
        }
        for command in commands {
            let number = state.applied() + 1;
            // Without it every start would end so, and nobody would know where.
            // The state is given up after a panic.
            let applied = AssertUnwindSafe(|| (self.apply)(state, command));
            // A refusal was the answer then as well.
            let _ = catch_unwind(applied).map_err(|panic| RestoreError::Failed {
                command: number,
                problem: crate::writer::panic_text(&*panic),
            })?;
        }
        // Nobody watches yet.
        drop(state.take_changes());
        Ok(())
    }
}

#[cfg(test)]
mod tests;
