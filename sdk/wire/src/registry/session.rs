//! An authenticated connection to the registry, on which it also pushes news.
//! An extension: a published registry answers the first request with an error,
//! and a node then polls as published.
//!
//! 1. `session_challenge` gives a nonce, good once and on this connection.
//! 2. `session_open` shows the node's signature of
//!    [`super::challenge::session`]. From then on requests of that node need no
//!    signature on this connection, and [`Push`] frames come between answers,
//!    which keep their order.
//!
//! News carry levels, not edges: each says how something stands now, so that
//! hearing it twice is harmless. `seq` is the number of the registry's command
//! that changed it. Who opens again with `epoch` and `since` of the last frame
//! it has handled gets what it missed, or a [`News::Sync`] that says all.

use serde::{Deserialize, Serialize};

use super::key::PublicKey;
use super::network::{InvitationView, Membership};
use crate::address::NodeId;

/// Peers that one session can watch.
pub const MAX_WATCHED: usize = 2048;

/// One frame of news; it answers no request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename = "push")]
pub struct Push {
    /// Where the registry stands; never smaller than before in one epoch.
    pub seq: u64,
    /// What.
    pub news: News,
}

/// What a node is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum News {
    /// All of it: what is not here is not so.
    Sync(Sync),
    /// How trust with a node stands.
    Trust(TrustView),
    /// Handshake requests or answers wait; `poll_handshakes` takes them.
    Handshakes {},
    /// A watched peer, as it is now.
    Peer(PeerView),
    /// This node is in a network, or its membership changed.
    Joined(Membership),
    /// This node is no longer in a network.
    Left {
        /// Which.
        network: u16,
        /// Its name.
        name: String,
        /// `left`, `removed`, `expired` or `deleted`.
        reason: String,
    },
    /// An invitation for this node or its owner waits.
    Invited(InvitationView),
    /// The session is over: open another.
    Ended {
        /// `key_rotated`, `deregistered`, `replaced`, `slow` or `stopping`.
        code: String,
    },
}

/// Everything that a session is told of, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sync {
    /// With whom trust is mutual.
    pub trust: Vec<NodeId>,
    /// Who has ended trust with this node and not stated it again.
    pub revoked_by: Vec<NodeId>,
    /// Whether handshakes wait.
    pub handshakes: bool,
    /// The node's networks.
    pub memberships: Vec<Membership>,
    /// The watched peers.
    pub peers: Vec<PeerView>,
    /// Invitations that wait.
    pub invitations: Vec<InvitationView>,
}

/// Trust with one node, seen from the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustView {
    /// The other node.
    pub node_id: NodeId,
    /// Whether both state trust.
    pub mutual: bool,
    /// Whether the other node has ended or refused it since it last stated it.
    pub revoked: bool,
}

/// A peer as the watching node may see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerView {
    /// The peer.
    pub node_id: NodeId,
    /// Whether it is registered now; if not, the rest is empty.
    pub registered: bool,
    /// Its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<PublicKey>,
    /// Networks that it and the watching node are both in, beside 0.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared_networks: Vec<u16>,
    /// Its host:port, if the watching node may resolve it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Its hostname.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Its tags, and those of memberships in shared networks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Who it is elsewhere, of the first shared network that knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_identity: Option<String>,
}
