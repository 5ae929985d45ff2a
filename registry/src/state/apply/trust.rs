//! Statements of trust, and the requests and answers that lead to them.

use pilot_wire::NodeId;
use pilot_wire::registry::{
    HandshakeAnswer, HandshakeAnswered, HandshakeDelivered, HandshakeRequest, Handshakes,
    TrustReported, TrustRevoked,
};

use super::Outcome;
use crate::state::rows::RowKey;
use crate::state::trust::Sides;
use crate::state::{Change, MAX_ANSWERS, MAX_REQUESTS, MAX_TRUST, Refusal, Signer, State};

impl State {
    pub(super) fn report_trust(&mut self, by: Signer, peer: NodeId) -> Outcome {
        self.signed(by)?;
        self.node(peer)?;
        self.state_trust(by.node, peer)?;
        Ok(TrustReported {}.into())
    }

    pub(super) fn revoke_trust(&mut self, by: Signer, peer: NodeId) -> Outcome {
        self.signed(by)?;
        if !self.trust.get(by.node, peer).any(Sides::MUTUAL) {
            return Err(Refusal::NoTrust(peer));
        }
        self.withdraw(by.node, peer);
        Ok(TrustRevoked {}.into())
    }

    /// `by` trusts `peer`, whatever it said before.
    fn state_trust(&mut self, by: NodeId, peer: NodeId) -> Result<(), Refusal> {
        if by == peer {
            return Err(Refusal::Oneself);
        }
        let sides = self.trust.get(by, peer);
        if self.trust.pairs >= MAX_TRUST && !sides.any(Sides::MUTUAL) {
            return Err(Refusal::Full("trust pairs"));
        }
        self.set_trust(by, peer, sides.with(Sides::STATES).without(Sides::WITHDREW));
        Ok(())
    }

    /// Neither trusts the other any more, and `by` has ended it.
    fn withdraw(&mut self, by: NodeId, peer: NodeId) {
        let sides = self.trust.get(by, peer).without(Sides::MUTUAL);
        let room = self.trust.withdrawals < MAX_TRUST;
        self.set_trust(by, peer, if room { sides.with(Sides::WITHDREW) } else { sides });
    }

    /// Sets what two different nodes say of each other, seen from `by`.
    pub(super) fn set_trust(&mut self, by: NodeId, peer: NodeId, sides: Sides) {
        let former = self.trust.get(by, peer);
        if sides == former {
            return;
        }
        self.trust.put(by, peer, sides);
        self.dirty.mark(|| RowKey::Trust(by));
        self.dirty.mark(|| RowKey::Trust(peer));
        self.changed(Change::Trust(by, peer));
    }

    pub(super) fn request_handshake(
        &mut self,
        by: Signer,
        to: NodeId,
        justification: &str,
        at: u64,
    ) -> Outcome {
        self.signed(by)?;
        self.node(to)?;
        let waiting = self.inboxes.get(&to).map_or(&[][..], |inbox| &inbox.requests);
        if waiting.iter().any(|r| r.from_node_id == by.node) {
            return Err(Refusal::AlreadyAsked(to));
        }
        if waiting.len() >= MAX_REQUESTS {
            return Err(Refusal::InboxFull(to));
        }
        if !self.trust.get(by.node, to).has(Sides::WITHDREW) {
            self.state_trust(by.node, to)?;
        }
        self.inboxes.entry(to).or_default().requests.push(HandshakeRequest {
            from_node_id: by.node,
            justification: justification.to_owned(),
            timestamp: at,
        });
        self.waits_for(to);
        Ok(HandshakeDelivered { status: "delivered".to_owned() }.into())
    }

    pub(super) fn respond_handshake(
        &mut self,
        by: Signer,
        peer: NodeId,
        accept: bool,
        at: u64,
    ) -> Outcome {
        self.signed(by)?;
        self.assigned(peer)?;
        if by.node == peer {
            return Err(Refusal::Oneself);
        }
        if accept {
            self.state_trust(by.node, peer)?;
        } else if !self.is_mutual(by.node, peer) {
            // What was asked for is refused; a standing pair ends by revoking.
            self.withdraw(by.node, peer);
        }
        let answers = &mut self.inboxes.entry(peer).or_default().answers;
        if answers.len() >= MAX_ANSWERS {
            answers.pop_front();
        }
        answers.push_back(HandshakeAnswer { from_node_id: by.node, accept, timestamp: at });
        self.waits_for(peer);
        Ok(HandshakeAnswered { accept, peer_id: peer }.into())
    }

    fn waits_for(&mut self, node: NodeId) {
        self.dirty.mark(|| RowKey::Handshakes(node));
        self.changed(Change::Handshakes(node));
    }

    pub(super) fn take_handshakes(&mut self, by: Signer) -> Outcome {
        self.signed(by)?;
        let inbox = self.inboxes.remove(&by.node).unwrap_or_default();
        self.dirty.mark(|| RowKey::Handshakes(by.node));
        Ok(Handshakes { requests: inbox.requests, responses: inbox.answers.into() }.into())
    }
}
