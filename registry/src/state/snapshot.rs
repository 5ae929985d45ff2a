//! Layout 1, the whole state as one JSON value, as versions before the rows
//! stored it: read once, to become rows. Networks did not exist.

use pilot_wire::NodeId;
use pilot_wire::registry::{HandshakeAnswer, HandshakeRequest, PublicKey};
use serde::{Deserialize, Serialize};

use super::trust::Sides;
use super::{KeyEntry, Loading, NodeRecord, State, StateError};

/// Layout of [`Snapshot`]; another one is refused.
const VERSION: u32 = 1;

/// A state at rest. Liveness is not part of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    version: u32,
    applied: u64,
    next_node: u32,
    nodes: Vec<NodeRecord>,
    keys: Vec<(PublicKey, NodeId, bool)>,
    owners: Vec<(String, NodeId)>,
    trust: Vec<(NodeId, NodeId, bool, bool)>,
    #[serde(default)]
    withdrawn: Vec<(NodeId, NodeId)>,
    requests: Vec<(NodeId, Vec<HandshakeRequest>)>,
    answers: Vec<(NodeId, Vec<HandshakeAnswer>)>,
}

/// Why a snapshot is no state.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Written by a newer version.
    #[error("snapshot version {0} is not known to this version")]
    Version(u32),
    /// Two parts contradict each other.
    #[error("snapshot contradicts itself: {0}")]
    Contradiction(String),
}

impl From<StateError> for SnapshotError {
    fn from(e: StateError) -> Self {
        match e {
            StateError::Contradiction(problem) => Self::Contradiction(problem),
            other => Self::Contradiction(other.to_string()),
        }
    }
}

impl State {
    /// This state in layout 1, which knows neither networks nor revoked keys.
    pub fn snapshot(&self) -> Snapshot {
        let (mut trust, mut withdrawn) = (Vec::new(), Vec::new());
        for node in self.trust.nodes() {
            for (peer, sides) in self.trust.of(node) {
                if node < peer && sides.any(Sides::MUTUAL) {
                    let (low, high) = (sides.has(Sides::STATES), sides.has(Sides::STATED));
                    trust.push((node, peer, low, high));
                }
                if sides.has(Sides::WITHDREW) {
                    withdrawn.push((node, peer));
                }
            }
        }
        let requests = self.inboxes.iter().filter(|(_, inbox)| !inbox.requests.is_empty());
        let answers = self.inboxes.iter().filter(|(_, inbox)| !inbox.answers.is_empty());
        let mut snapshot = Snapshot {
            version: VERSION,
            applied: self.applied,
            next_node: self.next_node,
            nodes: self.nodes.iter().map(|n| n.record.clone()).collect(),
            keys: self.keys.iter().map(|(k, e)| (*k, e.node, e.proven)).collect(),
            owners: self.owners.iter().map(|(o, n)| (o.to_string(), *n)).collect(),
            trust,
            withdrawn,
            requests: requests.map(|(n, inbox)| (*n, inbox.requests.clone())).collect(),
            answers: answers.map(|(n, i)| (*n, i.answers.iter().cloned().collect())).collect(),
        };
        snapshot.keys.sort_unstable();
        snapshot.owners.sort_unstable();
        snapshot
    }
}

impl TryFrom<Snapshot> for State {
    type Error = SnapshotError;

    fn try_from(snapshot: Snapshot) -> Result<Self, SnapshotError> {
        if snapshot.version != VERSION {
            return Err(SnapshotError::Version(snapshot.version));
        }
        let mut loading = Loading::default();
        loading.stands(snapshot.applied, snapshot.next_node);
        snapshot.nodes.into_iter().try_for_each(|record| loading.node(record))?;
        for (key, node, proven) in snapshot.keys {
            loading.key(key, KeyEntry { node, proven, revoked: false })?;
        }
        for (owner, node) in snapshot.owners {
            loading.owner(&owner, node)?;
        }
        for (a, b, low, high) in snapshot.trust {
            if low {
                loading.stated(a, b)?;
            }
            if high {
                loading.stated(b, a)?;
            }
        }
        // A node could once withdraw trust from itself, which says nothing.
        for (by, peer) in snapshot.withdrawn.into_iter().filter(|(by, peer)| by != peer) {
            loading.withdrawn(by, peer)?;
        }
        for (node, requests) in snapshot.requests.into_iter().filter(|(_, r)| !r.is_empty()) {
            loading.requests(node, requests)?;
        }
        for (node, answers) in snapshot.answers.into_iter().filter(|(_, a)| !a.is_empty()) {
            loading.answers(node, answers.into())?;
        }
        Ok(loading.check()?)
    }
}
