//! Port 444 and the handshakes left at the registry, as published: checks
//! that check little included.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use ed25519_dalek::{Signature, Signer as _, Verifier as _, VerifyingKey};
use pilot_wire::packet::port;
use pilot_wire::service::handshake::{Kind, MAX_AGE, MAX_AHEAD, Message, challenge};
use pilot_wire::{Address, NodeId};
use serde_json::Value;
use tokio::sync::mpsc;

use super::node::Command;
use super::registry::{base64, node, unbase64};
use super::{PublishedPeer, Shared, Stream};

/// How long the first segment may take.
const FIRST_SEGMENT: Duration = Duration::from_secs(10);
/// Pause between the message and the close.
const BEFORE_CLOSE: Duration = Duration::from_millis(500);
/// Messages remembered against repetition; the oldest is forgotten.
const SEEN: usize = 1024;

/// A node that is trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trusted {
    /// Base64 of its key; may be empty.
    pub public_key: String,
    /// Whether both had asked, as far as is known.
    pub mutual: bool,
}

/// A request that waits for approval.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// Base64 of the key; empty when it came through the registry.
    pub public_key: String,
    /// Why.
    pub justification: String,
}

#[derive(Default)]
pub(super) struct TrustState {
    trusted: BTreeMap<NodeId, Trusted>,
    pending: BTreeMap<NodeId, Pending>,
    outstanding: BTreeSet<NodeId>,
    seen: Vec<Message>,
    received: Vec<Message>,
}

impl PublishedPeer {
    /// Asks for trust: directly, or through the registry if no dial succeeds.
    ///
    /// # Errors
    /// When the registry refuses as well.
    pub async fn handshake(&self, node: NodeId, justification: &str) -> Result<()> {
        if self.shared.trust().trusted.contains_key(&node) {
            return Ok(());
        }
        self.shared.trust().outstanding.insert(node);
        let sent = self.shared.send(node, Kind::Request, justification, "").await;
        if sent.is_err() {
            let mut registry = self.shared.registry.lock().await;
            registry.request_handshake(self.shared.node, node, justification).await?;
        }
        Ok(())
    }

    /// Approves a pending request; nothing happens when there is none.
    ///
    /// # Errors
    /// When the registry refuses.
    pub async fn approve(&self, node: NodeId) -> Result<()> {
        let Some(pending) = self.shared.trust().pending.remove(&node) else { return Ok(()) };
        let trusted = Trusted { public_key: pending.public_key, mutual: false };
        self.shared.trust().trusted.insert(node, trusted);
        let own = self.shared.node;
        {
            let mut registry = self.shared.registry.lock().await;
            registry.report_trust(own, node).await?;
            registry.respond_handshake(own, node, true).await?;
        }
        if self.shared.send(node, Kind::Accept, "", "").await.is_err() {
            self.shared.registry.lock().await.respond_handshake(own, node, true).await?;
        }
        Ok(())
    }

    /// Rejects a pending request, best effort.
    pub async fn reject(&self, node: NodeId, reason: &str) {
        if self.shared.trust().pending.remove(&node).is_some() {
            let own = self.shared.node;
            let _ = self.shared.registry.lock().await.respond_handshake(own, node, false).await;
            let _ = self.shared.send(node, Kind::Reject, "", reason).await;
        }
    }

    /// Ends trust; the message to the other side is best effort.
    ///
    /// # Errors
    /// When the node was not trusted, or the registry refuses.
    pub async fn revoke(&self, node: NodeId) -> Result<()> {
        let known = self.shared.trust().trusted.remove(&node);
        anyhow::ensure!(known.is_some(), "handshake revoke: node {node} was not trusted");
        let _ = self.shared.commands.send(Command::Forget { node }).await;
        let own = self.shared.node;
        self.shared.registry.lock().await.revoke_trust(own, node).await?;
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move {
            let _ = shared.send(node, Kind::Revoke, "", "trust revoked").await;
        });
        Ok(())
    }

    /// Sends one message, whatever stands between the two nodes.
    ///
    /// # Errors
    /// When the dial fails.
    pub async fn send_handshake(&self, node: NodeId, kind: Kind, text: &str) -> Result<()> {
        self.shared.send(node, kind, text, "").await
    }

    /// Whom it trusts.
    pub fn trusted(&self) -> BTreeMap<NodeId, Trusted> {
        self.shared.trust().trusted.clone()
    }

    /// Who waits for approval.
    pub fn pending(&self) -> BTreeMap<NodeId, Pending> {
        self.shared.trust().pending.clone()
    }

    /// The sound messages that came directly, in order.
    pub fn handshake_messages(&self) -> Vec<Message> {
        self.shared.trust().received.clone()
    }
}

impl Shared {
    /// One message, alone in the first segment of a connection.
    async fn send(&self, to: NodeId, kind: Kind, justification: &str, reason: &str) -> Result<()> {
        let signature = self.identity.sign(challenge(self.node, to).as_bytes());
        let message = Message {
            kind,
            node_id: self.node,
            public_key: base64(self.identity.verifying_key().as_bytes()),
            justification: justification.to_owned(),
            signature: base64(&signature.to_bytes()),
            reason: reason.to_owned(),
            timestamp: unix_time(),
        };
        let stream = self.dial(Address::backbone(to).port(port::TRUST)).await?;
        stream.write(&serde_json::to_vec(&message)?).await?;
        tokio::spawn(async move {
            tokio::time::sleep(BEFORE_CLOSE).await;
            stream.close().await;
        });
        Ok(())
    }

    async fn received(&self, message: Message) {
        let age = unix_time() - message.timestamp;
        if age > MAX_AGE || -age > MAX_AHEAD || !signed(&message, self.node) {
            return;
        }
        let (from, key) = (message.node_id, message.public_key.clone());
        let known = {
            let mut trust = self.trust();
            if trust.seen.contains(&message) {
                return;
            }
            if trust.seen.len() == SEEN {
                trust.seen.remove(0);
            }
            trust.seen.push(message.clone());
            trust.received.push(message.clone());
            trust.received.truncate(SEEN);
            trust.trusted.contains_key(&from)
        };
        match message.kind {
            Kind::Request if known => {
                let _ = self.send(from, Kind::Accept, "", "").await;
            }
            Kind::Request => {
                if self.trust().outstanding.remove(&from) {
                    self.trusts(from, key).await;
                    let _ = self.send(from, Kind::Accept, "", "").await;
                } else {
                    let pending = Pending { public_key: key, justification: message.justification };
                    self.trust().pending.insert(from, pending);
                }
            }
            // Whether or not we had asked.
            Kind::Accept => self.trusts(from, key).await,
            Kind::Reject => {
                self.trust().outstanding.remove(&from);
            }
            Kind::Revoke => self.revoked(from).await,
        }
    }

    async fn trusts(&self, from: NodeId, public_key: String) {
        {
            let mut trust = self.trust();
            trust.outstanding.remove(&from);
            trust.pending.remove(&from);
            trust.trusted.insert(from, Trusted { public_key, mutual: true });
        }
        let _ = self.registry.lock().await.report_trust(self.node, from).await;
    }

    async fn revoked(&self, from: NodeId) {
        let known = {
            let mut trust = self.trust();
            trust.outstanding.remove(&from);
            trust.pending.remove(&from);
            trust.trusted.remove(&from).is_some()
        };
        let _ = self.commands.send(Command::Forget { node: from }).await;
        if known {
            let _ = self.registry.lock().await.revoke_trust(self.node, from).await;
        }
    }

    /// What waited at the registry.
    async fn polled(&self, reply: &Value) {
        for request in reply["requests"].as_array().into_iter().flatten() {
            let Some(from) = node(&request["from_node_id"]) else { continue };
            let (known, asked) = {
                let trust = self.trust();
                (trust.trusted.contains_key(&from), trust.outstanding.contains(&from))
            };
            if asked && !known {
                let key = self.lookup(from).await.map(|k| base64(&k)).unwrap_or_default();
                self.trusts(from, key).await;
            }
            if known || asked {
                let _ = self.registry.lock().await.respond_handshake(self.node, from, true).await;
            } else {
                let justification =
                    request["justification"].as_str().unwrap_or_default().to_owned();
                let pending = Pending { public_key: String::new(), justification };
                self.trust().pending.insert(from, pending);
            }
        }
        for response in reply["responses"].as_array().into_iter().flatten() {
            let Some(from) = node(&response["from_node_id"]) else { continue };
            if response["accept"] == true {
                let public_key = self.lookup(from).await.map(|k| base64(&k)).unwrap_or_default();
                let mut trust = self.trust();
                trust.outstanding.remove(&from);
                trust.trusted.insert(from, Trusted { public_key, mutual: true });
            } else {
                self.trust().outstanding.remove(&from);
            }
        }
    }
}

/// Only against the key in the message; without one, nothing is checked.
fn signed(message: &Message, receiver: NodeId) -> bool {
    if message.public_key.is_empty() {
        return true;
    }
    let key = unbase64(&message.public_key).and_then(|k| VerifyingKey::from_bytes(&k).ok());
    let signature = unbase64(&message.signature).map(|s| Signature::from_bytes(&s));
    key.zip(signature).is_some_and(|(key, signature)| {
        key.verify(challenge(message.node_id, receiver).as_bytes(), &signature).is_ok()
    })
}

fn unix_time() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX)
}

/// Serves port 444: the first segment is the message, nothing is answered on
/// the connection and it is not closed.
pub(super) async fn serve(shared: Arc<Shared>, mut streams: mpsc::Receiver<Stream>) {
    while let Some(stream) = streams.recv().await {
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let first = tokio::time::timeout(FIRST_SEGMENT, stream.read()).await;
            let Ok(Ok(Some(segment))) = first else { return };
            if let Ok(message) = serde_json::from_slice(&segment) {
                shared.received(message).await;
            }
        });
    }
}

/// Heartbeats; after a good one discover and poll; after three bad ones in a
/// row register again and report trust.
pub(super) async fn heartbeats(shared: Arc<Shared>, pause: Duration, endpoint: String) {
    let mut failed = 0;
    loop {
        tokio::time::sleep(pause).await;
        let beat = shared.registry.lock().await.heartbeat(shared.node).await;
        if beat.is_ok() {
            failed = 0;
            let _ = shared.commands.send(Command::Discover).await;
            let polled = shared.registry.lock().await.poll_handshakes(shared.node).await;
            if let Ok(reply) = polled {
                shared.polled(&reply).await;
            }
            continue;
        }
        failed += 1;
        if failed >= 3 && shared.registry.lock().await.register(&endpoint).await.is_ok() {
            failed = 0;
            let trusted: Vec<NodeId> = shared.trust().trusted.keys().copied().collect();
            for peer in trusted {
                let _ = shared.registry.lock().await.report_trust(shared.node, peer).await;
            }
            let _ = shared.commands.send(Command::Discover).await;
        }
    }
}
