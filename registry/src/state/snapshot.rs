//! The whole state as plain data, sorted, so that equal states give equal
//! snapshots; and back, with every cross-reference checked.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;

use pilot_wire::NodeId;
use pilot_wire::registry::{HandshakeAnswer, HandshakeRequest, PublicKey};
use serde::{Deserialize, Serialize};

use super::{KeyEntry, Node, NodeRecord, State, Stated};

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

#[cfg(test)]
impl Snapshot {
    /// This snapshot without the count of commands.
    pub(crate) fn records(mut self) -> Self {
        self.applied = 0;
        self
    }
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

impl State {
    /// This state as data.
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot {
            version: VERSION,
            applied: self.applied,
            next_node: self.next_node,
            nodes: self.nodes.values().map(|n| n.record.clone()).collect(),
            keys: self.keys.iter().map(|(k, e)| (*k, e.node, e.proven)).collect(),
            owners: self.owners.iter().map(|(o, n)| (o.clone(), *n)).collect(),
            trust: self.trust.iter().map(|((a, b), s)| (*a, *b, s.low, s.high)).collect(),
            withdrawn: self.withdrawn.iter().copied().collect(),
            requests: self.requests.iter().map(|(n, r)| (*n, r.clone())).collect(),
            answers: self.answers.iter().map(|(n, a)| (*n, a.iter().cloned().collect())).collect(),
        };
        snapshot.nodes.sort_unstable_by_key(|n| n.id);
        snapshot.keys.sort_unstable();
        snapshot.owners.sort_unstable();
        snapshot.trust.sort_unstable();
        snapshot.withdrawn.sort_unstable();
        snapshot.requests.sort_unstable_by_key(|(n, _)| *n);
        snapshot.answers.sort_unstable_by_key(|(n, _)| *n);
        snapshot
    }
}

impl TryFrom<Snapshot> for State {
    type Error = SnapshotError;

    fn try_from(snapshot: Snapshot) -> Result<Self, SnapshotError> {
        if snapshot.version != VERSION {
            return Err(SnapshotError::Version(snapshot.version));
        }
        let mut nodes = HashMap::with_capacity(snapshot.nodes.len());
        let mut hostnames = HashMap::new();
        for record in snapshot.nodes {
            let id = record.id;
            let name = record.hostname.clone();
            if id.0 == 0 || id.0 >= snapshot.next_node {
                return Err(SnapshotError::Contradiction(format!("node {id} was never assigned")));
            }
            if !name.is_empty() && hostnames.insert(name, id).is_some() {
                let problem = format!("hostname {:?} belongs to two nodes", record.hostname);
                return Err(SnapshotError::Contradiction(problem));
            }
            let node = Node { record, seen: AtomicU64::new(0) };
            if nodes.insert(id, node).is_some() {
                return Err(SnapshotError::Contradiction(format!("node {id} stands twice")));
            }
        }
        let keys: HashMap<_, _> = snapshot
            .keys
            .into_iter()
            .map(|(k, node, proven)| (k, KeyEntry { node, proven }))
            .collect();
        for node in nodes.values() {
            if keys.get(&node.record.key).map(|e| e.node) != Some(node.record.id) {
                let problem = format!("the key of node {} is not indexed", node.record.id);
                return Err(SnapshotError::Contradiction(problem));
            }
        }
        Ok(Self {
            applied: snapshot.applied,
            next_node: snapshot.next_node,
            nodes,
            keys,
            owned: snapshot.owners.iter().map(|(o, n)| (*n, o.clone())).collect(),
            owners: snapshot.owners.into_iter().collect(),
            hostnames,
            trust: snapshot
                .trust
                .into_iter()
                .map(|(a, b, low, high)| ((a, b), Stated { low, high }))
                .collect(),
            withdrawn: snapshot.withdrawn.into_iter().collect(),
            requests: snapshot.requests.into_iter().collect(),
            answers: snapshot.answers.into_iter().map(|(n, a)| (n, a.into())).collect(),
            ..Self::default()
        })
    }
}
