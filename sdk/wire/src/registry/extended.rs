//! Requests beyond the published ones, read strictly: an unknown or missing key
//! is an error that names it. On a session (see [`super::session`]) the acting
//! node is the session's; otherwise `admin_token` makes the asker an
//! administrator, which is a key beside those here, as is `request_id`, a text
//! of the client's that the audit log repeats.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::audit::AuditFilter;
use super::frame::{FrameError, append_frame};
use super::key::Signature;
use super::network::{BroadcastRight, Invitee, JoinPolicy, NetworkRef};
use crate::address::NodeId;

/// Keys that any of these requests may have beside its own.
const COMMON: [&str; 2] = ["admin_token", "request_id"];

/// One request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Extended {
    /// Asks for a nonce. Answer: [`super::SessionChallenged`].
    SessionChallenge {},
    /// Makes the connection a session. Answer: [`super::SessionOpened`].
    SessionOpen {
        /// Who opens it.
        node_id: NodeId,
        /// Of [`super::challenge::session`].
        signature: Signature,
        /// Epoch of the last session; empty for none.
        #[serde(default)]
        epoch: String,
        /// `seq` of the last news that was handled.
        #[serde(default)]
        since: u64,
        /// Peers to watch from the start, at most [`super::session::MAX_WATCHED`].
        /// Each is told of, also when the session resumes, as they may be
        /// others than before.
        #[serde(default)]
        peers: Vec<NodeId>,
    },
    /// Changes which peers are watched; each added one is told of at once.
    /// Answer: [`super::SessionWatched`].
    SessionWatch {
        /// From now on.
        #[serde(default)]
        add: Vec<NodeId>,
        /// No longer.
        #[serde(default)]
        remove: Vec<NodeId>,
    },
    /// Makes a network. Answer: [`super::NetworkMade`].
    NetworkCreate {
        /// As a hostname, not reserved, unique.
        name: String,
        /// Who may join.
        join: JoinPolicy,
        /// Who may broadcast.
        #[serde(default)]
        broadcast: BroadcastRight,
    },
    /// Changes a network. Answer: [`super::NetworkMade`].
    NetworkUpdate {
        /// Which.
        network: NetworkRef,
        /// Who may join from now on; members stay.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        join: Option<JoinPolicy>,
        /// Who may broadcast from now on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        broadcast: Option<BroadcastRight>,
    },
    /// Ends a network and all memberships. Answer: [`super::NetworkDone`].
    NetworkDelete {
        /// Which.
        network: NetworkRef,
    },
    /// The acting node joins; joining again judges anew and renews. Answer:
    /// [`super::NetworkJoined`].
    NetworkJoin {
        /// Which.
        network: NetworkRef,
        /// By the name of the rule, what is shown to it: `{"token": "..."}`.
        #[serde(default)]
        proofs: Map<String, Value>,
    },
    /// The acting node leaves. Answer: [`super::NetworkDone`].
    NetworkLeave {
        /// Which.
        network: NetworkRef,
    },
    /// The owner or an administrator removes a member. Answer:
    /// [`super::NetworkDone`].
    NetworkRemove {
        /// From which.
        network: NetworkRef,
        /// Whom.
        node_id: NodeId,
    },
    /// Answer: [`super::NetworkViews`].
    NetworkList {},
    /// For members, the owner and administrators; in order of node numbers.
    /// Answer: [`super::Members`].
    NetworkMembers {
        /// Of which.
        network: NetworkRef,
        /// Nodes after this one.
        #[serde(default)]
        after: NodeId,
        /// At most 1,000; 0 for that.
        #[serde(default)]
        limit: u32,
    },
    /// Makes a join token. Answer: [`super::TokenMade`], with the secret.
    TokenCreate {
        /// For which.
        network: NetworkRef,
        /// How many nodes it lets in; none for any number.
        #[serde(default)]
        uses: Option<u32>,
        /// Until when, Unix seconds; none for ever.
        #[serde(default)]
        expires: Option<u64>,
        /// Tags for who joins with it.
        #[serde(default)]
        tags: Vec<String>,
    },
    /// Answer: [`super::Tokens`].
    TokenList {
        /// Of which.
        network: NetworkRef,
    },
    /// Answer: [`super::NetworkDone`].
    TokenRevoke {
        /// Of which.
        network: NetworkRef,
        /// The token's name.
        id: String,
    },
    /// Invites. Answer: [`super::InvitationMade`].
    Invite {
        /// Where to.
        network: NetworkRef,
        /// Whom.
        to: Invitee,
        /// Until when, Unix seconds.
        expires: u64,
        /// Tags for who accepts.
        #[serde(default)]
        tags: Vec<String>,
        /// By the acting node, of [`super::challenge::invite`]; none from an
        /// administrator.
        #[serde(default)]
        signature: Option<Signature>,
    },
    /// Those for the acting node, or with `network` those of a network.
    /// Answer: [`super::Invitations`].
    InvitationList {
        /// Of which network.
        #[serde(default)]
        network: Option<NetworkRef>,
    },
    /// The invited node declines; it accepts by joining. Answer:
    /// [`super::NetworkDone`].
    InvitationDecline {
        /// Which.
        id: u64,
    },
    /// The inviter, the owner or an administrator takes it back. Answer:
    /// [`super::NetworkDone`].
    InvitationRevoke {
        /// Which.
        id: u64,
    },
    /// An administrator removes a node and forbids its key for ever. Answer:
    /// [`super::NodeRevoked`].
    NodeRevoke {
        /// Which.
        node_id: NodeId,
        /// Why, for the audit log.
        #[serde(default)]
        reason: String,
    },
    /// For administrators. Answer: [`super::AuditPage`].
    AuditQuery(AuditFilter),
}

/// Most keys among which the one is looked for that an error is about; no
/// request has more, and a key that no request has is named anyway.
const MAX_KEYS: usize = 16;

/// The error with the key that it is about: the one without which there is
/// another error, or none.
fn named(error: serde_json::Error, map: &Map<String, Value>) -> serde_json::Error {
    let text = error.to_string();
    let names_it = ["missing field", "unknown field"].iter().any(|s| text.starts_with(s));
    if names_it || map.len() > MAX_KEYS {
        return error;
    }
    let is_about = |key: &&String| {
        let mut rest = map.clone();
        rest.remove(*key);
        let other = Extended::deserialize(&rest).err();
        other.is_none_or(|other| other.to_string() != text)
    };
    match map.keys().filter(|key| *key != "type").find(is_about) {
        Some(key) => serde::de::Error::custom(format!("{key}: {text}")),
        None => error,
    }
}

/// A request with what may stand beside its own keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Envelope {
    /// What is asked.
    pub request: Extended,
    /// What makes the asker an administrator; empty for nothing.
    pub admin_token: String,
    /// The client's text for the audit log, or empty.
    pub request_id: String,
}

impl Extended {
    /// Whether a request of this type is one of these.
    pub fn knows(kind: &str) -> bool {
        matches!(
            kind,
            "session_challenge"
                | "session_open"
                | "session_watch"
                | "network_create"
                | "network_update"
                | "network_delete"
                | "network_join"
                | "network_leave"
                | "network_remove"
                | "network_list"
                | "network_members"
                | "token_create"
                | "token_list"
                | "token_revoke"
                | "invite"
                | "invitation_list"
                | "invitation_decline"
                | "invitation_revoke"
                | "node_revoke"
                | "audit_query"
        )
    }
}

impl Envelope {
    /// Without anything beside it.
    pub const fn new(request: Extended) -> Self {
        Self { request, admin_token: String::new(), request_id: String::new() }
    }

    /// Reads one body.
    ///
    /// # Errors
    /// Names the key that is missing, unknown or of a wrong type.
    pub fn parse(body: &[u8]) -> Result<Self, serde_json::Error> {
        let mut map: Map<String, Value> = serde_json::from_slice(body)?;
        let [admin_token, request_id] = COMMON.map(|key| match map.remove(key) {
            Some(Value::String(text)) => text,
            _ => String::new(),
        });
        let request = Extended::deserialize(&map).map_err(|error| named(error, &map))?;
        Ok(Self { request, admin_token, request_id })
    }

    /// Appends the request as one frame.
    ///
    /// # Errors
    /// When the body would exceed the frame limit; `out` is then unchanged.
    pub fn append_to(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        #[derive(Serialize)]
        struct Whole<'a> {
            #[serde(flatten)]
            request: &'a Extended,
            #[serde(skip_serializing_if = "str::is_empty")]
            admin_token: &'a str,
            #[serde(skip_serializing_if = "str::is_empty")]
            request_id: &'a str,
        }
        let Self { request, admin_token, request_id } = self;
        append_frame(out, &Whole { request, admin_token, request_id })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::registry::FrameBuffer;

    fn parse(body: &Value) -> Result<Envelope, String> {
        Envelope::parse(body.to_string().as_bytes()).map_err(|e| e.to_string())
    }

    fn all() -> Vec<Extended> {
        let network = NetworkRef::Name("lab".to_owned());
        vec![
            Extended::SessionChallenge {},
            Extended::SessionOpen {
                node_id: NodeId(7),
                signature: Signature([2; 64]),
                epoch: "e".to_owned(),
                since: 9,
                peers: vec![NodeId(8)],
            },
            Extended::SessionWatch { add: vec![NodeId(8)], remove: vec![NodeId(9)] },
            Extended::NetworkCreate {
                name: "lab".to_owned(),
                join: JoinPolicy::of("open"),
                broadcast: BroadcastRight::Tagged("loud".to_owned()),
            },
            Extended::NetworkUpdate {
                network: NetworkRef::Id(3),
                join: None,
                broadcast: Some(BroadcastRight::Members),
            },
            Extended::NetworkDelete { network: network.clone() },
            Extended::NetworkJoin {
                network: network.clone(),
                proofs: Map::from_iter([("token".to_owned(), json!("secret"))]),
            },
            Extended::NetworkLeave { network: network.clone() },
            Extended::NetworkRemove { network: network.clone(), node_id: NodeId(8) },
            Extended::NetworkList {},
            Extended::NetworkMembers { network: network.clone(), after: NodeId(5), limit: 10 },
            Extended::TokenCreate {
                network: network.clone(),
                uses: Some(1),
                expires: None,
                tags: vec!["blue".to_owned()],
            },
            Extended::TokenList { network: network.clone() },
            Extended::TokenRevoke { network: network.clone(), id: "t".to_owned() },
            Extended::Invite {
                network: network.clone(),
                to: Invitee::Node(NodeId(8)),
                expires: 99,
                tags: Vec::new(),
                signature: None,
            },
            Extended::InvitationList { network: Some(network) },
            Extended::InvitationDecline { id: 4 },
            Extended::InvitationRevoke { id: 4 },
            Extended::NodeRevoke { node_id: NodeId(8), reason: "lost".to_owned() },
            Extended::AuditQuery(AuditFilter::default()),
        ]
    }

    #[test]
    fn every_request_reads_as_it_was_written() {
        for request in all() {
            let envelope = Envelope {
                request,
                admin_token: "sixteen letters!".to_owned(),
                request_id: "r-1".to_owned(),
            };
            let mut frame = Vec::new();
            envelope.append_to(&mut frame).unwrap();
            let mut input = FrameBuffer::new();
            input.push(&frame);
            let body = input.next_body().unwrap().unwrap();
            assert_eq!(Envelope::parse(body).unwrap(), envelope);
            let kind: Value = serde_json::from_slice(body).unwrap();
            assert!(Extended::knows(kind["type"].as_str().unwrap()), "{kind}");
        }
        assert!(!Extended::knows("lookup") && !Extended::knows(""));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let unknown = parse(&json!({"type": "session_watch", "ad": [1]})).unwrap_err();
        assert!(unknown.contains("unknown field `ad`"), "{unknown}");
        let missing = parse(&json!({"type": "network_leave"})).unwrap_err();
        assert!(missing.contains("missing field `network`"), "{missing}");
        let kind = parse(&json!({"type": "network_sell"})).unwrap_err();
        assert!(kind.contains("unknown variant `network_sell`"), "{kind}");
        for wrong in [
            json!({"type": "session_watch", "add": "all"}),
            json!({"type": "session_open", "node_id": 1, "signature": "short"}),
            json!({"type": "network_leave", "network": -1}),
            json!({"type": "network_leave", "network": 65_536}),
            json!({"type": "invite", "network": 1, "to": {"everybody": 1}, "expires": 1}),
            json!({"type": "network_create", "name": "n", "join": {"rule": "open"}}),
            json!([1]),
            json!(null),
        ] {
            assert!(parse(&wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_can_be_left_out_is_empty() {
        let opened = parse(&json!({"type": "session_open", "node_id": 7,
                                   "signature": Signature([2; 64]).to_string()}));
        let Ok(Extended::SessionOpen { epoch, since, peers, .. }) = opened.map(|e| e.request)
        else {
            panic!("not a session_open");
        };
        assert!(epoch.is_empty() && since == 0 && peers.is_empty());
        assert_eq!(parse(&json!({"type": "session_watch"})).unwrap().admin_token, "");
    }
}
