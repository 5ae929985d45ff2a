//! No durability at all, for tests and trials.

use super::{CommandLog, RestoreError, Restoring, StoreError};
use crate::state::{Command, Row};

/// Forgets every command.
#[derive(Debug, Default)]
pub struct MemoryLog;

impl CommandLog for MemoryLog {
    fn restore(&mut self, into: &mut dyn Restoring) -> Result<(), RestoreError> {
        into.checkpoint(0)
    }

    fn append(&mut self, _first: u64, _commands: &[Command]) -> Result<(), StoreError> {
        Ok(())
    }

    fn wants_checkpoint(&self) -> bool {
        false
    }

    fn keeps_rows(&self) -> bool {
        false
    }

    fn checkpoint(&mut self, _applied: u64, _rows: &[Row]) -> Result<(), StoreError> {
        Ok(())
    }
}
