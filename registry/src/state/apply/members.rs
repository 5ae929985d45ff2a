//! Nodes come into networks and leave them.

use std::collections::BTreeSet;

use pilot_wire::NodeId;
use pilot_wire::registry::network::Invitee;
use pilot_wire::registry::{Acknowledged, NetworkJoined};

use super::{Outcome, check_member_tags, done, is_over, nothing};
use crate::state::networks::Ending;
use crate::state::rows::RowKey;
use crate::state::{
    Actor, Admission, Change, LeaveReason, MAX_ENDED, MAX_LEAVING, MAX_MEMBERSHIPS, Member,
    Refusal, Signer, State,
};

/// Rule of a member that an administrator or the owner has put in.
const ADDED: &str = "admin";
/// Why what was judged before is not applied.
const CHANGED: &str = "the network's rules changed while they were asked; try again";

impl State {
    pub(super) fn join_network(
        &mut self,
        by: Signer,
        id: u16,
        admission: &Admission,
        at: u64,
    ) -> Outcome {
        self.signed(by)?;
        let node = by.node;
        let network = self.network(id)?;
        let since = network.members.get(&node).map(|member| member.joined);
        let judged = (admission.policy, admission.renews);
        if admission.policy != 0 && judged != (network.policy(), since) {
            let reason = CHANGED.to_owned();
            return Err(Refusal::NotAdmitted { network: id, rule: admission.rule.clone(), reason });
        }
        let is_good = |token: &String| {
            let token = network.tokens.get(token);
            token.is_some_and(|t| t.uses_left != Some(0) && !is_over(t.expires, at))
        };
        if !admission.tokens.iter().all(is_good) {
            return Err(Refusal::TokenGone);
        }
        let is_waiting = |invitation: &u64| {
            self.invitation(*invitation).is_some_and(|i| {
                i.network == id
                    && i.expires > at
                    && self.is_invited(node, &i.to)
                    && self.is_backed(i)
            })
        };
        if !admission.invitations.iter().all(is_waiting) {
            return Err(Refusal::InvitationGone);
        }
        if is_over(admission.expires, at) {
            let reason = "the membership would be over already".to_owned();
            return Err(Refusal::NotAdmitted { network: id, rule: admission.rule.clone(), reason });
        }
        check_member_tags(&admission.tags)?;
        if since.is_none() {
            self.room_for_membership(node)?;
        }
        for token in BTreeSet::from_iter(&admission.tokens) {
            self.networks.use_token(id, token);
            self.dirty.mark(|| RowKey::Network(id));
        }
        for invitation in &admission.invitations {
            self.forget_invitation(*invitation);
        }
        self.enter_network(
            id,
            Member {
                node,
                joined: since.unwrap_or(at),
                rule: admission.rule.clone(),
                expires: admission.expires,
                tags: admission.tags.clone(),
                external_identity: admission.external_identity.clone(),
            },
        );
        self.network_joined(id, node)
    }

    pub(super) fn add_member(&mut self, by: &Actor, node: NodeId, id: u16, at: u64) -> Outcome {
        self.managed(by, id)?;
        self.node(node)?;
        if self.network(id)?.members.contains_key(&node) {
            return Err(Refusal::AlreadyMember { network: id, node });
        }
        self.room_for_membership(node)?;
        let rule = ADDED.to_owned();
        let (expires, tags, external_identity) = Default::default();
        let member = Member { node, joined: at, rule, expires, tags, external_identity };
        self.enter_network(id, member);
        self.network_joined(id, node)
    }

    fn room_for_membership(&self, node: NodeId) -> Result<(), Refusal> {
        if self.networks.of(node).count() >= MAX_MEMBERSHIPS {
            return Err(Refusal::Full("memberships of one node"));
        }
        Ok(())
    }

    fn enter_network(&mut self, network: u16, member: Member) {
        let node = member.node;
        let former = self.networks.put_member(network, member);
        let now = self.networks.get(network).and_then(|n| n.members.get(&node));
        if former.as_ref() != now {
            self.dirty.mark(|| RowKey::Member(network, node));
            self.changed(Change::Joined { network, node });
        }
    }

    fn network_joined(&self, id: u16, node: NodeId) -> Outcome {
        let membership = self.network(id)?.membership(node);
        let membership = membership.ok_or(Refusal::NotMember { network: id, node })?;
        Ok(NetworkJoined { membership }.into())
    }

    pub(super) fn leave_network(&mut self, by: &Actor, node: NodeId, id: u16) -> Outcome {
        let reason = if self.actor(by)? == Some(node) {
            LeaveReason::Left
        } else {
            self.managed(by, id)?;
            LeaveReason::Removed
        };
        if !self.network(id)?.members.contains_key(&node) {
            return Err(Refusal::NotMember { network: id, node });
        }
        self.leave(id, node, reason);
        Ok(done(id))
    }

    /// Takes a member out of a network, and with it the invitations by which it
    /// could let itself in again: those for it, and those that it made and
    /// others hold.
    pub(super) fn leave(&mut self, network: u16, node: NodeId, reason: LeaveReason) {
        let Some(of) = self.networks.find(network) else { return };
        let name = of.record.name.clone();
        let owns = of.record.owner == Some(node);
        let reason =
            if self.networks.get(network).is_some() { reason } else { LeaveReason::Deleted };
        if self.networks.remove_member(network, node).is_some() {
            let to = Invitee::Node(node);
            let made = self.networks.invited_by(node).filter(|_| !owns);
            let ended = self.networks.invited(&to).chain(made).filter(|i| i.network == network);
            for id in ended.map(|i| i.id).collect::<Vec<_>>() {
                self.forget_invitation(id);
            }
            self.dirty.mark(|| RowKey::Member(network, node));
            self.changed(Change::Left { network, name, node, reason });
        }
    }

    pub(super) fn expire(&mut self, at: u64) -> Acknowledged {
        self.empty_ended(MAX_LEAVING);
        for ending in self.networks.ended(at, MAX_ENDED) {
            match ending {
                Ending::Member(network, node) => self.leave(network, node, LeaveReason::Expired),
                Ending::Token(network, id) => {
                    self.networks.remove_token(network, &id);
                    self.dirty.mark(|| RowKey::Network(network));
                }
                Ending::Invitation(id) => self.forget_invitation(id),
            }
        }
        nothing()
    }
}
