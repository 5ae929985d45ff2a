//! Join rules: the question and the verdict.

use pilot_wire::{Address, NodeId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// May this node join this network?
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// Rule that is asked, as the manifest names it.
    pub rule: String,
    /// Number of the network.
    pub network: u16,
    /// Name of the network.
    #[serde(default)]
    pub network_name: String,
    /// Node that asks.
    pub node: NodeId,
    /// Its address.
    pub address: Address,
    /// Its Ed25519 identity key, base64; it has proven that it holds it.
    pub public_key: String,
    /// Its owner, as it was registered.
    #[serde(default)]
    pub owner: String,
    /// Its hostname, if any.
    #[serde(default)]
    pub hostname: String,
    /// Its tags.
    #[serde(default)]
    pub tags: Vec<String>,
    /// What it showed: a token, a certificate, ...; null for nothing.
    #[serde(default)]
    pub proof: Value,
    /// What the network says to this rule; null for nothing.
    #[serde(default)]
    pub config: Value,
    /// What the registry keeps for this rule. For `token`: `tokens`, an array
    /// of `id`, `salt` and `hash` (both hex; SHA-256 over salt and secret),
    /// `expires_at_ms` (or null), `uses_left` (or null), `tags`. For `invite`:
    /// `invitations`, those for the node or its owner, an array of `id`,
    /// `expires_at_ms`, `tags`, `from` (a node or null). Null for others.
    #[serde(default)]
    pub kept: Value,
    /// IP address that the request came from.
    #[serde(default)]
    pub source: String,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
}

/// The answer of a join rule. What is not an answer (a failure, a panic, a time
/// limit) denies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "lowercase")]
pub enum Verdict {
    /// It may.
    Allow {
        /// Tags that the member gets.
        #[serde(default)]
        tags: Vec<String>,
        /// When the membership ends, in milliseconds since 1970.
        #[serde(default)]
        expires_at_ms: Option<u64>,
        /// Who the node is elsewhere.
        #[serde(default)]
        external_identity: Option<String>,
        /// The token or invitation that was used, by its `id` in `kept`; the
        /// registry counts it, and refuses when it is used up by then.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        uses: Option<String>,
    },
    /// It may not.
    Deny {
        /// For the node's owner.
        reason: String,
    },
}

impl Verdict {
    /// It may, with nothing added.
    pub const fn allow() -> Self {
        Self::Allow { tags: Vec::new(), expires_at_ms: None, external_identity: None, uses: None }
    }

    /// It may not, and why.
    pub fn deny(reason: impl Into<String>) -> Self {
        Self::Deny { reason: reason.into() }
    }
}
