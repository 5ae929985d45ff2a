//! All networks, with what is found by something else than the network's
//! number: by name, by member, by who is invited, by when it ends. Nothing here
//! judges; the indexes follow whatever is put in.

use std::collections::{BTreeMap, BTreeSet};

use pilot_wire::NodeId;
use pilot_wire::registry::network::{Invitee, JoinPolicy};

use super::network::{Invitation, Member, Network, NetworkRecord, Token};

/// Networks and invitations, with their indexes.
#[derive(Debug, Default)]
pub(super) struct Networks {
    all: BTreeMap<u16, Network>,
    /// Deleted ones of which members are left: nobody sees them any more, but
    /// their numbers are used.
    ending: BTreeMap<u16, Network>,
    names: BTreeMap<Box<str>, u16>,
    member_of: BTreeSet<(NodeId, u16)>,
    invitations: BTreeMap<u64, Invitation>,
    invited: BTreeMap<Invitee, BTreeSet<u64>>,
    invited_to: BTreeSet<(u16, u64)>,
    invited_by: BTreeSet<(NodeId, u64)>,
    ending_members: BTreeSet<(u64, u16, NodeId)>,
    ending_tokens: BTreeSet<(u64, u16, Box<str>)>,
    ending_invitations: BTreeSet<(u64, u64)>,
}

/// What ends at some time.
#[derive(Debug)]
pub(crate) enum Ending {
    Member(u16, NodeId),
    Token(u16, String),
    Invitation(u64),
}

impl Networks {
    /// With those that are ending.
    pub(super) fn len(&self) -> usize {
        self.all.len() + self.ending.len()
    }

    /// Whether a network, be it one that is ending, has this number.
    pub(super) fn is_used(&self, id: u16) -> bool {
        self.find(id).is_some()
    }

    /// A network, be it one that is ending.
    pub(super) fn find(&self, id: u16) -> Option<&Network> {
        self.all.get(&id).or_else(|| self.ending.get(&id))
    }

    fn find_mut(&mut self, id: u16) -> Option<&mut Network> {
        self.all.get_mut(&id).or_else(|| self.ending.get_mut(&id))
    }

    /// All, with those that are ending.
    pub(super) fn stored(&self) -> impl Iterator<Item = &Network> {
        self.all.values().chain(self.ending.values())
    }

    /// One that is ending.
    pub(super) fn first_ending(&self) -> Option<&Network> {
        self.ending.first_key_value().map(|(_, network)| network)
    }

    /// Forgets a network that is ending if it has no members left; whether it
    /// had none.
    pub(super) fn forget_ended(&mut self, id: u16) -> bool {
        let empty = self.ending.get(&id).is_some_and(|network| network.members.is_empty());
        if empty {
            self.ending.remove(&id);
        }
        empty
    }

    /// Puts a stored network that is ending; whether its number was free.
    pub(super) fn load_ending(&mut self, record: NetworkRecord) -> bool {
        let free = !self.is_used(record.id);
        if free {
            self.ending.insert(record.id, Network::new(record, 0));
        }
        free
    }

    pub(super) fn get(&self, id: u16) -> Option<&Network> {
        self.all.get(&id)
    }

    pub(super) fn named(&self, name: &str) -> Option<&Network> {
        self.all.get(self.names.get(name)?)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Network> {
        self.all.values()
    }

    /// Begins a network; whether number and name were free. If not, nothing
    /// is changed.
    pub(super) fn begin(&mut self, record: NetworkRecord, policy: u64) -> bool {
        let free = !self.is_used(record.id) && !self.names.contains_key(&*record.name);
        if free {
            self.names.insert(record.name.clone().into(), record.id);
            self.all.insert(record.id, Network::new(record, policy));
        }
        free
    }

    /// Sets who may join, by the command of this number.
    pub(super) fn set_policy(&mut self, id: u16, join: JoinPolicy, command: u64) {
        if let Some(network) = self.all.get_mut(&id) {
            network.record.join = join;
            network.policy = command;
        }
    }

    /// For what no index depends on: right to broadcast.
    pub(super) fn record_mut(&mut self, id: u16) -> Option<&mut NetworkRecord> {
        self.all.get_mut(&id).map(|network| &mut network.record)
    }

    /// Begins to end a network that has neither tokens nor invitations: its name
    /// is free, and its members are taken out later.
    pub(super) fn end(&mut self, id: u16) {
        if let Some(network) = self.all.remove(&id) {
            self.names.remove(&*network.record.name);
            self.ending.insert(id, network);
        }
    }

    /// Memberships in all networks.
    pub(super) fn members(&self) -> usize {
        self.member_of.len()
    }

    /// Networks that a node is in and that are not ending.
    pub(super) fn of(&self, node: NodeId) -> impl Iterator<Item = u16> {
        let all = self.member_of.range((node, 0)..=(node, u16::MAX));
        all.map(|(_, network)| *network).filter(|network| self.all.contains_key(network))
    }

    /// Puts a member into a network that is there; gives what was there before.
    pub(super) fn put_member(&mut self, network: u16, member: Member) -> Option<Member> {
        let (node, expires) = (member.node, member.expires);
        let former = self.find_mut(network)?.members.insert(node, member);
        if let Some(end) = former.as_ref().and_then(|m| m.expires) {
            self.ending_members.remove(&(end, network, node));
        }
        if let Some(end) = expires {
            self.ending_members.insert((end, network, node));
        }
        self.member_of.insert((node, network));
        former
    }

    pub(super) fn remove_member(&mut self, network: u16, node: NodeId) -> Option<Member> {
        let member = self.find_mut(network)?.members.remove(&node)?;
        if let Some(end) = member.expires {
            self.ending_members.remove(&(end, network, node));
        }
        self.member_of.remove(&(node, network));
        Some(member)
    }

    /// Puts a token into a network that is there; gives what was there before.
    pub(super) fn put_token(&mut self, network: u16, token: Token) -> Option<Token> {
        let former = self.remove_token(network, &token.id);
        let tokens = &mut self.all.get_mut(&network)?.tokens;
        if let Some(end) = token.expires {
            self.ending_tokens.insert((end, network, token.id.clone().into()));
        }
        tokens.insert(token.id.clone(), token);
        former
    }

    pub(super) fn remove_token(&mut self, network: u16, id: &str) -> Option<Token> {
        let token = self.all.get_mut(&network)?.tokens.remove(id)?;
        if let Some(end) = token.expires {
            self.ending_tokens.remove(&(end, network, id.into()));
        }
        Some(token)
    }

    /// Counts one use of a token; one without uses left is gone.
    pub(super) fn use_token(&mut self, network: u16, id: &str) {
        let Some(network_of) = self.all.get_mut(&network) else { return };
        let Some(left) = network_of.tokens.get_mut(id).and_then(|t| t.uses_left.as_mut()) else {
            return;
        };
        *left = left.saturating_sub(1);
        if *left == 0 {
            self.remove_token(network, id);
        }
    }

    pub(super) fn invitation(&self, id: u64) -> Option<&Invitation> {
        self.invitations.get(&id)
    }

    pub(super) fn invitations(&self) -> &BTreeMap<u64, Invitation> {
        &self.invitations
    }

    /// Invitations for exactly this invitee.
    pub(super) fn invited(&self, to: &Invitee) -> impl Iterator<Item = &Invitation> {
        self.invited.get(to).into_iter().flatten().filter_map(|id| self.invitations.get(id))
    }

    /// Invitations to a network.
    pub(super) fn invited_to(&self, network: u16) -> impl Iterator<Item = &Invitation> {
        let ids = self.invited_to.range((network, 0)..=(network, u64::MAX));
        ids.filter_map(|(_, id)| self.invitations.get(id))
    }

    /// How many invitations to a network there are, but no more than `enough`.
    pub(super) fn count_invited_to(&self, network: u16, enough: usize) -> usize {
        self.invited_to.range((network, 0)..=(network, u64::MAX)).take(enough).count()
    }

    /// How many invitations for exactly this invitee there are.
    pub(super) fn count_invited(&self, to: &Invitee) -> usize {
        self.invited.get(to).map_or(0, BTreeSet::len)
    }

    /// Invitations that a node has made.
    pub(super) fn invited_by(&self, node: NodeId) -> impl Iterator<Item = &Invitation> {
        let ids = self.invited_by.range((node, 0)..=(node, u64::MAX));
        ids.filter_map(|(_, id)| self.invitations.get(id))
    }

    /// Puts an invitation with a new number; whether it was new. If not,
    /// nothing is changed.
    pub(super) fn put_invitation(&mut self, invitation: Invitation) -> bool {
        let id = invitation.id;
        if self.invitations.contains_key(&id) {
            return false;
        }
        self.invited.entry(invitation.to.clone()).or_default().insert(id);
        self.invited_to.insert((invitation.network, id));
        if let Some((from, _)) = invitation.from {
            self.invited_by.insert((from, id));
        }
        self.ending_invitations.insert((invitation.expires, id));
        self.invitations.insert(id, invitation);
        true
    }

    pub(super) fn remove_invitation(&mut self, id: u64) -> Option<Invitation> {
        let invitation = self.invitations.remove(&id)?;
        if let Some(ids) = self.invited.get_mut(&invitation.to) {
            ids.remove(&id);
            if ids.is_empty() {
                self.invited.remove(&invitation.to);
            }
        }
        self.invited_to.remove(&(invitation.network, id));
        if let Some((from, _)) = invitation.from {
            self.invited_by.remove(&(from, id));
        }
        self.ending_invitations.remove(&(invitation.expires, id));
        Some(invitation)
    }

    /// When the next thing ends.
    pub(super) fn next_end(&self) -> Option<u64> {
        if !self.ending.is_empty() {
            return Some(0);
        }
        let member = self.ending_members.first().map(|(end, ..)| *end);
        let token = self.ending_tokens.first().map(|(end, ..)| *end);
        let invitation = self.ending_invitations.first().map(|(end, _)| *end);
        [member, token, invitation].into_iter().flatten().min()
    }

    /// What has ended at `now`, at most `count`.
    pub(super) fn ended(&self, now: u64, count: usize) -> Vec<Ending> {
        let members = self.ending_members.iter().take_while(|(end, ..)| *end <= now);
        let tokens = self.ending_tokens.iter().take_while(|(end, ..)| *end <= now);
        let invitations = self.ending_invitations.iter().take_while(|(end, _)| *end <= now);
        members
            .map(|(_, network, node)| Ending::Member(*network, *node))
            .chain(tokens.map(|(_, network, id)| Ending::Token(*network, id.to_string())))
            .chain(invitations.map(|(_, id)| Ending::Invitation(*id)))
            .take(count)
            .collect()
    }
}
