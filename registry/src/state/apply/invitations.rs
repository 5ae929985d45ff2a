//! Invitations are made, and end without a join. Signatures were verified
//! before.

use pilot_wire::NodeId;
use pilot_wire::registry::InvitationMade;
use pilot_wire::registry::network::Invitee;

use super::{Outcome, check_member_tags, done, invalid};
use crate::state::rows::RowKey;
use crate::state::{
    Actor, Change, Invitation, MAX_INVITATION_TIME, MAX_INVITATIONS, MAX_INVITATIONS_EACH,
    MAX_INVITATIONS_FROM, MAX_INVITATIONS_IN_ALL, MAX_OWNER, Refusal, State,
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
            Invitee::Node(node) => {
                self.assigned(*node)?;
                if self.network(network)?.members.contains_key(node) {
                    return Err(Refusal::AlreadyMember { network, node: *node });
                }
            }
            Invitee::Owner(owner) if owner.is_empty() => {
                return Err(invalid("to.owner", "is empty"));
            }
            Invitee::Owner(owner) if owner.len() > MAX_OWNER => return Err(Refusal::OwnerTooLong),
            Invitee::Owner(_) => {}
        }
        if invitation.expires <= at {
            return Err(invalid("expires", "is over already; give a later time"));
        }
        if invitation.expires - at > MAX_INVITATION_TIME {
            return Err(invalid("expires", "is more than 366 days ahead; give an earlier time"));
        }
        check_member_tags(&invitation.tags)?;
        let replaced = self.room_for_invitation(&invitation)?;
        replaced.into_iter().for_each(|id| self.forget_invitation(id));
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

    /// The invitations whose place this one takes, if there is room for it: an
    /// earlier one of the same invitee to the same network; and for the owner
    /// or an administrator, when the invitee has no room, the oldest that a mere
    /// member made.
    fn room_for_invitation(&self, invitation: &Invitation) -> Result<Vec<u64>, Refusal> {
        let (network, to) = (invitation.network, &invitation.to);
        let earlier = self.networks.invited(to).find(|earlier| earlier.network == network);
        if earlier.is_some_and(|e| !self.is_of_member(e)) && self.is_of_member(invitation) {
            // Else a member could take away what only the owner gives.
            let problem = "has an invitation by the network's owner or an administrator already";
            return Err(invalid("to", problem));
        }
        let mut replaced: Vec<_> = earlier.map(|earlier| earlier.id).into_iter().collect();
        if let Some((from, _)) = invitation.from {
            let again = earlier.is_some_and(|e| e.from.is_some_and(|(node, _)| node == from));
            if self.networks.invited_by(from).count() >= MAX_INVITATIONS_FROM + usize::from(again) {
                return Err(Refusal::Full("invitations by one node"));
            }
        }
        if earlier.is_some() {
            return Ok(replaced);
        }
        if self.networks.count_invited(to) >= MAX_INVITATIONS_EACH {
            let oldest = self.networks.invited(to).find(|i| self.is_of_member(i));
            let oldest = oldest.filter(|_| !self.is_of_member(invitation));
            replaced.push(oldest.ok_or(Refusal::Full("invitations for one invitee"))?.id);
        } else if self.networks.invitations().len() >= MAX_INVITATIONS_IN_ALL {
            return Err(Refusal::Full("invitations"));
        }
        if self.networks.count_invited_to(network, MAX_INVITATIONS) >= MAX_INVITATIONS {
            return Err(Refusal::Full("invitations to one network"));
        }
        Ok(replaced)
    }

    /// Whether neither the owner of its network nor an administrator made it.
    fn is_of_member(&self, invitation: &Invitation) -> bool {
        let owner = self.networks.get(invitation.network).and_then(|n| n.record.owner);
        invitation.from.is_some_and(|(from, _)| owner != Some(from))
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
