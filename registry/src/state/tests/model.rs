//! The same rules once more, the plain way: maps without indexes, and a command
//! that is refused half-way changes nothing because it ran on a copy.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use pilot_wire::NodeId;
use pilot_wire::registry::PublicKey;
use pilot_wire::registry::network::{BroadcastRight, Invitee, JoinPolicy, Membership};

use super::super::*;

type Code = &'static str;
type Done = Result<(), Code>;

#[derive(Clone, Debug, PartialEq)]
pub(super) struct NodeOf {
    pub(super) key: PublicKey,
    pub(super) endpoint: SocketAddr,
    pub(super) owner: String,
    pub(super) hostname: String,
    pub(super) public: bool,
    pub(super) tags: Vec<String>,
    pub(super) task_exec: bool,
    pub(super) score: i64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct KeyOf {
    pub(super) key: PublicKey,
    pub(super) proven: bool,
    pub(super) revoked: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct NetworkOf {
    pub(super) name: String,
    pub(super) owner: Option<NodeId>,
    pub(super) join: JoinPolicy,
    pub(super) broadcast: BroadcastRight,
    pub(super) created: u64,
    /// The command that last set `join`.
    pub(super) policy: u64,
}

/// Everything, as anybody could see it. The model keeps nothing else, but for
/// the numbers that come next.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct View {
    pub(super) nodes: BTreeMap<NodeId, NodeOf>,
    /// By node.
    pub(super) keys: BTreeMap<NodeId, KeyOf>,
    pub(super) owners: BTreeMap<String, NodeId>,
    pub(super) stated: BTreeSet<(NodeId, NodeId)>,
    pub(super) withdrawn: BTreeSet<(NodeId, NodeId)>,
    /// From whom, and when.
    pub(super) requests: BTreeMap<NodeId, Vec<(NodeId, u64)>>,
    /// From whom, what, and when.
    pub(super) answers: BTreeMap<NodeId, Vec<(NodeId, bool, u64)>>,
    pub(super) networks: BTreeMap<u16, NetworkOf>,
    pub(super) members: BTreeMap<(u16, NodeId), Member>,
    pub(super) tokens: BTreeMap<(u16, String), Token>,
    pub(super) invitations: BTreeMap<u64, Invitation>,
}

impl View {
    pub(super) fn both(&self, a: NodeId, b: NodeId) -> bool {
        self.stated.contains(&(a, b)) && self.stated.contains(&(b, a))
    }

    pub(super) fn shared(&self, a: NodeId, b: NodeId) -> Vec<u16> {
        let is_in = |id: &u16, node| self.members.contains_key(&(*id, node));
        self.networks.keys().filter(|id| is_in(id, a) && is_in(id, b)).copied().collect()
    }

    pub(super) fn invited(&self, node: NodeId, to: &Invitee) -> bool {
        match to {
            Invitee::Node(id) => *id == node,
            Invitee::Owner(text) => {
                self.nodes.get(&node).is_some_and(|n| n.owner == *text)
                    && self.keys.get(&node).is_some_and(|k| k.proven)
            }
        }
    }

    pub(super) fn invitations_for(&self, node: NodeId) -> BTreeSet<u64> {
        let all = self.invitations.values();
        all.filter(|i| self.invited(node, &i.to)).map(|i| i.id).collect()
    }

    /// What each member sees of its membership.
    pub(super) fn membership(&self, id: u16, node: NodeId) -> Option<Membership> {
        let (network, member) = (self.networks.get(&id)?, self.members.get(&(id, node))?);
        let may_broadcast = match &network.broadcast {
            BroadcastRight::Nobody => false,
            BroadcastRight::Owner => network.owner == Some(node),
            BroadcastRight::Members => true,
            BroadcastRight::Tagged(tag) => member.tags.iter().any(|t| t == tag),
        };
        Some(Membership {
            network: id,
            name: network.name.clone(),
            address: pilot_wire::Address { network: id, node },
            joined: member.joined,
            expires: member.expires,
            tags: member.tags.clone(),
            external_identity: member.external_identity.clone(),
            may_broadcast,
        })
    }
}

#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) view: View,
    pub(super) next_node: u32,
    pub(super) next_network: u16,
    pub(super) next_invitation: u64,
    /// By which command each node registered.
    registered_by: BTreeMap<NodeId, u64>,
    applied: u64,
}

impl Default for Model {
    fn default() -> Self {
        let registered_by = BTreeMap::new();
        let view = View::default();
        Self { view, next_node: 1, next_network: 1, next_invitation: 1, registered_by, applied: 0 }
    }
}

impl Model {
    pub(super) fn apply(&mut self, command: &Command) -> Done {
        self.applied += 1;
        let mut next = self.clone();
        next.run(command)?;
        *self = next;
        Ok(())
    }

    fn revoked(&self, node: NodeId) -> bool {
        self.view.keys.get(&node).is_some_and(|k| k.revoked)
    }

    fn known(&self, node: NodeId) -> Done {
        if self.view.nodes.contains_key(&node) { Ok(()) } else { Err("unknown_node") }
    }

    fn signed(&self, by: Signer) -> Result<NodeId, Code> {
        if self.revoked(by.node) {
            return Err("revoked");
        }
        self.known(by.node)?;
        if self.view.nodes[&by.node].key != by.key {
            return Err("bad_signature");
        }
        Ok(by.node)
    }

    fn assigned(&self, node: NodeId) -> Done {
        if node.0 == 0 || node.0 >= self.next_node {
            return Err("unknown_node");
        }
        if self.revoked(node) { Err("revoked") } else { Ok(()) }
    }

    fn actor(&self, by: &Actor) -> Result<Option<NodeId>, Code> {
        match by {
            Actor::Node(signer) => self.signed(*signer).map(Some),
            _ => Ok(None),
        }
    }

    fn network(&self, id: u16) -> Result<&NetworkOf, Code> {
        self.view.networks.get(&id).ok_or("unknown_network")
    }

    fn managed(&self, by: &Actor, id: u16) -> Done {
        let node = self.actor(by)?;
        let owner = self.network(id)?.owner;
        if node.is_some() && node != owner { Err("not_owner") } else { Ok(()) }
    }

    fn node(&mut self, by: Signer) -> Result<&mut NodeOf, Code> {
        self.signed(by)?;
        Ok(self.view.nodes.get_mut(&by.node).unwrap())
    }

    fn run(&mut self, command: &Command) -> Done {
        let at = command.at;
        match &command.op {
            Op::Register(register) => return self.register(register),
            Op::Deregister { by } => {
                self.signed(*by)?;
                self.view.nodes.remove(&by.node);
            }
            Op::SetVisibility { by, public } => self.node(*by)?.public = *public,
            Op::SetTags { by, tags } => self.node(*by)?.tags.clone_from(tags),
            Op::SetTaskExec { by, enabled } => self.node(*by)?.task_exec = *enabled,
            Op::SetHostname { by, hostname } => {
                self.signed(*by)?;
                self.free(by.node, hostname)?;
                self.node(*by)?.hostname.clone_from(hostname);
            }
            Op::ReportTrust { by, peer } => {
                self.signed(*by)?;
                self.known(*peer)?;
                self.trust(by.node, *peer)?;
            }
            Op::RevokeTrust { by, peer } => {
                self.signed(*by)?;
                let stated = &self.view.stated;
                if !stated.contains(&(by.node, *peer)) && !stated.contains(&(*peer, by.node)) {
                    return Err("no_trust");
                }
                self.withdraw(by.node, *peer);
            }
            Op::RequestHandshake { by, to, .. } => {
                self.signed(*by)?;
                self.known(*to)?;
                let waiting = self.view.requests.entry(*to).or_default();
                if waiting.iter().any(|(from, _)| *from == by.node) {
                    return Err("already_asked");
                }
                waiting.push((by.node, at));
                if !self.view.withdrawn.contains(&(by.node, *to)) {
                    self.trust(by.node, *to)?;
                }
            }
            Op::RespondHandshake { by, peer, accept } => {
                self.signed(*by)?;
                self.assigned(*peer)?;
                if by.node == *peer {
                    return Err("oneself");
                }
                let (there, back) = ((by.node, *peer), (*peer, by.node));
                let waiting = self.view.requests.get(&by.node);
                let asks = waiting.is_some_and(|w| w.iter().any(|(from, _)| from == peer));
                let stated = self.view.stated.contains(&back);
                let answered = asks || stated || self.view.withdrawn.contains(&back);
                let any = stated || self.view.stated.contains(&there) || asks;
                if *accept {
                    self.trust(by.node, *peer)?;
                } else if !self.view.both(by.node, *peer) && any {
                    self.withdraw(by.node, *peer);
                }
                if answered {
                    let answers = self.view.answers.entry(*peer).or_default();
                    answers.retain(|(from, ..)| *from != by.node);
                    answers.push((by.node, *accept, at));
                }
            }
            Op::TakeHandshakes { by } => {
                self.signed(*by)?;
                self.view.requests.remove(&by.node);
                self.view.answers.remove(&by.node);
            }
            Op::RotateKey { by, new_key } => {
                self.signed(*by)?;
                let holder = self.view.keys.iter().find(|(_, k)| k.key == *new_key);
                match holder {
                    Some((_, k)) if k.revoked => return Err("revoked"),
                    Some((node, _)) if *node != by.node => return Err("key_in_use"),
                    _ => {}
                }
                self.node(*by)?.key = *new_key;
                self.view.keys.get_mut(&by.node).unwrap().key = *new_key;
            }
            Op::UpdatePoloScore { node, delta } => {
                self.known(*node)?;
                let score = &mut self.view.nodes.get_mut(node).unwrap().score;
                *score = score.saturating_add(*delta);
            }
            Op::SetPoloScore { node, polo_score } => {
                self.known(*node)?;
                self.view.nodes.get_mut(node).unwrap().score = *polo_score;
            }
            Op::Reap { silent } => {
                for (node, number) in silent {
                    if self.registered_by.get(node) == Some(number) {
                        self.view.nodes.remove(node);
                    }
                }
            }
            Op::CreateNetwork { by, name, join, broadcast } => {
                let owner = self.actor(by)?;
                if check_hostname(name).is_err() {
                    return Err("invalid");
                }
                if self.view.networks.values().any(|n| n.name == *name) {
                    return Err("network_exists");
                }
                let owned = self.view.networks.values().filter(|n| n.owner == owner).count();
                if owner.is_some() && owned >= MAX_NETWORKS_OF_OWNER {
                    return Err("registry_full");
                }
                while self.view.networks.contains_key(&self.next_network) {
                    self.next_network += 1;
                }
                let (name, join, broadcast) = (name.clone(), join.clone(), broadcast.clone());
                let policy = self.applied;
                let network = NetworkOf { name, owner, join, broadcast, created: at, policy };
                self.view.networks.insert(self.next_network, network);
                self.next_network += 1;
            }
            Op::UpdateNetwork { by, network, join, broadcast } => {
                self.managed(by, *network)?;
                let applied = self.applied;
                let network = self.view.networks.get_mut(network).unwrap();
                if join.is_some() {
                    network.policy = applied;
                }
                network.join = join.clone().unwrap_or(network.join.clone());
                network.broadcast = broadcast.clone().unwrap_or(network.broadcast.clone());
            }
            Op::DeleteNetwork { by, network } => {
                self.managed(by, *network)?;
                self.view.networks.remove(network);
                self.view.members.retain(|(id, _), _| id != network);
                self.view.tokens.retain(|(id, _), _| id != network);
                self.view.invitations.retain(|_, i| i.network != *network);
            }
            Op::JoinNetwork { by, network, admission } => {
                return self.join(*by, *network, admission, at);
            }
            Op::AddMember { by, node, network } => {
                self.managed(by, *network)?;
                self.known(*node)?;
                if self.view.members.contains_key(&(*network, *node)) {
                    return Err("already_member");
                }
                let member = Member {
                    node: *node,
                    joined: at,
                    rule: "admin".into(),
                    expires: None,
                    tags: vec![],
                    external_identity: None,
                };
                self.view.members.insert((*network, *node), member);
            }
            Op::LeaveNetwork { by, node, network } => {
                if self.actor(by)? == Some(*node) {
                    self.network(*network)?;
                } else {
                    self.managed(by, *network)?;
                }
                self.view.members.remove(&(*network, *node)).ok_or("not_member")?;
                self.uninvite(*network, *node);
            }
            Op::Expire {} => {
                let over = |m: &Member| m.expires.is_some_and(|end| end <= at);
                let ended = self.view.members.iter().filter(|(_, m)| over(m));
                for (network, node) in ended.map(|(key, _)| *key).collect::<Vec<_>>() {
                    self.view.members.remove(&(network, node));
                    self.uninvite(network, node);
                }
                self.view.tokens.retain(|_, t| t.expires.is_none_or(|end| end > at));
                self.view.invitations.retain(|_, i| i.expires > at);
            }
            Op::CreateToken { by, network, id, salt, hash, uses, expires, tags } => {
                self.managed(by, *network)?;
                let over = expires.is_some_and(|end| end <= at);
                let taken = self.view.tokens.contains_key(&(*network, id.clone()));
                if *uses == Some(0) || over || taken {
                    return Err("invalid");
                }
                let token = Token {
                    id: id.clone(),
                    salt: hex::encode(salt),
                    hash: hex::encode(hash),
                    created: at,
                    expires: *expires,
                    uses_left: *uses,
                    tags: tags.clone(),
                };
                self.view.tokens.insert((*network, id.clone()), token);
            }
            Op::RevokeToken { by, network, id } => {
                self.managed(by, *network)?;
                self.view.tokens.remove(&(*network, id.clone())).ok_or("token_gone")?;
            }
            Op::Invite { by, network, to, expires, tags, signature } => {
                let node = self.actor(by)?;
                let of = self.network(*network)?;
                if let Some(node) = node.filter(|node| of.owner != Some(*node)) {
                    let members_invite = of.join.rules.iter().any(|r| r.rule == "invite");
                    if !members_invite || !tags.is_empty() {
                        return Err("not_owner");
                    }
                    if !self.view.members.contains_key(&(*network, node)) {
                        return Err("not_member");
                    }
                }
                match to {
                    Invitee::Node(node) => {
                        self.assigned(*node)?;
                        if self.view.members.contains_key(&(*network, *node)) {
                            return Err("already_member");
                        }
                    }
                    Invitee::Owner(text) if text.is_empty() => return Err("invalid"),
                    Invitee::Owner(_) => {}
                }
                if *expires <= at {
                    return Err("invalid");
                }
                let owner = of.owner;
                let mere = |from: Option<NodeId>| from.is_some() && from != owner;
                let earlier = self.view.invitations.values();
                let earlier = earlier.rev().find(|i| i.network == *network && i.to == *to);
                if let Some(earlier) = earlier {
                    if mere(node) && !mere(earlier.from.map(|(from, _)| from)) {
                        return Err("invalid");
                    }
                    let earlier = earlier.id;
                    self.view.invitations.remove(&earlier);
                }
                let id = self.next_invitation;
                self.next_invitation += 1;
                let from = match by {
                    Actor::Node(signer) => Some((signer.node, signer.key)),
                    _ => None,
                };
                let (network, to, expires) = (*network, to.clone(), *expires);
                let (signature, tags) = (*signature, tags.clone());
                let invitation = Invitation { id, network, to, from, signature, expires, tags };
                self.view.invitations.insert(id, invitation);
            }
            Op::EndInvitation { by, id } => {
                let node = self.actor(by)?;
                let invitation = self.view.invitations.get(id).ok_or("invitation_gone")?;
                if let Some(node) = node {
                    let owner = self.view.networks[&invitation.network].owner;
                    let inviter = invitation.from.map(|(from, _)| from);
                    let is_for = self.view.invited(node, &invitation.to);
                    if !is_for && ![owner, inviter].contains(&Some(node)) {
                        return Err("invitation_gone");
                    }
                }
                self.view.invitations.remove(id);
            }
            Op::RevokeNode { by, node, .. } => {
                self.actor(by)?;
                if !matches!(by, Actor::Admin(_)) {
                    return Err("admin_only");
                }
                self.assigned(*node)?;
                self.shut_out(*node);
            }
            Op::Deny(_) => {}
            Op::Import(_) => return Err("not_empty"),
        }
        self.registered_by.retain(|node, _| self.view.nodes.contains_key(node));
        self.view.requests.retain(|_, waiting| !waiting.is_empty());
        self.view.answers.retain(|_, waiting| !waiting.is_empty());
        Ok(())
    }

    fn register(&mut self, register: &Register) -> Done {
        let known = self.view.keys.iter().find(|(_, k)| k.key == register.key);
        let id = match known {
            Some((_, k)) if k.revoked => return Err("revoked"),
            Some((_, k)) if k.proven && !register.proven => return Err("proof_required"),
            Some((node, _)) => *node,
            None => match self.view.owners.get(&register.owner) {
                Some(node) if register.takeover => {
                    let node = *node;
                    self.view.keys.remove(&node);
                    node
                }
                _ => {
                    self.next_node += 1;
                    NodeId(self.next_node - 1)
                }
            },
        };
        let (key, proven) = (register.key, register.proven);
        self.view.keys.insert(id, KeyOf { key, proven, revoked: false });
        self.registered_by.insert(id, self.applied);
        let node = self.view.nodes.entry(id).or_insert(NodeOf {
            key,
            endpoint: register.endpoint,
            owner: String::new(),
            hostname: String::new(),
            public: false,
            tags: vec![],
            task_exec: false,
            score: 0,
        });
        node.key = key;
        node.endpoint = register.endpoint;
        if node.owner.is_empty() {
            node.owner.clone_from(&register.owner);
        }
        let owner = node.owner.clone();
        if !owner.is_empty() && !self.view.owners.contains_key(&owner) {
            self.view.owners.retain(|_, node| *node != id);
            self.view.owners.insert(owner, id);
        }
        if !register.hostname.is_empty() && self.free(id, &register.hostname).is_ok() {
            self.view.nodes.get_mut(&id).unwrap().hostname.clone_from(&register.hostname);
        }
        Ok(())
    }

    /// Whether a node may have this name.
    fn free(&self, id: NodeId, hostname: &str) -> Done {
        if hostname.is_empty() {
            return Ok(());
        }
        check_hostname(hostname).map_err(|refusal| refusal.code())?;
        let taken = self.view.nodes.iter().any(|(n, of)| *n != id && of.hostname == hostname);
        if taken { Err("hostname_taken") } else { Ok(()) }
    }

    fn trust(&mut self, by: NodeId, peer: NodeId) -> Done {
        if by == peer {
            return Err("oneself");
        }
        self.view.stated.insert((by, peer));
        self.view.withdrawn.remove(&(by, peer));
        Ok(())
    }

    fn withdraw(&mut self, by: NodeId, peer: NodeId) {
        self.view.stated.remove(&(by, peer));
        self.view.stated.remove(&(peer, by));
        self.view.withdrawn.insert((by, peer));
    }

    fn join(&mut self, by: Signer, id: u16, admission: &Admission, at: u64) -> Done {
        let node = self.signed(by)?;
        let policy = self.network(id)?.policy;
        let since = self.view.members.get(&(id, node)).map(|m| m.joined);
        if ![0, policy].contains(&admission.policy)
            || (admission.policy != 0 && admission.renews != since)
        {
            return Err("not_admitted");
        }
        for token in &admission.tokens {
            let token = self.view.tokens.get(&(id, token.clone())).ok_or("token_gone")?;
            if token.expires.is_some_and(|end| end <= at) {
                return Err("token_gone");
            }
        }
        for invitation in &admission.invitations {
            let i = self.view.invitations.get(invitation).ok_or("invitation_gone")?;
            if i.network != id || i.expires <= at || !self.view.invited(node, &i.to) {
                return Err("invitation_gone");
            }
            if let Some((from, key)) = i.from {
                let owns = self.network(id)?.owner == Some(from);
                let invites = owns || self.view.members.contains_key(&(id, from));
                let known = self.view.keys.get(&from).is_some_and(|k| k.key == key && !k.revoked);
                if !invites || !known {
                    return Err("invitation_gone");
                }
            }
        }
        if admission.expires.is_some_and(|end| end <= at) {
            return Err("not_admitted");
        }
        let mut tokens = admission.tokens.clone();
        tokens.sort();
        tokens.dedup();
        for token in tokens {
            let left = &mut self.view.tokens.get_mut(&(id, token)).unwrap().uses_left;
            *left = left.map(|n| n - 1);
        }
        self.view.tokens.retain(|_, token| token.uses_left != Some(0));
        for invitation in &admission.invitations {
            self.view.invitations.remove(invitation);
        }
        let joined = self.view.members.get(&(id, node)).map_or(at, |m| m.joined);
        let member = Member {
            node,
            joined,
            rule: admission.rule.clone(),
            expires: admission.expires,
            tags: admission.tags.clone(),
            external_identity: admission.external_identity.clone(),
        };
        self.view.members.insert((id, node), member);
        Ok(())
    }

    /// Who is out of a network has no way back by an invitation.
    fn uninvite(&mut self, network: u16, node: NodeId) {
        let owns = self.view.networks[&network].owner == Some(node);
        self.view.invitations.retain(|_, i| {
            let made = i.from.is_some_and(|(from, _)| from == node) && !owns;
            i.network != network || !(made || i.to == Invitee::Node(node))
        });
    }

    fn shut_out(&mut self, node: NodeId) {
        let view = &mut self.view;
        view.nodes.remove(&node);
        view.keys.get_mut(&node).unwrap().revoked = true;
        view.owners.retain(|_, id| *id != node);
        view.members.retain(|(_, id), _| *id != node);
        let of = |(a, b): &(NodeId, NodeId)| *a == node || *b == node;
        let ended: Vec<_> = view.stated.iter().copied().filter(of).collect();
        for (a, b) in ended {
            view.stated.remove(&(a, b));
            view.withdrawn.extend([(a, b), (b, a)]);
        }
        view.requests.remove(&node);
        view.answers.remove(&node);
        view.requests.values_mut().for_each(|w| w.retain(|(from, _)| *from != node));
        view.answers.values_mut().for_each(|w| w.retain(|(from, ..)| *from != node));
        view.invitations.retain(|_, i| {
            i.to != Invitee::Node(node) && i.from.is_none_or(|(from, _)| from != node)
        });
    }
}
