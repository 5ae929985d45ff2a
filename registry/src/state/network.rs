//! Networks beyond the backbone, as they are kept.
//!
//! Bounds: [`MAX_NETWORKS`] at a time (numbers are 16 bits; the number of a
//! deleted one is used again only after all others were), [`MAX_TOKENS`] and
//! [`MAX_INVITATIONS`] per network, [`MAX_INVITATIONS_EACH`] for one invitee and
//! [`MAX_INVITATIONS_IN_ALL`], [`MAX_INVITATIONS_FROM`] by one inviting node and
//! one per network and invitee, [`MAX_MEMBERSHIPS`] and
//! [`MAX_NETWORKS_OF_OWNER`] per node; at the bound the request is refused, but a
//! newer invitation takes the place of the older, and the one of an owner or
//! administrator that of a mere member.

use std::collections::BTreeMap;

use pilot_wire::registry::network::{
    BroadcastRight, InvitationView, Invitee, JoinPolicy, Membership, NetworkView, TokenView,
};
use pilot_wire::registry::{PublicKey, Signature};
use pilot_wire::{Address, NodeId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Most networks at a time, beside the backbone.
pub const MAX_NETWORKS: usize = 4096;
/// Most join tokens of one network that are not used up, expired or revoked.
pub const MAX_TOKENS: usize = 1024;
/// Most invitations to one network that wait.
pub const MAX_INVITATIONS: usize = 4096;
/// Most invitations that wait for one node, or for one owner text.
pub const MAX_INVITATIONS_EACH: usize = 256;
/// Most invitations that wait, in all.
pub const MAX_INVITATIONS_IN_ALL: usize = 262_144;
/// Most networks that one node is in, beside the backbone.
pub const MAX_MEMBERSHIPS: usize = 64;
/// Most tags that a member gets.
pub const MAX_MEMBER_TAGS: usize = 32;
/// Longest tag of a member, in bytes.
pub const MAX_MEMBER_TAG: usize = 256;
/// What one [`super::Op::Expire`] ends at the most, as readers wait for it; the
/// rest waits for the next, see [`super::State::next_end`].
pub const MAX_ENDED: usize = 16_384;
/// Most rules of one network.
pub const MAX_RULES: usize = 8;
/// Longest configuration of one rule as JSON, in bytes.
pub const MAX_RULE_CONFIG: usize = 16 * 1024;
/// Longest configurations of all rules of a network together, in bytes.
pub const MAX_RULE_CONFIGS: usize = 32 * 1024;
/// Deepest nesting of the configuration of a rule. The log is JSON, which is
/// read back to a depth of 128 with all that is around the configuration; what
/// is nested deeper could be written and never be read again.
pub const MAX_CONFIG_DEPTH: usize = 32;
/// Most networks at a time that one node owns.
pub const MAX_NETWORKS_OF_OWNER: usize = 16;
/// Most invitations that wait and were made by one node.
pub const MAX_INVITATIONS_FROM: usize = 64;
/// Longest time that an invitation waits, in seconds.
pub const MAX_INVITATION_TIME: u64 = 366 * 86_400;
/// Members of a deleted network that leave at once; the others leave with the
/// next [`super::Op::Expire`].
pub const MAX_LEAVING: usize = 4096;

/// One network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRecord {
    /// Its number, from 1.
    pub id: u16,
    /// Its name, unique.
    pub name: String,
    /// Who may join.
    pub join: JoinPolicy,
    /// Who may broadcast.
    #[serde(default)]
    pub broadcast: BroadcastRight,
    /// The node that made it; none for an administrator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<NodeId>,
    /// Unix seconds.
    pub created: u64,
}

/// One membership.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Who.
    pub node: NodeId,
    /// Since when, Unix seconds.
    pub joined: u64,
    /// The rules that let it in.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub rule: String,
    /// Until when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    /// Tags that came with joining.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Who it is elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_identity: Option<String>,
}

/// A join token; the secret itself is not kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Its name within the network.
    pub id: String,
    /// Hex of 32 bytes.
    pub salt: String,
    /// Hex of SHA-256 over salt and secret.
    pub hash: String,
    /// Unix seconds.
    pub created: u64,
    /// Until when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    /// How many more nodes it lets in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uses_left: Option<u32>,
    /// Tags for who joins with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
}

/// An invitation that waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invitation {
    /// Unique in the registry.
    pub id: u64,
    /// Where to.
    pub network: u16,
    /// For whom.
    pub to: Invitee,
    /// Who invites, with the key that signed; none for an administrator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<(NodeId, PublicKey)>,
    /// By that key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
    /// Until when it can be accepted.
    pub expires: u64,
    /// Tags for who accepts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
}

/// A network and all that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// What it is.
    pub record: NetworkRecord,
    /// Who is in it.
    pub members: BTreeMap<NodeId, Member>,
    /// By name.
    pub tokens: BTreeMap<String, Token>,
    /// Number of the command that last set who may join; 0 when not known.
    pub(super) policy: u64,
}

/// Whether a value is nested deeper than `depth` lists and objects.
pub(crate) fn nests_deeper(value: &Value, depth: usize) -> bool {
    let inner = |inner: &Value| depth == 0 || nests_deeper(inner, depth - 1);
    match value {
        Value::Array(list) => depth == 0 || list.iter().any(inner),
        Value::Object(map) => depth == 0 || map.values().any(inner),
        _ => false,
    }
}

impl Token {
    /// Without what its secret is checked by.
    pub fn view(&self, network: u16) -> TokenView {
        TokenView {
            id: self.id.clone(),
            network,
            created: self.created,
            expires: self.expires,
            uses_left: self.uses_left,
            tags: self.tags.clone(),
        }
    }
}

impl Invitation {
    /// As it is shown; `name` is the network's.
    pub fn view(&self, name: &str) -> InvitationView {
        InvitationView {
            id: self.id,
            network: self.network,
            name: name.to_owned(),
            to: self.to.clone(),
            from: self.from.map(|(node, _)| node),
            key: self.from.map(|(_, key)| key),
            signature: self.signature,
            expires: self.expires,
            tags: self.tags.clone(),
        }
    }
}

impl Network {
    /// Without members and tokens; `policy` is the command that made it.
    pub(super) fn new(record: NetworkRecord, policy: u64) -> Self {
        let (members, tokens) = Default::default();
        Self { record, members, tokens, policy }
    }

    /// The number of the command that last set who may join: what was judged by
    /// another policy lets nobody in.
    pub const fn policy(&self) -> u64 {
        self.policy
    }

    /// As `node` sees it; with the configuration of the rules if `whole`.
    pub fn view(&self, node: Option<NodeId>, whole: bool) -> NetworkView {
        let record = &self.record;
        NetworkView {
            id: record.id,
            name: record.name.clone(),
            members: self.members.len() as u64,
            join_rule: record.join.label(),
            join: whole.then(|| record.join.clone()),
            broadcast: record.broadcast.clone(),
            owner: record.owner,
            created: record.created,
            membership: node.and_then(|node| self.membership(node)),
        }
    }

    /// A member's own view of its membership.
    pub fn membership(&self, node: NodeId) -> Option<Membership> {
        let member = self.members.get(&node)?;
        Some(Membership {
            network: self.record.id,
            name: self.record.name.clone(),
            address: self.address(node),
            joined: member.joined,
            expires: member.expires,
            tags: member.tags.clone(),
            external_identity: member.external_identity.clone(),
            may_broadcast: self.may_broadcast(node),
        })
    }

    /// A member's address in it.
    pub const fn address(&self, node: NodeId) -> Address {
        Address { network: self.record.id, node }
    }

    /// Whether a member may send to all.
    pub fn may_broadcast(&self, node: NodeId) -> bool {
        self.members.get(&node).is_some_and(|member| match &self.record.broadcast {
            BroadcastRight::Nobody => false,
            BroadcastRight::Owner => self.record.owner == Some(node),
            BroadcastRight::Members => true,
            BroadcastRight::Tagged(tag) => member.tags.contains(tag),
        })
    }
}
