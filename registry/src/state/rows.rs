//! The state as rows of a table, so that a checkpoint writes what changed and a
//! start reads one record after the other.

use serde::{Deserialize, Serialize};

/// What a row holds. The numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Table {
    /// One row: what belongs to nothing else.
    Meta = 0,
    /// By node number: the registered node.
    Node = 1,
    /// By key: its node.
    Key = 2,
    /// By owner text: the node that is recovered by it.
    Owner = 3,
    /// By node: whom it states trust in, from whom it has withdrawn it.
    Trust = 4,
    /// By node: what waits for it.
    Handshakes = 5,
    /// By network: its record and tokens.
    Network = 6,
    /// By network and node: a membership.
    Member = 7,
    /// By number: an invitation.
    Invitation = 8,
}

/// One row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Of which kind.
    pub table: Table,
    /// Big-endian numbers or text; unique within its table.
    pub key: Vec<u8>,
    /// JSON; none when the row is gone.
    pub value: Option<Vec<u8>>,
}
