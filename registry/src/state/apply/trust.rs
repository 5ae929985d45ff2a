//! Statements of trust, and the requests and answers that lead to them.

use pilot_wire::NodeId;
use pilot_wire::registry::{
    HandshakeAnswer, HandshakeAnswered, HandshakeDelivered, HandshakeRequest, Handshakes,
    TrustReported, TrustRevoked,
};

use super::Outcome;
use crate::state::rows::RowKey;
use crate::state::trust::Sides;
use crate::state::{
    Change, MAX_ANSWERS, MAX_REQUESTS, MAX_STATEMENTS_OF_NODE, MAX_TRUST, MAX_WITHDRAWALS_OF_NODE,
    Refusal, Signer, State,
};

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
        self.withdraw(by.node, peer)?;
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
        let alone = !sides.any(Sides::MUTUAL);
        if alone && self.trust.alone_of(by) >= MAX_STATEMENTS_OF_NODE {
            return Err(Refusal::Full("trust statements of one node"));
        }
        self.set_trust(by, peer, sides.with(Sides::STATES).without(Sides::WITHDREW));
        Ok(())
    }

    /// Neither trusts the other any more, and `by` has ended it.
    fn withdraw(&mut self, by: NodeId, peer: NodeId) -> Result<(), Refusal> {
        let sides = self.trust.get(by, peer);
        if !sides.has(Sides::WITHDREW) {
            if self.trust.withdrawals >= MAX_TRUST {
                return Err(Refusal::Full("withdrawals of trust"));
            }
            if self.trust.withdrawals_of(by) >= MAX_WITHDRAWALS_OF_NODE {
                return Err(Refusal::Full("withdrawals of trust of one node"));
            }
        }
        self.set_trust(by, peer, sides.without(Sides::MUTUAL).with(Sides::WITHDREW));
        Ok(())
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
        if self.inboxes.asks(by.node, to) {
            return Err(Refusal::AlreadyAsked(to));
        }
        if self.inboxes.get(to).is_some_and(|inbox| inbox.requests.len() >= MAX_REQUESTS) {
            return Err(Refusal::InboxFull(to));
        }
        if !self.trust.get(by.node, to).has(Sides::WITHDREW) {
            self.state_trust(by.node, to)?;
        }
        let request = HandshakeRequest {
            from_node_id: by.node,
            justification: justification.to_owned(),
            timestamp: at,
        };
        self.inboxes.ask(to, request);
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
        let sides = self.trust.get(by.node, peer);
        let asks = self.inboxes.asks(peer, by.node);
        if accept {
            self.state_trust(by.node, peer)?;
        } else if !sides.has(Sides::MUTUAL) && (sides.any(Sides::MUTUAL) || asks) {
            // What was asked for is refused; a standing pair ends by revoking.
            self.withdraw(by.node, peer)?;
        }
        // Who has asked nothing gets no answer: anybody could fill its inbox.
        // A request states trust, and lasts as that when it was taken; only one
        // of who has withdrawn states nothing, so that all of theirs count.
        if asks || sides.any(Sides::STATED.with(Sides::WITHDRAWN)) {
            let answer = HandshakeAnswer { from_node_id: by.node, accept, timestamp: at };
            self.inboxes.answer(peer, answer, MAX_ANSWERS);
            self.waits_for(peer);
        }
        Ok(HandshakeAnswered { accept, peer_id: peer }.into())
    }

    fn waits_for(&mut self, node: NodeId) {
        self.dirty.mark(|| RowKey::Handshakes(node));
        self.changed(Change::Handshakes(node));
    }

    pub(super) fn take_handshakes(&mut self, by: Signer) -> Outcome {
        self.signed(by)?;
        let inbox = self.inboxes.take(by.node);
        self.dirty.mark(|| RowKey::Handshakes(by.node));
        Ok(Handshakes { requests: inbox.requests, responses: inbox.answers.into() }.into())
    }
}
