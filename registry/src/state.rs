//! The registry's state machine. Everything durable happens in
//! [`State::apply`], which depends on the state and the command alone, so that
//! the same commands always give the same state. No I/O, no clock.
//!
//! Bounds: [`MAX_KEYS`] keys ever registered, one owner text per node ID,
//! [`MAX_TRUST`] trust records and as many withdrawals, [`MAX_REQUESTS`] and
//! [`MAX_ANSWERS`] waiting per node. At the bound a request is refused; but a
//! new owner text replaces the older, a withdrawal more is not remembered, and
//! the oldest answer goes.

mod apply;
mod change;
mod command;
mod names;
mod network;
mod refusal;
mod rows;
mod snapshot;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use pilot_wire::registry::network::{Invitee, NetworkRef};
use pilot_wire::registry::{HandshakeAnswer, HandshakeRequest, PublicKey};
use pilot_wire::{Address, NodeId};
use serde::{Deserialize, Serialize};

pub use change::{Change, LeaveReason};
pub use command::{Actor, Admission, Command, Denial, Imported, Op, Origin, Register, Signer};
pub use names::{check_hostname, check_tags};
pub use network::{
    Invitation, MAX_INVITATIONS, MAX_MEMBER_TAGS, MAX_MEMBERSHIPS, MAX_NETWORKS, MAX_RULE_CONFIG,
    MAX_RULES, MAX_TOKENS, Member, Network, NetworkRecord, Token,
};
pub use refusal::Refusal;
pub use rows::{Row, Table};
pub use snapshot::{Snapshot, SnapshotError};

/// Most keys ever registered; a key keeps its node ID for ever.
pub const MAX_KEYS: usize = 8_000_000;
/// Most pairs of which at least one side has stated trust.
pub const MAX_TRUST: usize = 8_000_000;
/// Most handshake requests waiting for one node (published limit).
pub const MAX_REQUESTS: usize = 100;
/// Most handshake answers waiting for one node; the oldest makes room.
pub const MAX_ANSWERS: usize = 100;
/// Longest owner text, in bytes.
pub const MAX_OWNER: usize = 256;
/// Longest justification kept, in bytes; the rest is cut off.
pub const MAX_JUSTIFICATION: usize = 1024;

/// The durable part of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its ID.
    pub id: NodeId,
    /// Its key.
    pub key: PublicKey,
    /// Source IP of its registration and the port it stated.
    pub endpoint: SocketAddr,
    /// Number of the command that last registered it.
    pub registered_by: u64,
    /// Text naming the owner.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub owner: String,
    /// Unique among nodes; empty for none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hostname: String,
    /// Whether anybody may see `endpoint`.
    #[serde(default)]
    pub public: bool,
    /// At most 10.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Reputation.
    #[serde(default)]
    pub polo_score: i64,
    /// Whether it executes tasks.
    #[serde(default)]
    pub task_exec: bool,
}

impl NodeRecord {
    /// Its address on the backbone.
    pub const fn address(&self) -> Address {
        Address::backbone(self.id)
    }
}

/// A node that is registered now.
#[derive(Debug)]
pub struct Node {
    /// What is durable.
    pub record: NodeRecord,
    /// Unix seconds; liveness is not durable and no part of a snapshot.
    seen: AtomicU64,
}

impl Node {
    /// Notes that the node was heard of.
    pub fn touch(&self, now: u64) {
        self.seen.fetch_max(now, Ordering::Relaxed);
    }

    /// When it was last heard of, Unix seconds.
    pub fn last_seen(&self) -> u64 {
        self.seen.load(Ordering::Relaxed)
    }
}

/// What is known of a key, for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyEntry {
    /// Its node.
    pub node: NodeId,
    /// Whether its holder has once proven possession; then it always must.
    pub proven: bool,
}

/// Which sides of a pair have stated that they trust the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Stated {
    low: bool,
    high: bool,
}

/// The whole state.
#[derive(Debug)]
pub struct State {
    applied: u64,
    next_node: u32,
    nodes: HashMap<NodeId, Node>,
    keys: HashMap<PublicKey, KeyEntry>,
    owners: HashMap<String, NodeId>,
    /// The other way round; each node ID has one owner text at most.
    owned: HashMap<NodeId, String>,
    hostnames: HashMap<String, NodeId>,
    trust: HashMap<(NodeId, NodeId), Stated>,
    /// Who has refused or ended trust with whom. What a published node signs
    /// to ask for trust is also what it signs to refuse or end it, towards the
    /// peer, for ever; so after that a request alone, which the peer could
    /// bring here, states no trust until the node itself has stated it again.
    withdrawn: HashSet<(NodeId, NodeId)>,
    requests: HashMap<NodeId, Vec<HandshakeRequest>>,
    answers: HashMap<NodeId, VecDeque<HandshakeAnswer>>,
    networks: BTreeMap<u16, Network>,
    /// The other way round: the networks of each node, beside the backbone.
    member_of: HashMap<NodeId, Vec<u16>>,
    invitations: BTreeMap<u64, Invitation>,
    /// What was changed since it was last asked.
    changes: Vec<Change>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            applied: 0,
            next_node: 1,
            nodes: HashMap::new(),
            keys: HashMap::new(),
            owners: HashMap::new(),
            owned: HashMap::new(),
            hostnames: HashMap::new(),
            trust: HashMap::new(),
            withdrawn: HashSet::new(),
            requests: HashMap::new(),
            answers: HashMap::new(),
            networks: BTreeMap::new(),
            member_of: HashMap::new(),
            invitations: BTreeMap::new(),
            changes: Vec::new(),
        }
    }
}

impl State {
    /// What was changed since this was last called, in order.
    pub fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// A network beside the backbone.
    ///
    /// # Errors
    /// When there is none of that number.
    pub fn network(&self, id: u16) -> Result<&Network, Refusal> {
        self.networks.get(&id).ok_or(Refusal::UnknownNetwork(id))
    }

    /// A network, by number or name.
    ///
    /// # Errors
    /// When there is none.
    pub fn find_network(&self, network: &NetworkRef) -> Result<&Network, Refusal> {
        match network {
            NetworkRef::Id(id) => self.network(*id),
            NetworkRef::Name(name) => {
                let named = self.networks.values().find(|n| n.record.name == *name);
                named.ok_or_else(|| Refusal::UnknownNetworkName(name.clone()))
            }
        }
    }

    /// All networks beside the backbone, by number.
    pub fn networks(&self) -> impl Iterator<Item = &Network> {
        self.networks.values()
    }

    /// The networks of a node, beside the backbone.
    pub fn memberships(&self, node: NodeId) -> impl Iterator<Item = (&Network, &Member)> {
        let networks = self.member_of.get(&node).map_or(&[][..], Vec::as_slice);
        networks.iter().filter_map(move |id| {
            let network = self.networks.get(id)?;
            Some((network, network.members.get(&node)?))
        })
    }

    /// Networks that both are in, beside the backbone.
    pub fn shared_networks(&self, a: NodeId, b: NodeId) -> Vec<u16> {
        let of = |node| self.member_of.get(&node).map_or(&[][..], Vec::as_slice);
        of(a).iter().filter(|id| of(b).contains(id)).copied().collect()
    }

    /// An invitation that waits.
    pub fn invitation(&self, id: u64) -> Option<&Invitation> {
        self.invitations.get(&id)
    }

    /// Invitations that wait for a node or its owner.
    pub fn invitations_for(&self, node: NodeId) -> Vec<&Invitation> {
        let owner = self.nodes.get(&node).map_or("", |n| n.record.owner.as_str());
        let fits = |to: &Invitee| match to {
            Invitee::Node(invited) => *invited == node,
            Invitee::Owner(invited) => !owner.is_empty() && invited == owner,
        };
        self.invitations.values().filter(|i| fits(&i.to)).collect()
    }

    /// Invitations to a network that wait.
    pub fn invitations_to(&self, network: u16) -> impl Iterator<Item = &Invitation> {
        self.invitations.values().filter(move |i| i.network == network)
    }

    /// With whom trust is mutual.
    pub fn trusted_by(&self, node: NodeId) -> Vec<NodeId> {
        let pairs = self.trust.iter().filter(|((a, b), _)| *a == node || *b == node);
        let mutual = pairs.filter(|(_, stated)| stated.low && stated.high);
        mutual.map(|((a, b), _)| if *a == node { *b } else { *a }).collect()
    }

    /// Who has ended or refused trust with `node` and not stated it again.
    pub fn revoked_by(&self, node: NodeId) -> Vec<NodeId> {
        self.withdrawn.iter().filter(|(_, peer)| *peer == node).map(|(by, _)| *by).collect()
    }

    /// Whether `by` has ended or refused trust with `peer` and not stated it
    /// again.
    pub fn has_withdrawn(&self, by: NodeId, peer: NodeId) -> bool {
        self.withdrawn.contains(&(by, peer))
    }

    /// How many commands made this state.
    pub const fn applied(&self) -> u64 {
        self.applied
    }

    /// A registered node.
    ///
    /// # Errors
    /// When there is none of that ID.
    pub fn node(&self, id: NodeId) -> Result<&Node, Refusal> {
        self.nodes.get(&id).ok_or(Refusal::UnknownNode(id))
    }

    /// The registered node of that name.
    ///
    /// # Errors
    /// When nobody has the name.
    pub fn named(&self, hostname: &str) -> Result<&Node, Refusal> {
        self.hostnames
            .get(hostname)
            .and_then(|id| self.nodes.get(id))
            .ok_or_else(|| Refusal::UnknownHostname(hostname.to_owned()))
    }

    /// What is known of a key.
    pub fn key(&self, key: &PublicKey) -> Option<KeyEntry> {
        self.keys.get(key).copied()
    }

    /// How many nodes are registered.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether nobody is registered.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Whether `requester` may see the real address of `target`: it is public,
    /// or both have stated trust in each other, or both are in a network other
    /// than the backbone. On the word of one side alone nobody's address is
    /// given away.
    pub fn may_resolve(&self, requester: NodeId, target: &Node) -> bool {
        target.record.public
            || self.is_mutual(requester, target.record.id)
            || !self.shared_networks(requester, target.record.id).is_empty()
    }

    /// Whether both have stated trust in each other.
    pub fn is_mutual(&self, a: NodeId, b: NodeId) -> bool {
        self.trust.get(&pair(a, b)).is_some_and(|stated| stated.low && stated.high)
    }

    /// Whether `node` has stated trust in `peer`.
    pub fn has_stated(&self, node: NodeId, peer: NodeId) -> bool {
        let stated = |s: &Stated| if node < peer { s.low } else { s.high };
        self.trust.get(&pair(node, peer)).is_some_and(stated)
    }

    /// The node that an owner text stands for, registered now or not.
    pub(crate) fn owner_node(&self, owner: &str) -> Option<NodeId> {
        self.owners.get(owner).copied()
    }

    /// The number that the next new node gets.
    pub(crate) const fn next_node(&self) -> NodeId {
        NodeId(self.next_node)
    }

    /// How many keys have ever been registered and are not forgotten.
    pub(crate) fn keys(&self) -> usize {
        self.keys.len()
    }

    /// Pairs of which at least one side has stated trust.
    pub(crate) fn trust_pairs(&self) -> usize {
        self.trust.len()
    }

    /// Whether anything waits for `node`.
    pub fn has_handshakes(&self, node: NodeId) -> bool {
        self.requests.contains_key(&node) || self.answers.contains_key(&node)
    }

    /// Nodes not heard of since `before`, with what identifies the
    /// registration, as a reap command needs it.
    pub fn silent_since(&self, before: u64) -> Vec<(NodeId, u64)> {
        let silent = self.nodes.values().filter(|n| n.last_seen() < before);
        silent.map(|n| (n.record.id, n.record.registered_by)).collect()
    }

    /// Counts every node as heard of at `now`: after a restart each gets the
    /// whole time to report again.
    pub fn touch_all(&self, now: u64) {
        self.nodes.values().for_each(|n| n.touch(now));
    }
}

fn pair(a: NodeId, b: NodeId) -> (NodeId, NodeId) {
    (a.min(b), a.max(b))
}

#[cfg(test)]
mod tests;
