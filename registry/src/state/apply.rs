//! The effect of each command. A refused command changes nothing but the
//! count; deciding that is part of the effect, since a command may be overtaken
//! between its admission and its turn. What a command changes is noted twice:
//! as changed rows, for the store, and as [`super::Change`], for whoever is
//! told.

mod nodes;
mod trust;

use pilot_wire::NodeId;
use pilot_wire::registry::Acknowledged;

use super::rows::RowKey;
use super::{Change, Command, Node, Op, Refusal, Signer, State};

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
            Op::Deregister { by } => self.deregister(*by),
            Op::SetVisibility { by, public } => self.set_visibility(*by, *public),
            Op::SetHostname { by, hostname } => self.set_hostname(*by, hostname),
            Op::SetTags { by, tags } => self.set_tags(*by, tags),
            Op::SetTaskExec { by, enabled } => self.set_task_exec(*by, *enabled),
            Op::RotateKey { by, new_key } => self.rotate_key(*by, *new_key, at),
            Op::UpdatePoloScore { node, delta } => self.update_polo_score(*node, *delta),
            Op::SetPoloScore { node, polo_score } => self.set_polo_score(*node, *polo_score),
            Op::Reap { silent } => Ok(self.reap(silent)),
            Op::ReportTrust { by, peer } => self.report_trust(*by, *peer),
            Op::RevokeTrust { by, peer } => self.revoke_trust(*by, *peer),
            Op::RequestHandshake { by, to, justification } => {
                self.request_handshake(*by, *to, justification, at)
            }
            Op::RespondHandshake { by, peer, accept } => {
                self.respond_handshake(*by, *peer, *accept, at)
            }
            Op::TakeHandshakes { by } => self.take_handshakes(*by),
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

    fn changed(&mut self, change: Change) {
        self.changes.push(change);
    }

    fn node_mut(&mut self, id: NodeId) -> Result<&mut Node, Refusal> {
        self.nodes.get_mut(id).ok_or(Refusal::UnknownNode(id))
    }

    /// The acting node, if its key is still the one that signed.
    fn signed(&mut self, by: Signer) -> Result<&mut Node, Refusal> {
        if self.revoked.contains(&by.node) {
            return Err(Refusal::Revoked(by.node));
        }
        let node = self.node_mut(by.node)?;
        if node.record.key != by.key {
            return Err(Refusal::BadSignature(by.node));
        }
        Ok(node)
    }

    /// The same, and its row is about to change.
    fn signed_to_change(&mut self, by: Signer) -> Result<&mut Node, Refusal> {
        self.signed(by)?;
        self.dirty.mark(|| RowKey::Node(by.node));
        self.node_mut(by.node)
    }

    /// A number that was given to a node whose key was not revoked since.
    fn assigned(&self, node: NodeId) -> Result<(), Refusal> {
        match node {
            _ if !self.is_assigned(node) => Err(Refusal::UnknownNode(node)),
            _ if self.is_revoked(node) => Err(Refusal::Revoked(node)),
            _ => Ok(()),
        }
    }
}
