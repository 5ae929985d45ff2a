//! What a command changed, as far as somebody is told of it: watching nodes,
//! event sinks. Levels can be read from the state; a change says where to look.

use pilot_wire::NodeId;

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A node's record: registered, re-registered, removed, renamed, another
    /// key, endpoint, visibility or tags.
    Node(NodeId),
    /// The key of a node is another, or good for nothing: whoever showed the
    /// old one has to show the new one.
    Key(NodeId),
    /// What these two state of each other.
    Trust(NodeId, NodeId),
    /// Something waits for this node.
    Handshakes(NodeId),
    /// A node is in a network, or its membership there is another.
    Joined {
        /// The network.
        network: u16,
        /// The node.
        node: NodeId,
    },
    /// A node is out of a network.
    Left {
        /// The network, which may be gone.
        network: u16,
        /// Its name.
        name: String,
        /// The node.
        node: NodeId,
        /// Why.
        reason: LeaveReason,
    },
    /// An invitation waits.
    Invited(u64),
}

/// Why a node is out of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaveReason {
    /// It left.
    Left,
    /// It was removed, or its key was revoked.
    Removed,
    /// Its time was over.
    Expired,
    /// The network is gone.
    Deleted,
}

impl LeaveReason {
    /// As it is told.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Removed => "removed",
            Self::Expired => "expired",
            Self::Deleted => "deleted",
        }
    }
}
