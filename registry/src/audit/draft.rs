//! What a command means to an auditor. Secrets are not in it: of tokens only
//! names, of join rules no configuration, of handshakes no justification.
//!
//! Bounds: texts of requests are cut at [`MAX_DETAIL`] and [`MAX_OBJECT`] bytes.

use pilot_wire::registry::audit::{AuditActor, AuditRecord, AuditResult};
use pilot_wire::registry::{Acknowledged, PublicKey};
use pilot_wire::{Address, NodeId};

use crate::state::{
    Actor, Command, Denial, Ended, Member, NodeRecord, Op, Refusal, Register, Signer, State,
};
use crate::writer::Outcome;

/// Longest detail, in bytes.
const MAX_DETAIL: usize = 1024;
/// Longest object, operation, rule or code, in bytes.
const MAX_OBJECT: usize = 256;

/// What was so before a command was applied, as far as its records need it.
#[derive(Debug)]
pub(crate) struct Draft {
    /// With what is known already.
    record: AuditRecord,
    before: Before,
}

/// What decides whether there is something to tell.
#[derive(Debug)]
enum Before {
    /// Whether it changes anything, when it is allowed.
    News(bool),
    /// A refusal: it is told as it is.
    Denied,
    Register(Box<Registering>),
    /// Nodes that may be removed.
    Silent(Vec<NodeId>),
    /// What may end.
    Ending(Vec<Ending>),
    /// The new thing has a number only afterwards.
    NewNetwork(String),
    NewInvitation(u16),
    /// The membership there was.
    Joining(u16, NodeId, Option<Box<Member>>),
}

#[derive(Debug)]
struct Registering {
    /// Numbers from here on belonged to nobody.
    next: NodeId,
    /// The node of the key, or the one that the owner text takes over.
    node: Option<NodeId>,
    /// The node as it is registered now.
    record: Option<NodeRecord>,
    /// The key had been proven.
    proven: bool,
}

#[derive(Debug)]
enum Ending {
    Membership(u16, NodeId),
    Token(u16, String),
    Invitation(u64, u16),
}

impl Draft {
    /// Looks at the state that `command` is about to change; none when an
    /// auditor does not care.
    pub(crate) fn look(state: &State, command: &Command) -> Option<Self> {
        let at = command.at;
        let signed = |by: &Signer| node(state, *by, None);
        let changes = |by: &Signer, is: &dyn Fn(&NodeRecord) -> bool| {
            Before::News(state.node(by.node).is_ok_and(|n| is(&n.record)))
        };
        let own = |by: &Signer| format!("node {}", by.node);
        let (actor, operation, object, detail, before) = match &command.op {
            Op::Register(register) => return Some(Self::registering(state, command, register)),
            Op::TakeHandshakes { .. } => return None,
            // Unsigned in the published protocol: anybody could fill the log with them.
            Op::UpdatePoloScore { .. } | Op::SetPoloScore { .. } => return None,
            Op::Deregister { by } => {
                (signed(by), "deregister", own(by), String::new(), Before::News(true))
            }
            Op::SetVisibility { by, public } => {
                let before = changes(by, &|r| r.public != *public);
                let detail = if *public { "public" } else { "private" }.to_owned();
                (signed(by), "set_visibility", own(by), detail, before)
            }
            Op::SetHostname { by, hostname } => {
                let before = changes(by, &|r| r.hostname != *hostname);
                let was = state.node(by.node).map_or("", |n| n.record.hostname.as_str());
                let detail = format!("hostname {hostname:?}, was {was:?}");
                (signed(by), "set_hostname", own(by), detail, before)
            }
            Op::SetTags { by, tags } => {
                let before = changes(by, &|r| r.tags != *tags);
                let detail = format!("tags [{}]", tags.join(", "));
                (signed(by), "set_tags", own(by), detail, before)
            }
            Op::SetTaskExec { by, enabled } => {
                let before = changes(by, &|r| r.task_exec != *enabled);
                let detail = if *enabled { "executes tasks" } else { "executes no tasks" };
                (signed(by), "set_task_exec", own(by), detail.to_owned(), before)
            }
            Op::ReportTrust { by, peer } => {
                // Nodes report what they trust again and again.
                let news = !state.has_stated(by.node, *peer) || state.has_withdrawn(by.node, *peer);
                let object = format!("node {peer}");
                (signed(by), "report_trust", object, String::new(), Before::News(news))
            }
            Op::RevokeTrust { by, peer } => {
                let object = format!("node {peer}");
                (signed(by), "revoke_trust", object, String::new(), Before::News(true))
            }
            Op::RequestHandshake { by, to, .. } => {
                let object = format!("node {to}");
                (signed(by), "request_handshake", object, String::new(), Before::News(true))
            }
            Op::RespondHandshake { by, peer, accept } => {
                let detail = if *accept { "accepted" } else { "rejected" }.to_owned();
                let object = format!("node {peer}");
                (signed(by), "respond_handshake", object, detail, Before::News(true))
            }
            Op::RotateKey { by, new_key } => {
                let detail = format!("new key {new_key}");
                (signed(by), "rotate_key", own(by), detail, Before::News(true))
            }
            Op::Reap { silent } => {
                let is_meant = |(id, registered_by): &&(NodeId, u64)| {
                    state.node(*id).is_ok_and(|n| n.record.registered_by == *registered_by)
                };
                let silent = silent.iter().filter(is_meant).map(|(id, _)| *id).collect();
                let detail = "silent for too long".to_owned();
                (registry(), "reap", "nodes".to_owned(), detail, Before::Silent(silent))
            }
            Op::CreateNetwork { by, name, join, broadcast } => {
                let detail =
                    format!("name {name:?}, join {:?}, broadcast {broadcast:?}", join.label());
                let object = format!("network {name:?}");
                let before = Before::NewNetwork(name.clone());
                (acting(state, by, None), "network_create", object, detail, before)
            }
            Op::UpdateNetwork { by, network, join, broadcast } => {
                let join = join.as_ref().map(|join| format!("join {:?}", join.label()));
                let broadcast = broadcast.as_ref().map(|right| format!("broadcast {right:?}"));
                let detail: Vec<_> = join.into_iter().chain(broadcast).collect();
                let actor = acting(state, by, Some(*network));
                let object = format!("network {network}");
                (actor, "network_update", object, detail.join(", "), Before::News(true))
            }
            Op::DeleteNetwork { by, network } => {
                let detail = state.network(*network).map_or_else(
                    |_| String::new(),
                    |n| format!("name {:?}, {} members", n.record.name, n.members.len()),
                );
                let actor = acting(state, by, Some(*network));
                (actor, "network_delete", format!("network {network}"), detail, Before::News(true))
            }
            Op::JoinNetwork { by, network, admission } => {
                let mut actor = node(state, *by, Some(*network));
                if let Some(identity) = &admission.external_identity {
                    actor.external_identity.clone_from(identity);
                }
                let mut detail = Vec::new();
                if !admission.tags.is_empty() {
                    detail.push(format!("tags [{}]", admission.tags.join(", ")));
                }
                detail.extend(admission.expires.map(|until| format!("until {until}")));
                detail.extend(admission.tokens.iter().map(|id| format!("token {id:?}")));
                detail.extend(admission.invitations.iter().map(|id| format!("invitation {id}")));
                let member = state.network(*network).ok().and_then(|n| n.members.get(&by.node));
                let before = Before::Joining(*network, by.node, member.cloned().map(Box::new));
                let object = in_network(by.node, *network);
                let mut draft =
                    Self::new(command, actor, "network_join", object, detail.join(", "), before);
                draft.record.rule.clone_from(&admission.rule);
                return Some(draft);
            }
            Op::AddMember { by, node, network } => {
                let actor = acting(state, by, Some(*network));
                let object = in_network(*node, *network);
                (actor, "join_network", object, String::new(), Before::News(true))
            }
            Op::LeaveNetwork { by, node, network } => {
                let leaves = matches!(by, Actor::Node(signer) if signer.node == *node);
                let operation = if leaves { "network_leave" } else { "network_remove" };
                let actor = acting(state, by, Some(*network));
                let object = in_network(*node, *network);
                (actor, operation, object, String::new(), Before::News(true))
            }
            Op::Expire {} => {
                let detail = "its time was over".to_owned();
                let before = Before::Ending(ending(state, at));
                (registry(), "expire", String::new(), detail, before)
            }
            Op::CreateToken { by, network, id, uses, expires, tags, .. } => {
                let mut detail = vec![match uses {
                    Some(uses) => format!("{uses} uses"),
                    None => "any number of uses".to_owned(),
                }];
                detail.extend(expires.map(|until| format!("until {until}")));
                if !tags.is_empty() {
                    detail.push(format!("tags [{}]", tags.join(", ")));
                }
                let actor = acting(state, by, Some(*network));
                let object = token(id, *network);
                (actor, "token_create", object, detail.join(", "), Before::News(true))
            }
            Op::RevokeToken { by, network, id } => {
                let actor = acting(state, by, Some(*network));
                let object = token(id, *network);
                (actor, "token_revoke", object, String::new(), Before::News(true))
            }
            Op::Invite { by, network, to, expires, tags, .. } => {
                let mut detail = format!("for {to}, until {expires}");
                if !tags.is_empty() {
                    detail = format!("{detail}, tags [{}]", tags.join(", "));
                }
                let actor = acting(state, by, Some(*network));
                let before = Before::NewInvitation(*network);
                (actor, "invite", format!("network {network}"), detail, before)
            }
            Op::EndInvitation { by, id } => {
                let ended = state.invitation(*id);
                let object = match ended {
                    Some(ended) => invitation(*id, ended.network),
                    None => format!("invitation {id}"),
                };
                let detail = ended.map(|ended| format!("was for {}", ended.to)).unwrap_or_default();
                let declines = matches!(by, Actor::Node(signer)
                    if state.invitations_for(signer.node).iter().any(|i| i.id == *id));
                let operation = if declines { "invitation_decline" } else { "invitation_revoke" };
                let actor = acting(state, by, ended.map(|ended| ended.network));
                (actor, operation, object, detail, Before::News(true))
            }
            Op::RevokeNode { by, node, reason } => {
                let key = state.node(*node).map(|n| format!("key {}", n.record.key)).ok();
                let reason = Some(reason.clone()).filter(|reason| !reason.is_empty());
                let detail: Vec<_> = reason.into_iter().chain(key).collect();
                let object = format!("node {node}");
                let actor = acting(state, by, None);
                (actor, "node_revoke", object, detail.join("; "), Before::News(true))
            }
            Op::Deny(denial) => return Some(Self::denied(state, command, denial)),
            Op::Import(imported) => {
                let detail = format!(
                    "{} nodes, {} keys, {} trust pairs, {} networks",
                    imported.nodes.len(),
                    imported.keys.len(),
                    imported.trust.len(),
                    imported.networks.len()
                );
                (registry(), "import", "registry".to_owned(), detail, Before::News(true))
            }
        };
        Some(Self::new(command, actor, operation, object, detail, before))
    }

    /// Appends the records of the command, which has been applied and led to
    /// `outcome`; their places in the chain are not set.
    pub(crate) fn finish(self, state: &State, outcome: &Outcome, records: &mut Vec<AuditRecord>) {
        let Self { mut record, before } = self;
        record.command = state.applied();
        if record.request_id.is_empty() {
            record.request_id = format!("c{}", record.command);
        }
        if let Before::Denied = before {
            return records.push(bounded(record));
        }
        if let Err(refusal) = outcome {
            if let Before::Ending(_) = before {
                return;
            }
            deny(&mut record, refusal);
            return records.push(bounded(record));
        }
        match before {
            Before::News(false) => return,
            Before::News(true) | Before::Denied => {}
            Before::Register(before) => {
                if !registered(&mut record, &before, state, outcome) {
                    return;
                }
            }
            Before::Silent(silent) => {
                for id in silent.into_iter().filter(|id| state.node(*id).is_err()) {
                    records.push(AuditRecord { object: format!("node {id}"), ..record.clone() });
                }
                return;
            }
            Before::Ending(ending) => {
                for ending in ending.iter().filter(|e| e.has_ended(state)) {
                    records.push(AuditRecord { object: ending.object(), ..record.clone() });
                }
                return;
            }
            Before::NewNetwork(name) => {
                if let Some(network) = state.networks().find(|n| n.record.name == name) {
                    record.object = format!("network {}", network.record.id);
                }
            }
            Before::NewInvitation(network) => {
                let id = match outcome {
                    Ok(Acknowledged::InvitationMade(made)) => Some(made.invitation.id),
                    _ => state.invitations_to(network).map(|i| i.id).max(),
                };
                record.object = id.map_or(record.object, |id| invitation(id, network));
            }
            Before::Joining(network, node, before) => {
                let now = state.network(network).ok().and_then(|n| n.members.get(&node));
                let word = if before.is_some() { "renewed" } else { "joined" };
                let detail = std::mem::take(&mut record.detail);
                record.detail =
                    if detail.is_empty() { word.to_owned() } else { format!("{word}, {detail}") };
                if let Some(identity) = now.and_then(|m| m.external_identity.clone()) {
                    record.actor.external_identity = identity;
                }
            }
        }
        records.push(bounded(record));
    }

    fn new(
        command: &Command,
        actor: AuditActor,
        operation: &str,
        object: String,
        detail: String,
        before: Before,
    ) -> Self {
        let record = AuditRecord {
            time: command.at,
            actor,
            source: command.origin.source.map(|s| s.to_string()).unwrap_or_default(),
            operation: operation.to_owned(),
            object,
            detail,
            request_id: command.origin.request.clone(),
            count: 1,
            ..AuditRecord::default()
        };
        Self { record, before }
    }

    fn registering(state: &State, command: &Command, register: &Register) -> Self {
        let entry = state.key(&register.key);
        let owned = || {
            let owned = register.takeover.then(|| state.owner_node(&register.owner));
            owned.flatten()
        };
        let id = entry.map(|entry| entry.node).or_else(owned);
        let record = id.and_then(|id| state.node(id).ok()).map(|n| n.record.clone());
        let mut actor = unknown(id);
        actor.public_key = register.key.to_string();
        if register.proven {
            "node".clone_into(&mut actor.kind);
        }
        let object = match id {
            Some(id) => format!("node {id}"),
            None => format!("key {}", register.key),
        };
        let proven = entry.is_some_and(|entry| entry.proven);
        let before = Registering { next: state.next_node(), node: id, record, proven };
        let before = Before::Register(Box::new(before));
        Self::new(command, actor, "register", object, String::new(), before)
    }

    fn denied(state: &State, command: &Command, denial: &Denial) -> Self {
        let Denial { operation, claimed, by, object, code, reason, rule, count } = denial;
        let mut draft = Self::new(
            command,
            by.map_or_else(|| unknown(*claimed), |by| node(state, by, None)),
            operation,
            object.clone(),
            reason.clone(),
            Before::Denied,
        );
        draft.record.result = AuditResult::Denied;
        draft.record.code.clone_from(code);
        draft.record.rule.clone_from(rule);
        draft.record.count = *count;
        draft
    }
}

impl Ending {
    fn has_ended(&self, state: &State) -> bool {
        match self {
            Self::Membership(network, node) => {
                !state.network(*network).is_ok_and(|n| n.members.contains_key(node))
            }
            Self::Token(network, id) => {
                !state.network(*network).is_ok_and(|n| n.tokens.contains_key(id))
            }
            Self::Invitation(id, _) => state.invitation(*id).is_none(),
        }
    }

    fn object(&self) -> String {
        match self {
            Self::Membership(network, node) => in_network(*node, *network),
            Self::Token(network, id) => token(id, *network),
            Self::Invitation(id, network) => invitation(*id, *network),
        }
    }
}

/// What ends with a command at `at`.
fn ending(state: &State, at: u64) -> Vec<Ending> {
    let ending = state.ended(at).into_iter().filter_map(|ended| {
        Some(match ended {
            Ended::Member(network, node) => Ending::Membership(network, node),
            Ended::Token(network, id) => Ending::Token(network, id),
            Ended::Invitation(id) => Ending::Invitation(id, state.invitation(id)?.network),
        })
    });
    ending.collect()
}

/// Says what a registration changed; whether that is anything.
fn registered(
    record: &mut AuditRecord,
    before: &Registering,
    state: &State,
    outcome: &Outcome,
) -> bool {
    let Ok(Acknowledged::Registered(reply)) = outcome else { return true };
    let Ok(node) = state.node(reply.node_id) else { return true };
    let now = &node.record;
    record.object = format!("node {}", now.id);
    record.actor.node_id = Some(now.id);
    record.actor.address = Some(now.address());
    record.actor.owner.clone_from(&now.owner);
    if before.node.is_some() {
        record.actor.external_identity = external(state, now.id, None);
    }
    let mut news = Vec::new();
    let endpoint = || format!("endpoint {}", now.endpoint);
    match &before.record {
        _ if now.id >= before.next => news.extend(["first registration".to_owned(), endpoint()]),
        None => news.extend(["registered again".to_owned(), endpoint()]),
        Some(was) => {
            if was.key != now.key {
                news.push(format!("taken over by its owner text, was key {}", was.key));
            }
            if was.owner != now.owner {
                news.push(format!("owner {:?}", now.owner));
            }
            if was.endpoint.ip() != now.endpoint.ip() {
                news.push(format!("{}, was {}", endpoint(), was.endpoint));
            }
        }
    }
    let was = before.record.as_ref().map_or("", |was| was.hostname.as_str());
    if was != now.hostname {
        news.push(format!("hostname {:?}", now.hostname));
    }
    let proven = state.key(&now.key).is_some_and(|entry| entry.proven);
    if proven && !before.proven {
        news.push("key proven".to_owned());
    }
    if news.is_empty() {
        return false;
    }
    news.extend(reply.hostname_error.as_ref().map(|e| format!("hostname not set: {e}")));
    record.detail = news.join(", ");
    true
}

fn deny(record: &mut AuditRecord, refusal: &Refusal) {
    record.result = AuditResult::Denied;
    refusal.code().clone_into(&mut record.code);
    record.detail = refusal.to_string();
    if let Refusal::NotAdmitted { rule, .. } = refusal {
        record.rule.clone_from(rule);
    }
}

/// Cut to the bounds, and with numbers that a database takes.
fn bounded(mut record: AuditRecord) -> AuditRecord {
    let AuditRecord { operation, object, code, rule, detail, count, time, .. } = &mut record;
    for (text, max) in [
        (operation, MAX_OBJECT),
        (object, MAX_OBJECT),
        (code, MAX_OBJECT),
        (rule, MAX_OBJECT),
        (detail, MAX_DETAIL),
    ] {
        text.truncate(text.floor_char_boundary(max));
    }
    *count = (*count).min(i64::MAX as u64);
    *time = (*time).min(i64::MAX as u64);
    record
}

pub(crate) fn registry() -> AuditActor {
    AuditActor { kind: "registry".to_owned(), ..AuditActor::default() }
}

fn unknown(node_id: Option<NodeId>) -> AuditActor {
    let address = node_id.map(Address::backbone);
    AuditActor { kind: "unknown".to_owned(), node_id, address, ..AuditActor::default() }
}

fn acting(state: &State, by: &Actor, network: Option<u16>) -> AuditActor {
    match by {
        Actor::Node(signer) => node(state, *signer, network),
        Actor::Admin(name) => {
            let name = name.clone();
            AuditActor { kind: "admin".to_owned(), name, ..AuditActor::default() }
        }
        Actor::Registry => registry(),
    }
}

fn node(state: &State, by: Signer, network: Option<u16>) -> AuditActor {
    let Signer { node, key } = by;
    let public_key = PublicKey::to_string(&key);
    let owner = state.node(node).map(|n| n.record.owner.clone()).unwrap_or_default();
    let external_identity = external(state, node, network);
    let address = Some(Address::backbone(node));
    let kind = "node".to_owned();
    let name = String::new();
    AuditActor { kind, name, node_id: Some(node), address, public_key, owner, external_identity }
}

/// Who a node is elsewhere: as the network in question has it, else as the
/// first one does that knows.
fn external(state: &State, node: NodeId, network: Option<u16>) -> String {
    let mut found = None;
    for (of, member) in state.memberships(node) {
        let Some(identity) = &member.external_identity else { continue };
        if Some(of.record.id) == network {
            return identity.clone();
        }
        found = found.or(Some(identity));
    }
    found.cloned().unwrap_or_default()
}

fn in_network(node: NodeId, network: u16) -> String {
    format!("node {node} in network {network}")
}

fn token(id: &str, network: u16) -> String {
    format!("token {id} in network {network}")
}

fn invitation(id: u64, network: u16) -> String {
    format!("invitation {id} to network {network}")
}
