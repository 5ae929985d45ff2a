//! This node as a member of its registry: its number, its key, and the
//! requests it signs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use pilot_tls::Pin;
use pilot_wire::NodeId;
use pilot_wire::registry::{
    Deregistered, Envelope, Extended, HandshakeAnswered, HandshakeDelivered, Handshakes, Heartbeat,
    Lookup, NetworkJoined, Registered, Reply, Request, Resolved, SessionChallenged, SessionOpened,
    SessionWatched, Signature, TrustReported, TrustRevoked, challenge, network,
};
use serde_json::Value;

use super::handle::Call;
use super::registry::{Answered, Limits, Moment, Registry, RegistryError};
use super::session::{Session, Standing};
use crate::identity::Identity;

/// Requests in this node's name. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Member {
    registry: Registry,
    session: Session,
    identity: Identity,
    /// 0 while there is none.
    number: Arc<AtomicU32>,
}

impl Member {
    /// A node without a number, connected to the registry at `address`, with
    /// TLS when a certificate is pinned.
    pub fn new(address: Option<String>, pin: Option<Pin>, identity: Identity) -> Self {
        Self::with_limits(address, pin, identity, Limits::DEFAULT)
    }

    pub(crate) fn with_limits(
        address: Option<String>,
        pin: Option<Pin>,
        identity: Identity,
        limits: Limits,
    ) -> Self {
        Self {
            registry: Registry::spawn(address, pin, limits),
            session: Session::new(),
            identity,
            number: Arc::default(),
        }
    }

    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    /// Whether a session is open on the present connection.
    pub(crate) fn has_session(&self) -> bool {
        self.need_session().is_ok()
    }

    /// Why there is no session, when there is none.
    pub(crate) fn need_session(&self) -> Result<(), RegistryError> {
        let state = self.session.state();
        let link = self.registry.link();
        let link = link.borrow();
        let present = link.connected && state.connection == link.opened;
        match state.standing {
            Standing::Open if present => Ok(()),
            Standing::Unsupported if present => Err(RegistryError::NoNetworks),
            _ => Err(RegistryError::NoSession(link.error.clone().filter(|_| !link.connected))),
        }
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Whether the registry is known to be out of reach, so that asking it
    /// would only cost time.
    pub(super) fn is_cut_off(&self) -> bool {
        let link = self.registry.link();
        let link = link.borrow();
        !link.connected && link.error.is_some()
    }

    /// Its key.
    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Its number.
    pub(crate) fn node(&self) -> Option<NodeId> {
        match self.number.load(Ordering::Relaxed) {
            0 => None,
            n => Some(NodeId(n)),
        }
    }

    pub(crate) fn set_node(&self, node: NodeId) {
        self.number.store(node.0, Ordering::Relaxed);
    }

    pub(super) async fn register(
        &self,
        listen_addr: &str,
        owner: &str,
    ) -> Result<Registered, RegistryError> {
        let timestamp = unix_now();
        let proof = self.identity.sign(&challenge::register(timestamp, listen_addr));
        let request = Request::Register {
            listen_addr,
            public_key: self.identity.public_key(),
            owner,
            hostname: "",
            timestamp: Some(timestamp),
            proof: Some(proof),
        };
        self.registry.call(&request).await
    }

    pub(super) async fn heartbeat(&self) -> Result<(), RegistryError> {
        let (node_id, signature) = self.signed(challenge::heartbeat)?;
        self.registry.call::<Heartbeat>(&Request::Heartbeat { node_id, signature }).await.map(drop)
    }

    /// A heartbeat on a session, whose answer may take less time.
    pub(super) async fn beat(&self) -> Result<(), RegistryError> {
        let (node_id, signature) = self.signed(challenge::heartbeat)?;
        let request = Request::Heartbeat { node_id, signature };
        self.registry
            .call_within::<Heartbeat>(&request, self.registry.limits().beat)
            .await
            .map(drop)
    }

    /// Opens a session, and says on which connection.
    pub(super) async fn open_session(
        &self,
        peers: Vec<NodeId>,
    ) -> Result<(SessionOpened, u64), RegistryError> {
        let node_id = self.node().ok_or(RegistryError::Unregistered)?;
        let state = self.session.state();
        let challenge = Envelope::new(Extended::SessionChallenge {});
        let challenged = self.call_extended(&challenge, SessionChallenged::KIND).await?;
        let SessionChallenged { nonce } = read(challenged.value)?;
        let signature = self.identity.sign(&challenge::session(node_id, &nonce));
        let (epoch, since) = (state.epoch, state.since);
        let open = Extended::SessionOpen { node_id, signature, epoch, since, peers };
        let answered = self.call_extended(&Envelope::new(open), SessionOpened::KIND).await;
        let answered = answered.map_err(|e| match e {
            // The nonce was good only on the connection that gave it.
            RegistryError::Refused(_)
                if self.registry.link().borrow().opened != challenged.connection =>
            {
                RegistryError::Unreachable("was lost while the session was opened".to_owned())
            }
            other => other,
        })?;
        Ok((read(answered.value)?, answered.connection))
    }

    pub(super) async fn watch_peers(
        &self,
        add: Vec<NodeId>,
        remove: Vec<NodeId>,
    ) -> Result<(), RegistryError> {
        self.extended::<SessionWatched>(Extended::SessionWatch { add, remove }).await.map(drop)
    }

    /// Joins a network, on a session. Says when that was.
    pub(crate) async fn join_network(
        &self,
        network: network::NetworkRef,
        proofs: serde_json::Map<String, Value>,
    ) -> Result<(network::Membership, Moment), RegistryError> {
        self.need_session()?;
        let request = Envelope::new(Extended::NetworkJoin { network, proofs });
        let answered = self.call_extended(&request, NetworkJoined::KIND).await?;
        Ok((read::<NetworkJoined>(answered.value)?.membership, answered.moment))
    }

    /// One of any kind; the answer, of type `expected`, is the registry's.
    pub(crate) async fn call_extended(
        &self,
        request: &Envelope,
        expected: &'static str,
    ) -> Result<Answered, RegistryError> {
        let slow = matches!(request.request, Extended::NetworkJoin { .. });
        self.registry.call_extended(request, expected, slow).await
    }

    /// A request beyond the published ones.
    pub(crate) async fn extended<T: Reply>(&self, request: Extended) -> Result<T, RegistryError> {
        read(self.call_extended(&Envelope::new(request), T::KIND).await?.value)
    }

    pub(super) async fn poll_handshakes(&self) -> Result<Handshakes, RegistryError> {
        let (node_id, signature) = self.signed(challenge::poll_handshakes)?;
        self.registry.call(&Request::PollHandshakes { node_id, signature }).await
    }

    pub(super) async fn deregister(&self) -> Result<(), RegistryError> {
        let (node_id, signature) = self.signed(challenge::deregister)?;
        self.registry
            .call::<Deregistered>(&Request::Deregister { node_id, signature })
            .await
            .map(drop)
    }

    pub(super) async fn resolve(&self, node_id: NodeId) -> Result<Resolved, RegistryError> {
        let (requester_id, signature) = self.signed(|me| challenge::resolve(me, node_id))?;
        self.registry.call(&Request::Resolve { node_id, requester_id, signature }).await
    }

    pub(super) async fn lookup(&self, node_id: NodeId) -> Result<Lookup, RegistryError> {
        self.registry.call(&Request::Lookup { node_id }).await
    }

    pub(crate) async fn report_trust(&self, peer_id: NodeId) -> Result<(), RegistryError> {
        let (node_id, signature) = self.signed(|me| challenge::report_trust(me, peer_id))?;
        let request = Request::ReportTrust { node_id, peer_id, signature };
        self.registry.call::<TrustReported>(&request).await.map(drop)
    }

    pub(crate) async fn revoke_trust(&self, peer_id: NodeId) -> Result<(), RegistryError> {
        let (node_id, signature) = self.signed(|me| challenge::revoke_trust(me, peer_id))?;
        let request = Request::RevokeTrust { node_id, peer_id, signature };
        self.registry.call::<TrustRevoked>(&request).await.map(drop)
    }

    /// A request that waits there already counts as delivered.
    pub(crate) async fn request_handshake(
        &self,
        to: NodeId,
        justification: &str,
    ) -> Result<(), RegistryError> {
        let (from_node_id, signature) = self.signed(|me| challenge::request_handshake(me, to))?;
        let request =
            Request::RequestHandshake { from_node_id, to_node_id: to, justification, signature };
        match self.registry.call::<HandshakeDelivered>(&request).await {
            Err(e) if e.has_code("already_asked") => Ok(()),
            other => other.map(drop),
        }
    }

    pub(crate) async fn respond_handshake(
        &self,
        peer_id: NodeId,
        accept: bool,
    ) -> Result<(), RegistryError> {
        let (node_id, signature) = self.signed(|me| challenge::respond_handshake(me, peer_id))?;
        let request = Request::RespondHandshake { node_id, peer_id, accept, signature };
        self.registry.call::<HandshakeAnswered>(&request).await.map(drop)
    }

    /// A command of the user; the answer is the registry's, unchanged.
    pub(super) async fn command(&self, call: &Call) -> Result<Value, RegistryError> {
        use pilot_wire::registry::{
            HostnameSet, PoloScore, PoloScoreUpdated, ResolvedHostname, TagsSet, TaskExecSet,
            VisibilitySet,
        };
        let (request, expected) = match call {
            Call::ResolveHostname(hostname) => {
                (Request::ResolveHostname { hostname }, ResolvedHostname::KIND)
            }
            Call::SetHostname(hostname) => {
                let (node_id, signature) = self.signed(challenge::set_hostname)?;
                (Request::SetHostname { node_id, hostname, signature }, HostnameSet::KIND)
            }
            Call::SetVisibility(public) => {
                let (node_id, signature) = self.signed(challenge::set_visibility)?;
                let public = *public;
                (Request::SetVisibility { node_id, public, signature }, VisibilitySet::KIND)
            }
            Call::Deregister => {
                let (node_id, signature) = self.signed(challenge::deregister)?;
                (Request::Deregister { node_id, signature }, Deregistered::KIND)
            }
            Call::SetTags(tags) => {
                let (node_id, signature) = self.signed(challenge::set_tags)?;
                (Request::SetTags { node_id, tags, signature }, TagsSet::KIND)
            }
            Call::SetTaskExec(enabled) => {
                let (node_id, signature) = self.signed(challenge::set_task_exec)?;
                let enabled = *enabled;
                (Request::SetTaskExec { node_id, enabled, signature }, TaskExecSet::KIND)
            }
            &Call::Lookup(node_id) => (Request::Lookup { node_id }, Lookup::KIND),
            &Call::PoloScore(node_id) => (Request::GetPoloScore { node_id }, PoloScore::KIND),
            &Call::UpdatePoloScore { node, delta } => {
                (Request::UpdatePoloScore { node_id: node, delta }, PoloScoreUpdated::KIND)
            }
        };
        self.registry.call_value(&request, expected).await
    }

    fn signed(
        &self,
        challenge: impl FnOnce(NodeId) -> String,
    ) -> Result<(NodeId, Signature), RegistryError> {
        let node = self.node().ok_or(RegistryError::Unregistered)?;
        Ok((node, self.identity.sign(&challenge(node))))
    }
}

fn read<T: Reply>(value: Value) -> Result<T, RegistryError> {
    serde_json::from_value(value).map_err(|e| RegistryError::Malformed(format!("oddly: {e}")))
}

/// Seconds since 1970 by this machine's clock.
pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
