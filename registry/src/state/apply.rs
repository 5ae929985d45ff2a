//! The effect of each command. A refused command changes nothing but the
//! count; deciding that is part of the effect, since a command may be overtaken
//! between its admission and its turn. What a command changes is noted twice:
//! as changed rows, for the store, and as [`super::Change`], for whoever is
//! told.

mod import;
mod invitations;
mod members;
mod networks;
mod nodes;
mod revoke;
mod tokens;
mod trust;

use pilot_wire::NodeId;
use pilot_wire::registry::{Acknowledged, NetworkDone};

use super::rows::RowKey;
use super::{
    Actor, Change, Command, Invitation, MAX_MEMBER_TAG, MAX_MEMBER_TAGS, Node, Op, Refusal, Signer,
    State, Token,
};

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
            Op::CreateNetwork { by, name, join, broadcast } => {
                self.create_network(by, name, join, broadcast, at)
            }
            Op::UpdateNetwork { by, network, join, broadcast } => {
                self.update_network(by, *network, join.as_ref(), broadcast.as_ref())
            }
            Op::DeleteNetwork { by, network } => self.delete_network(by, *network),
            Op::JoinNetwork { by, network, admission } => {
                self.join_network(*by, *network, admission, at)
            }
            Op::AddMember { by, node, network } => self.add_member(by, *node, *network, at),
            Op::LeaveNetwork { by, node, network } => self.leave_network(by, *node, *network),
            Op::Expire {} => Ok(self.expire(at)),
            Op::CreateToken { by, network, id, salt, hash, uses, expires, tags } => {
                let token = Token {
                    id: id.clone(),
                    salt: hex::encode(salt),
                    hash: hex::encode(hash),
                    created: at,
                    expires: *expires,
                    uses_left: *uses,
                    tags: tags.clone(),
                };
                self.create_token(by, *network, token, at)
            }
            Op::RevokeToken { by, network, id } => self.revoke_token(by, *network, id),
            Op::Invite { by, network, to, expires, tags, signature } => {
                let invitation = Invitation {
                    id: self.next_invitation,
                    network: *network,
                    to: to.clone(),
                    from: match by {
                        Actor::Node(signer) => Some((signer.node, signer.key)),
                        Actor::Admin(_) | Actor::Registry => None,
                    },
                    signature: *signature,
                    expires: *expires,
                    tags: tags.clone(),
                };
                self.invite(by, invitation, at)
            }
            Op::EndInvitation { by, id } => self.end_invitation(by, *id),
            Op::RevokeNode { by, node, reason: _ } => self.revoke_node(by, *node),
            Op::Deny(_) => Ok(nothing()),
            Op::Import(imported) => self.import(imported, at),
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

    /// The acting node, if it is one, and its key is still the one that signed.
    fn actor(&mut self, by: &Actor) -> Result<Option<NodeId>, Refusal> {
        match by {
            Actor::Node(signer) => self.signed(*signer).map(|_| Some(signer.node)),
            Actor::Admin(_) | Actor::Registry => Ok(None),
        }
    }

    /// Whoever acts must be the network's owner, an administrator or the
    /// registry.
    fn managed(&mut self, by: &Actor, network: u16) -> Result<(), Refusal> {
        let node = self.actor(by)?;
        let owner = self.network(network)?.record.owner;
        if node.is_some() && node != owner { Err(Refusal::NotOwner(network)) } else { Ok(()) }
    }
}

/// The answer when there is nothing to tell of any one network.
fn nothing() -> Acknowledged {
    done(0)
}

fn done(network_id: u16) -> Acknowledged {
    NetworkDone { network_id }.into()
}

/// Whether a time has come.
fn is_over(end: Option<u64>, at: u64) -> bool {
    end.is_some_and(|end| end <= at)
}

fn invalid(key: &str, problem: impl Into<String>) -> Refusal {
    Refusal::Invalid { key: key.to_owned(), problem: problem.into() }
}

/// Tags that a membership may get: whether they are well-formed was judged
/// before, this bounds what is kept.
fn check_member_tags(tags: &[String]) -> Result<(), Refusal> {
    if tags.len() > MAX_MEMBER_TAGS {
        return Err(invalid("tags", format!("there are more than {MAX_MEMBER_TAGS}")));
    }
    if tags.iter().any(|tag| tag.len() > MAX_MEMBER_TAG) {
        return Err(invalid("tags", format!("one is longer than {MAX_MEMBER_TAG} bytes")));
    }
    Ok(())
}
