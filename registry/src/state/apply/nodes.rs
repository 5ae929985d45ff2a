//! Registration, names, tags, scores and keys of nodes.

use std::sync::Arc;

use pilot_wire::registry::{Acknowledged, network::Invitee};
use pilot_wire::registry::{
    Deregistered, HostnameSet, KeyRotated, PoloScoreSet, PoloScoreUpdated, PublicKey, Registered,
    TagsSet, TaskExecSet, VisibilitySet,
};
use pilot_wire::{Address, NodeId};

use super::Outcome;
use crate::state::rows::RowKey;
use crate::state::{
    Change, KeyEntry, MAX_KEYS, Node, NodeRecord, Refusal, Register, Signer, State, check_hostname,
};

impl State {
    pub(super) fn register(&mut self, register: &Register, at: u64) -> Result<Registered, Refusal> {
        let known = self.node_of(register);
        let had_proven_owner = known.is_some_and(|id| self.proven_owner(id).is_some());
        let (id, rekeyed) = self.id_for(register)?;
        let visible = self.enter(id, register, at) || rekeyed;
        let mut reply = Registered {
            node_id: id,
            address: Address::backbone(id),
            network_id: 0,
            public_key: register.key,
            hostname: None,
            hostname_error: None,
        };
        let mut renamed = false;
        if !register.hostname.is_empty() {
            match self.name(id, &register.hostname) {
                Ok(changed) => {
                    renamed = changed;
                    reply.hostname = Some(register.hostname.clone());
                }
                // Published: a taken name is silently not set.
                Err(Refusal::HostnameTaken(_)) => {}
                Err(refusal) => reply.hostname_error = Some(refusal.to_string()),
            }
        }
        if rekeyed {
            self.changed(Change::Key(id));
        }
        let newly_owned = !had_proven_owner && self.proven_owner(id).is_some();
        if visible || renamed || newly_owned {
            self.changed(Change::Node(id));
        }
        if !had_proven_owner {
            self.tell_owner_of_invitations(id);
        }
        Ok(reply)
    }

    /// The node that a registration is about, if there was one before.
    fn node_of(&self, register: &Register) -> Option<NodeId> {
        let by_key = self.keys.get(&register.key).map(|entry| entry.node);
        by_key.or_else(|| self.recovered(register))
    }

    /// The node that the owner text recovers.
    fn recovered(&self, register: &Register) -> Option<NodeId> {
        self.owners.get(&*register.owner).filter(|_| register.takeover).copied()
    }

    /// The ID of the registering key, known or new; and whether it is a known
    /// ID with another key.
    fn id_for(&mut self, register: &Register) -> Result<(NodeId, bool), Refusal> {
        let key = register.key;
        if let Some(entry) = self.keys.get_mut(&key) {
            if entry.revoked {
                return Err(Refusal::KeyRevoked);
            }
            if entry.proven && !register.proven {
                return Err(Refusal::ProofRequired);
            }
            if entry.proven != register.proven {
                entry.proven = register.proven;
                self.dirty.mark(|| RowKey::Key(key));
            }
            return Ok((entry.node, false));
        }
        if self.keys.len() >= MAX_KEYS {
            return Err(Refusal::Full("keys"));
        }
        let recovered = self.recovered(register);
        let node = match recovered {
            Some(node) => {
                // The old key is forgotten and gets a new ID, as published.
                let registered = self.nodes.get(node).map(|old| old.record.key);
                if let Some(old) = registered.or_else(|| self.absent.remove(&node)) {
                    self.keys.remove(&old);
                    self.dirty.mark(|| RowKey::Key(old));
                }
                node
            }
            None => {
                let node = NodeId(self.next_node);
                self.next_node = self.next_node.checked_add(1).ok_or(Refusal::Full("node IDs"))?;
                node
            }
        };
        let entry = KeyEntry { node, proven: register.proven, revoked: false };
        self.keys.insert(key, entry);
        self.dirty.mark(|| RowKey::Key(key));
        Ok((node, recovered.is_some()))
    }

    /// Makes or renews the record of `id`; whether others see a difference.
    fn enter(&mut self, id: NodeId, register: &Register, at: u64) -> bool {
        let registered_by = self.applied;
        self.dirty.mark(|| RowKey::Node(id));
        let visible = match self.nodes.get_mut(id) {
            Some(node) => {
                node.touch(at);
                node.record.key = register.key;
                node.record.registered_by = registered_by;
                std::mem::replace(&mut node.record.endpoint, register.endpoint) != register.endpoint
            }
            None => {
                let record = NodeRecord {
                    id,
                    key: register.key,
                    endpoint: register.endpoint,
                    registered_by,
                    owner: String::new(),
                    hostname: String::new(),
                    public: false,
                    tags: Vec::new(),
                    polo_score: 0,
                    task_exec: false,
                };
                self.absent.remove(&id);
                self.nodes.insert(Node::new(record, at));
                true
            }
        };
        if let Some(node) = self.nodes.get_mut(id)
            && node.record.owner.is_empty()
        {
            node.record.owner.clone_from(&register.owner);
        }
        self.own(id);
        visible
    }

    /// Lets the owner text of a node recover it, unless it recovers another:
    /// the first node of an owner stays the one that can be recovered.
    fn own(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get(id) else { return };
        let text = node.record.owner.as_str();
        if text.is_empty() || self.owners.contains_key(text) {
            return;
        }
        let text: Arc<str> = text.into();
        self.dirty.mark(|| RowKey::Owner((*text).into()));
        self.owners.insert(text.clone(), id);
        if let Some(former) = self.owned.insert(id, text) {
            self.owners.remove(&former);
            self.dirty.mark(|| RowKey::Owner((*former).into()));
        }
    }

    /// Invitations for its owner are for this node too since a moment ago.
    fn tell_owner_of_invitations(&mut self, id: NodeId) {
        if let Some(owner) = self.proven_owner(id) {
            let owner = Invitee::Owner(owner.to_owned());
            let invited = self.networks.invited(&owner).map(|i| Change::Invited(i.id));
            self.changes.extend(invited);
        }
    }

    pub(super) fn deregister(&mut self, by: Signer) -> Outcome {
        self.signed(by)?;
        self.remove(by.node);
        Ok(Deregistered {}.into())
    }

    pub(super) fn reap(&mut self, silent: &[(NodeId, u64)]) -> Acknowledged {
        for (id, registered_by) in silent {
            if self.nodes.get(*id).is_some_and(|n| n.record.registered_by == *registered_by) {
                self.remove(*id);
            }
        }
        Deregistered {}.into()
    }

    /// Removes the record and its name; key, owner, trust, memberships and what
    /// waits stay.
    pub(super) fn remove(&mut self, id: NodeId) {
        self.unname(id);
        let Some(node) = self.nodes.remove(id) else { return };
        self.census.discount(&node.record);
        self.absent.insert(id, node.record.key);
        self.dirty.mark(|| RowKey::Node(id));
        self.changed(Change::Node(id));
    }

    pub(super) fn set_visibility(&mut self, by: Signer, public: bool) -> Outcome {
        self.edit(by, |record| record.public = public)?;
        let visibility = if public { "public" } else { "private" }.to_owned();
        Ok(VisibilitySet { node_id: by.node, visibility }.into())
    }

    pub(super) fn set_tags(&mut self, by: Signer, tags: &[String]) -> Outcome {
        self.edit(by, |record| record.tags = tags.to_vec())?;
        let tags = Some(tags.to_vec()).filter(|t| !t.is_empty());
        Ok(TagsSet { node_id: by.node, tags }.into())
    }

    pub(super) fn set_task_exec(&mut self, by: Signer, enabled: bool) -> Outcome {
        self.edit(by, |record| record.task_exec = enabled)?;
        Ok(TaskExecSet { node_id: by.node, task_exec: enabled }.into())
    }

    /// Changes what is counted of the acting node.
    fn edit(&mut self, by: Signer, change: impl FnOnce(&mut NodeRecord)) -> Result<(), Refusal> {
        self.signed_to_change(by)?;
        let Some(node) = self.nodes.get_mut(by.node) else { return Ok(()) };
        let record = &mut node.record;
        let (public, tags) = (record.public, record.tags.clone());
        self.census.discount(record);
        change(record);
        self.census.count(record);
        // Who executes tasks is looked up, not told.
        if record.public != public || record.tags != tags {
            self.changes.push(Change::Node(by.node));
        }
        Ok(())
    }

    pub(super) fn set_hostname(&mut self, by: Signer, hostname: &str) -> Outcome {
        self.signed(by)?;
        let changed =
            if hostname.is_empty() { self.unname(by.node) } else { self.name(by.node, hostname)? };
        if changed {
            self.changed(Change::Node(by.node));
        }
        Ok(HostnameSet { node_id: by.node, hostname: hostname.to_owned() }.into())
    }

    /// Names a registered node; whether it had another name or none.
    fn name(&mut self, id: NodeId, hostname: &str) -> Result<bool, Refusal> {
        check_hostname(hostname)?;
        match self.hostnames.find(hostname, &self.nodes) {
            Some(holder) if holder == id => return Ok(false),
            Some(_) => return Err(Refusal::HostnameTaken(hostname.to_owned())),
            None => {}
        }
        self.unname(id);
        self.node_mut(id)?.record.hostname = hostname.to_owned();
        self.hostnames.insert(hostname, id);
        self.dirty.mark(|| RowKey::Node(id));
        Ok(true)
    }

    /// Takes its name from a node; whether it had one.
    fn unname(&mut self, id: NodeId) -> bool {
        let Some(node) = self.nodes.get_mut(id) else { return false };
        let hostname = std::mem::take(&mut node.record.hostname);
        self.dirty.mark(|| RowKey::Node(id));
        self.hostnames.remove(&hostname, id)
    }

    pub(super) fn rotate_key(&mut self, by: Signer, new_key: PublicKey, at: u64) -> Outcome {
        self.signed(by)?;
        if let Some(entry) = self.keys.get(&new_key) {
            if entry.revoked {
                return Err(Refusal::KeyRevoked);
            }
            if entry.node != by.node {
                return Err(Refusal::KeyInUse);
            }
        }
        let node = self.node_mut(by.node)?;
        node.touch(at);
        node.record.key = new_key;
        let address = node.record.address();
        if new_key != by.key {
            let proven = self.keys.remove(&by.key).is_some_and(|entry| entry.proven);
            self.keys.insert(new_key, KeyEntry { node: by.node, proven, revoked: false });
            self.dirty.mark(|| RowKey::Key(by.key));
            self.dirty.mark(|| RowKey::Key(new_key));
            self.dirty.mark(|| RowKey::Node(by.node));
            self.changed(Change::Key(by.node));
            self.changed(Change::Node(by.node));
        }
        Ok(KeyRotated { node_id: by.node, address, public_key: new_key }.into())
    }

    pub(super) fn update_polo_score(&mut self, node: NodeId, delta: i64) -> Outcome {
        let (address, polo_score) = self.score(node, |score| score.saturating_add(delta))?;
        Ok(PoloScoreUpdated { node_id: node, address, polo_score }.into())
    }

    pub(super) fn set_polo_score(&mut self, node: NodeId, polo_score: i64) -> Outcome {
        let (address, polo_score) = self.score(node, |_| polo_score)?;
        Ok(PoloScoreSet { node_id: node, address, polo_score }.into())
    }

    fn score(
        &mut self,
        id: NodeId,
        new: impl FnOnce(i64) -> i64,
    ) -> Result<(Address, i64), Refusal> {
        let record = &mut self.node_mut(id)?.record;
        record.polo_score = new(record.polo_score);
        let scored = (record.address(), record.polo_score);
        self.dirty.mark(|| RowKey::Node(id));
        Ok(scored)
    }
}
