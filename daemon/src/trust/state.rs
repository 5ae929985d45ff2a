//! Trust as a state machine: who is trusted, who asked, whom we asked. It
//! draws no time and does no I/O; every input returns what is to be done.
//!
//! Stricter than published: a message counts only when the tunnel it came
//! through belongs to the node it names, with the key the registry has for
//! that node, and an answer counts only when it was asked for.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ed25519_dalek::{Signature, Verifier, VerifyingKey};
use pilot_wire::NodeId;
use pilot_wire::registry;
use pilot_wire::service::handshake::{self, Kind, Message};

/// Trusted peers; one more is refused, whoever asks.
pub(super) const MAX_TRUSTED: usize = 16_384;
/// Requests waiting for a person; one more is dropped.
pub(super) const MAX_PENDING: usize = 256;
/// Requests of ours without an answer; beyond it the oldest is forgotten.
pub(super) const MAX_OUTSTANDING: usize = 1024;
/// Revocations that the registry has not confirmed; beyond it the one of the
/// lowest node is no longer repeated.
pub(super) const MAX_REVOCATIONS: usize = 1024;
/// Messages remembered against replay; beyond it the oldest is forgotten.
const MAX_SEEN: usize = 4096;
/// Messages remembered per node; one more within the window is dropped.
const MAX_SEEN_PER_NODE: usize = 32;
/// How long a message is remembered, in seconds: longer than any message
/// stays valid.
const SEEN_FOR: i64 = 900;

/// A peer that is trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trusted {
    /// Its key, when it was known.
    pub key: Option<[u8; 32]>,
    /// Since when, Unix seconds.
    pub approved_at: i64,
    /// Whether both asked.
    pub mutual: bool,
    /// The network that made it trusted; 0 for none.
    pub network: u16,
}

/// A peer that asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Its key, when it was known.
    pub key: Option<[u8; 32]>,
    /// Why it asks.
    pub justification: String,
    /// When, Unix seconds.
    pub received_at: i64,
}

/// What happens to the trust of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The user asks a peer.
    Request {
        /// Whom.
        node: NodeId,
    },
    /// A request of ours could not be brought anywhere.
    RequestFailed {
        /// Whom it was for.
        node: NodeId,
    },
    /// The user trusts a peer that asked.
    Approve {
        /// Whom.
        node: NodeId,
    },
    /// The user refuses a peer that asked.
    Reject {
        /// Whom.
        node: NodeId,
        /// Why, for the peer.
        reason: String,
    },
    /// The user ends trust.
    Revoke {
        /// With whom.
        node: NodeId,
    },
    /// A message arrived over a stream.
    Message {
        /// The node that the tunnel has proven.
        from: NodeId,
        /// What it says.
        message: Message,
        /// That node's key in the registry.
        key: Option<[u8; 32]>,
    },
    /// A request waited at the registry, which has checked its signature.
    RelayedRequest {
        /// Who asks.
        from: NodeId,
        /// Why.
        justification: String,
        /// Its key in the registry.
        key: Option<[u8; 32]>,
    },
    /// An answer waited at the registry, which has checked its signature.
    RelayedAnswer {
        /// Who answers.
        from: NodeId,
        /// What.
        accept: bool,
        /// Its key in the registry.
        key: Option<[u8; 32]>,
    },
    /// The registry's key of a peer that is trusted without a known key.
    KeyLearned {
        /// The peer.
        node: NodeId,
        /// Its key.
        key: [u8; 32],
    },
    /// The registry says that this peer has ended trust.
    RevokedByPeer {
        /// The peer.
        node: NodeId,
        /// Trust that is not so many seconds old stands: the peer may still be
        /// about to state it.
        young: i64,
    },
    /// The registry knows that trust with this peer ended.
    RevocationKnown {
        /// The peer.
        node: NodeId,
    },
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write the state to disk; always first when present.
    Save,
    /// The peer may reach every port.
    Permit(NodeId),
    /// The peer is a stranger again.
    Forbid(NodeId),
    /// State trust at the registry.
    Report(NodeId),
    /// Bring this to the peer, over a stream or else through the registry.
    Send {
        /// To whom.
        to: NodeId,
        /// What.
        kind: Kind,
        /// Reason of a refusal.
        reason: String,
    },
    /// Answer a relayed request at the registry.
    Respond {
        /// Who asked.
        to: NodeId,
        /// The answer.
        accept: bool,
    },
    /// Drop the tunnel with a peer, unless something else permits it.
    Drop(NodeId),
    /// Tell the peer that trust ended, as far as it can be reached, then the
    /// registry, then drop the tunnel.
    Part {
        /// From whom.
        from: NodeId,
        /// Whether the peer is to be told; not when it ended trust itself.
        tell: bool,
    },
}

/// Why an input changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Older than 5 minutes or more than 30 s ahead.
    #[error("its timestamp is outside the window; check the clocks of both machines")]
    Stale,
    /// Seen before, or too many from this node.
    #[error("it was seen before, or its node sends too many")]
    Replay,
    /// The message names another node than the tunnel's.
    #[error("it names another node than its tunnel")]
    WrongNode,
    /// No key, or not the registered one.
    #[error("its key is missing or not the registered one")]
    WrongKey,
    /// The signature does not verify.
    #[error("its signature is wrong")]
    BadSignature,
    /// The text is too long.
    #[error("its text is too long")]
    TooLong,
    /// An answer to nothing that was asked.
    #[error("it answers nothing that was asked")]
    Unsolicited,
    /// The peer is not trusted.
    #[error("the node was not trusted")]
    NotTrusted,
    /// It may be about earlier trust.
    #[error("trust was made a moment ago, and the registry may not have heard of it")]
    Young,
    /// Nothing is pending.
    #[error("nothing was pending")]
    NotPending,
    /// The table is full.
    #[error("too many peers; revoke or reject some")]
    Full,
    /// A node needs no trust in itself.
    #[error("a node does not shake hands with itself")]
    Itself,
}

/// All trust of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustState {
    trusted: BTreeMap<NodeId, Trusted>,
    pending: BTreeMap<NodeId, Pending>,
    /// Whom we asked, and when.
    outstanding: BTreeMap<NodeId, i64>,
    revocations: BTreeSet<NodeId>,
    seen: VecDeque<(i64, NodeId, Seen)>,
    auto_approve: bool,
}

/// What makes a message the same as another: all its fields.
type Seen = Message;

impl TrustState {
    /// State as remembered. What exceeds a bound is left out, pending and
    /// outstanding before anything that grants or ends trust.
    pub fn new(
        trusted: BTreeMap<NodeId, Trusted>,
        pending: BTreeMap<NodeId, Pending>,
        outstanding: BTreeMap<NodeId, i64>,
        revocations: BTreeSet<NodeId>,
    ) -> Self {
        Self {
            trusted,
            pending: pending.into_iter().take(MAX_PENDING).collect(),
            outstanding: outstanding.into_iter().take(MAX_OUTSTANDING).collect(),
            revocations,
            ..Self::default()
        }
    }

    /// Whether every valid request is granted without asking a person.
    #[must_use]
    pub fn auto_approve(mut self, on: bool) -> Self {
        self.auto_approve = on;
        self
    }

    /// Who is trusted.
    pub fn trusted(&self) -> &BTreeMap<NodeId, Trusted> {
        &self.trusted
    }

    /// Who asked.
    pub fn pending(&self) -> &BTreeMap<NodeId, Pending> {
        &self.pending
    }

    /// Whom we asked, and when.
    pub fn outstanding(&self) -> &BTreeMap<NodeId, i64> {
        &self.outstanding
    }

    /// Peers with whom trust ended without the registry knowing yet.
    pub fn revocations(&self) -> &BTreeSet<NodeId> {
        &self.revocations
    }

    /// Takes one input of `local` at `now` (Unix seconds).
    ///
    /// # Errors
    /// When nothing changes, with the reason.
    pub fn handle(
        &mut self,
        input: Input,
        local: NodeId,
        now: i64,
    ) -> Result<Vec<Action>, Refused> {
        match input {
            Input::Request { node } => self.request(node, local, now),
            Input::RequestFailed { node } => {
                self.outstanding.remove(&node).ok_or(Refused::Unsolicited)?;
                Ok(vec![Action::Save])
            }
            Input::Approve { node } => {
                let pending = self.pending.get(&node).ok_or(Refused::NotPending)?;
                let key = pending.key;
                let mut actions = self.trust(node, key, false, now)?;
                actions.push(send(node, Kind::Accept, ""));
                Ok(actions)
            }
            Input::Reject { node, reason } => {
                self.pending.remove(&node).ok_or(Refused::NotPending)?;
                Ok(vec![Action::Save, send(node, Kind::Reject, &reason)])
            }
            Input::Revoke { node } => {
                self.trusted.remove(&node).ok_or(Refused::NotTrusted)?;
                Ok(self.part(node, true))
            }
            Input::Message { from, message, key } => self.message(from, message, key, local, now),
            Input::RelayedRequest { from, justification, key } => {
                if from == local {
                    return Err(Refused::Itself);
                }
                let key = self.agreed_key(from, key)?;
                self.requested(from, justification, key, true, now)
            }
            Input::RelayedAnswer { from, accept, key } => {
                let key = self.agreed_key(from, key)?;
                self.answered(from, accept, key, now)
            }
            Input::KeyLearned { node, key } => {
                let trusted = self.trusted.get_mut(&node).ok_or(Refused::NotTrusted)?;
                if trusted.key.is_some() {
                    return Ok(Vec::new());
                }
                trusted.key = Some(key);
                Ok(vec![Action::Save])
            }
            Input::RevokedByPeer { node, young } => {
                let trusted = self.trusted.get(&node).ok_or(Refused::NotTrusted)?;
                if now.saturating_sub(trusted.approved_at) < young {
                    return Err(Refused::Young);
                }
                self.trusted.remove(&node);
                // The registry and the peer know.
                Ok(vec![Action::Save, Action::Forbid(node), Action::Drop(node)])
            }
            Input::RevocationKnown { node } => {
                if self.revocations.remove(&node) {
                    Ok(vec![Action::Save])
                } else {
                    Ok(vec![])
                }
            }
        }
    }

    fn request(&mut self, node: NodeId, local: NodeId, now: i64) -> Result<Vec<Action>, Refused> {
        if node == local || node == NodeId(0) || node == NodeId::BROADCAST {
            return Err(Refused::Itself);
        }
        if self.trusted.contains_key(&node) {
            return Ok(Vec::new());
        }
        if let Some(pending) = self.pending.get(&node) {
            // The peer asked first: asking back is the answer.
            let key = pending.key;
            let mut actions = self.trust(node, key, true, now)?;
            actions.push(send(node, Kind::Accept, ""));
            return Ok(actions);
        }
        if self.outstanding.len() >= MAX_OUTSTANDING && !self.outstanding.contains_key(&node) {
            let oldest = self.outstanding.iter().min_by_key(|(_, at)| **at).map(|(n, _)| *n);
            if let Some(oldest) = oldest {
                self.outstanding.remove(&oldest);
            }
        }
        self.outstanding.insert(node, now);
        Ok(vec![Action::Save, send(node, Kind::Request, "")])
    }

    fn message(
        &mut self,
        from: NodeId,
        message: Message,
        key: Option<[u8; 32]>,
        local: NodeId,
        now: i64,
    ) -> Result<Vec<Action>, Refused> {
        check_time(message.timestamp, now)?;
        if message.node_id != from || from == local {
            return Err(Refused::WrongNode);
        }
        if message.justification.len() > handshake::MAX_ACCEPTED
            || message.reason.len() > handshake::MAX_ACCEPTED
        {
            return Err(Refused::TooLong);
        }
        let key = self.agreed_key(from, key)?.ok_or(Refused::WrongKey)?;
        check_signature(&message, &key, local)?;
        self.remember(from, &message, now)?;
        match message.kind {
            Kind::Request => self.requested(from, message.justification, Some(key), false, now),
            Kind::Accept => self.answered(from, true, Some(key), now),
            Kind::Reject => self.answered(from, false, Some(key), now),
            Kind::Revoke => {
                let trusted = self.trusted.remove(&from).is_some();
                let pending = self.pending.remove(&from).is_some();
                let outstanding = self.outstanding.remove(&from).is_some();
                if trusted {
                    return Ok(self.part(from, false));
                }
                if pending || outstanding {
                    Ok(vec![Action::Save])
                } else {
                    Err(Refused::NotTrusted)
                }
            }
        }
    }

    /// The key to go by: a pinned one stands against whatever comes.
    fn agreed_key(&self, node: NodeId, key: Option<[u8; 32]>) -> Result<Option<[u8; 32]>, Refused> {
        match (self.trusted.get(&node).and_then(|t| t.key), key) {
            (Some(pinned), Some(key)) if pinned != key => Err(Refused::WrongKey),
            (Some(pinned), _) => Ok(Some(pinned)),
            (None, key) => Ok(key),
        }
    }

    fn requested(
        &mut self,
        from: NodeId,
        justification: String,
        key: Option<[u8; 32]>,
        relayed: bool,
        now: i64,
    ) -> Result<Vec<Action>, Refused> {
        let accept = if relayed {
            Action::Respond { to: from, accept: true }
        } else {
            send(from, Kind::Accept, "")
        };
        if self.trusted.contains_key(&from) {
            return Ok(vec![accept]);
        }
        let mutual = self.outstanding.contains_key(&from);
        if mutual || self.auto_approve {
            let mut actions = self.trust(from, key, mutual, now)?;
            actions.push(accept);
            return Ok(actions);
        }
        if self.pending.len() >= MAX_PENDING && !self.pending.contains_key(&from) {
            return Err(Refused::Full);
        }
        self.pending
            .insert(from, Pending { key, justification: cut(justification), received_at: now });
        Ok(vec![Action::Save])
    }

    fn answered(
        &mut self,
        from: NodeId,
        accept: bool,
        key: Option<[u8; 32]>,
        now: i64,
    ) -> Result<Vec<Action>, Refused> {
        if !self.outstanding.contains_key(&from) {
            // The second copy of an answer that was taken already is no event.
            let again = accept && self.trusted.contains_key(&from);
            return if again { Ok(Vec::new()) } else { Err(Refused::Unsolicited) };
        }
        if accept {
            return self.trust(from, key, true, now);
        }
        self.outstanding.remove(&from);
        Ok(vec![Action::Save])
    }

    /// Callers have checked that this side wants it.
    fn trust(
        &mut self,
        node: NodeId,
        key: Option<[u8; 32]>,
        mutual: bool,
        now: i64,
    ) -> Result<Vec<Action>, Refused> {
        if self.trusted.len() >= MAX_TRUSTED && !self.trusted.contains_key(&node) {
            return Err(Refused::Full);
        }
        self.outstanding.remove(&node);
        self.pending.remove(&node);
        self.revocations.remove(&node);
        self.trusted.insert(node, Trusted { key, approved_at: now, mutual, network: 0 });
        Ok(vec![Action::Save, Action::Permit(node), Action::Report(node)])
    }

    /// `node` was removed from the trusted.
    fn part(&mut self, node: NodeId, tell: bool) -> Vec<Action> {
        self.pending.remove(&node);
        self.outstanding.remove(&node);
        self.revocations.insert(node);
        if self.revocations.len() > MAX_REVOCATIONS {
            self.revocations.pop_first();
        }
        vec![Action::Save, Action::Forbid(node), Action::Part { from: node, tell }]
    }

    fn remember(&mut self, from: NodeId, message: &Message, now: i64) -> Result<(), Refused> {
        while self.seen.front().is_some_and(|(at, ..)| now.saturating_sub(*at) > SEEN_FOR) {
            self.seen.pop_front();
        }
        let of_node = self.seen.iter().filter(|(_, node, _)| *node == from);
        let (mut count, mut same) = (0, false);
        for (_, _, seen) in of_node {
            count += 1;
            same |= seen == message;
        }
        if same || count >= MAX_SEEN_PER_NODE {
            return Err(Refused::Replay);
        }
        if self.seen.len() >= MAX_SEEN {
            self.seen.pop_front();
        }
        self.seen.push_back((now, from, message.clone()));
        Ok(())
    }
}

fn send(to: NodeId, kind: Kind, reason: &str) -> Action {
    Action::Send { to, kind, reason: reason.to_owned() }
}

fn check_time(timestamp: i64, now: i64) -> Result<(), Refused> {
    let age = now.saturating_sub(timestamp);
    if (-handshake::MAX_AHEAD..=handshake::MAX_AGE).contains(&age) {
        return Ok(());
    }
    Err(Refused::Stale)
}

fn check_signature(message: &Message, key: &[u8; 32], local: NodeId) -> Result<(), Refused> {
    if registry::PublicKey::from_base64(&message.public_key) != Some(registry::PublicKey(*key)) {
        return Err(Refused::WrongKey);
    }
    let key = VerifyingKey::from_bytes(key).map_err(|_| Refused::WrongKey)?;
    let signature =
        registry::Signature::from_base64(&message.signature).ok_or(Refused::BadSignature)?;
    let challenge = handshake::challenge(message.node_id, local);
    key.verify(challenge.as_bytes(), &Signature::from_bytes(&signature.0))
        .map_err(|_| Refused::BadSignature)
}

/// Cuts a text to what this implementation sends and keeps. Control characters
/// become spaces: they would write on the terminal of whoever reads it, and are
/// six times as long in JSON, so that a list of them would not fit a message.
pub(super) fn cut(text: String) -> String {
    let mut text = text.replace(char::is_control, " ");
    let mut end = text.len().min(handshake::MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

#[cfg(test)]
mod tests;
