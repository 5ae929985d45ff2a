//! Events as they happen, for whoever listens now. Nothing is kept.
//!
//! Bound: a listener may be [`BEHIND`] events behind; then it is told so, and
//! that is all it is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use pilot_host::events::{Format as _, Happening, Json, Stamp, Timestamp};
use pilot_wire::NodeId;
use tokio::sync::broadcast;

/// Events that a listener may be behind.
const BEHIND: usize = 1024;

/// Where listeners listen. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub(crate) struct Live(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// One event as JSON, without a line end.
    listeners: broadcast::Sender<Bytes>,
    next: AtomicU64,
}

impl Default for Live {
    fn default() -> Self {
        Self(Arc::new(Inner { listeners: broadcast::Sender::new(BEHIND), next: AtomicU64::new(1) }))
    }
}

impl Live {
    /// Everything from now on.
    pub(crate) fn listen(&self) -> broadcast::Receiver<Bytes> {
        self.0.listeners.subscribe()
    }

    /// Whether anybody listens.
    pub(super) fn wanted(&self) -> bool {
        self.0.listeners.receiver_count() > 0
    }

    /// Tells whoever listens. Numbers are those of this run, not of the journal.
    pub(super) fn tell(&self, happening: &Happening) {
        if !self.wanted() {
            return;
        }
        let event_id = self.0.next.fetch_add(1, Relaxed);
        let mut line = Vec::new();
        let stamp = Stamp { node_id: NodeId(0), timestamp: Timestamp::now(), event_id };
        Json.write(&stamp, happening, &mut line);
        // The last listener may have gone meanwhile.
        let _ = self.0.listeners.send(line.into());
    }
}
