//! What a published file lists of the whole state.

use pilot_wire::NodeId;
use pilot_wire::registry::{HandshakeAnswer, HandshakeRequest, PublicKey};

use super::State;
use super::trust::Sides;

impl State {
    /// The number that the next new network gets, unless it is used.
    pub(crate) const fn next_network(&self) -> u16 {
        self.next_network
    }

    /// Every key that was not revoked, with its node; in no particular order.
    pub(crate) fn good_keys(&self) -> impl Iterator<Item = (&PublicKey, NodeId)> {
        self.keys.iter().filter(|(_, entry)| !entry.revoked).map(|(key, entry)| (key, entry.node))
    }

    /// Pairs of which both have stated trust, the smaller number first.
    pub(crate) fn mutual(&self) -> impl Iterator<Item = (NodeId, NodeId)> {
        self.trust.nodes().flat_map(|node| {
            let mutual = self.trust.of(node).filter(|(_, sides)| sides.has(Sides::MUTUAL));
            mutual.map(move |(peer, _)| (node, peer)).filter(|(node, peer)| node < peer)
        })
    }

    /// What waits, by node.
    pub(crate) fn waiting(
        &self,
    ) -> impl Iterator<Item = (NodeId, &[HandshakeRequest], Vec<&HandshakeAnswer>)> {
        self.inboxes
            .iter()
            .map(|(node, inbox)| (*node, inbox.requests.as_slice(), inbox.answers.iter().collect()))
    }
}
