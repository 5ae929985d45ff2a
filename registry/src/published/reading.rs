//! A published file, read and checked. The published registry leaves out what
//! it cannot read; here it is named and the file refused, except for a node
//! without a usable address, which is as good as one that is not registered.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;

use pilot_wire::NodeId;
use pilot_wire::registry::network::{BroadcastRight, JoinPolicy};
use pilot_wire::registry::{HandshakeAnswer, HandshakeRequest, PublicKey};
use pilot_wire::service::rfc3339;
use serde::{Deserialize, Deserializer};

use crate::state::{
    Imported, MAX_ANSWERS, MAX_JUSTIFICATION, MAX_OWNER, MAX_REQUESTS, Member, NetworkRecord,
    NodeRecord, check_hostname, check_tags,
};

/// What is written as `null` for want of anything.
fn or_empty<'de, T, D>(text: D) -> Result<T, D::Error>
where
    T: Default + Deserialize<'de>,
    D: Deserializer<'de>,
{
    Option::deserialize(text).map(Option::unwrap_or_default)
}

/// Why a file is refused.
#[derive(Debug, thiserror::Error)]
pub enum PublishedError {
    /// It is no published state file.
    #[error("it is not a published state file: {0}")]
    Json(#[from] serde_json::Error),
    /// A part of it means nothing.
    #[error("{place}: {problem}; correct or remove it in the file")]
    Part {
        /// Which part.
        place: String,
        /// What is wrong.
        problem: String,
    },
}

fn part(place: impl ToString, problem: impl ToString) -> PublishedError {
    PublishedError::Part { place: place.to_string(), problem: problem.to_string() }
}

/// What a file says.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// What an empty registry is told.
    pub imported: Imported,
    /// Nodes taken as not registered now, for want of a usable address.
    pub absent: Vec<NodeId>,
    /// What else was left out, in words.
    pub notes: Vec<String>,
}

#[derive(Deserialize)]
struct File {
    next_node: u32,
    #[serde(default, deserialize_with = "or_empty")]
    nodes: BTreeMap<u32, NodeText>,
    #[serde(default, deserialize_with = "or_empty")]
    networks: BTreeMap<u16, NetworkText>,
    #[serde(default, deserialize_with = "or_empty")]
    trust_pairs: Vec<String>,
    #[serde(default, deserialize_with = "or_empty")]
    pub_key_idx: BTreeMap<String, u32>,
    #[serde(default, deserialize_with = "or_empty")]
    handshake_inbox: BTreeMap<u32, Vec<RequestText>>,
    #[serde(default, deserialize_with = "or_empty")]
    handshake_responses: BTreeMap<u32, Vec<AnswerText>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct NodeText {
    id: u32,
    owner: String,
    public_key: String,
    real_addr: String,
    public: bool,
    hostname: String,
    #[serde(deserialize_with = "or_empty")]
    tags: Vec<String>,
    polo_score: i64,
    task_exec: bool,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct NetworkText {
    id: u16,
    name: String,
    join_rule: String,
    token: String,
    #[serde(deserialize_with = "or_empty")]
    members: Vec<u32>,
    created: String,
}

#[derive(Deserialize)]
struct RequestText {
    from_node_id: NodeId,
    #[serde(default)]
    justification: String,
    #[serde(default)]
    timestamp: String,
}

#[derive(Deserialize)]
struct AnswerText {
    from_node_id: NodeId,
    #[serde(default)]
    accept: bool,
    #[serde(default)]
    timestamp: String,
}

/// Reads a file.
///
/// # Errors
/// When it is no such file, or a part of it means nothing.
pub fn read(text: &[u8]) -> Result<Reading, PublishedError> {
    let file: File = serde_json::from_slice(text)?;
    let mut reading = Reading::default();
    let mut holders = HashMap::new();
    let mut keys = BTreeMap::new();
    for (id, text) in file.nodes {
        let (record, key) = node(id, text)?;
        keys.insert(NodeId(id), key);
        match record {
            Some(record) => {
                let name = &record.hostname;
                if !name.is_empty()
                    && let Some(other) = holders.insert(name.clone(), id)
                {
                    let problem = format!("its hostname {name:?} is that of node {other} too");
                    return Err(part(format!("node {id}"), problem));
                }
                reading.imported.nodes.push(record);
            }
            None => reading.absent.push(NodeId(id)),
        }
    }
    index(file.pub_key_idx, &mut keys, &mut reading.notes)?;
    reading.imported.keys = keys.iter().map(|(node, key)| (*key, *node)).collect();
    let known = keys.keys().next_back().map_or(0, |last| last.0);
    reading.imported.next_node = file.next_node.max(known.saturating_add(1)).max(1);
    reading.imported.trust = pairs(&file.trust_pairs)?;
    for (id, network) in file.networks.into_iter().filter(|(id, _)| *id != 0) {
        if !network.token.is_empty() {
            let name = &network.name;
            reading.notes.push(format!(
                "network {name:?}: its token is not taken over; make a new one for it"
            ));
        }
        reading.imported.networks.push(self::network(id, network)?);
    }
    reading.imported.requests = requests(file.handshake_inbox, &mut reading.notes);
    reading.imported.answers = answers(file.handshake_responses, &mut reading.notes);
    Ok(reading)
}

/// The record, if the node is registered, and its key.
fn node(id: u32, text: NodeText) -> Result<(Option<NodeRecord>, PublicKey), PublishedError> {
    let place = || format!("node {id}");
    if text.id != id || id == 0 {
        return Err(part(place(), format!("its id is {}", text.id)));
    }
    let key = self::key(&text.public_key)
        .ok_or_else(|| part(place(), "its public_key is not 32 bytes of base64"))?;
    if text.owner.len() > MAX_OWNER {
        return Err(part(place(), format!("its owner is longer than {MAX_OWNER} bytes")));
    }
    if !text.hostname.is_empty() {
        check_hostname(&text.hostname).map_err(|e| part(place(), e))?;
    }
    let tags: Vec<_> = text.tags.iter().map(|tag| Cow::Borrowed(tag.as_str())).collect();
    let tags = check_tags(&tags).map_err(|e| part(place(), e))?;
    let record = text.real_addr.parse::<SocketAddr>().ok().map(|endpoint| NodeRecord {
        id: NodeId(id),
        key,
        endpoint,
        registered_by: 1,
        owner: text.owner,
        hostname: text.hostname,
        public: text.public,
        tags,
        polo_score: text.polo_score,
        task_exec: text.task_exec,
    });
    Ok((record, key))
}

fn key(text: &str) -> Option<PublicKey> {
    serde_json::from_value(text.into()).ok()
}

/// Adds the keys of nodes that are not registered now. One number has one key.
fn index(
    index: BTreeMap<String, u32>,
    keys: &mut BTreeMap<NodeId, PublicKey>,
    notes: &mut Vec<String>,
) -> Result<(), PublishedError> {
    let registered: BTreeSet<_> = keys.keys().copied().collect();
    let mut taken: HashMap<PublicKey, NodeId> = keys.iter().map(|(n, k)| (*k, *n)).collect();
    if taken.len() < keys.len() {
        return Err(part("nodes", "two of them have one public_key"));
    }
    for (text, id) in index {
        let place = || format!("pub_key_idx {text:?}");
        let key = key(&text).ok_or_else(|| part(place(), "it is not 32 bytes of base64"))?;
        let node = NodeId(id);
        if id == 0 {
            return Err(part(place(), "it belongs to node 0"));
        }
        match taken.get(&key) {
            Some(holder) if *holder == node => {}
            Some(holder) => {
                return Err(part(place(), format!("it is the key of node {holder}, not {id}")));
            }
            None if registered.contains(&node) => {
                notes.push(format!("the key {text} was one of node {id} before; it is forgotten"));
            }
            None => {
                // Nothing says which of them is the right one.
                if let Some(other) = keys.insert(node, key) {
                    return Err(part(place(), format!("node {id} has the key {other} too")));
                }
                taken.insert(key, node);
            }
        }
    }
    Ok(())
}

fn pairs(texts: &[String]) -> Result<Vec<(NodeId, NodeId)>, PublishedError> {
    let pair = |text: &String| -> Option<(NodeId, NodeId)> {
        let (a, b) = text.split_once(':')?;
        let (a, b) = (NodeId(a.parse().ok()?), NodeId(b.parse().ok()?));
        Some((a.min(b), a.max(b)))
    };
    let mut pairs = BTreeSet::new();
    for text in texts {
        let pair = pair(text).ok_or_else(|| {
            part(format!("trust_pairs {text:?}"), "it is not two node IDs with a colon between")
        })?;
        // Trust with oneself says nothing.
        if pair.0 != pair.1 {
            pairs.insert(pair);
        }
    }
    Ok(pairs.into_iter().collect())
}

fn network(id: u16, text: NetworkText) -> Result<(NetworkRecord, Vec<Member>), PublishedError> {
    let place = || format!("network {id}");
    if text.id != id {
        return Err(part(place(), format!("its id is {}", text.id)));
    }
    if text.join_rule.is_empty() {
        return Err(part(place(), "it has no join_rule"));
    }
    let created = time(&text.created);
    let members: BTreeSet<_> = text.members.into_iter().map(NodeId).collect();
    let member = |node| Member {
        node,
        joined: created,
        rule: text.join_rule.clone(),
        expires: None,
        tags: Vec::new(),
        external_identity: None,
    };
    let members = members.into_iter().map(member).collect();
    let record = NetworkRecord {
        id,
        name: text.name,
        join: JoinPolicy::of(&text.join_rule),
        broadcast: BroadcastRight::default(),
        owner: None,
        created,
    };
    Ok((record, members))
}

/// Unix seconds; 0 for what is no time.
fn time(text: &str) -> u64 {
    rfc3339::parse(text).and_then(|millis| u64::try_from(millis / 1000).ok()).unwrap_or(0)
}

fn requests(
    inboxes: BTreeMap<u32, Vec<RequestText>>,
    notes: &mut Vec<String>,
) -> Vec<(NodeId, Vec<HandshakeRequest>)> {
    let mut all = Vec::new();
    for (node, texts) in inboxes.into_iter().filter(|(_, texts)| !texts.is_empty()) {
        if texts.len() > MAX_REQUESTS {
            notes.push(format!("node {node}: handshake requests after the first {MAX_REQUESTS}"));
        }
        let request = |mut text: RequestText| {
            let end = text.justification.floor_char_boundary(MAX_JUSTIFICATION);
            text.justification.truncate(end);
            HandshakeRequest {
                from_node_id: text.from_node_id,
                justification: text.justification,
                timestamp: time(&text.timestamp),
            }
        };
        all.push((NodeId(node), texts.into_iter().take(MAX_REQUESTS).map(request).collect()));
    }
    all
}

fn answers(
    inboxes: BTreeMap<u32, Vec<AnswerText>>,
    notes: &mut Vec<String>,
) -> Vec<(NodeId, Vec<HandshakeAnswer>)> {
    let mut all = Vec::new();
    for (node, texts) in inboxes.into_iter().filter(|(_, texts)| !texts.is_empty()) {
        let old = texts.len().saturating_sub(MAX_ANSWERS);
        if old > 0 {
            notes.push(format!("node {node}: handshake answers but the last {MAX_ANSWERS}"));
        }
        let answer = |text: AnswerText| HandshakeAnswer {
            from_node_id: text.from_node_id,
            accept: text.accept,
            timestamp: time(&text.timestamp),
        };
        all.push((NodeId(node), texts.into_iter().skip(old).map(answer).collect()));
    }
    all
}
