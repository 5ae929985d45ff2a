//! What changes the state. A command holds everything the change depends on,
//! time and source address too, so that the log can be replayed.

use std::net::SocketAddr;

use pilot_wire::NodeId;
use pilot_wire::registry::network::{BroadcastRight, Invitee, JoinPolicy};
use pilot_wire::registry::{PublicKey, Signature};
use serde::{Deserialize, Serialize};

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// When it was asked for, Unix seconds.
    pub at: u64,
    /// Where it came from.
    #[serde(default, skip_serializing_if = "Origin::is_registry")]
    pub origin: Origin,
    /// What was asked for.
    pub op: Op,
}

impl Command {
    /// What the registry does by itself.
    pub fn own(at: u64, op: Op) -> Self {
        Self { at, origin: Origin::default(), op }
    }
}

/// Where a request came from, for the audit log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Source of the connection; none for what the registry does by itself.
    pub source: Option<SocketAddr>,
    /// The client's text, or one made for the request.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub request: String,
}

impl Origin {
    const fn is_registry(&self) -> bool {
        self.source.is_none() && self.request.is_empty()
    }
}

/// Who is behind a change of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Actor {
    /// A node.
    Node(Signer),
    /// An administrator, by name.
    Admin(String),
    /// The registry itself: time has passed.
    Registry,
}

/// What the join rules said, ready to be applied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admission {
    /// The rules that allowed, joined by `+`.
    pub rule: String,
    /// Tags for the member, already checked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// When the membership ends, Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    /// Who the node is elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_identity: Option<String>,
    /// Tokens used, by their `id`; each is counted, and all must be good still.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tokens: Vec<String>,
    /// Invitations used; each ends, and all must be good still.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub invitations: Vec<u64>,
    /// [`super::Network::policy`] of the network as it was judged; 0 when it is
    /// not to be compared.
    #[serde(default, skip_serializing_if = "is_unknown")]
    pub policy: u64,
    /// Since when the node was a member as it was judged, which is renewed;
    /// none when it was no member. Compared together with `policy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renews: Option<u64>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_unknown(policy: &u64) -> bool {
    *policy == 0
}

/// A refusal that the audit log is to hold. It changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denial {
    /// Type of the refused request.
    pub operation: String,
    /// The node that the request named as its actor; not proven.
    pub claimed: Option<NodeId>,
    /// Whose session it came on; proven.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Signer>,
    /// What it was about, as in the audit log.
    pub object: String,
    /// Stable code of the refusal.
    pub code: String,
    /// The reason for people; may name the join rule.
    pub reason: String,
    /// The join rule that denied, or empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub rule: String,
    /// How many equal ones this stands for.
    pub count: u64,
}

/// A node and the key under which its signature was found good. The command
/// has no effect if the node has another key when it is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signer {
    /// Who acts.
    pub node: NodeId,
    /// The key that signed.
    pub key: PublicKey,
}

/// A registration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Register {
    /// The registering key.
    pub key: PublicKey,
    /// Source IP and stated port.
    pub endpoint: SocketAddr,
    /// Text naming the owner, or empty.
    pub owner: String,
    /// Wanted hostname, or empty.
    pub hostname: String,
    /// Whether possession of the key was proven.
    pub proven: bool,
    /// Whether a known owner text takes over that owner's node.
    pub takeover: bool,
}

/// The changes there are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "fields are those of the requests of the same name")]
pub enum Op {
    /// A node registers, again or for the first time.
    Register(Register),
    /// A node leaves.
    Deregister { by: Signer },
    /// A node becomes public or private.
    SetVisibility { by: Signer, public: bool },
    /// A node takes or clears a name.
    SetHostname { by: Signer, hostname: String },
    /// A node replaces its tags, already checked.
    SetTags { by: Signer, tags: Vec<String> },
    /// A node offers to execute tasks, or no longer.
    SetTaskExec { by: Signer, enabled: bool },
    /// A node states trust.
    ReportTrust { by: Signer, peer: NodeId },
    /// A node ends trust, for both.
    RevokeTrust { by: Signer, peer: NodeId },
    /// A node asks another for trust; this is its own statement of trust,
    /// unless it has refused or ended trust with that node before.
    RequestHandshake { by: Signer, to: NodeId, justification: String },
    /// A node answers.
    RespondHandshake { by: Signer, peer: NodeId, accept: bool },
    /// A node takes what waits for it.
    TakeHandshakes { by: Signer },
    /// A node changes its key.
    RotateKey { by: Signer, new_key: PublicKey },
    /// Anybody changes a score (unsigned in the published protocol).
    UpdatePoloScore { node: NodeId, delta: i64 },
    /// Anybody sets a score (unsigned in the published protocol).
    SetPoloScore { node: NodeId, polo_score: i64 },
    /// Silent nodes are removed unless they registered again since.
    Reap { silent: Vec<(NodeId, u64)> },
    /// A network begins.
    CreateNetwork { by: Actor, name: String, join: JoinPolicy, broadcast: BroadcastRight },
    /// A network changes; what is none stays.
    UpdateNetwork {
        by: Actor,
        network: u16,
        join: Option<JoinPolicy>,
        broadcast: Option<BroadcastRight>,
    },
    /// A network ends, and all memberships with it. Nobody sees it any more;
    /// if it has more than [`super::MAX_LEAVING`] members, those beyond are told
    /// with the next [`Op::Expire`].
    DeleteNetwork { by: Actor, network: u16 },
    /// A node joins, or renews its membership.
    JoinNetwork { by: Signer, network: u16, admission: Admission },
    /// An administrator puts a node in, as the published protocol has it.
    AddMember { by: Actor, node: NodeId, network: u16 },
    /// A node leaves (`by` is the node), or is removed (`by` is another).
    LeaveNetwork { by: Actor, node: NodeId, network: u16 },
    /// Memberships, tokens and invitations whose time has come at `at` end, at
    /// most [`super::MAX_ENDED`] of them; and members of deleted networks leave,
    /// at most [`super::MAX_LEAVING`].
    Expire {},
    /// A join token is made. Only salt and hash are kept.
    CreateToken {
        by: Actor,
        network: u16,
        id: String,
        #[serde(with = "hex32")]
        salt: [u8; 32],
        #[serde(with = "hex32")]
        hash: [u8; 32],
        uses: Option<u32>,
        expires: Option<u64>,
        tags: Vec<String>,
    },
    /// A join token ends.
    RevokeToken { by: Actor, network: u16, id: String },
    /// Somebody is invited.
    Invite {
        by: Actor,
        network: u16,
        to: Invitee,
        expires: u64,
        tags: Vec<String>,
        signature: Option<Signature>,
    },
    /// The invited node declines, or another takes the invitation back.
    EndInvitation { by: Actor, id: u64 },
    /// A node is removed and its key is good for nothing any more.
    RevokeNode { by: Actor, node: NodeId, reason: String },
    /// Something was refused before it became a command.
    Deny(Denial),
    /// What an import puts into an empty registry: one published record each.
    /// See `import`.
    Import(Box<Imported>),
}

/// A published state file, read and checked; see `crate::published`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// Number that the next new node gets.
    pub next_node: u32,
    /// Registered nodes.
    pub nodes: Vec<super::NodeRecord>,
    /// Every key ever registered.
    pub keys: Vec<(PublicKey, NodeId)>,
    /// Pairs; a published pair counts as stated by both.
    pub trust: Vec<(NodeId, NodeId)>,
    /// Requests that wait, by target.
    pub requests: Vec<(NodeId, Vec<pilot_wire::registry::HandshakeRequest>)>,
    /// Answers that wait, by target.
    pub answers: Vec<(NodeId, Vec<pilot_wire::registry::HandshakeAnswer>)>,
    /// Networks beside the backbone, with their members.
    pub networks: Vec<(super::NetworkRecord, Vec<super::Member>)>,
}

/// 32 bytes as hex text.
mod hex32 {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8; 32], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&hex::encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<[u8; 32], D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        let mut bytes = [0; 32];
        hex::decode_to_slice(text.as_ref(), &mut bytes).map_err(D::Error::custom)?;
        Ok(bytes)
    }
}

impl Op {
    /// Whether later requests are admitted differently once this is applied:
    /// it changes which nodes exist or what their keys are.
    pub const fn changes_admission(&self) -> bool {
        matches!(
            self,
            Self::Register(_)
                | Self::Deregister { .. }
                | Self::RotateKey { .. }
                | Self::Reap { .. }
                | Self::RevokeNode { .. }
                | Self::Import(_)
        )
    }
}
