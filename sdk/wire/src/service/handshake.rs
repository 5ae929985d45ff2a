//! Trust handshake messages, port 444: one JSON object in the first segment
//! of a stream (protocol page "Services", section 1).

use serde::{Deserialize, Serialize};

use crate::address::NodeId;

/// Longest message this implementation sends, in bytes: it must fit the first
/// segment on every path.
pub const MAX_MESSAGE: usize = 1100;
/// Longest justification or reason, in bytes, so that messages fit.
pub const MAX_TEXT: usize = 512;
/// Longest message this implementation accepts: a published segment.
pub const MAX_ACCEPTED: usize = 4096;
/// A message older than this many seconds is dropped.
pub const MAX_AGE: i64 = 300;
/// A message this many seconds ahead of the clock is dropped.
pub const MAX_AHEAD: i64 = 30;

/// What a message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Asks for trust.
    #[serde(rename = "handshake_request")]
    Request,
    /// Grants what was asked.
    #[serde(rename = "handshake_accept")]
    Accept,
    /// Refuses what was asked.
    #[serde(rename = "handshake_reject")]
    Reject,
    /// Ends trust.
    #[serde(rename = "handshake_revoke")]
    Revoke,
}

/// One message. All keys are always written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// What it says.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// Sender.
    #[serde(default)]
    pub node_id: NodeId,
    /// Sender's Ed25519 key, base64.
    #[serde(default)]
    pub public_key: String,
    /// Why trust is asked for.
    #[serde(default)]
    pub justification: String,
    /// Base64 signature over [`challenge`].
    #[serde(default)]
    pub signature: String,
    /// Why a request was refused.
    #[serde(default)]
    pub reason: String,
    /// Unix seconds.
    #[serde(default)]
    pub timestamp: i64,
}

/// The string that is signed in every message.
pub fn challenge(sender: NodeId, receiver: NodeId) -> String {
    format!("handshake:{sender}:{receiver}")
}
