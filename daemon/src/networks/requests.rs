//! What applications ask of the registry as this node. The daemon looks inside
//! only where it has to add something or must know the answer.

use pilot_wire::ipc::ErrorCode;
use pilot_wire::registry::network::{Membership, NetworkRef};
use pilot_wire::registry::{
    AuditPage, Envelope, Extended, InvitationMade, Invitations, Members, NetworkDone,
    NetworkJoined, NetworkMade, NetworkViews, NodeRevoked, Reply, TokenMade, Tokens, challenge,
};
use serde_json::{Value, json};

use super::Networks;
use crate::config::Plaintext;
use crate::control::{Answered, CallError, Moment, RegistryError};

/// The request that the daemon itself answers.
const STATUS: &str = "network_status";

impl Networks {
    /// Answers a request: a JSON object with its `type`. That the registry
    /// refuses is an answer as well: its own, with code and hint.
    ///
    /// # Errors
    /// When it is malformed, or there is no session.
    pub async fn request(&self, body: &[u8]) -> Result<Value, CallError> {
        let name = kind(body).map_err(|problem| malformed("registry", problem))?;
        if name == STATUS {
            return Ok(json!({"type": "network_status_ok", "networks": self.status()}));
        }
        if !Extended::knows(&name) {
            return Err(malformed(&name, "there is no such request"));
        }
        let mut envelope = Envelope::parse(body).map_err(|e| malformed(&name, e))?;
        let Some(expected) = expected(&envelope.request) else {
            return Err(malformed(&name, "only the daemon itself opens sessions"));
        };
        if let (Plaintext::Refuse, Extended::NetworkJoin { .. }) =
            (self.plaintext, &envelope.request)
        {
            return Err(CallError::new(ErrorCode::REFUSED, &name, Plaintext::REFUSED));
        }
        match self.ask(&mut envelope, expected).await {
            Ok(answer) => Ok(answer),
            Err(RegistryError::Refused(reply)) => {
                serde_json::to_value(&reply).map_err(|e| malformed(&name, e))
            }
            Err(e) => Err(CallError::new(e.code(), &name, e)),
        }
    }

    async fn ask(
        &self,
        envelope: &mut Envelope,
        expected: &'static str,
    ) -> Result<Value, RegistryError> {
        self.member.need_session()?;
        self.complete(envelope).await?;
        let Answered { value, moment, .. } = self.member.call_extended(envelope, expected).await?;
        self.note(envelope, &value, moment).await;
        Ok(value)
    }

    /// Signs an invitation in this node's name.
    async fn complete(&self, envelope: &mut Envelope) -> Result<(), RegistryError> {
        if !envelope.admin_token.is_empty() {
            return Ok(());
        }
        let Extended::Invite { network, to, expires, signature, .. } = &mut envelope.request else {
            return Ok(());
        };
        if signature.is_some() {
            return Ok(());
        }
        let id = self.number(network).await?;
        *network = NetworkRef::Id(id);
        *signature = Some(self.member.identity().sign(&challenge::invite(id, to, *expires)));
        Ok(())
    }

    async fn number(&self, network: &NetworkRef) -> Result<u16, RegistryError> {
        let name = match network {
            NetworkRef::Id(id) => return Ok(*id),
            NetworkRef::Name(name) => name,
        };
        let own = self.lock().memberships.values().find(|m| m.name == *name).map(|m| m.network);
        if let Some(id) = own {
            return Ok(id);
        }
        let views: NetworkViews = self.member.extended(Extended::NetworkList {}).await?;
        let found = views.networks.iter().find(|n| n.name == *name).map(|n| n.id);
        found.ok_or_else(|| RegistryError::unknown_network(name))
    }

    /// What the registry granted counts before the application is told.
    async fn note(&self, envelope: &Envelope, answer: &Value, moment: Moment) {
        // With a token it may be about another node.
        if !envelope.admin_token.is_empty() {
            return;
        }
        match &envelope.request {
            Extended::NetworkJoin { .. } => {
                let membership = answer.get("membership").cloned().unwrap_or_default();
                if let Ok(membership) = serde_json::from_value::<Membership>(membership) {
                    self.joined(membership, moment).await;
                }
            }
            Extended::NetworkLeave { .. } => {
                let id = answer.get("network_id").and_then(Value::as_u64);
                if let Some(id) = id.and_then(|id| u16::try_from(id).ok()) {
                    let name = self.lock().memberships.get(&id).map(|m| m.name.clone());
                    let name = name.unwrap_or_default();
                    self.left(id, name, "left".to_owned(), moment).await;
                }
            }
            _ => {}
        }
    }
}

fn malformed(name: &str, problem: impl std::fmt::Display) -> CallError {
    CallError::new(ErrorCode::INVALID_ARGUMENT, name, problem)
}

fn kind(body: &[u8]) -> Result<String, String> {
    let value: Value = serde_json::from_slice(body).map_err(|e| format!("invalid JSON: {e}"))?;
    match value.get("type") {
        Some(Value::String(kind)) => Ok(kind.clone()),
        _ => Err("the request has no type".to_owned()),
    }
}

/// The `type` of the answer; none for what the daemon keeps to itself.
const fn expected(request: &Extended) -> Option<&'static str> {
    Some(match request {
        Extended::SessionChallenge {}
        | Extended::SessionOpen { .. }
        | Extended::SessionWatch { .. } => return None,
        Extended::NetworkCreate { .. } | Extended::NetworkUpdate { .. } => NetworkMade::KIND,
        Extended::NetworkDelete { .. }
        | Extended::NetworkLeave { .. }
        | Extended::NetworkRemove { .. }
        | Extended::TokenRevoke { .. }
        | Extended::InvitationDecline { .. }
        | Extended::InvitationRevoke { .. } => NetworkDone::KIND,
        Extended::NetworkJoin { .. } => NetworkJoined::KIND,
        Extended::NetworkList {} => NetworkViews::KIND,
        Extended::NetworkMembers { .. } => Members::KIND,
        Extended::TokenCreate { .. } => TokenMade::KIND,
        Extended::TokenList { .. } => Tokens::KIND,
        Extended::Invite { .. } => InvitationMade::KIND,
        Extended::InvitationList { .. } => Invitations::KIND,
        Extended::NodeRevoke { .. } => NodeRevoked::KIND,
        Extended::AuditQuery(_) => AuditPage::KIND,
    })
}
