//! What news can be about, and whom a change concerns.

use std::collections::HashSet;

use pilot_wire::NodeId;

use crate::state::{Change, LeaveReason, Network, State};

/// What a session has to be told of anew. In order of being told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Topic {
    /// Whether its node still has the key that opened it.
    Own,
    /// All of it.
    Everything,
    /// Its membership of a network.
    Membership(u16),
    /// Trust with a node.
    Trust(NodeId),
    /// A watched peer.
    Peer(NodeId),
    /// An invitation.
    Invitation(u64),
    /// Handshakes that wait.
    Handshakes,
}

/// Of a membership that ended: what the state no longer knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Gone {
    /// The network's name.
    pub name: String,
    /// Why.
    pub reason: LeaveReason,
}

/// Whom a change concerns.
pub(super) enum Notice<'a> {
    /// A node, in this.
    Node(NodeId, Topic, Option<Gone>),
    /// Who watches this node.
    Watchers(NodeId),
    /// A node, if it watches that peer.
    Watching {
        /// Who.
        node: NodeId,
        /// Whom.
        peer: NodeId,
    },
    /// A node, in those of its peers that are in this network.
    Fellows {
        /// Who.
        node: NodeId,
        /// Where.
        network: &'a Network,
    },
    /// Nodes of this owner, in this.
    Owner(&'a str, Topic),
}

/// Says whom a change concerns.
///
/// What node `w` sees of peer `p` depends on `p`'s record, on trust between
/// them, and on networks that both are in. Of the latter: when `p` comes or
/// goes, all who watch it are told; when `w` does, it is told of the peers that
/// are in that network still, and those that are not either never were, or went
/// by a change of their own that its watchers are told of.
pub(super) fn notices<'a>(change: &'a Change, state: &'a State, mut say: impl FnMut(Notice<'a>)) {
    match change {
        Change::Node(node) | Change::Key(node) => {
            say(Notice::Node(*node, Topic::Own, None));
            say(Notice::Watchers(*node));
        }
        Change::Trust(a, b) => {
            for (node, peer) in [(*a, *b), (*b, *a)] {
                say(Notice::Node(node, Topic::Trust(peer), None));
                say(Notice::Watching { node, peer });
            }
        }
        Change::Handshakes(node) => say(Notice::Node(*node, Topic::Handshakes, None)),
        Change::Joined { network, node } => {
            say(Notice::Node(*node, Topic::Membership(*network), None));
            fellowship(*network, *node, state, say);
        }
        Change::Left { network, name, node, reason } => {
            let gone = Gone { name: name.clone(), reason: *reason };
            say(Notice::Node(*node, Topic::Membership(*network), Some(gone)));
            fellowship(*network, *node, state, say);
        }
        Change::Invited(id) => {
            use pilot_wire::registry::network::Invitee;
            let topic = Topic::Invitation(*id);
            match state.invitation(*id).map(|i| &i.to) {
                Some(Invitee::Node(node)) => say(Notice::Node(*node, topic, None)),
                Some(Invitee::Owner(owner)) => say(Notice::Owner(owner, topic)),
                None => {}
            }
        }
    }
}

fn fellowship<'a>(network: u16, node: NodeId, state: &'a State, mut say: impl FnMut(Notice<'a>)) {
    say(Notice::Watchers(node));
    if let Ok(network) = state.network(network) {
        say(Notice::Fellows { node, network });
    }
}

/// Those of `watched` that are in `network`.
pub(super) fn fellows(
    watched: &HashSet<NodeId>,
    network: &Network,
) -> impl Iterator<Item = NodeId> {
    watched.iter().filter(|peer| network.members.contains_key(peer)).copied()
}
