//! Who may reach this node: the trust handshake (port 444) and what is
//! remembered of it.
//!
//! `state` decides and does nothing; `task` does what it says; `service` reads
//! messages off streams; `file` is `trust.json`.

mod file;
mod handle;
mod service;
mod state;
mod task;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use pilot_wire::NodeId;

pub use file::{TrustFile, TrustFileError};
pub(crate) use handle::Command;
pub use handle::{TrustHandle, TrustInbox, channel};
pub use service::TrustService;
pub use state::{Action, Input, Pending, Refused, TrustState, Trusted};
pub use task::{TrustParts, run};

/// The port of the trust handshake.
pub const PORT: u16 = 444;

/// Who is trusted, with the key at that time where it was known. Written by
/// the trust task, read by the control plane. Cheap to clone, all clones are
/// one. Bounded as the trust state is.
#[derive(Clone, Debug, Default)]
pub struct Pins(Arc<Mutex<BTreeMap<NodeId, Option<[u8; 32]>>>>);

impl Pins {
    /// The pinned key of a trusted peer.
    pub fn key(&self, node: NodeId) -> Option<[u8; 32]> {
        self.lock().get(&node).copied().flatten()
    }

    /// Whether a peer is trusted.
    pub fn is_trusted(&self, node: NodeId) -> bool {
        self.lock().contains_key(&node)
    }

    /// Who is trusted.
    pub(crate) fn trusted(&self) -> Vec<NodeId> {
        self.lock().keys().copied().collect()
    }

    /// Takes over who is trusted.
    pub fn follow(&self, state: &TrustState) {
        *self.lock() = state.trusted().iter().map(|(node, t)| (*node, t.key)).collect();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<NodeId, Option<[u8; 32]>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
