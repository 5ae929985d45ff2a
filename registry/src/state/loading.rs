//! From rows, in any order, back to a state, with every cross-reference
//! checked: a damaged or foreign set of rows is refused, not repaired.

use std::collections::VecDeque;
use std::sync::Arc;

use pilot_wire::NodeId;
use pilot_wire::registry::network::Invitee;
use pilot_wire::registry::{HandshakeAnswer, HandshakeRequest, PublicKey};
use serde::de::DeserializeOwned;

use super::nodes::Node;
use super::rows::{
    Counts, Inbox, KeyRow, Meta, NetworkRow, OwnerRow, ROWS_VERSION, Row, RowKey, TrustRow,
};
use super::trust::Sides;
use super::{
    Invitation, KeyEntry, MAX_ANSWERS, MAX_REQUESTS, Member, NetworkRecord, NodeRecord, State,
};

/// Why rows are no state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// Written by a newer version.
    #[error(
        "the state has layout {0}, this version knows layouts up to {ROWS_VERSION}; use the version that wrote it or a newer one"
    )]
    Version(u32),
    /// The row that belongs to nothing else is missing.
    #[error("the state has no row that says where it stands; it is incomplete")]
    NoMeta,
    /// A row cannot be read.
    #[error("row {key} of table {table:?} cannot be read: {problem}")]
    Unreadable {
        /// Its table.
        table: super::Table,
        /// Its key in hex.
        key: String,
        /// Why.
        problem: String,
    },
    /// Two rows contradict each other.
    #[error("the state contradicts itself: {0}")]
    Contradiction(String),
}

/// Rows on their way to a state.
#[derive(Debug, Default)]
pub struct Loading {
    meta: Option<Meta>,
    state: State,
    /// Members and invitations wait for their networks.
    members: Vec<(u16, Member)>,
}

impl Loading {
    /// Takes one row.
    ///
    /// # Errors
    /// When it cannot be read, or contradicts one before it.
    pub fn row(&mut self, row: Row) -> Result<(), StateError> {
        let Some(key) = RowKey::parse(row.table, &row.key) else {
            return Err(unreadable(&row, "its key has another form"));
        };
        match key {
            RowKey::Meta => {
                #[derive(serde::Deserialize)]
                struct Version {
                    version: u32,
                }
                // Of a newer layout nothing but the number is known.
                let Version { version } = value(&row)?;
                if version != ROWS_VERSION {
                    return Err(StateError::Version(version));
                }
                self.meta = Some(value(&row)?);
                Ok(())
            }
            RowKey::Node(id) => {
                let record: NodeRecord = value(&row)?;
                if record.id != id {
                    return Err(unreadable(&row, "it holds another node"));
                }
                self.node(record)
            }
            RowKey::Key(key) => {
                let KeyRow { node, proven, revoked } = value(&row)?;
                self.key(key, KeyEntry { node, proven, revoked })
            }
            RowKey::Owner(text) => {
                let OwnerRow { node } = value(&row)?;
                self.owner(&text, node)
            }
            RowKey::Trust(node) => {
                let TrustRow { stated, withdrawn } = value(&row)?;
                if stated.is_empty() && withdrawn.is_empty() {
                    return Err(unreadable(&row, "it says nothing"));
                }
                stated.into_iter().try_for_each(|peer| self.stated(node, peer))?;
                withdrawn.into_iter().try_for_each(|peer| self.withdrawn(node, peer))
            }
            RowKey::Handshakes(node) => {
                let inbox: Inbox = value(&row)?;
                if inbox.is_empty() {
                    return Err(unreadable(&row, "it says nothing"));
                }
                let Inbox { requests, answers } = inbox;
                self.requests(node, requests)?;
                self.answers(node, answers)
            }
            RowKey::Network(id) => {
                let NetworkRow { record, policy, ending, tokens } = value(&row)?;
                if record.id != id {
                    return Err(unreadable(&row, "it holds another network"));
                }
                self.network(record, policy, ending)?;
                for token in tokens {
                    if self.state.networks.put_token(id, token).is_some() {
                        return Err(unreadable(&row, "two join tokens have one name"));
                    }
                }
                Ok(())
            }
            RowKey::Member(network, node) => {
                let member: Member = value(&row)?;
                if member.node != node {
                    return Err(unreadable(&row, "it holds another node"));
                }
                self.member(network, member);
                Ok(())
            }
            RowKey::Invitation(id) => {
                let invitation: Invitation = value(&row)?;
                if invitation.id != id {
                    return Err(unreadable(&row, "it holds another invitation"));
                }
                let new = self.state.networks.put_invitation(invitation);
                ensure(new, || format!("invitation {id} stands twice"))
            }
        }
    }

    /// Checks that all rows came and belong together.
    ///
    /// # Errors
    /// When they do not.
    pub fn finish(mut self) -> Result<State, StateError> {
        let meta = self.meta.take().ok_or(StateError::NoMeta)?;
        let state = &mut self.state;
        state.epoch = meta.epoch;
        state.applied = meta.applied;
        state.next_node = meta.next_node;
        state.next_network = meta.next_network;
        state.next_invitation = meta.next_invitation;
        let state = self.check()?;
        check_counts(&meta.counts, &state.row_counts())?;
        Ok(state)
    }

    /// Where the state stands, when there is no row that says it.
    pub(super) const fn stands(&mut self, applied: u64, next_node: u32) {
        self.state.applied = applied;
        self.state.next_node = next_node;
    }

    /// The next network gets this number, unless it is used.
    pub(super) const fn next_network(&mut self, id: u16) {
        self.state.next_network = id;
    }

    pub(super) fn node(&mut self, record: NodeRecord) -> Result<(), StateError> {
        let (id, state) = (record.id, &mut self.state);
        // Before it takes its place, since that costs memory by its number.
        ensure(state.nodes.get(id).is_none(), || format!("node {id} stands twice"))?;
        let name = &record.hostname;
        if !name.is_empty() {
            let other = state.hostnames.find(name, &state.nodes);
            ensure(other.is_none(), || format!("hostname {name:?} belongs to two nodes"))?;
            state.hostnames.insert(name, id);
        }
        state.census.count(&record);
        state.nodes.insert(Node::new(record, 0));
        Ok(())
    }

    pub(super) fn key(&mut self, key: PublicKey, entry: KeyEntry) -> Result<(), StateError> {
        let other = self.state.keys.insert(key, entry);
        ensure(other.is_none(), || format!("key {key} stands twice"))
    }

    pub(super) fn owner(&mut self, text: &str, node: NodeId) -> Result<(), StateError> {
        let text: Arc<str> = text.into();
        let owned = self.state.owned.insert(node, text.clone());
        ensure(owned.is_none(), || format!("node {node} is recovered by two owner texts"))?;
        let other = self.state.owners.insert(text, node);
        ensure(other.is_none(), || format!("the owner text of node {node} belongs to two nodes"))
    }

    pub(super) fn stated(&mut self, node: NodeId, peer: NodeId) -> Result<(), StateError> {
        self.says(node, peer, Sides::STATES)
    }

    pub(super) fn withdrawn(&mut self, node: NodeId, peer: NodeId) -> Result<(), StateError> {
        self.says(node, peer, Sides::WITHDREW)
    }

    fn says(&mut self, node: NodeId, peer: NodeId, what: Sides) -> Result<(), StateError> {
        ensure(node != peer, || format!("node {node} has trust with itself"))?;
        let sides = self.state.trust.get(node, peer);
        ensure(!sides.has(what), || format!("node {node} says of node {peer} the same twice"))?;
        self.state.trust.put(node, peer, sides.with(what));
        Ok(())
    }

    pub(super) fn requests(
        &mut self,
        node: NodeId,
        requests: Vec<HandshakeRequest>,
    ) -> Result<(), StateError> {
        let fit = requests.len() <= MAX_REQUESTS;
        ensure(self.state.inboxes.load_requests(node, requests) && fit, || {
            format!("more than {MAX_REQUESTS} handshake requests wait for node {node}")
        })
    }

    pub(super) fn answers(
        &mut self,
        node: NodeId,
        answers: VecDeque<HandshakeAnswer>,
    ) -> Result<(), StateError> {
        let fit = answers.len() <= MAX_ANSWERS;
        ensure(self.state.inboxes.load_answers(node, answers) && fit, || {
            format!("more than {MAX_ANSWERS} handshake answers wait for node {node}")
        })
    }

    pub(super) fn network(
        &mut self,
        record: NetworkRecord,
        policy: u64,
        ending: bool,
    ) -> Result<(), StateError> {
        let (id, name) = (record.id, record.name.clone());
        ensure(id != 0, || "the backbone stands among the networks".to_owned())?;
        let networks = &mut self.state.networks;
        let free =
            if ending { networks.load_ending(record) } else { networks.begin(record, policy) };
        ensure(free, || format!("the number {id} or the name {name:?} belongs to two networks"))
    }

    pub(super) fn member(&mut self, network: u16, member: Member) {
        self.members.push((network, member));
    }

    /// The state, if all in it belongs together.
    pub(super) fn check(mut self) -> Result<State, StateError> {
        self.place_members()?;
        let state = &mut self.state;
        let assigned = |id: NodeId| id.0 > 0 && id.0 < state.next_node;
        let assigned = |id: NodeId, what: &str| {
            ensure(assigned(id), || format!("{what} node {id}, which was never assigned"))
        };
        for (key, entry) in &state.keys {
            let id = entry.node;
            assigned(id, "a key belongs to")?;
            let current = state.nodes.get(id).map(|n| n.record.key);
            let twice = match current {
                Some(current) => current != *key,
                None if entry.revoked => !state.revoked.insert(id),
                None => state.absent.insert(id, *key).is_some(),
            };
            ensure(!twice, || format!("node {id} has two keys"))?;
            ensure(!(entry.revoked && current.is_some()), || {
                format!("node {id} is registered with a revoked key")
            })?;
        }
        if let Some(both) = state.revoked.iter().find(|id| state.absent.contains_key(id)) {
            return Err(StateError::Contradiction(format!("node {both} has two keys")));
        }
        for node in state.nodes.iter() {
            let id = node.record.id;
            assigned(id, "there is a record of")?;
            let entry = state.keys.get(&node.record.key);
            ensure(entry.is_some_and(|e| e.node == id), || {
                format!("the key of node {id} is not indexed")
            })?;
        }
        for id in state.owned.keys() {
            assigned(*id, "an owner text recovers")?;
            ensure(!state.revoked.contains(id), || {
                format!("an owner text recovers node {id}, whose key is revoked")
            })?;
        }
        state.trust.nodes().try_for_each(|id| assigned(id, "trust is stated by or in"))?;
        state.inboxes.nodes().try_for_each(|id| assigned(id, "handshakes wait for"))?;
        for network in state.networks.stored() {
            let id = network.record.id;
            if let Some(owner) = network.record.owner {
                assigned(owner, &format!("network {id} belongs to"))?;
            }
            for node in network.members.keys() {
                assigned(*node, &format!("in network {id} is"))?;
            }
        }
        for (id, invitation) in state.networks.invitations() {
            let network = invitation.network;
            ensure(state.networks.get(network).is_some(), || {
                format!("invitation {id} is to network {network}, which there is not")
            })?;
            ensure(*id > 0 && *id < state.next_invitation, || {
                format!("invitation {id} was never made")
            })?;
            if let Invitee::Node(node) = invitation.to {
                assigned(node, &format!("invitation {id} is for"))?;
            }
        }
        Ok(self.state)
    }

    fn place_members(&mut self) -> Result<(), StateError> {
        for (network, member) in std::mem::take(&mut self.members) {
            let node = member.node;
            ensure(self.state.networks.is_used(network), || {
                format!("node {node} is in network {network}, which there is not")
            })?;
            let former = self.state.networks.put_member(network, member);
            ensure(former.is_none(), || format!("node {node} is in network {network} twice"))?;
        }
        Ok(())
    }
}

fn check_counts(stored: &Counts, found: &Counts) -> Result<(), StateError> {
    ensure(stored == found, || {
        let counts = |c: &Counts| serde_json::to_string(c).unwrap_or_default();
        format!("rows are missing: there should be {} and are {}", counts(stored), counts(found))
    })
}

fn ensure(good: bool, problem: impl FnOnce() -> String) -> Result<(), StateError> {
    if good { Ok(()) } else { Err(StateError::Contradiction(problem())) }
}

fn unreadable(row: &Row, problem: impl ToString) -> StateError {
    let key = hex::encode(&row.key);
    StateError::Unreadable { table: row.table, key, problem: problem.to_string() }
}

fn value<T: DeserializeOwned>(row: &Row) -> Result<T, StateError> {
    let value = row.value.as_deref().ok_or_else(|| unreadable(row, "it has no value"))?;
    serde_json::from_slice(value).map_err(|e| unreadable(row, e))
}
