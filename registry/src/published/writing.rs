//! A state as a published file. What the published registry does not know
//! (whose key is proven, who has withdrawn trust, tokens) is left out.

use std::io::Write;

use pilot_wire::NodeId;
use pilot_wire::registry::{HandshakeAnswer, HandshakeRequest, PublicKey};
use pilot_wire::service::rfc3339;
use serde::ser::{SerializeMap as _, SerializeSeq as _};
use serde::{Serialize, Serializer};

use crate::state::{NodeRecord, State};

/// Writes the state at `now`, Unix seconds: liveness is not part of a state,
/// so every node counts as heard of then.
///
/// # Errors
/// When `out` fails.
pub fn write(state: &State, now: u64, out: impl Write) -> serde_json::Result<()> {
    serde_json::to_writer(out, &File { state, now: time(now) })
}

fn time(unix: u64) -> String {
    rfc3339::format(i64::try_from(unix).unwrap_or(i64::MAX))
}

struct File<'a> {
    state: &'a State,
    now: String,
}

impl Serialize for File<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { state, now } = self;
        let mut file = serializer.serialize_map(None)?;
        file.serialize_entry("next_node", &state.next_node())?;
        file.serialize_entry("next_net", &state.next_network())?;
        let nodes = || state.nodes_after(NodeId(0));
        let texts =
            || nodes().map(|n| (n.record.id.to_string(), NodeText::new(state, &n.record, now)));
        file.serialize_entry("nodes", &Map(texts))?;
        let backbone = || NetworkText {
            id: 0,
            name: "backbone",
            join_rule: "open".to_owned(),
            members: nodes().map(|n| n.record.id).collect(),
            created: now.clone(),
        };
        let others = || {
            state.networks().map(|network| NetworkText {
                id: network.record.id,
                name: &network.record.name,
                join_rule: network.record.join.label(),
                members: network.members.keys().copied().collect(),
                created: time(network.record.created),
            })
        };
        let networks = || std::iter::once(backbone()).chain(others());
        file.serialize_entry("networks", &Map(|| networks().map(|n| (n.id.to_string(), n))))?;
        if state.mutual_pairs() > 0 {
            let pairs = || state.mutual().map(|(a, b)| format!("{a}:{b}"));
            file.serialize_entry("trust_pairs", &Seq(pairs))?;
        }
        let keys = || state.good_keys().map(|(key, node)| (key.to_string(), node));
        if keys().next().is_some() {
            file.serialize_entry("pub_key_idx", &Map(keys))?;
        }
        let requests = || {
            state.waiting().filter(|(_, requests, _)| !requests.is_empty()).map(
                |(node, requests, _)| {
                    let texts = requests.iter().map(RequestText::from).collect::<Vec<_>>();
                    (node.to_string(), texts)
                },
            )
        };
        if requests().next().is_some() {
            file.serialize_entry("handshake_inbox", &Map(requests))?;
        }
        let answers = || {
            state.waiting().filter(|(_, _, answers)| !answers.is_empty()).map(
                |(node, _, answers)| {
                    let texts = answers.into_iter().map(AnswerText::from).collect::<Vec<_>>();
                    (node.to_string(), texts)
                },
            )
        };
        if answers().next().is_some() {
            file.serialize_entry("handshake_responses", &Map(answers))?;
        }
        file.end()
    }
}

/// Entries made one by one.
struct Map<F>(F);

impl<K, V, I, F> Serialize for Map<F>
where
    K: Serialize,
    V: Serialize,
    I: Iterator<Item = (K, V)>,
    F: Fn() -> I,
{
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (key, value) in (self.0)() {
            map.serialize_entry(&key, &value)?;
        }
        map.end()
    }
}

/// Items made one by one.
struct Seq<F>(F);

impl<V, I, F> Serialize for Seq<F>
where
    V: Serialize,
    I: Iterator<Item = V>,
    F: Fn() -> I,
{
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut seq = serializer.serialize_seq(None)?;
        for value in (self.0)() {
            seq.serialize_element(&value)?;
        }
        seq.end()
    }
}

#[derive(Serialize)]
struct NodeText<'a> {
    id: NodeId,
    #[serde(skip_serializing_if = "str::is_empty")]
    owner: &'a str,
    public_key: PublicKey,
    real_addr: String,
    networks: Vec<u16>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    public: bool,
    last_seen: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    hostname: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    tags: &'a [String],
    #[serde(skip_serializing_if = "is_zero")]
    polo_score: i64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    task_exec: bool,
}

fn is_zero(score: &i64) -> bool {
    *score == 0
}

impl<'a> NodeText<'a> {
    fn new(state: &'a State, record: &'a NodeRecord, now: &'a str) -> Self {
        let networks = state.memberships(record.id).map(|(network, _)| network.record.id);
        Self {
            id: record.id,
            owner: &record.owner,
            public_key: record.key,
            real_addr: record.endpoint.to_string(),
            networks: std::iter::once(0).chain(networks).collect(),
            public: record.public,
            last_seen: now,
            hostname: &record.hostname,
            tags: &record.tags,
            polo_score: record.polo_score,
            task_exec: record.task_exec,
        }
    }
}

#[derive(Serialize)]
struct NetworkText<'a> {
    id: u16,
    name: &'a str,
    join_rule: String,
    members: Vec<NodeId>,
    created: String,
}

#[derive(Serialize)]
struct RequestText<'a> {
    from_node_id: NodeId,
    justification: &'a str,
    timestamp: String,
}

impl<'a> From<&'a HandshakeRequest> for RequestText<'a> {
    fn from(request: &'a HandshakeRequest) -> Self {
        Self {
            from_node_id: request.from_node_id,
            justification: &request.justification,
            timestamp: time(request.timestamp),
        }
    }
}

#[derive(Serialize)]
struct AnswerText {
    from_node_id: NodeId,
    accept: bool,
    timestamp: String,
}

impl From<&HandshakeAnswer> for AnswerText {
    fn from(answer: &HandshakeAnswer) -> Self {
        Self {
            from_node_id: answer.from_node_id,
            accept: answer.accept,
            timestamp: time(answer.timestamp),
        }
    }
}
