//! A node is shut out: nothing of it stays but its number and its key, which
//! is good for nothing any more.

use pilot_wire::NodeId;
use pilot_wire::registry::NodeRevoked;
use pilot_wire::registry::network::Invitee;

use super::Outcome;
use crate::state::rows::RowKey;
use crate::state::trust::Sides;
use crate::state::{
    Actor, Change, LeaveReason, MAX_TRUST, MAX_WITHDRAWALS_OF_NODE, Refusal, State,
};

impl State {
    pub(super) fn revoke_node(&mut self, by: &Actor, node: NodeId) -> Outcome {
        self.actor(by)?;
        if !matches!(by, Actor::Admin(_)) {
            return Err(Refusal::AdminOnly("node_revoke"));
        }
        self.assigned(node)?;
        let registered = self.nodes.get(node).map(|n| n.record.key);
        let key = registered.or_else(|| self.absent.get(&node).copied());
        // An imported number can belong to nobody.
        let key = key.ok_or(Refusal::UnknownNode(node))?;
        self.changed(Change::Key(node));
        self.remove(node);
        self.absent.remove(&node);
        self.revoked.insert(node);
        if let Some(entry) = self.keys.get_mut(&key) {
            entry.revoked = true;
        }
        self.dirty.mark(|| RowKey::Key(key));
        if let Some(text) = self.owned.remove(&node) {
            self.owners.remove(&text);
            self.dirty.mark(|| RowKey::Owner((*text).into()));
        }
        for network in self.networks.of(node).collect::<Vec<_>>() {
            self.leave(network, node, LeaveReason::Removed);
        }
        self.end_trust_with(node);
        self.drop_handshakes_of(node);
        self.end_invitations_of(node);
        Ok(NodeRevoked { node_id: node }.into())
    }

    fn end_trust_with(&mut self, node: NodeId) {
        let stated = self.trust.of(node).filter(|(_, sides)| sides.any(Sides::MUTUAL));
        for (peer, sides) in stated.collect::<Vec<_>>() {
            let ended = sides.without(Sides::MUTUAL);
            let both = ended.with(Sides::WITHDREW).with(Sides::WITHDRAWN);
            let room = self.trust.withdrawals + 2 <= MAX_TRUST;
            let room_of_peer = self.trust.withdrawals_of(peer) < MAX_WITHDRAWALS_OF_NODE;
            let both = if room_of_peer { both } else { ended.with(Sides::WITHDREW) };
            self.set_trust(node, peer, if room { both } else { ended });
        }
    }

    /// What waits for the node, and what waits from it.
    fn drop_handshakes_of(&mut self, node: NodeId) {
        self.inboxes.take(node);
        self.dirty.mark(|| RowKey::Handshakes(node));
        for target in self.inboxes.drop_from(node) {
            self.dirty.mark(|| RowKey::Handshakes(target));
        }
    }

    /// Those for the node, and those that it signed.
    fn end_invitations_of(&mut self, node: NodeId) {
        let to = Invitee::Node(node);
        let concerned = self.networks.invited(&to).chain(self.networks.invited_by(node));
        for id in concerned.map(|i| i.id).collect::<Vec<_>>() {
            self.forget_invitation(id);
        }
    }
}
