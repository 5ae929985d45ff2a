//! What the effect of a command means as events: of everything a registry does,
//! what somebody who watches a network wants to know.

use pilot_host::events::Happening;
use pilot_wire::registry::Acknowledged;
use pilot_wire::{Address, NodeId};
use serde_json::{Map, Value};

use crate::state::{Command, Op, State};
use crate::writer::Outcome;

/// What was so before a command was applied, as far as its events need it.
pub(crate) struct Before {
    /// Numbers from here on belonged to nobody.
    next_node: NodeId,
    /// Trust had been stated already.
    stated: bool,
    /// Nodes that the command removes as silent.
    silent: Vec<NodeId>,
}

impl Before {
    /// Looks at the state that `command` is about to change.
    pub(crate) fn look(state: &State, command: &Command) -> Self {
        let mut before = Self { next_node: state.next_node(), stated: false, silent: Vec::new() };
        match &command.op {
            Op::ReportTrust { by, peer } => before.stated = state.has_stated(by.node, *peer),
            Op::Reap { silent } => {
                let is_meant = |(id, registered_by): &&(NodeId, u64)| {
                    state.node(*id).is_ok_and(|n| n.record.registered_by == *registered_by)
                };
                before.silent = silent.iter().filter(is_meant).map(|(id, _)| *id).collect();
            }
            _ => {}
        }
        before
    }

    /// Appends the events of `command`, which has been applied and led to
    /// `outcome`.
    pub(crate) fn tell(
        self,
        state: &State,
        command: &Command,
        outcome: &Outcome,
        events: &mut Vec<Happening>,
    ) {
        let Ok(reply) = outcome else { return };
        let happening = match &command.op {
            Op::Register(register) => {
                let Acknowledged::Registered(reply) = reply else { return };
                let address = reply.address;
                if reply.node_id < self.next_node {
                    Happening::NodeReregistered { address }
                } else {
                    let endpoint = register.endpoint.to_string();
                    Happening::NodeRegistered { address, endpoint }
                }
            }
            Op::Deregister { by } => left(by.node, "asked"),
            Op::Reap { .. } => {
                events.extend(self.silent.into_iter().map(|node| left(node, "silent")));
                return;
            }
            // Nodes report what they trust again and again; only news counts.
            Op::ReportTrust { .. } if self.stated => return,
            Op::ReportTrust { by, peer } => Happening::RegistryTrustReported {
                from_node_id: by.node,
                mutual: state.is_mutual(by.node, *peer),
                to_node_id: *peer,
            },
            Op::RevokeTrust { by, peer } => {
                Happening::RegistryTrustRevoked { from_node_id: by.node, to_node_id: *peer }
            }
            Op::RequestHandshake { by, to, justification } => {
                Happening::RegistryHandshakeRequested {
                    from_node_id: by.node,
                    justification: justification.clone(),
                    to_node_id: *to,
                }
            }
            Op::RespondHandshake { by, peer, accept } => Happening::RegistryHandshakeAnswered {
                accepted: *accept,
                from_node_id: by.node,
                to_node_id: *peer,
            },
            Op::RotateKey { by, new_key } => Happening::RegistryKeyRotated {
                address: Address::backbone(by.node),
                public_key: new_key.to_string(),
            },
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
            | Op::Import(_)
            | Op::SetVisibility { .. }
            | Op::SetHostname { .. }
            | Op::SetTags { .. }
            | Op::SetTaskExec { .. }
            | Op::TakeHandshakes { .. }
            | Op::UpdatePoloScore { .. }
            | Op::SetPoloScore { .. } => return,
        };
        events.push(happening);
    }
}

/// A node is not registered any more. The published event says nothing of the
/// node, as it is the one in the envelope; here that has to be said.
fn left(node: NodeId, reason: &str) -> Happening {
    let mut data = Map::new();
    data.insert("address".to_owned(), Value::from(Address::backbone(node).to_string()));
    data.insert("reason".to_owned(), Value::from(reason));
    Happening::Other { name: Happening::NodeDeregistered.name().to_owned(), data: Some(data) }
}
