//! What the loop asks of the control plane and of the trust service. Neither
//! may keep the loop waiting: questions are answered later, by
//! [`super::NodeHandle::control`] or by the future of a request.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;

use pilot_wire::ipc::ErrorCode;
use pilot_wire::{NodeId, SocketAddress};
use serde_json::{Value, json};

use super::info::NodeFacts;
use crate::control::{Call, CallError, ControlHandle, ControlStatus};
use crate::networks::Networks;
use crate::plugins::Plugins;
use crate::trust::TrustHandle;

/// A request was refused; the text is what the client is told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Refused {
    /// For clients that know codes.
    pub code: ErrorCode,
    /// The whole text.
    pub text: String,
}

/// The answer to a request, in a while.
pub type Answer = Pin<Box<dyn Future<Output = Result<Value, Refused>>>>;

/// What a client of the driver socket asks of the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Look a hostname up.
    ResolveHostname(String),
    /// Set the own hostname; empty clears.
    SetHostname(String),
    /// Become public or private.
    SetVisibility(bool),
    /// Leave the registry.
    Deregister,
    /// Replace the tags.
    SetTags(Vec<String>),
    /// Switch task execution.
    SetTaskExec(bool),
    /// Ask a node for trust.
    TrustRequest {
        /// Whom.
        node: NodeId,
        /// Why.
        justification: String,
    },
    /// Approve a pending request.
    TrustApprove(NodeId),
    /// Reject a pending request.
    TrustReject {
        /// Whose.
        node: NodeId,
        /// Why.
        reason: String,
    },
    /// List what waits for approval.
    TrustPending,
    /// List trusted nodes.
    TrustList,
    /// End trust.
    TrustRevoke(NodeId),
    /// How a plugin or script stands; all of them without a name.
    Plugins(String),
    /// Look at the configuration and the files of plugins and scripts again.
    Reload,
    /// Deliver events to this URL; empty ends that.
    SetWebhook(String),
    /// A request for the registry as this node, or about its networks: JSON.
    Registry(Vec<u8>),
}

/// The control plane as the loop sees it. No call may block.
pub trait Plane {
    /// Find a peer's endpoint; whether an answer will come.
    fn resolve_endpoint(&self, node: NodeId) -> bool;
    /// Find a peer's identity key; whether an answer will come.
    fn lookup_key(&self, node: NodeId) -> bool;
    /// The beacon sees this node under `endpoint`.
    fn observed(&self, endpoint: SocketAddr);
    /// A peer proved its identity from `endpoint`.
    fn note_peer(&self, node: NodeId, endpoint: SocketAddr);
    /// A peer proved its identity, by whatever way.
    fn met(&self, node: NodeId);
    /// Send a datagram to all of a network. The answer says nothing when it was
    /// sent.
    ///
    /// # Errors
    /// What is known at once to stand against it.
    fn broadcast(&self, to: SocketAddress, data: &[u8]) -> Result<Answer, Refused>;
    /// Do what a client asks.
    fn request(&self, request: Request) -> Answer;
    /// What is known of this node, for `info`.
    fn facts(&self) -> NodeFacts;
}

/// The real control plane: its handles, and what of the identity is public.
pub struct ControlPlane {
    /// Speaks to the registry.
    pub control: ControlHandle,
    /// Keeps who is trusted.
    pub trust: TrustHandle,
    /// This node's Ed25519 key, base64.
    pub public_key: String,
    /// Whether the identity is kept in a file.
    pub identity: bool,
    /// What runs.
    pub plugins: Plugins,
    /// The networks of this node.
    pub networks: Networks,
}

impl Plane for ControlPlane {
    fn resolve_endpoint(&self, node: NodeId) -> bool {
        self.control.resolve_endpoint(node)
    }

    fn lookup_key(&self, node: NodeId) -> bool {
        self.control.lookup_key(node)
    }

    fn observed(&self, endpoint: SocketAddr) {
        self.control.observed(endpoint);
    }

    fn note_peer(&self, node: NodeId, endpoint: SocketAddr) {
        self.control.note_peer(node, endpoint);
    }

    fn met(&self, node: NodeId) {
        self.networks.watched().touch(node);
    }

    fn broadcast(&self, to: SocketAddress, data: &[u8]) -> Result<Answer, Refused> {
        let sending = self.networks.broadcast(to, data)?;
        Ok(Box::pin(async move { sending.await.map(|()| Value::Null) }))
    }

    fn request(&self, request: Request) -> Answer {
        let (control, trust) = (self.control.clone(), self.trust.clone());
        let (plugins, networks) = (self.plugins.clone(), self.networks.clone());
        Box::pin(async move {
            let answer = match request {
                Request::ResolveHostname(name) => control.call(Call::ResolveHostname(name)).await,
                Request::SetHostname(name) => control.call(Call::SetHostname(name)).await,
                Request::SetVisibility(public) => control.call(Call::SetVisibility(public)).await,
                Request::Deregister => control.call(Call::Deregister).await,
                Request::SetTags(tags) => control.call(Call::SetTags(tags)).await,
                Request::SetTaskExec(on) => control.call(Call::SetTaskExec(on)).await,
                Request::TrustRequest { node, justification } => {
                    trust.request(node, justification).await
                }
                Request::TrustApprove(node) => trust.approve(node).await,
                Request::TrustReject { node, reason } => trust.reject(node, reason).await,
                Request::TrustPending => trust.pending().await,
                Request::TrustList => trust.trusted().await,
                Request::TrustRevoke(node) => trust.revoke(node).await,
                Request::Registry(body) => networks.request(&body).await,
                Request::Plugins(name) => return plugins.describe(&name),
                Request::Reload => return plugins.reload().await,
                Request::SetWebhook(url) => return plugins.set_webhook(&url).await,
            };
            answer.map_err(|CallError { code, message }| Refused { code, text: message })
        })
    }

    fn facts(&self) -> NodeFacts {
        let status = self.control.status();
        NodeFacts {
            node_id: status.node.unwrap_or_default(),
            address: status.address,
            registry: registry(&status),
            hostname: status.hostname,
            owner: status.owner,
            public_key: self.public_key.clone(),
            identity: self.identity,
            public: status.public,
            networks: self.networks.status(),
            networks_warning: self.networks.warning().into(),
            plugins: self.plugins.summary(),
            events: self.plugins.events(),
        }
    }
}

fn registry(status: &ControlStatus) -> Value {
    json!({
        "state": status.state(),
        "since_secs": status.since.elapsed().unwrap_or_default().as_secs(),
        "last_error": status.last_error,
        "address": status.registry,
        "registered": status.registered,
        "hostname_error": status.hostname_error,
        "endpoint": status.endpoint,
        "session": status.session,
        "revoked": status.revoked,
        "warning": status.warning,
    })
}
