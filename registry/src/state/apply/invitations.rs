//! Invitations are made, and end without a join. Signatures were verified
//! before.

use pilot_wire::NodeId;
use pilot_wire::registry::InvitationMade;
use pilot_wire::registry::network::Invitee;

use super::{Outcome, check_member_tags, done, invalid};
use crate::state::rows::RowKey;
use crate::state::{
    Actor, Change, Invitation, MAX_INVITATIONS, MAX_INVITATIONS_EACH, MAX_INVITATIONS_IN_ALL,
    MAX_OWNER, Refusal, State,
};

/// The rule that lets members invite.
const INVITE: &str = "invite";

impl State {
    /// `invitation` has the next free number.
    pub(super) fn invite(&mut self, by: &Actor, invitation: Invitation, at: u64) -> Outcome {
        let network = invitation.network;
        let inviting = self.actor(by)?;
        self.may_invite(inviting, network, &invitation.tags)?;
        match &invitation.to {
            Invitee::Node(node) => self.assigned(*node)?,
            Invitee::Owner(owner) if owner.is_empty() => {
                return Err(invalid("to.owner", "is empty"));
            }
            Invitee::Owner(owner) if owner.len() > MAX_OWNER => return Err(Refusal::OwnerTooLong),
            Invitee::Owner(_) => {}
        }
        if invitation.expires <= at {
            return Err(invalid("expires", "is over already; give a later time"));
        }
        check_member_tags(&invitation.tags)?;
        if self.networks.invitations().len() >= MAX_INVITATIONS_IN_ALL {
            return Err(Refusal::Full("invitations"));
        }
        if self.networks.count_invited_to(network, MAX_INVITATIONS) >= MAX_INVITATIONS {
            return Err(Refusal::Full("invitations to one network"));
        }
        if self.networks.count_invited(&invitation.to) >= MAX_INVITATIONS_EACH {
            return Err(Refusal::Full("invitations for one invitee"));
        }
        let id = invitation.id;
        let view = invitation.view(&self.network(network)?.record.name);
        self.next_invitation += 1;
        self.networks.put_invitation(invitation);
        self.dirty.mark(|| RowKey::Invitation(id));
        self.changed(Change::Invited(id));
        Ok(InvitationMade { invitation: view }.into())
    }

    /// Owner and administrators may, and members of a network that knows the
    /// rule; but no member can give a tag.
    fn may_invite(
        &self,
        inviting: Option<NodeId>,
        id: u16,
        tags: &[String],
    ) -> Result<(), Refusal> {
        let network = self.network(id)?;
        let Some(node) = inviting.filter(|node| network.record.owner != Some(*node)) else {
            return Ok(());
        };
        if !network.record.join.rules.iter().any(|rule| rule.rule == INVITE) || !tags.is_empty() {
            return Err(Refusal::NotOwner(id));
        }
        if !network.members.contains_key(&node) {
            return Err(Refusal::NotMember { network: id, node });
        }
        Ok(())
    }

    /// Who has nothing to do with an invitation is not told that there is one.
    pub(super) fn end_invitation(&mut self, by: &Actor, id: u64) -> Outcome {
        let ending = self.actor(by)?;
        let invitation = self.invitation(id).ok_or(Refusal::InvitationGone)?;
        let network = invitation.network;
        let concerns = |node| {
            self.is_invited(node, &invitation.to)
                || invitation.from.is_some_and(|(from, _)| from == node)
                || self.network(network).is_ok_and(|n| n.record.owner == Some(node))
        };
        if !ending.is_none_or(concerns) {
            return Err(Refusal::InvitationGone);
        }
        self.forget_invitation(id);
        Ok(done(network))
    }

    pub(super) fn forget_invitation(&mut self, id: u64) {
        if self.networks.remove_invitation(id).is_some() {
            self.dirty.mark(|| RowKey::Invitation(id));
        }
    }
}
