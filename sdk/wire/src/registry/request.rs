//! What a client asks. Each variant's doc names who signs what, see
//! [`super::challenge`].

use serde::Serialize;

use super::frame::{FrameError, append_frame};
use super::key::{PublicKey, Signature};
use crate::address::NodeId;

/// One request, ready to be framed.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Request<'a> {
    /// Asks for a node ID, or refreshes address and liveness. Reply:
    /// [`super::Registered`].
    Register {
        /// host:port as seen by the node; the registry keeps only the port.
        listen_addr: &'a str,
        /// The node's key.
        public_key: PublicKey,
        /// Free text naming the owner.
        #[serde(skip_serializing_if = "str::is_empty")]
        owner: &'a str,
        /// Hostname to take.
        #[serde(skip_serializing_if = "str::is_empty")]
        hostname: &'a str,
        /// Extension: when the proof was made, Unix seconds.
        #[serde(skip_serializing_if = "Option::is_none")]
        timestamp: Option<u64>,
        /// Extension: signature of [`super::challenge::register`]. A key that
        /// has once sent a valid one must always send one.
        #[serde(skip_serializing_if = "Option::is_none")]
        proof: Option<Signature>,
    },
    /// Unsigned; anybody may ask. Reply: [`super::Lookup`].
    Lookup {
        /// Whom to look up.
        node_id: NodeId,
    },
    /// Asks for a real address. Reply: [`super::Resolved`].
    Resolve {
        /// Whose address.
        node_id: NodeId,
        /// Who asks.
        requester_id: NodeId,
        /// By the requester.
        signature: Signature,
    },
    /// Unsigned. Reply: [`super::ResolvedHostname`].
    ResolveHostname {
        /// The name.
        hostname: &'a str,
    },
    /// Keeps the record alive. Reply: [`super::Heartbeat`].
    Heartbeat {
        /// Who lives.
        node_id: NodeId,
        /// By that node.
        signature: Signature,
    },
    /// Reply: [`super::VisibilitySet`].
    SetVisibility {
        /// Who changes.
        node_id: NodeId,
        /// Whether anybody may see the real address.
        public: bool,
        /// By that node.
        signature: Signature,
    },
    /// Reply: [`super::HostnameSet`].
    SetHostname {
        /// Who changes.
        node_id: NodeId,
        /// The name; empty clears it.
        hostname: &'a str,
        /// By that node.
        signature: Signature,
    },
    /// Replaces all tags. Reply: [`super::TagsSet`].
    SetTags {
        /// Who changes.
        node_id: NodeId,
        /// At most 10.
        tags: &'a [String],
        /// By that node.
        signature: Signature,
    },
    /// Reply: [`super::TaskExecSet`].
    SetTaskExec {
        /// Who changes.
        node_id: NodeId,
        /// Whether the node executes tasks.
        enabled: bool,
        /// By that node.
        signature: Signature,
    },
    /// States that `node_id` trusts `peer_id`. Reply: [`super::TrustReported`].
    ReportTrust {
        /// Who trusts.
        node_id: NodeId,
        /// Whom.
        peer_id: NodeId,
        /// By `node_id`.
        signature: Signature,
    },
    /// Takes trust back, for both. Reply: [`super::TrustRevoked`].
    RevokeTrust {
        /// Who revokes.
        node_id: NodeId,
        /// Whom.
        peer_id: NodeId,
        /// By `node_id`.
        signature: Signature,
    },
    /// Leaves a handshake request for a node. Reply:
    /// [`super::HandshakeDelivered`].
    RequestHandshake {
        /// Who asks.
        from_node_id: NodeId,
        /// Whom.
        to_node_id: NodeId,
        /// Why, for people.
        justification: &'a str,
        /// By the sender.
        signature: Signature,
    },
    /// Takes waiting requests and answers. Reply: [`super::Handshakes`].
    PollHandshakes {
        /// Whose.
        node_id: NodeId,
        /// By that node.
        signature: Signature,
    },
    /// Answers a handshake request. Reply: [`super::HandshakeAnswered`].
    RespondHandshake {
        /// Who answers.
        node_id: NodeId,
        /// Who had asked.
        peer_id: NodeId,
        /// The answer.
        accept: bool,
        /// By `node_id`.
        signature: Signature,
    },
    /// Replaces the node's key. Reply: [`super::KeyRotated`].
    RotateKey {
        /// Whose key.
        node_id: NodeId,
        /// By the old key.
        signature: Signature,
        /// The new key.
        new_public_key: PublicKey,
    },
    /// Asks for both real addresses. Reply: [`super::Punch`].
    Punch {
        /// Who asks; one of the two.
        requester_id: NodeId,
        /// One.
        node_a: NodeId,
        /// The other.
        node_b: NodeId,
        /// By the requester.
        signature: Signature,
    },
    /// Removes the record. Reply: [`super::Deregistered`].
    Deregister {
        /// Who leaves.
        node_id: NodeId,
        /// By that node.
        signature: Signature,
    },
    /// Unsigned. Reply: [`super::NetworkList`].
    ListNetworks {},
    /// Unsigned; network 0 is refused.
    ListNodes {
        /// Which network.
        network_id: u16,
    },
    /// Unsigned. Reply: [`super::BeaconRegistered`]; valid 60 s.
    BeaconRegister {
        /// Not 0.
        beacon_id: u32,
        /// host:port.
        addr: &'a str,
    },
    /// Unsigned. Reply: [`super::BeaconList`].
    BeaconList {},
    /// Unsigned. Reply: [`super::PoloScore`].
    GetPoloScore {
        /// Whose.
        node_id: NodeId,
    },
    /// Unsigned. Reply: [`super::PoloScoreUpdated`].
    UpdatePoloScore {
        /// Whose.
        node_id: NodeId,
        /// Added to the score.
        delta: i64,
    },
    /// Unsigned. Reply: [`super::PoloScoreSet`].
    SetPoloScore {
        /// Whose.
        node_id: NodeId,
        /// The score.
        polo_score: i64,
    },
}

impl Request<'_> {
    /// Appends the request as one frame.
    ///
    /// # Errors
    /// When the body would exceed the frame limit; `out` is then unchanged.
    pub fn append_to(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        append_frame(out, self)
    }
}
