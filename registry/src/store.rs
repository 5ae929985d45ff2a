//! Where commands become durable, behind [`CommandLog`].

mod memory;
mod sqlite;

use std::path::PathBuf;

pub use memory::MemoryLog;
pub use sqlite::SqliteLog;

use crate::state::{Command, Snapshot, SnapshotError, State};
use crate::writer::Outcome;

/// A log of commands with snapshots. One writer owns it.
pub trait CommandLog: Send {
    /// What the log held when it was opened. Called once, before anything else.
    ///
    /// # Errors
    /// When what is stored cannot be read; it is left as it is.
    fn restore(&mut self) -> Result<Restored, StoreError>;

    /// Makes commands durable, all or none; `first` is the number of the first
    /// one, counting from 1.
    ///
    /// # Errors
    /// When they are not durable.
    fn append(&mut self, first: u64, commands: &[Command]) -> Result<(), StoreError>;

    /// Whether the log has grown so long that a snapshot of `records` records
    /// is worth its cost.
    fn wants_snapshot(&self, records: usize) -> bool;

    /// Replaces all commands logged so far by the state they made.
    ///
    /// # Errors
    /// When it is not durable; the log is then as before.
    fn replace(&mut self, snapshot: &Snapshot) -> Result<(), StoreError>;
}

/// What a log held: a state, and commands to apply to it in order.
#[derive(Debug, Default)]
pub struct Restored {
    /// The newest snapshot.
    pub snapshot: Option<Snapshot>,
    /// Commands after it: the number of the first of each batch, and the batch.
    pub batches: Vec<(u64, Vec<Command>)>,
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
    /// It is something else, or damaged. It is never overwritten.
    #[error("state file {}: not a sound registry state: {problem}; restore a backup, or move it away to start empty", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A write failed while running.
    #[error("state file {}: cannot be written: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Why restored data do not make a state.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The log cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The snapshot is refused.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A batch is missing.
    #[error("commands {expected} to {} are missing", found - 1)]
    Gap {
        /// The number that should come.
        expected: u64,
        /// The number that came.
        found: u64,
    },
}

/// Rebuilds the state from a log.
///
/// # Errors
/// When the log is unreadable, contradicts itself or has gaps.
pub fn restore(log: &mut dyn CommandLog) -> Result<State, RestoreError> {
    restore_with(log, &mut |state, command| state.apply(command))
}

/// Rebuilds the state from a log; `apply` is given each logged command in its
/// turn and has to apply it.
///
/// # Errors
/// When the log is unreadable, contradicts itself or has gaps.
pub(crate) fn restore_with(
    log: &mut dyn CommandLog,
    apply: &mut dyn FnMut(&mut State, &Command) -> Outcome,
) -> Result<State, RestoreError> {
    let restored = log.restore()?;
    let mut state = match restored.snapshot {
        Some(snapshot) => State::try_from(snapshot)?,
        None => State::default(),
    };
    for (first, commands) in restored.batches {
        let expected = state.applied() + 1;
        if first != expected {
            return Err(RestoreError::Gap { expected, found: first });
        }
        for command in &commands {
            // A refusal was the answer then as well.
            let _ = apply(&mut state, command);
        }
    }
    Ok(state)
}

#[cfg(test)]
mod tests;
