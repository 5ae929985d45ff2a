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
    /// Those of them in which it may broadcast.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub may_broadcast: Vec<u16>,
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::registry::network::Invitee;

    /// A frame reads as it was written, and is known from answers by its type.
    fn check(news: News, expected: Value) {
        let push = Push { seq: 7, news };
        let whole = json!({"type": "push", "seq": 7, "news": expected});
        assert_eq!(serde_json::to_value(&push).unwrap(), whole);
        assert_eq!(serde_json::from_value::<Push>(whole).unwrap(), push);
    }

    #[test]
    fn news_are_flat_objects_of_their_kind() {
        let trust = TrustView { node_id: NodeId(5), mutual: true, revoked: false };
        check(
            News::Trust(trust),
            json!({"kind": "trust", "node_id": 5, "mutual": true, "revoked": false}),
        );
        check(News::Handshakes {}, json!({"kind": "handshakes"}));
        let (name, reason) = ("lab".to_owned(), "expired".to_owned());
        check(
            News::Left { network: 3, name, reason },
            json!({"kind": "left", "network": 3, "name": "lab", "reason": "expired"}),
        );
        check(News::Ended { code: "slow".to_owned() }, json!({"kind": "ended", "code": "slow"}));
        let address: crate::Address = serde_json::from_value(json!("3:0003.0000.0005")).unwrap();
        let membership = Membership {
            network: 3,
            name: "lab".to_owned(),
            address,
            joined: 10,
            expires: None,
            tags: Vec::new(),
            external_identity: None,
            may_broadcast: true,
        };
        let lab = json!({"network": 3, "name": "lab", "address": "3:0003.0000.0005", "joined": 10,
                         "may_broadcast": true});
        let mut joined = lab.clone();
        joined["kind"] = "joined".into();
        check(News::Joined(membership.clone()), joined);
        let invitation = InvitationView {
            id: 9,
            network: 3,
            name: "lab".to_owned(),
            to: Invitee::Owner("who".to_owned()),
            from: None,
            key: None,
            signature: None,
            expires: 99,
            tags: Vec::new(),
        };
        let mut invited =
            json!({"id": 9, "network": 3, "name": "lab", "to": {"owner": "who"}, "expires": 99});
        let sync = Sync {
            trust: vec![NodeId(5)],
            memberships: vec![membership],
            invitations: vec![invitation.clone()],
            ..Sync::default()
        };
        check(
            News::Sync(sync),
            json!({"kind": "sync", "trust": [5], "revoked_by": [], "handshakes": false,
                   "memberships": [lab], "peers": [], "invitations": [invited.clone()]}),
        );
        invited["kind"] = "invited".into();
        check(News::Invited(invitation), invited);
    }

    #[test]
    fn a_peer_that_is_gone_is_short() {
        let gone = PeerView {
            node_id: NodeId(5),
            registered: false,
            public_key: None,
            shared_networks: Vec::new(),
            may_broadcast: Vec::new(),
            endpoint: None,
            hostname: None,
            tags: Vec::new(),
            external_identity: None,
        };
        check(News::Peer(gone.clone()), json!({"kind": "peer", "node_id": 5, "registered": false}));
        let there = PeerView {
            registered: true,
            public_key: Some(PublicKey([1; 32])),
            shared_networks: vec![3],
            may_broadcast: vec![3],
            endpoint: Some("192.0.2.1:4000".to_owned()),
            hostname: Some("five".to_owned()),
            tags: vec!["blue".to_owned()],
            external_identity: Some("who@example".to_owned()),
            ..gone
        };
        check(
            News::Peer(there),
            json!({"kind": "peer", "node_id": 5, "registered": true,
                   "public_key": "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",
                   "shared_networks": [3], "may_broadcast": [3], "endpoint": "192.0.2.1:4000", "hostname": "five",
                   "tags": ["blue"], "external_identity": "who@example"}),
        );
    }

    #[test]
    fn what_is_no_news_is_refused() {
        for bad in [
            json!({"type": "push", "news": {"kind": "handshakes"}}),
            json!({"type": "push", "seq": 1, "news": {"kind": "weather"}}),
            json!({"type": "push", "seq": -1, "news": {"kind": "handshakes"}}),
            json!({"type": "push", "seq": 1, "news": {"kind": "trust", "node_id": 5}}),
        ] {
            assert!(serde_json::from_value::<Push>(bad.clone()).is_err(), "{bad}");
        }
    }
}
