//! What a node believes that has listened to its session: the news applied as
//! they came.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::{BTreeMap, BTreeSet};

use pilot_wire::NodeId;
use pilot_wire::registry::network::{InvitationView, Membership};
use pilot_wire::registry::session::{News, PeerView, Push};

#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    pub(crate) trust: BTreeSet<NodeId>,
    pub(crate) revoked_by: BTreeSet<NodeId>,
    pub(crate) handshakes: bool,
    pub(crate) memberships: BTreeMap<u16, Membership>,
    /// Reasons of those that ended.
    pub(crate) left: BTreeMap<u16, String>,
    pub(crate) peers: BTreeMap<NodeId, PeerView>,
    pub(crate) invitations: BTreeMap<u64, InvitationView>,
    /// Of the session, to open it again.
    pub(crate) epoch: String,
    pub(crate) since: u64,
    pub(crate) ended: Option<String>,
    pub(crate) syncs: u32,
    /// All kinds of news.
    pub(crate) frames: u32,
}

impl View {
    pub(crate) fn apply(&mut self, push: Push) {
        assert!(push.seq >= self.since, "{} after {}: {:?}", push.seq, self.since, push.news);
        self.since = push.seq;
        self.frames += 1;
        match push.news {
            News::Sync(sync) => {
                self.trust = sync.trust.into_iter().collect();
                self.revoked_by = sync.revoked_by.into_iter().collect();
                self.handshakes = sync.handshakes;
                self.memberships = sync.memberships.into_iter().map(|m| (m.network, m)).collect();
                self.peers = sync.peers.into_iter().map(|p| (p.node_id, p)).collect();
                self.invitations = sync.invitations.into_iter().map(|i| (i.id, i)).collect();
                self.syncs += 1;
            }
            News::Trust(trust) => {
                put(&mut self.trust, trust.node_id, trust.mutual);
                put(&mut self.revoked_by, trust.node_id, trust.revoked);
            }
            News::Handshakes {} => self.handshakes = true,
            News::Peer(peer) => drop(self.peers.insert(peer.node_id, peer)),
            News::Joined(membership) => {
                self.left.remove(&membership.network);
                self.memberships.insert(membership.network, membership);
            }
            News::Left { network, name, reason } => {
                assert!(!name.is_empty());
                self.memberships.remove(&network);
                self.left.insert(network, reason);
            }
            News::Invited(invitation) => {
                self.invitations.insert(invitation.id, invitation);
            }
            News::Ended { code } => self.ended = Some(code),
        }
    }
}

fn put(set: &mut BTreeSet<NodeId>, node: NodeId, is_in: bool) {
    if is_in {
        set.insert(node);
    } else {
        set.remove(&node);
    }
}
