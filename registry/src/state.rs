//! The registry's state machine. Everything durable happens in
//! [`State::apply`], which depends on the state and the command alone, so that
//! the same commands always give the same state. No I/O, no clock, no chance.
//!
//! Bounds: [`MAX_KEYS`] keys ever registered, one owner text per node ID,
//! [`MAX_TRUST`] trust records and as many withdrawals, of one node
//! [`MAX_STATEMENTS_OF_NODE`] statements that are not returned and
//! [`MAX_WITHDRAWALS_OF_NODE`] withdrawals, [`MAX_REQUESTS`] and
//! [`MAX_ANSWERS`] waiting per node, those of `network.rs`. At the bound a
//! request is refused; but a new owner text replaces the older, and the oldest
//! answer goes.

mod apply;
mod census;
mod change;
mod command;
mod hostnames;
mod inboxes;
mod listing;
mod loading;
mod names;
mod network;
mod networks;
mod nodes;
mod refusal;
mod rows;
mod snapshot;
mod trust;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use pilot_wire::NodeId;
use pilot_wire::registry::PublicKey;
use pilot_wire::registry::network::{Invitee, NetworkRef};

pub use census::Census;
pub use change::{Change, LeaveReason};
pub use command::{Actor, Admission, Command, Denial, Imported, Op, Origin, Register, Signer};
pub use loading::{Loading, StateError};
pub use names::{check_hostname, check_network_name, check_tags};
pub(crate) use network::nests_deeper;
pub use network::{
    Invitation, MAX_CONFIG_DEPTH, MAX_ENDED, MAX_INVITATION_TIME, MAX_INVITATIONS,
    MAX_INVITATIONS_EACH, MAX_INVITATIONS_FROM, MAX_INVITATIONS_IN_ALL, MAX_LEAVING,
    MAX_MEMBER_TAG, MAX_MEMBER_TAGS, MAX_MEMBERSHIPS, MAX_NETWORKS, MAX_NETWORKS_OF_OWNER,
    MAX_RULE_CONFIG, MAX_RULE_CONFIGS, MAX_RULES, MAX_TOKENS, Member, Network, NetworkRecord,
    Token,
};
pub(crate) use networks::Ending as Ended;
pub use nodes::{KeyEntry, Node, NodeRecord};
pub use refusal::Refusal;
pub use rows::{ROWS_VERSION, Row, RowKey, Table};
pub use snapshot::{Snapshot, SnapshotError};

/// Most keys ever registered; a key keeps its node ID for ever.
pub const MAX_KEYS: usize = 8_000_000;
/// Most pairs of which at least one side has stated trust.
pub const MAX_TRUST: usize = 8_000_000;
/// Most statements of trust of one node that the other has not returned.
pub const MAX_STATEMENTS_OF_NODE: usize = 4096;
/// Most withdrawals of trust that are remembered of one node.
pub const MAX_WITHDRAWALS_OF_NODE: usize = 4096;
/// Most handshake requests waiting for one node (published limit).
pub const MAX_REQUESTS: usize = 100;
/// Most handshake answers waiting for one node; the oldest makes room.
pub const MAX_ANSWERS: usize = 100;
/// Longest owner text, in bytes.
pub const MAX_OWNER: usize = 256;
/// Longest justification kept, in bytes; the rest is cut off.
pub const MAX_JUSTIFICATION: usize = 1024;

/// The whole state.
#[derive(Debug)]
pub struct State {
    /// Made once with the store, by chance; says that numbers belong together.
    epoch: String,
    applied: u64,
    next_node: u32,
    next_network: u16,
    next_invitation: u64,
    nodes: nodes::Nodes,
    keys: HashMap<PublicKey, KeyEntry>,
    /// The other way round, for nodes that are not registered now.
    absent: BTreeMap<NodeId, PublicKey>,
    /// Nodes whose key is revoked.
    revoked: BTreeSet<NodeId>,
    owners: HashMap<Arc<str>, NodeId>,
    /// The other way round; each node ID has one owner text at most.
    owned: HashMap<NodeId, Arc<str>>,
    hostnames: hostnames::Hostnames,
    trust: trust::Trust,
    /// What waits for a node.
    inboxes: inboxes::Inboxes,
    networks: networks::Networks,
    census: Census,
    /// What was changed since it was last asked.
    changes: Vec<Change>,
    dirty: rows::Dirty,
}

impl Default for State {
    fn default() -> Self {
        Self {
            epoch: String::new(),
            applied: 0,
            next_node: 1,
            next_network: 1,
            next_invitation: 1,
            nodes: nodes::Nodes::default(),
            keys: HashMap::new(),
            absent: BTreeMap::new(),
            revoked: BTreeSet::new(),
            owners: HashMap::new(),
            owned: HashMap::new(),
            hostnames: hostnames::Hostnames::default(),
            trust: trust::Trust::default(),
            inboxes: inboxes::Inboxes::default(),
            networks: networks::Networks::default(),
            census: Census::default(),
            changes: Vec::new(),
            dirty: rows::Dirty::default(),
        }
    }
}

impl State {
    /// What was changed since this was last called, in order.
    pub fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// Names this state, when its store is made.
    pub fn new_epoch(&mut self, epoch: String) {
        self.epoch = epoch;
    }

    /// The name of this state: another one says that numbers of commands and
    /// nodes have begun anew. Empty until it is given.
    pub fn epoch(&self) -> &str {
        &self.epoch
    }

    /// A network beside the backbone.
    ///
    /// # Errors
    /// When there is none of that number.
    pub fn network(&self, id: u16) -> Result<&Network, Refusal> {
        self.networks.get(id).ok_or(Refusal::UnknownNetwork(id))
    }

    /// A network, by number or name.
    ///
    /// # Errors
    /// When there is none.
    pub fn find_network(&self, network: &NetworkRef) -> Result<&Network, Refusal> {
        match network {
            NetworkRef::Id(id) => self.network(*id),
            NetworkRef::Name(name) => {
                let named = self.networks.named(name);
                named.ok_or_else(|| Refusal::UnknownNetworkName(name.clone()))
            }
        }
    }

    /// All networks beside the backbone, by number.
    pub fn networks(&self) -> impl Iterator<Item = &Network> {
        self.networks.iter()
    }

    /// The networks of a node, beside the backbone.
    pub fn memberships(&self, node: NodeId) -> impl Iterator<Item = (&Network, &Member)> {
        self.networks.of(node).filter_map(move |id| {
            let network = self.networks.get(id)?;
            Some((network, network.members.get(&node)?))
        })
    }

    /// Networks that both are in, beside the backbone.
    pub fn shared_networks(&self, a: NodeId, b: NodeId) -> Vec<u16> {
        let is_in = |id: &u16| self.networks.get(*id).is_some_and(|n| n.members.contains_key(&b));
        self.networks.of(a).filter(is_in).collect()
    }

    /// An invitation that waits.
    pub fn invitation(&self, id: u64) -> Option<&Invitation> {
        self.networks.invitation(id)
    }

    /// Invitations that wait for a node or its owner.
    pub fn invitations_for(&self, node: NodeId) -> Vec<&Invitation> {
        let node_itself = Invitee::Node(node);
        let of_node = self.networks.invited(&node_itself);
        let owner = self.proven_owner(node).map(|owner| Invitee::Owner(owner.to_owned()));
        let of_owner = owner.iter().flat_map(|owner| self.networks.invited(owner));
        of_node.chain(of_owner).collect()
    }

    /// Whether who made an invitation may still let somebody in: it is the
    /// owner or a member of the network and has the key that signed; or it was
    /// an administrator.
    pub fn is_backed(&self, invitation: &Invitation) -> bool {
        let Some((from, key)) = invitation.from else { return true };
        let known = self.keys.get(&key).is_some_and(|e| e.node == from && !e.revoked);
        known
            && self.networks.get(invitation.network).is_some_and(|network| {
                network.record.owner == Some(from) || network.members.contains_key(&from)
            })
    }

    /// Whether an invitation is for this node: by its number, or by its owner
    /// text if its key is proven.
    pub fn is_invited(&self, node: NodeId, to: &Invitee) -> bool {
        match to {
            Invitee::Node(invited) => *invited == node,
            Invitee::Owner(invited) => self.proven_owner(node) == Some(invited),
        }
    }

    /// The owner text of a registered node, if its key is proven: anybody can
    /// register a key with any text.
    fn proven_owner(&self, node: NodeId) -> Option<&str> {
        let record = &self.nodes.get(node)?.record;
        let proven = self.keys.get(&record.key).is_some_and(|entry| entry.proven);
        Some(record.owner.as_str()).filter(|owner| proven && !owner.is_empty())
    }

    /// Invitations to a network that wait.
    pub fn invitations_to(&self, network: u16) -> impl Iterator<Item = &Invitation> {
        self.networks.invited_to(network)
    }

    /// When the next membership, token or invitation ends: from then on
    /// [`Op::Expire`] has something to do, once or more often. 0, at once, while
    /// members of a deleted network are left.
    pub fn next_end(&self) -> Option<u64> {
        self.networks.next_end()
    }

    /// What [`Op::Expire`] at `at` ends.
    pub(crate) fn ended(&self, at: u64) -> Vec<Ended> {
        self.networks.ended(at, MAX_ENDED)
    }

    /// With whom trust is mutual.
    pub fn trusted_by(&self, node: NodeId) -> Vec<NodeId> {
        let mutual = self.trust.of(node).filter(|(_, sides)| sides.has(trust::Sides::MUTUAL));
        mutual.map(|(peer, _)| peer).collect()
    }

    /// Who has ended or refused trust with `node` and not stated it again.
    pub fn revoked_by(&self, node: NodeId) -> Vec<NodeId> {
        let ended = self.trust.of(node).filter(|(_, sides)| sides.has(trust::Sides::WITHDRAWN));
        ended.map(|(peer, _)| peer).collect()
    }

    /// Whether `by` has ended or refused trust with `peer` and not stated it
    /// again.
    pub fn has_withdrawn(&self, by: NodeId, peer: NodeId) -> bool {
        self.trust.get(by, peer).has(trust::Sides::WITHDREW)
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
        self.nodes.get(id).ok_or(Refusal::UnknownNode(id))
    }

    /// The registered nodes after `id`, in order of their numbers.
    pub fn nodes_after(&self, id: NodeId) -> impl Iterator<Item = &Node> {
        self.nodes.after(id)
    }

    /// The registered node of that name.
    ///
    /// # Errors
    /// When nobody has the name.
    pub fn named(&self, hostname: &str) -> Result<&Node, Refusal> {
        self.hostnames
            .find(hostname, &self.nodes)
            .and_then(|id| self.nodes.get(id))
            .ok_or_else(|| Refusal::UnknownHostname(hostname.to_owned()))
    }

    /// What is known of a key.
    pub fn key(&self, key: &PublicKey) -> Option<KeyEntry> {
        self.keys.get(key).copied()
    }

    /// Whether the key of this node was revoked.
    pub fn is_revoked(&self, node: NodeId) -> bool {
        self.revoked.contains(&node)
    }

    /// Whether this number was ever given to a node.
    pub const fn is_assigned(&self, node: NodeId) -> bool {
        node.0 > 0 && node.0 < self.next_node
    }

    /// How many nodes are registered.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether nobody is registered.
    pub fn is_empty(&self) -> bool {
        self.nodes.len() == 0
    }

    /// What is counted of registered nodes; kept, not found by looking at all.
    pub const fn census(&self) -> &Census {
        &self.census
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
        self.trust.get(a, b).has(trust::Sides::MUTUAL)
    }

    /// Whether `node` has stated trust in `peer`.
    pub fn has_stated(&self, node: NodeId, peer: NodeId) -> bool {
        self.trust.get(node, peer).has(trust::Sides::STATES)
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
    pub(crate) const fn trust_pairs(&self) -> usize {
        self.trust.pairs
    }

    /// Pairs of which both have stated trust.
    pub const fn mutual_pairs(&self) -> usize {
        self.trust.mutual
    }

    /// Whether anything waits for `node`.
    pub fn has_handshakes(&self, node: NodeId) -> bool {
        self.inboxes.get(node).is_some()
    }

    /// Nodes not heard of since `before`, with what identifies the
    /// registration, as a reap command needs it.
    pub fn silent_since(&self, before: u64) -> Vec<(NodeId, u64)> {
        self.silent_among(NodeId(0), usize::MAX, before).0
    }

    /// The same of the first `count` nodes after `after`; and the last one
    /// looked at, none when there are no more. With a million nodes one look at
    /// all of them would hold up whoever wants to change the state.
    pub fn silent_among(
        &self,
        after: NodeId,
        count: usize,
        before: u64,
    ) -> (Vec<(NodeId, u64)>, Option<NodeId>) {
        let mut left = count.max(1);
        let mut silent = Vec::new();
        for node in self.nodes.after(after) {
            if node.last_seen() < before {
                silent.push((node.record.id, node.record.registered_by));
            }
            left -= 1;
            if left == 0 {
                return (silent, Some(node.record.id));
            }
        }
        (silent, None)
    }

    /// Counts every node as heard of at `now`: after a restart each gets the
    /// whole time to report again.
    pub fn touch_all(&self, now: u64) {
        self.nodes.iter().for_each(|n| n.touch(now));
    }
}

#[cfg(test)]
mod tests;
