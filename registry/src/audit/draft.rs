//! What a command means to an auditor.

use pilot_wire::registry::audit::AuditRecord;

use crate::state::{Command, State};
use crate::writer::Outcome;

/// What was so before a command was applied, as far as its record needs it.
#[derive(Debug)]
pub(crate) struct Draft(AuditRecord);

impl Draft {
    /// Looks at the state that `command` is about to change; none when an
    /// auditor does not care.
    pub(crate) fn look(_state: &State, _command: &Command) -> Option<Self> {
        None
    }

    /// The record of the command, which has been applied and led to `outcome`;
    /// its place in the chain is not set.
    pub(crate) fn finish(self, _state: &State, _outcome: &Outcome) -> AuditRecord {
        self.0
    }
}
