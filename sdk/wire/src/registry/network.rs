//! Networks beyond the backbone: who may join, members, tokens, invitations.
//! All of it is an extension; published registries refuse network requests.
//! Times are Unix seconds.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::key::{PublicKey, Signature};
use crate::address::{Address, NodeId};

/// Which rules judge who joins. An empty list lets nobody in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinPolicy {
    /// How the verdicts are combined.
    #[serde(default)]
    pub combine: Combine,
    /// Asked in this order.
    #[serde(default)]
    pub rules: Vec<RuleUse>,
}

/// How the verdicts of several rules become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Combine {
    /// The first rule that allows is enough.
    #[default]
    Any,
    /// Every rule has to allow; the earliest expiry counts, tags add up.
    All,
}

/// One rule of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleUse {
    /// Its name, as the manifest of its plugin says: `open`, `token`, ...
    pub rule: String,
    /// What the rule is told of this network; null for nothing.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub config: Value,
}

impl JoinPolicy {
    /// One rule without configuration.
    pub fn of(rule: impl Into<String>) -> Self {
        let rule = RuleUse { rule: rule.into(), config: Value::Null };
        Self { combine: Combine::Any, rules: vec![rule] }
    }

    /// In one word where there is one, as published: the rule's name, else the
    /// names joined by `|` (any) or `&` (all).
    pub fn label(&self) -> String {
        let between = match self.combine {
            Combine::Any => "|",
            Combine::All => "&",
        };
        let names: Vec<_> = self.rules.iter().map(|r| r.rule.as_str()).collect();
        names.join(between)
    }
}

/// Who may send to all members at once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BroadcastRight {
    /// Nobody.
    #[default]
    Nobody,
    /// The node that made the network.
    Owner,
    /// Every member.
    Members,
    /// Members with this tag in the network.
    Tagged(String),
}

/// Whom an invitation is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Invitee {
    /// This node.
    Node(NodeId),
    /// Any node registered with this owner text by a proven key.
    Owner(String),
}

impl fmt::Display for Invitee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => write!(f, "node {node}"),
            Self::Owner(owner) => write!(f, "owner {owner}"),
        }
    }
}

/// A network, by number or by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a network's number or name")]
pub enum NetworkRef {
    /// Its number.
    Id(u16),
    /// Its name.
    Name(String),
}

impl fmt::Display for NetworkRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "{id}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// A network as members and managers see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkView {
    /// Its number.
    pub id: u16,
    /// Its name.
    pub name: String,
    /// How many nodes belong to it.
    pub members: u64,
    /// As [`JoinPolicy::label`].
    pub join_rule: String,
    /// Whole for the owner and administrators only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<JoinPolicy>,
    /// Who may broadcast.
    #[serde(default)]
    pub broadcast: BroadcastRight,
    /// The node that made it; none for one that an administrator made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<NodeId>,
    /// When it was made.
    pub created: u64,
    /// The asking node's membership, if it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub membership: Option<Membership>,
}

/// One node's membership of one network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The network.
    pub network: u16,
    /// Its name.
    pub name: String,
    /// This node's address in it.
    pub address: Address,
    /// Since when.
    pub joined: u64,
    /// Until when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    /// Tags that came with joining.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Who the node is elsewhere, as a rule found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_identity: Option<String>,
    /// Whether this node may broadcast in it.
    #[serde(default)]
    pub may_broadcast: bool,
}

/// A member as other members see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberView {
    /// The node.
    pub node_id: NodeId,
    /// Its address in the network.
    pub address: Address,
    /// Its hostname.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Whether it is registered now.
    #[serde(default)]
    pub registered: bool,
    /// Since when it is a member.
    pub joined: u64,
    /// Until when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    /// Tags that came with joining.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Who it is elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_identity: Option<String>,
    /// The rules that let it in.
    #[serde(default)]
    pub rule: String,
}

/// A join token without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenView {
    /// Its name within the network.
    pub id: String,
    /// The network.
    pub network: u16,
    /// When it was made.
    pub created: u64,
    /// Until when it is good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    /// How many more nodes it lets in; none for any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uses_left: Option<u32>,
    /// Tags for who joins with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
}

/// An invitation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvitationView {
    /// Its number, unique in the registry.
    pub id: u64,
    /// Where to.
    pub network: u16,
    /// The network's name.
    pub name: String,
    /// For whom.
    pub to: Invitee,
    /// Who invites; none for an administrator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<NodeId>,
    /// The inviting node's key at that time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PublicKey>,
    /// By the inviting node, of [`super::challenge::invite`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
    /// Until when it can be accepted.
    pub expires: u64,
    /// Tags for who accepts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
}
