//! No durability at all, for tests and trials.

use super::{CommandLog, Restored, StoreError};
use crate::state::{Command, Snapshot};

/// Forgets every command.
#[derive(Debug, Default)]
pub struct MemoryLog;

impl CommandLog for MemoryLog {
    fn restore(&mut self) -> Result<Restored, StoreError> {
        Ok(Restored::default())
    }

    fn append(&mut self, _first: u64, _commands: &[Command]) -> Result<(), StoreError> {
        Ok(())
    }

    fn wants_snapshot(&self, _records: usize) -> bool {
        false
    }

    fn replace(&mut self, _snapshot: &Snapshot) -> Result<(), StoreError> {
        Ok(())
    }
}
