//! Does what the trust state says: writes it down, sets permissions, sends
//! messages, speaks to the registry. What takes time runs beside, so that a
//! peer that does not answer holds up nobody else.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use pilot_host::events::{ApprovalReason, Happening};
use pilot_wire::ipc::ErrorCode;
use pilot_wire::registry::PublicKey;
use pilot_wire::service::handshake::{self, Kind, Message};
use pilot_wire::{Address, NodeId};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::file::{TrustFile, TrustFileError, render};
use super::handle::{Answer, Command, TrustHandle, TrustInbox};
use super::state::{Action, Input, Refused, TrustState, cut};
use super::{PORT, Pins};
use crate::control::{CallError, ControlHandle, Member, RegistryError, unix_now};
use crate::events::Events;
use crate::networks::Permits;
use crate::node::NodeHandle;

/// Deliveries and reports under way; beyond it a user's request is refused
/// and what a message caused is left out, to be repeated by its peer.
const MAX_RUNNING: usize = 256;
/// Time for a direct delivery, before the registry is used.
const DIRECT_LIMIT: Duration = Duration::from_secs(8);
/// How long a stream stays open after its message, for the peer to read it.
const LINGER: Duration = Duration::from_millis(500);
/// Reports to the registry under way at once when the node joins.
const REPORTS_AT_ONCE: usize = 64;

/// What the trust task works with.
pub struct TrustParts {
    /// `trust.json`.
    pub file: TrustFile,
    /// What it held.
    pub state: TrustState,
    /// Who may reach this node.
    pub permits: Permits,
    /// Keys of trusted peers, for the control plane.
    pub pins: Pins,
    /// This node at its registry.
    pub member: Member,
    /// The loop.
    pub node: NodeHandle,
    /// The control plane.
    pub control: ControlHandle,
    /// The task's own handle.
    pub handle: TrustHandle,
    /// Where to say what happens.
    pub events: Events,
}

/// Serves the commands of `inbox` until all handles are gone.
pub async fn run(parts: TrustParts, inbox: TrustInbox) {
    let mut inbox = inbox;
    parts.pins.follow(&parts.state);
    let courier = Courier {
        member: parts.member.clone(),
        node: parts.node.clone(),
        pins: parts.pins.clone(),
        permits: parts.permits.clone(),
        reported: Arc::default(),
    };
    let mut task = Task { parts, courier, running: JoinSet::new() };
    loop {
        tokio::select! {
            command = inbox.commands.recv() => match command {
                Some(command) => task.take(command).await,
                None => return,
            },
            Some(done) = task.running.join_next(), if !task.running.is_empty() => {
                if let Err(e) = done {
                    tracing::error!("a trust delivery ended badly: {e}");
                }
            }
        }
    }
}

struct Task {
    parts: TrustParts,
    courier: Courier,
    running: JoinSet<()>,
}

/// Why an input had no effect.
enum Failed {
    Refused(Refused),
    NotSaved(TrustFileError),
}

impl Task {
    async fn take(&mut self, command: Command) {
        match command {
            Command::Request { node, justification, answer } => {
                self.request(node, justification, answer).await;
            }
            Command::Approve { node, answer } => {
                let asked = self.parts.state.pending().contains_key(&node);
                let result = self.decide(Input::Approve { node }).await;
                if asked && result.is_ok() {
                    let event = Happening::HandshakeApproved { peer_node_id: node };
                    self.parts.events.emit(|| event);
                }
                let result = result.map_err(|f| f.into_error("handshake approve", node));
                send(answer, result.map(|()| json!({"status": "approved", "node_id": node})));
            }
            Command::Reject { node, reason, answer } => {
                let asked = self.parts.state.pending().contains_key(&node);
                let reason = cut(reason);
                let input = Input::Reject { node, reason: reason.clone() };
                let result = self.decide(input).await;
                if asked && result.is_ok() {
                    let event = Happening::HandshakeRejected { peer_node_id: node, reason };
                    self.parts.events.emit(|| event);
                }
                let result = result.map_err(|f| f.into_error("handshake reject", node));
                send(answer, result.map(|()| json!({"status": "rejected", "node_id": node})));
            }
            Command::Revoke { node, answer } => {
                let result = self.apply(Input::Revoke { node }).await.map(|rest| self.follow(rest));
                if result.is_ok() {
                    tracing::info!(peer = %node, "trust revoked");
                    self.parts.events.emit(|| Happening::TrustRevoked { peer_node_id: node });
                }
                let result = result.map_err(|f| f.into_error("handshake revoke", node));
                send(answer, result.map(|()| json!({"status": "revoked", "node_id": node})));
            }
            Command::Pending { answer } => send(answer, Ok(self.pending())),
            Command::Trusted { answer } => send(answer, Ok(self.trusted())),
            Command::Received { from, message, key } => {
                let kind = message.kind;
                self.heard(from, kind, "stream", Input::Message { from, message, key }).await;
            }
            Command::RelayedRequest { from, justification, key } => {
                let input = Input::RelayedRequest { from, justification, key };
                self.heard(from, Kind::Request, "registry", input).await;
            }
            Command::RelayedAnswer { from, accept, key } => {
                let kind = if accept { Kind::Accept } else { Kind::Reject };
                self.heard(from, kind, "registry", Input::RelayedAnswer { from, accept, key })
                    .await;
            }
            Command::KeyLearned { node, key } => {
                self.quietly(Input::KeyLearned { node, key }).await
            }
            Command::RevokedByPeer { node, young } => {
                let young = i64::try_from(young).unwrap_or(i64::MAX);
                let result = self.apply(Input::RevokedByPeer { node, young }).await;
                match result {
                    Ok(rest) => {
                        tracing::info!(peer = %node, "the registry says that the peer ended trust");
                        let event = Happening::TrustRevokedByPeer { peer_node_id: node };
                        self.parts.events.emit(|| event);
                        self.follow(rest);
                    }
                    Err(Failed::Refused(refused)) => {
                        tracing::debug!(peer = %node, "trust: {refused}");
                    }
                    Err(Failed::NotSaved(e)) => tracing::error!(peer = %node, "{e}"),
                }
            }
            Command::RevocationKnown { node } => {
                self.quietly(Input::RevocationKnown { node }).await;
            }
            Command::RequestFailed { node } => self.quietly(Input::RequestFailed { node }).await,
            Command::Joined { all } => self.joined(all),
        }
    }

    async fn request(&mut self, node: NodeId, justification: String, answer: Answer) {
        const NAME: &str = "handshake request";
        let success = json!({"status": "sent", "node_id": node});
        if justification.len() > handshake::MAX_TEXT {
            let reason = format!("the justification is longer than {} bytes", handshake::MAX_TEXT);
            return send(answer, Err(CallError::new(ErrorCode::INVALID_ARGUMENT, NAME, reason)));
        }
        if self.parts.member.node().is_none() {
            let error = RegistryError::Unregistered;
            return send(answer, Err(CallError::new(error.code(), NAME, error)));
        }
        if self.running.len() >= MAX_RUNNING {
            let reason = "too many handshakes at once; try again";
            return send(answer, Err(CallError::new(ErrorCode::LIMIT, NAME, reason)));
        }
        let rest = match self.apply(Input::Request { node }).await {
            Ok(rest) => rest,
            Err(failed) => return send(answer, Err(failed.into_error(NAME, node))),
        };
        let asks = |action: &Action| matches!(action, Action::Send { kind: Kind::Request, .. });
        if !rest.iter().any(asks) {
            // Trusted already, or the peer had asked first.
            self.follow(rest);
            return send(answer, Ok(success));
        }
        self.parts.control.expect_handshakes();
        let (courier, handle) = (self.courier.clone(), self.parts.handle.clone());
        self.running.spawn(async move {
            let result = courier.deliver(node, Kind::Request, &justification, "").await;
            let result = match result {
                Ok(()) => Ok(success),
                Err(e) => {
                    handle.send(Command::RequestFailed { node }).await;
                    Err(CallError::new(e.code(), NAME, format!("handshake relay: {e}")))
                }
            };
            send(answer, result);
        });
    }

    /// A user's decision; deciding what was not pending changes nothing and
    /// is no error, as published.
    async fn decide(&mut self, input: Input) -> Result<(), Failed> {
        match self.apply(input).await {
            Ok(rest) => {
                self.follow(rest);
                Ok(())
            }
            Err(Failed::Refused(Refused::NotPending)) => Ok(()),
            Err(failed) => Err(failed),
        }
    }

    /// A message of a peer; nobody waits for the outcome but the log.
    async fn heard(&mut self, from: NodeId, kind: Kind, way: &str, input: Input) {
        let before = self.parts.state.trusted().contains_key(&from);
        let had_asked = self.parts.state.outstanding().contains_key(&from);
        let justification = match &input {
            Input::Message { message, .. } if kind == Kind::Request => {
                Some(cut(message.justification.clone()))
            }
            _ => None,
        };
        match self.apply(input).await {
            Ok(rest) => {
                let after = self.parts.state.trusted().contains_key(&from);
                let outcome = match (before, after) {
                    (false, true) => "trusted from now on",
                    (true, false) => "no longer trusted",
                    _ if self.parts.state.pending().contains_key(&from) => "waits for approval",
                    _ => "noted",
                };
                tracing::info!(peer = %from, ?kind, way, outcome, "handshake");
                if kind == Kind::Revoke && before && !after {
                    let event = Happening::TrustRevokedByPeer { peer_node_id: from };
                    self.parts.events.emit(|| event);
                }
                if let Some(justification) = justification {
                    self.say_request(from, justification, !before && after, had_asked);
                }
                self.follow(rest);
            }
            Err(Failed::Refused(refused)) => {
                tracing::warn!(peer = %from, ?kind, way, "handshake dropped: {refused}");
            }
            Err(Failed::NotSaved(e)) => tracing::error!(peer = %from, ?kind, way, "{e}"),
        }
    }

    /// Says what became of a request that came over a stream. Those that waited
    /// at the registry are not told of, as published.
    fn say_request(&self, from: NodeId, justification: String, granted: bool, had_asked: bool) {
        let (events, peer_node_id) = (&self.parts.events, from);
        let received = justification.clone();
        events.emit(|| Happening::HandshakeReceived { justification: received, peer_node_id });
        if granted && had_asked {
            let reason = ApprovalReason::Mutual;
            events.emit(|| Happening::HandshakeAutoApproved { peer_node_id, reason });
        } else if granted {
            // By whoever configured that all are.
            events.emit(|| Happening::HandshakeApproved { peer_node_id });
        } else if self.parts.state.pending().contains_key(&from) {
            events.emit(|| Happening::HandshakePending { justification, peer_node_id });
        }
    }

    async fn quietly(&mut self, input: Input) {
        match self.apply(input).await {
            Ok(rest) => self.follow(rest),
            Err(Failed::Refused(refused)) => tracing::debug!("trust: {refused}"),
            Err(Failed::NotSaved(e)) => tracing::error!("{e}"),
        }
    }

    /// Takes an input, makes it durable, sets permissions; returns what is to
    /// be done beside. What cannot be saved does not take place, except that
    /// trust ends at once.
    async fn apply(&mut self, input: Input) -> Result<Vec<Action>, Failed> {
        let local = self.parts.member.node().unwrap_or_default();
        let now = i64::try_from(unix_now()).unwrap_or(i64::MAX);
        let ends = matches!(&input, Input::Revoke { .. } | Input::RevokedByPeer { .. })
            || matches!(&input, Input::Message { message, .. } if message.kind == Kind::Revoke);
        let before = self.parts.state.clone();
        let actions = self.parts.state.handle(input, local, now).map_err(Failed::Refused)?;
        if ends {
            // What is open ends before it is written: a disk may be slow.
            self.parts.pins.follow(&self.parts.state);
            for action in &actions {
                if let Action::Forbid(node) = action {
                    self.parts.permits.set_trust(*node, false).await;
                }
            }
        }
        let mut unsaved = None;
        if actions.contains(&Action::Save)
            && let Err(e) = self.save().await
        {
            if !ends {
                self.parts.state = before;
                return Err(Failed::NotSaved(e));
            }
            unsaved = Some(e);
        }
        self.parts.pins.follow(&self.parts.state);
        let mut rest = Vec::new();
        for action in actions {
            match action {
                Action::Save => {}
                Action::Permit(node) => {
                    self.parts.permits.set_trust(node, true).await;
                }
                Action::Forbid(node) => {
                    self.parts.permits.set_trust(node, false).await;
                }
                other => rest.push(other),
            }
        }
        match unsaved {
            None => Ok(rest),
            Some(e) => {
                self.follow(rest);
                Err(Failed::NotSaved(e))
            }
        }
    }

    async fn save(&self) -> Result<(), TrustFileError> {
        let (file, json) = (self.parts.file.clone(), render(&self.parts.state));
        let path = file.path().to_owned();
        tokio::task::spawn_blocking(move || file.save(&json)).await.unwrap_or_else(|e| {
            Err(TrustFileError::Io { action: "write", path, source: std::io::Error::other(e) })
        })
    }

    /// Has the rest of an input's actions done, one after the other, beside.
    fn follow(&mut self, rest: Vec<Action>) {
        if rest.is_empty() {
            return;
        }
        if self.running.len() >= MAX_RUNNING {
            tracing::warn!("too many handshakes at once; {} actions left out", rest.len());
            return;
        }
        let (courier, handle) = (self.courier.clone(), self.parts.handle.clone());
        self.running.spawn(async move {
            for action in rest {
                courier.perform(action, &handle).await;
            }
        });
    }

    /// The registry is told all trust that it may have lost, or what it has not
    /// taken in this run, and all that ended while it was away.
    fn joined(&mut self, all: bool) {
        if !self.parts.state.outstanding().is_empty() {
            self.parts.control.expect_handshakes();
        }
        let trusted: Vec<NodeId> = {
            let mut reported = self.courier.reported();
            if all {
                reported.clear();
            }
            let trusted = self.parts.state.trusted().keys().copied();
            trusted.filter(|node| !reported.contains(node)).collect()
        };
        let trusted = trusted.into_iter().map(Action::Report);
        let ended = self.parts.state.revocations().iter().copied();
        let ended = ended.map(|from| Action::Part { from, tell: false });
        let actions: Vec<_> = trusted.chain(ended).collect();
        if actions.is_empty() {
            return;
        }
        let (courier, handle) = (self.courier.clone(), self.parts.handle.clone());
        self.running.spawn(async move {
            let mut reports = JoinSet::new();
            for action in actions {
                if reports.len() >= REPORTS_AT_ONCE {
                    reports.join_next().await;
                }
                let (courier, handle) = (courier.clone(), handle.clone());
                reports.spawn(async move { courier.perform(action, &handle).await });
            }
            while reports.join_next().await.is_some() {}
        });
    }

    fn pending(&self) -> Value {
        let pending: Vec<_> = self
            .parts
            .state
            .pending()
            .iter()
            .map(|(node, p)| {
                json!({
                    "node_id": node,
                    "public_key": key_text(p.key),
                    "justification": p.justification,
                    "received_at": p.received_at,
                })
            })
            .collect();
        json!({ "pending": pending })
    }

    fn trusted(&self) -> Value {
        let trusted: Vec<_> = self
            .parts
            .state
            .trusted()
            .iter()
            .map(|(node, t)| {
                json!({
                    "node_id": node,
                    "public_key": key_text(t.key),
                    "approved_at": t.approved_at,
                    "mutual": t.mutual,
                    "network": t.network,
                })
            })
            .collect();
        json!({ "trusted": trusted })
    }
}

/// Brings messages to peers and statements to the registry.
#[derive(Clone)]
struct Courier {
    member: Member,
    node: NodeHandle,
    pins: Pins,
    permits: Permits,
    /// Trust that the registry has taken and not been told the end of; no more
    /// than was trusted.
    reported: Arc<Mutex<BTreeSet<NodeId>>>,
}

impl Courier {
    fn reported(&self) -> MutexGuard<'_, BTreeSet<NodeId>> {
        self.reported.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn perform(&self, action: Action, handle: &TrustHandle) {
        match action {
            // Done before, in order.
            Action::Save | Action::Permit(_) | Action::Forbid(_) => {}
            Action::Report(node) => {
                let result = self.member.report_trust(node).await;
                if result.is_ok() {
                    self.reported().insert(node);
                }
                log(node, "report of trust", result);
            }
            Action::Send { to, kind, reason } => {
                log(to, "handshake message", self.deliver(to, kind, "", &reason).await);
            }
            Action::Respond { to, accept } => {
                log(to, "handshake answer", self.member.respond_handshake(to, accept).await);
            }
            Action::Part { from, tell } => self.part(from, tell, handle).await,
            Action::Drop(node) => self.drop_tunnel(node).await,
        }
    }

    /// Trust may have been made anew, and a network may permit the peer.
    async fn drop_tunnel(&self, node: NodeId) {
        if !self.pins.is_trusted(node) && !self.permits.permits(node).await {
            self.node.forget_peer(node).await;
        }
    }

    async fn part(&self, from: NodeId, tell: bool, handle: &TrustHandle) {
        if tell && let Err(reason) = self.direct(from, Kind::Revoke, "", "trust revoked").await {
            tracing::info!(peer = %from, "the peer could not be told that trust ended: {reason}");
        }
        // Trust may have been made anew meanwhile.
        if self.pins.is_trusted(from) {
            return;
        }
        self.reported().remove(&from);
        match self.member.revoke_trust(from).await {
            Ok(()) => handle.send(Command::RevocationKnown { node: from }).await,
            // There was nothing to revoke, which is as good.
            Err(e) if e.is_refusal() => {
                handle.send(Command::RevocationKnown { node: from }).await;
            }
            Err(e) => {
                tracing::warn!(peer = %from, "the registry will be told later that trust ended: {e}");
            }
        }
        self.drop_tunnel(from).await;
    }

    /// Directly if that works, else through the registry.
    async fn deliver(
        &self,
        to: NodeId,
        kind: Kind,
        justification: &str,
        reason: &str,
    ) -> Result<(), RegistryError> {
        match self.direct(to, kind, justification, reason).await {
            Ok(()) => return Ok(()),
            Err(failure) => {
                tracing::debug!(peer = %to, ?kind, "not delivered directly: {failure}");
            }
        }
        match kind {
            Kind::Request => self.member.request_handshake(to, justification).await,
            Kind::Accept => self.member.respond_handshake(to, true).await,
            Kind::Reject => self.member.respond_handshake(to, false).await,
            // The registry relays no such thing; it is told by `part`.
            Kind::Revoke => Ok(()),
        }
    }

    async fn direct(
        &self,
        to: NodeId,
        kind: Kind,
        justification: &str,
        reason: &str,
    ) -> Result<(), String> {
        let message = self
            .message(to, kind, justification, reason)
            .ok_or_else(|| "this node is not registered yet".to_owned())?;
        let port = Address::backbone(to).port(PORT);
        let mut stream = match timeout(DIRECT_LIMIT, self.node.dial(port)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(e)) => return Err(e.to_string()),
            Err(_) => return Err("no connection within 8 seconds".to_owned()),
        };
        // One write, so that it arrives in the first segment.
        stream.write_bytes(message).await.map_err(|e| e.to_string())?;
        // Published receivers lose a message whose stream closes with it.
        // There are no more of these than requests in half a second.
        tokio::spawn(async move {
            let _ = timeout(LINGER, stream.read_bytes()).await;
        });
        Ok(())
    }

    fn message(&self, to: NodeId, kind: Kind, justification: &str, reason: &str) -> Option<Bytes> {
        let me = self.member.node()?;
        let identity = self.member.identity();
        let mut message = Message {
            kind,
            node_id: me,
            public_key: identity.public_key().to_string(),
            justification: cut(justification.to_owned()),
            signature: identity.sign(&handshake::challenge(me, to)).to_string(),
            reason: cut(reason.to_owned()),
            timestamp: i64::try_from(unix_now()).unwrap_or(i64::MAX),
        };
        loop {
            let json = serde_json::to_vec(&message).ok()?;
            if json.len() <= handshake::MAX_MESSAGE {
                return Some(json.into());
            }
            // Escapes can make a text six times as long.
            halve(&mut message.justification);
            halve(&mut message.reason);
        }
    }
}

fn halve(text: &mut String) {
    let mut end = text.len() / 2;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
}

fn key_text(key: Option<[u8; 32]>) -> String {
    key.map(|k| PublicKey(k).to_string()).unwrap_or_default()
}

fn log(node: NodeId, what: &str, result: Result<(), RegistryError>) {
    if let Err(e) = result {
        tracing::warn!(peer = %node, "{what} failed: {e}");
    }
}

fn send(answer: Answer, result: Result<Value, CallError>) {
    // An error means that the client is gone.
    let _ = answer.send(result);
}

impl Failed {
    fn into_error(self, name: &str, node: NodeId) -> CallError {
        match self {
            Self::Refused(Refused::NotTrusted) => {
                let reason = format!("node {node} was not trusted");
                CallError::new(ErrorCode::NOT_FOUND, name, reason)
            }
            Self::Refused(refused @ Refused::Full) => {
                CallError::new(ErrorCode::LIMIT, name, refused)
            }
            Self::Refused(refused) => CallError::new(ErrorCode::INVALID_ARGUMENT, name, refused),
            Self::NotSaved(e) => CallError::new(ErrorCode::GENERAL, name, e),
        }
    }
}

#[cfg(test)]
mod tests;
