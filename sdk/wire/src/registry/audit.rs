//! Records of the audit log, and how they are asked for.

use serde::{Deserialize, Serialize};

use crate::address::{Address, NodeId};

/// One record. Its place in the chain: `hash` is SHA-256 over `previous`
/// (32 bytes) and the JSON of the record without `previous` and `hash`, keys in
/// the order of the fields here, absent ones left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// From 1, without gaps.
    pub seq: u64,
    /// Unix seconds.
    pub time: u64,
    /// Number of the registry's command that this tells of.
    pub command: u64,
    /// Who acted.
    pub actor: AuditActor,
    /// Host and port that the request came from; empty for the registry itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// What was asked for, as the request's type.
    pub operation: String,
    /// What it was about, such as `node 7`, `network 3`, `node 7 in network 3`.
    pub object: String,
    /// Whether it was done.
    pub result: AuditResult,
    /// Stable code of the refusal; empty when it was done.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub code: String,
    /// The rule that decided, such as `token`; empty for none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub rule: String,
    /// For people: what changed, or why not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// The client's text, or one made for the request.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub request_id: String,
    /// How many equal refusals this stands for; 1 for one.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub count: u64,
    /// Hash of the record before, hex; zeros for the first.
    #[serde(default)]
    pub previous: String,
    /// Hash of this record, hex.
    #[serde(default)]
    pub hash: String,
}

const fn one() -> u64 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
const fn is_one(count: &u64) -> bool {
    *count == 1
}

/// Who acted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditActor {
    /// `node`, `admin`, `registry` or `unknown`.
    pub kind: String,
    /// The administrator's name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<NodeId>,
    /// Its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Address>,
    /// Its key, base64.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub public_key: String,
    /// Its owner.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub owner: String,
    /// Who it is elsewhere.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub external_identity: String,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AuditResult {
    /// Done.
    #[default]
    Allowed,
    /// Refused.
    Denied,
}

/// Which records are wanted; all that are set must fit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuditFilter {
    /// From this time on, Unix seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// Before this time, Unix seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
    /// A node's number or address, an owner, a key, an external identity, an
    /// administrator's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// An operation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// An object, whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// What came of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<AuditResult>,
    /// Records after this number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// At most 1,000; 100 when none is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}
