//! Sessions of nodes and what they are told. See
//! `pilot_wire::registry::session` for the protocol.

use std::sync::RwLock;

use crate::service::write;
use crate::state::State;

/// All sessions. Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Hub;

impl Hub {
    /// Tells sessions what has changed since the last call. Never waits for a
    /// session: one that cannot keep up is ended.
    pub(crate) fn follow(&self, state: &RwLock<State>) {
        drop(write(state).take_changes());
    }
}
