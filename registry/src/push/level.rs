//! How things stand, read from the state as one node may see it.

use std::collections::BTreeSet;

use pilot_wire::NodeId;
use pilot_wire::registry::network::InvitationView;
use pilot_wire::registry::session::{News, PeerView, Sync, TrustView};

use super::topic::{Gone, Topic};
use crate::state::{Invitation, State};

/// How `topic` stands for `node`; none when there is nothing to say, as of an
/// invitation that is gone. [`Topic::Own`] and [`Topic::Everything`] are for
/// the caller.
pub(super) fn news(state: &State, node: NodeId, topic: Topic, gone: Option<Gone>) -> Option<News> {
    match topic {
        Topic::Own | Topic::Everything => None,
        Topic::Membership(id) => {
            match state.network(id).ok().and_then(|network| network.membership(node)) {
                Some(membership) => Some(News::Joined(membership)),
                None => gone.map(|Gone { name, reason }| {
                    let reason = reason.word().to_owned();
                    News::Left { network: id, name, reason }
                }),
            }
        }
        Topic::Trust(peer) => Some(News::Trust(trust(state, node, peer))),
        Topic::Peer(peer) => Some(News::Peer(peer_view(state, node, peer))),
        Topic::Invitation(id) => {
            let invitation = state.invitation(id).filter(|i| state.is_invited(node, &i.to));
            invitation.map(|i| News::Invited(view(state, i)))
        }
        Topic::Handshakes => state.has_handshakes(node).then_some(News::Handshakes {}),
    }
}

/// Everything that a session of `node` is told of.
pub(super) fn sync(state: &State, node: NodeId, watched: &[NodeId]) -> Sync {
    Sync {
        trust: state.trusted_by(node),
        revoked_by: state.revoked_by(node),
        handshakes: state.has_handshakes(node),
        memberships: state
            .memberships(node)
            .filter_map(|(network, _)| network.membership(node))
            .collect(),
        peers: watched.iter().map(|peer| peer_view(state, node, *peer)).collect(),
        invitations: state.invitations_for(node).into_iter().map(|i| view(state, i)).collect(),
    }
}

fn view(state: &State, invitation: &Invitation) -> InvitationView {
    let network = state.network(invitation.network);
    invitation.view(network.map_or("", |n| n.record.name.as_str()))
}

fn trust(state: &State, node: NodeId, peer: NodeId) -> TrustView {
    let revoked = state.has_withdrawn(peer, node);
    TrustView { node_id: peer, mutual: state.is_mutual(node, peer), revoked }
}

/// A peer as `node` may see it.
fn peer_view(state: &State, node: NodeId, peer: NodeId) -> PeerView {
    let Ok(found) = state.node(peer) else {
        return PeerView {
            node_id: peer,
            registered: false,
            public_key: None,
            shared_networks: Vec::new(),
            may_broadcast: Vec::new(),
            endpoint: None,
            hostname: None,
            tags: Vec::new(),
            external_identity: None,
        };
    };
    let record = &found.record;
    let shared_networks = state.shared_networks(node, peer);
    let networks = shared_networks.iter().filter_map(|id| state.network(*id).ok());
    let members: Vec<_> = networks.filter_map(|n| n.members.get(&peer)).collect();
    let speaks = |id: &u16| state.network(*id).is_ok_and(|n| n.may_broadcast(peer));
    let mut seen = BTreeSet::new();
    let tags = record.tags.iter().chain(members.iter().flat_map(|m| &m.tags));
    PeerView {
        node_id: peer,
        registered: true,
        public_key: Some(record.key),
        endpoint: state.may_resolve(node, found).then(|| record.endpoint.to_string()),
        hostname: Some(&record.hostname).filter(|h| !h.is_empty()).cloned(),
        tags: tags.filter(|tag| seen.insert(tag.as_str())).cloned().collect(),
        external_identity: members.iter().find_map(|m| m.external_identity.clone()),
        may_broadcast: shared_networks.iter().copied().filter(speaks).collect(),
        shared_networks,
    }
}
