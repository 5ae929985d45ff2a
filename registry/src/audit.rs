//! The audit log: who did what, and what was refused, in a chain of hashes.
//!
//! A record follows from a command and the state before and after it alone
//! ([`Draft`]), so replaying commands gives the same records again. The file may
//! therefore lag behind the command log: after a crash what is missing is made
//! from the commands that are replayed, and the command log forgets nothing
//! before [`Audit::flush`] has made the records of it durable.

mod draft;

use pilot_wire::registry::audit::AuditRecord;

pub(crate) use draft::Draft;

/// Why records cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {}

/// A way to the audit log. Cheap to clone; by default nothing is kept.
#[derive(Clone, Debug, Default)]
pub struct Audit;

impl Audit {
    /// Number of the last command whose records are kept.
    pub fn last_command(&self) -> u64 {
        0
    }

    /// Takes records in order, without their places in the chain. Waits while
    /// too many wait to be written.
    pub(crate) fn append(&self, _records: Vec<AuditRecord>) {}

    /// Waits until all that was taken is durable.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn flush(&self) -> Result<(), AuditError> {
        Ok(())
    }
}
