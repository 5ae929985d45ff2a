//! Finds registered nodes by hostname without a second copy of the names: an
//! index of hashes, and the records say which of the found it is.

use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, RandomState};

use pilot_wire::NodeId;

use super::nodes::Nodes;

/// Which nodes have names of which hash. The hash is keyed by chance, so that
/// nobody can choose names of one hash; what is found does not depend on it.
#[derive(Debug, Default)]
pub(super) struct Hostnames {
    key: RandomState,
    ids: BTreeSet<(u32, NodeId)>,
}

impl Hostnames {
    /// The node of that name.
    pub(super) fn find(&self, name: &str, nodes: &Nodes) -> Option<NodeId> {
        let hash = self.hash(name);
        let same = self.ids.range((hash, NodeId(0))..=(hash, NodeId(u32::MAX)));
        let is_it = |id: &NodeId| nodes.get(*id).is_some_and(|n| n.record.hostname == name);
        same.map(|(_, id)| *id).find(is_it)
    }

    pub(super) fn insert(&mut self, name: &str, id: NodeId) {
        self.ids.insert((self.hash(name), id));
    }

    /// Whether it was there.
    pub(super) fn remove(&mut self, name: &str, id: NodeId) -> bool {
        self.ids.remove(&(self.hash(name), id))
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    /// Some names share one; the records tell them apart.
    #[expect(clippy::cast_possible_truncation, reason = "half of a hash is one too")]
    fn hash(&self, name: &str) -> u32 {
        self.key.hash_one(name) as u32
    }
}
