//! What a registry answers. The same structs are written by the server and
//! read by clients; a reader ignores keys it does not know.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::audit::AuditRecord;
use super::key::PublicKey;
use super::network::{InvitationView, MemberView, Membership, NetworkView, TokenView};
use crate::address::{Address, NodeId};

/// A successful reply, known by its `type`.
pub trait Reply: DeserializeOwned {
    /// The `type` of this reply.
    const KIND: &'static str;
}

/// Why a body is not the expected reply.
#[derive(Debug, thiserror::Error)]
pub enum ReplyError {
    /// The registry refused. Published registries only say "request failed".
    #[error("registry: {}", .0.text())]
    Refused(ErrorReply),
    /// The reply belongs to another request.
    #[error("registry answered with type {found:?} instead of {expected:?}")]
    Kind {
        /// What was asked for.
        expected: &'static str,
        /// What came.
        found: String,
    },
    /// Not JSON, or a field is missing or of the wrong type.
    #[error("registry reply cannot be read: {0}")]
    Malformed(#[from] serde_json::Error),
}

/// Reads the reply to a request of which `T` is the success.
///
/// # Errors
/// When the registry refused, or the body is not that reply.
pub fn parse_reply<T: Reply>(body: &[u8]) -> Result<T, ReplyError> {
    #[derive(Deserialize)]
    struct Envelope {
        #[serde(rename = "type", default)]
        kind: String,
        #[serde(default)]
        error: Option<serde_json::Value>,
    }
    let envelope: Envelope = serde_json::from_slice(body)?;
    if matches!(envelope.error, Some(serde_json::Value::String(_))) {
        return Err(ReplyError::Refused(serde_json::from_slice(body)?));
    }
    if envelope.kind != T::KIND {
        return Err(ReplyError::Kind { expected: T::KIND, found: envelope.kind });
    }
    Ok(serde_json::from_slice(body)?)
}

/// A refusal. `error` is the published text; the rest are extra keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename = "error")]
pub struct ErrorReply {
    /// `request failed`, whatever the reason.
    pub error: String,
    /// Stable reason in snake case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The reason for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl ErrorReply {
    /// The most telling text there is.
    pub fn text(&self) -> &str {
        self.message.as_deref().unwrap_or(&self.error)
    }
}

macro_rules! replies {
    ($($(#[$doc:meta])* $name:ident = $kind:literal {
        $($(#[$field_meta:meta])* $field:ident: $ty:ty,)*
    })+) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
            #[serde(tag = "type", rename = $kind)]
            pub struct $name {
                $($(#[$field_meta])* pub $field: $ty,)*
            }

            impl Reply for $name {
                const KIND: &'static str = $kind;
            }
        )+

        /// Any successful reply.
        #[derive(Clone, Debug, PartialEq, Serialize)]
        #[serde(untagged)]
        pub enum Acknowledged {
            $(
                #[doc = concat!("`", $kind, "`")]
                $name($name),
            )+
        }

        $(
            impl From<$name> for Acknowledged {
                fn from(reply: $name) -> Self {
                    Self::$name(reply)
                }
            }
        )+
    };
}

replies! {
    /// Reply to `register`.
    Registered = "register_ok" {
        /// The node's ID, the same for the same key.
        node_id: NodeId,
        /// The node's address.
        address: Address,
        /// Always 0.
        #[serde(default)]
        network_id: u16,
        /// The key as registered.
        public_key: PublicKey,
        /// The hostname, if this request set one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hostname: Option<String>,
        /// Why the asked-for hostname was not set.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hostname_error: Option<String>,
    }
    /// Reply to `lookup`.
    Lookup = "lookup_ok" {
        /// The node.
        node_id: NodeId,
        /// Its address.
        address: Address,
        /// Networks it belongs to; 0 is the backbone.
        networks: Vec<u16>,
        /// Its key.
        public_key: PublicKey,
        /// Whether anybody may see its real address.
        public: bool,
        /// Reputation.
        #[serde(default)]
        polo_score: i64,
        /// Its hostname.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hostname: Option<String>,
        /// Its tags.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        tags: Vec<String>,
        /// Whether it executes tasks.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        task_exec: bool,
        /// Its host:port, only when public.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        real_addr: Option<String>,
    }
    /// Reply to `resolve`.
    Resolved = "resolve_ok" {
        /// The node.
        node_id: NodeId,
        /// Its host:port; the port is as the node stated it.
        real_addr: String,
    }
    /// Reply to `resolve_hostname`.
    ResolvedHostname = "resolve_hostname_ok" {
        /// The node of that name.
        node_id: NodeId,
        /// Its address.
        address: Address,
        /// Whether it is public.
        #[serde(default)]
        public: bool,
        /// The name.
        hostname: String,
    }
    /// Reply to `heartbeat`.
    Heartbeat = "heartbeat_ok" {
        /// The registry's clock, Unix seconds.
        time: u64,
    }
    /// Reply to `set_visibility`.
    VisibilitySet = "set_visibility_ok" {
        /// The node.
        node_id: NodeId,
        /// `public` or `private`.
        visibility: String,
    }
    /// Reply to `set_hostname`.
    HostnameSet = "set_hostname_ok" {
        /// The node.
        node_id: NodeId,
        /// The name; empty when cleared.
        hostname: String,
    }
    /// Reply to `set_tags`.
    TagsSet = "set_tags_ok" {
        /// The node.
        node_id: NodeId,
        /// The tags, `null` when there are none.
        tags: Option<Vec<String>>,
    }
    /// Reply to `set_task_exec`.
    TaskExecSet = "set_task_exec_ok" {
        /// The node.
        node_id: NodeId,
        /// The flag.
        task_exec: bool,
    }
    /// Reply to `report_trust`.
    TrustReported = "report_trust_ok" {}
    /// Reply to `revoke_trust`.
    TrustRevoked = "revoke_trust_ok" {}
    /// Reply to `request_handshake`.
    HandshakeDelivered = "request_handshake_ok" {
        /// `delivered`.
        status: String,
    }
    /// Reply to `poll_handshakes`; the registry forgets what it gave.
    Handshakes = "poll_handshakes_ok" {
        /// Requests for this node.
        #[serde(default)]
        requests: Vec<HandshakeRequest>,
        /// Answers to this node's requests.
        #[serde(default)]
        responses: Vec<HandshakeAnswer>,
    }
    /// Reply to `respond_handshake`.
    HandshakeAnswered = "respond_handshake_ok" {
        /// The answer given.
        accept: bool,
        /// Who had asked.
        peer_id: NodeId,
    }
    /// Reply to `rotate_key`.
    KeyRotated = "rotate_key_ok" {
        /// The node.
        node_id: NodeId,
        /// Its address, unchanged.
        address: Address,
        /// The new key.
        public_key: PublicKey,
    }
    /// Reply to `punch`.
    Punch = "punch_ok" {
        /// One node.
        node_a: NodeId,
        /// Its host:port.
        node_a_addr: String,
        /// The other.
        node_b: NodeId,
        /// Its host:port.
        node_b_addr: String,
    }
    /// Reply to `deregister`.
    Deregistered = "deregister_ok" {}
    /// Reply to `list_networks`.
    NetworkList = "list_networks_ok" {
        /// All networks.
        networks: Vec<Network>,
    }
    /// Reply to `beacon_register`.
    BeaconRegistered = "beacon_register_ok" {
        /// The beacon.
        beacon_id: u32,
    }
    /// Reply to `beacon_list`.
    BeaconList = "beacon_list_ok" {
        /// Beacons seen in the last 60 s.
        beacons: Vec<Beacon>,
    }
    /// Reply to `get_polo_score`.
    PoloScore = "get_polo_score_ok" {
        /// The node.
        node_id: NodeId,
        /// Its address.
        address: Address,
        /// Its score.
        polo_score: i64,
    }
    /// Reply to `update_polo_score`.
    PoloScoreUpdated = "update_polo_score_ok" {
        /// The node.
        node_id: NodeId,
        /// Its address.
        address: Address,
        /// Its new score.
        polo_score: i64,
    }
    /// Reply to `set_polo_score`.
    PoloScoreSet = "set_polo_score_ok" {
        /// The node.
        node_id: NodeId,
        /// Its address.
        address: Address,
        /// Its new score.
        polo_score: i64,
    }
    /// Reply to `create_network`, as published.
    NetworkCreated = "create_network_ok" {
        /// Its number.
        network_id: u16,
        /// Its name.
        name: String,
    }
    /// Reply to `join_network`, as published.
    JoinedNetwork = "join_network_ok" {
        /// The network.
        network_id: u16,
        /// The node's address in it.
        address: Address,
    }
    /// Reply to `leave_network`, as published.
    LeftNetwork = "leave_network_ok" {
        /// The network.
        network_id: u16,
    }
    /// Reply to `list_nodes`.
    NodeList = "list_nodes_ok" {
        /// Members that are registered now.
        nodes: Vec<ListedNode>,
        /// Extension: there are more; ask again with this as `after`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        next: Option<NodeId>,
    }
    /// Reply to `session_challenge`.
    SessionChallenged = "session_challenge_ok" {
        /// To sign, base64; good once, on this connection.
        nonce: String,
    }
    /// Reply to `session_open`.
    SessionOpened = "session_open_ok" {
        /// The node.
        node_id: NodeId,
        /// The registry's state; another one says that numbers begin anew.
        epoch: String,
        /// Where the registry stands.
        seq: u64,
        /// Whether only what was missed follows; else a sync follows.
        resumed: bool,
        /// A session on which nothing comes for so many seconds is closed.
        idle_secs: u64,
    }
    /// Reply to `session_watch`.
    SessionWatched = "session_watch_ok" {
        /// Peers watched now.
        watched: u32,
    }
    /// Reply to `network_create` and `network_update`.
    NetworkMade = "network_ok" {
        /// As it is now.
        network: NetworkView,
    }
    /// Reply to what ends or changes something and has nothing to tell.
    NetworkDone = "done_ok" {
        /// The network.
        network_id: u16,
    }
    /// Reply to `network_join`.
    NetworkJoined = "network_join_ok" {
        /// As it is now.
        membership: Membership,
    }
    /// Reply to `network_list`.
    NetworkViews = "network_list_ok" {
        /// All networks.
        networks: Vec<NetworkView>,
    }
    /// Reply to `network_members`.
    Members = "network_members_ok" {
        /// In order of node numbers.
        members: Vec<MemberView>,
        /// There are more; ask again with this as `after`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        next: Option<NodeId>,
    }
    /// Reply to `token_create`.
    TokenMade = "token_create_ok" {
        /// What is kept of it.
        token: TokenView,
        /// The secret; it is shown here and never again.
        secret: String,
    }
    /// Reply to `token_list`.
    Tokens = "token_list_ok" {
        /// Of one network.
        tokens: Vec<TokenView>,
    }
    /// Reply to `invite`.
    InvitationMade = "invite_ok" {
        /// As it is kept.
        invitation: InvitationView,
    }
    /// Reply to `invitation_list`.
    Invitations = "invitation_list_ok" {
        /// Those that can be accepted now.
        invitations: Vec<InvitationView>,
    }
    /// Reply to `node_revoke`.
    NodeRevoked = "node_revoke_ok" {
        /// The node.
        node_id: NodeId,
    }
    /// Reply to `audit_query`.
    AuditPage = "audit_query_ok" {
        /// In order of their numbers.
        records: Vec<AuditRecord>,
        /// There are more; ask again with this as `after`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        next: Option<u64>,
    }
}

/// A handshake request that waited at the registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandshakeRequest {
    /// Who asks.
    pub from_node_id: NodeId,
    /// Why, for people.
    #[serde(default)]
    pub justification: String,
    /// When, Unix seconds.
    #[serde(default)]
    pub timestamp: u64,
}

/// An answer that waited at the registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandshakeAnswer {
    /// Who answers.
    pub from_node_id: NodeId,
    /// The answer.
    #[serde(default)]
    pub accept: bool,
    /// When, Unix seconds.
    #[serde(default)]
    pub timestamp: u64,
}

/// One network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Its number.
    pub id: u16,
    /// Its name.
    pub name: String,
    /// How many nodes belong to it.
    pub members: u64,
    /// `open`, `token` or `invite`.
    pub join_rule: String,
}

/// One beacon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beacon {
    /// Its number.
    pub id: u32,
    /// Its host:port.
    pub addr: String,
}

/// A member as `list_nodes` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedNode {
    /// The node.
    pub node_id: NodeId,
    /// Its address in the network.
    pub address: Address,
    /// Its hostname.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Whether it executes tasks.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub task_exec: bool,
    /// Its host:port, only when public.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub real_addr: Option<String>,
}
