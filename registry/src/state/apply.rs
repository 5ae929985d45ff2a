//! The effect of each command. A refused command changes nothing but the
//! count; deciding that is part of the effect, since a command may be overtaken
//! between its admission and its turn.

use std::sync::atomic::AtomicU64;

use pilot_wire::registry::{
    Acknowledged, Deregistered, HandshakeAnswer, HandshakeAnswered, HandshakeDelivered,
    HandshakeRequest, Handshakes, HostnameSet, KeyRotated, PoloScoreSet, PoloScoreUpdated,
    PublicKey, Registered, TagsSet, TaskExecSet, TrustReported, TrustRevoked, VisibilitySet,
};
use pilot_wire::{Address, NodeId};

use super::{
    Command, KeyEntry, MAX_ANSWERS, MAX_KEYS, MAX_REQUESTS, MAX_TRUST, Node, NodeRecord, Op,
    Refusal, Register, Signer, State, check_hostname, pair,
};

type Outcome = Result<Acknowledged, Refusal>;

impl State {
    /// Applies one command.
    ///
    /// # Errors
    /// When it is refused; the state is then the same but for the count.
    pub fn apply(&mut self, command: &Command) -> Outcome {
        self.applied += 1;
        let at = command.at;
        match &command.op {
            Op::Register(register) => self.register(register, at).map(Into::into),
            Op::Deregister { by } => {
                self.signed(*by)?;
                self.remove(by.node);
                Ok(Deregistered {}.into())
            }
            Op::SetVisibility { by, public } => {
                self.signed(*by)?.record.public = *public;
                let visibility = if *public { "public" } else { "private" }.to_owned();
                Ok(VisibilitySet { node_id: by.node, visibility }.into())
            }
            Op::SetHostname { by, hostname } => self.set_hostname(*by, hostname),
            Op::SetTags { by, tags } => {
                self.signed(*by)?.record.tags.clone_from(tags);
                let tags = Some(tags.clone()).filter(|t| !t.is_empty());
                Ok(TagsSet { node_id: by.node, tags }.into())
            }
            Op::SetTaskExec { by, enabled } => {
                self.signed(*by)?.record.task_exec = *enabled;
                Ok(TaskExecSet { node_id: by.node, task_exec: *enabled }.into())
            }
            Op::ReportTrust { by, peer } => {
                self.signed(*by)?;
                self.node(*peer)?;
                self.state_trust(by.node, *peer)?;
                self.withdrawn.remove(&(by.node, *peer));
                Ok(TrustReported {}.into())
            }
            Op::RevokeTrust { by, peer } => {
                self.signed(*by)?;
                self.trust.remove(&pair(by.node, *peer)).ok_or(Refusal::NoTrust(*peer))?;
                self.withdraw(by.node, *peer);
                Ok(TrustRevoked {}.into())
            }
            Op::RequestHandshake { by, to, justification } => {
                self.request_handshake(*by, *to, justification, at)
            }
            Op::RespondHandshake { by, peer, accept } => {
                self.respond_handshake(*by, *peer, *accept, at)
            }
            Op::TakeHandshakes { by } => {
                self.signed(*by)?;
                let requests = self.requests.remove(&by.node).unwrap_or_default();
                let responses = self.answers.remove(&by.node).unwrap_or_default().into();
                Ok(Handshakes { requests, responses }.into())
            }
            Op::RotateKey { by, new_key } => self.rotate_key(*by, *new_key, at),
            Op::UpdatePoloScore { node, delta } => {
                let score = &mut self.node_mut(*node)?.record.polo_score;
                *score = score.saturating_add(*delta);
                let polo_score = *score;
                let address = Address::backbone(*node);
                Ok(PoloScoreUpdated { node_id: *node, address, polo_score }.into())
            }
            Op::SetPoloScore { node, polo_score } => {
                self.node_mut(*node)?.record.polo_score = *polo_score;
                let address = Address::backbone(*node);
                Ok(PoloScoreSet { node_id: *node, address, polo_score: *polo_score }.into())
            }
            Op::Reap { silent } => {
                for (id, registered_by) in silent {
                    if self.nodes.get(id).is_some_and(|n| n.record.registered_by == *registered_by)
                    {
                        self.remove(*id);
                    }
                }
                Ok(Deregistered {}.into())
            }
            Op::CreateNetwork { .. }
            | Op::UpdateNetwork { .. }
            | Op::DeleteNetwork { .. }
            | Op::JoinNetwork { .. }
            | Op::AddMember { .. }
            | Op::LeaveNetwork { .. }
            | Op::Expire {}
            | Op::CreateToken { .. }
            | Op::RevokeToken { .. }
            | Op::Invite { .. }
            | Op::EndInvitation { .. }
            | Op::RevokeNode { .. }
            | Op::Deny(_)
            | Op::Import(_) => Err(Refusal::NetworksDisabled),
        }
    }

    fn node_mut(&mut self, id: NodeId) -> Result<&mut Node, Refusal> {
        self.nodes.get_mut(&id).ok_or(Refusal::UnknownNode(id))
    }

    /// The acting node, if its key is still the one that signed.
    fn signed(&mut self, by: Signer) -> Result<&mut Node, Refusal> {
        let node = self.node_mut(by.node)?;
        if node.record.key != by.key {
            return Err(Refusal::BadSignature(by.node));
        }
        Ok(node)
    }

    fn register(&mut self, register: &Register, at: u64) -> Result<Registered, Refusal> {
        let id = self.id_for(register)?;
        let registered_by = self.applied;
        let node = self.nodes.entry(id).or_insert_with(|| Node {
            record: NodeRecord {
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
            },
            seen: AtomicU64::new(at),
        });
        node.touch(at);
        node.record.key = register.key;
        node.record.endpoint = register.endpoint;
        node.record.registered_by = registered_by;
        if node.record.owner.is_empty() && !register.owner.is_empty() {
            node.record.owner.clone_from(&register.owner);
        }
        // The first node of an owner stays the one that can be recovered.
        let owner = &node.record.owner;
        if !owner.is_empty() && !self.owners.contains_key(owner) {
            self.owners.insert(owner.clone(), id);
            if let Some(former) = self.owned.insert(id, owner.clone()) {
                self.owners.remove(&former);
            }
        }
        let mut reply = Registered {
            node_id: id,
            address: Address::backbone(id),
            network_id: 0,
            public_key: register.key,
            hostname: None,
            hostname_error: None,
        };
        if !register.hostname.is_empty() {
            match self.name(id, &register.hostname) {
                Ok(()) => reply.hostname = Some(register.hostname.clone()),
                // Published: a taken name is silently not set.
                Err(Refusal::HostnameTaken(_)) => {}
                Err(refusal) => reply.hostname_error = Some(refusal.to_string()),
            }
        }
        Ok(reply)
    }

    /// The ID of the registering key, known or new.
    fn id_for(&mut self, register: &Register) -> Result<NodeId, Refusal> {
        if let Some(entry) = self.keys.get_mut(&register.key) {
            if entry.proven && !register.proven {
                return Err(Refusal::ProofRequired);
            }
            entry.proven |= register.proven;
            return Ok(entry.node);
        }
        if self.keys.len() >= MAX_KEYS {
            return Err(Refusal::Full("keys"));
        }
        let owned = self.owners.get(&register.owner).filter(|_| register.takeover).copied();
        let node = match owned {
            Some(node) => {
                // The old key is forgotten and gets a new ID, as published.
                match self.nodes.get(&node) {
                    Some(old) => drop(self.keys.remove(&old.record.key)),
                    None => self.keys.retain(|_, entry| entry.node != node),
                }
                node
            }
            None => {
                let node = NodeId(self.next_node);
                self.next_node = self.next_node.checked_add(1).ok_or(Refusal::Full("node IDs"))?;
                node
            }
        };
        self.keys.insert(register.key, KeyEntry { node, proven: register.proven });
        Ok(node)
    }

    fn set_hostname(&mut self, by: Signer, hostname: &str) -> Outcome {
        self.signed(by)?;
        if hostname.is_empty() {
            self.unname(by.node);
        } else {
            self.name(by.node, hostname)?;
        }
        Ok(HostnameSet { node_id: by.node, hostname: hostname.to_owned() }.into())
    }

    fn name(&mut self, id: NodeId, hostname: &str) -> Result<(), Refusal> {
        check_hostname(hostname)?;
        match self.hostnames.get(hostname) {
            Some(holder) if *holder == id => return Ok(()),
            Some(_) => return Err(Refusal::HostnameTaken(hostname.to_owned())),
            None => {}
        }
        self.unname(id);
        self.node_mut(id)?.record.hostname = hostname.to_owned();
        self.hostnames.insert(hostname.to_owned(), id);
        Ok(())
    }

    fn unname(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.get_mut(&id) {
            let hostname = std::mem::take(&mut node.record.hostname);
            self.hostnames.remove(&hostname);
        }
    }

    /// Removes the record and its name; key, owner, trust and what waits stay.
    fn remove(&mut self, id: NodeId) {
        self.unname(id);
        self.nodes.remove(&id);
    }

    fn state_trust(&mut self, by: NodeId, peer: NodeId) -> Result<(), Refusal> {
        if by == peer {
            return Err(Refusal::Oneself);
        }
        let full = self.trust.len() >= MAX_TRUST;
        let key = pair(by, peer);
        if full && !self.trust.contains_key(&key) {
            return Err(Refusal::Full("trust pairs"));
        }
        let stated = self.trust.entry(key).or_default();
        if by < peer {
            stated.low = true;
        } else {
            stated.high = true;
        }
        Ok(())
    }

    fn withdraw(&mut self, by: NodeId, peer: NodeId) {
        if self.withdrawn.len() < MAX_TRUST {
            self.withdrawn.insert((by, peer));
        }
    }

    fn request_handshake(
        &mut self,
        by: Signer,
        to: NodeId,
        justification: &str,
        at: u64,
    ) -> Outcome {
        self.signed(by)?;
        self.node(to)?;
        let waiting = self.requests.get(&to).map_or(&[][..], Vec::as_slice);
        if waiting.iter().any(|r| r.from_node_id == by.node) {
            return Err(Refusal::AlreadyAsked(to));
        }
        if waiting.len() >= MAX_REQUESTS {
            return Err(Refusal::InboxFull(to));
        }
        if !self.withdrawn.contains(&(by.node, to)) {
            self.state_trust(by.node, to)?;
        }
        self.requests.entry(to).or_default().push(HandshakeRequest {
            from_node_id: by.node,
            justification: justification.to_owned(),
            timestamp: at,
        });
        Ok(HandshakeDelivered { status: "delivered".to_owned() }.into())
    }

    fn respond_handshake(&mut self, by: Signer, peer: NodeId, accept: bool, at: u64) -> Outcome {
        self.signed(by)?;
        if peer.0 == 0 || peer.0 >= self.next_node {
            return Err(Refusal::UnknownNode(peer));
        }
        if accept {
            self.state_trust(by.node, peer)?;
            self.withdrawn.remove(&(by.node, peer));
        } else if !self.is_mutual(by.node, peer) {
            // What was asked for is refused; a standing pair ends by revoking.
            self.trust.remove(&pair(by.node, peer));
            self.withdraw(by.node, peer);
        }
        let answers = self.answers.entry(peer).or_default();
        if answers.len() >= MAX_ANSWERS {
            answers.pop_front();
        }
        answers.push_back(HandshakeAnswer { from_node_id: by.node, accept, timestamp: at });
        Ok(HandshakeAnswered { accept, peer_id: peer }.into())
    }

    fn rotate_key(&mut self, by: Signer, new_key: PublicKey, at: u64) -> Outcome {
        self.signed(by)?;
        if self.keys.get(&new_key).is_some_and(|entry| entry.node != by.node) {
            return Err(Refusal::KeyInUse);
        }
        let proven = self.keys.remove(&by.key).is_some_and(|entry| entry.proven);
        self.keys.insert(new_key, KeyEntry { node: by.node, proven });
        let node = self.signed(by)?;
        node.record.key = new_key;
        node.touch(at);
        let address = node.record.address();
        Ok(KeyRotated { node_id: by.node, address, public_key: new_key }.into())
    }
}
