//! The least registry and beacon that two published peers need, in process,
//! so that the peer can be tested on its own. Nothing is stored.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use ed25519_dalek::{Signature, Verifier as _, VerifyingKey};
use pilot_wire::{Address, NodeId, beacon};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinHandle;

use super::registry::{base64, node, read_message, unbase64, write_message};

#[derive(Default)]
struct State {
    nodes: BTreeMap<NodeId, Record>,
    pairs: BTreeSet<(NodeId, NodeId)>,
}

struct Record {
    key: [u8; 32],
    endpoint: String,
    public: bool,
    requests: Vec<Value>,
    responses: Vec<Value>,
}

/// A registry and a beacon on loopback, gone when dropped.
pub struct Rendezvous {
    /// host:port of the registry.
    pub registry: String,
    /// The beacon.
    pub beacon: SocketAddr,
    tasks: Vec<JoinHandle<()>>,
}

impl Rendezvous {
    /// Starts both.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let socket = UdpSocket::bind("127.0.0.1:0").await?;
        let (registry, beacon) = (listener.local_addr()?.to_string(), socket.local_addr()?);
        let tasks = vec![tokio::spawn(serve(listener)), tokio::spawn(serve_beacon(socket))];
        Ok(Self { registry, beacon, tasks })
    }
}

impl Drop for Rendezvous {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn serve(listener: TcpListener) {
    let state = Arc::new(Mutex::new(State::default()));
    while let Ok((connection, _)) = listener.accept().await {
        tokio::spawn(answer(connection, Arc::clone(&state)));
    }
}

async fn answer(mut connection: TcpStream, state: Arc<Mutex<State>>) {
    while let Ok(request) = read_message(&mut connection).await {
        let reply = state.lock().unwrap_or_else(PoisonError::into_inner).apply(&request);
        let refused = json!({"type": "error", "error": "request failed"});
        if write_message(&mut connection, &reply.unwrap_or(refused)).await.is_err() {
            return;
        }
    }
}

fn pair(a: NodeId, b: NodeId) -> (NodeId, NodeId) {
    (a.min(b), a.max(b))
}

impl State {
    fn apply(&mut self, request: &Value) -> Option<Value> {
        let kind = request["type"].as_str()?;
        let id = |key: &str| node(&request[key]);
        let mut reply = match kind {
            "register" => self.register(request)?,
            "lookup" => {
                let (node, record) = id("node_id").and_then(|n| Some((n, self.nodes.get(&n)?)))?;
                json!({
                    "node_id": node,
                    "address": Address::backbone(node),
                    "networks": [0],
                    "public_key": base64(&record.key),
                    "public": record.public,
                    "polo_score": 0,
                })
            }
            "resolve" => {
                let (node, requester) = (id("node_id")?, id("requester_id")?);
                self.verify(requester, &format!("resolve:{requester}:{node}"), request)?;
                let record = self.nodes.get(&node)?;
                let allowed = record.public || self.pairs.contains(&pair(node, requester));
                allowed.then(|| json!({"node_id": node, "real_addr": record.endpoint}))?
            }
            "request_handshake" => {
                let (from, to) = (id("from_node_id")?, id("to_node_id")?);
                self.verify(from, &format!("handshake:{from}:{to}"), request)?;
                let waiting = json!({
                    "from_node_id": from,
                    "justification": request["justification"],
                    "timestamp": 0,
                });
                self.nodes.get_mut(&to)?.requests.push(waiting);
                json!({"status": "delivered"})
            }
            _ => self.signed(kind, id("node_id")?, id("peer_id"), request)?,
        };
        reply["type"] = format!("{kind}_ok").into();
        Some(reply)
    }

    fn signed(
        &mut self,
        kind: &str,
        own: NodeId,
        peer: Option<NodeId>,
        request: &Value,
    ) -> Option<Value> {
        let name = if kind == "respond_handshake" { "respond" } else { kind };
        let challenge = match peer {
            Some(peer) => format!("{name}:{own}:{peer}"),
            None => format!("{name}:{own}"),
        };
        self.verify(own, &challenge, request)?;
        let record = self.nodes.get_mut(&own)?;
        Some(match kind {
            "heartbeat" => json!({"time": 0}),
            "set_visibility" => {
                record.public = request["public"] == true;
                json!({"node_id": own, "visibility": if record.public { "public" } else { "private" }})
            }
            "poll_handshakes" => json!({
                "requests": std::mem::take(&mut record.requests),
                "responses": std::mem::take(&mut record.responses),
            }),
            "report_trust" => {
                self.pairs.insert(pair(own, peer?));
                json!({})
            }
            "revoke_trust" => self.pairs.remove(&pair(own, peer?)).then(|| json!({}))?,
            "respond_handshake" => {
                let (peer, accept) = (peer?, request["accept"] == true);
                if accept {
                    self.pairs.insert(pair(own, peer));
                }
                let answer = json!({"from_node_id": own, "accept": accept, "timestamp": 0});
                self.nodes.get_mut(&peer)?.responses.push(answer);
                json!({"accept": accept, "peer_id": peer})
            }
            "deregister" => {
                self.nodes.remove(&own);
                json!({})
            }
            _ => return None,
        })
    }

    fn register(&mut self, request: &Value) -> Option<Value> {
        let key: [u8; 32] = unbase64(request["public_key"].as_str()?)?;
        let endpoint = request["listen_addr"].as_str()?.to_owned();
        let known = self.nodes.iter().find(|(_, r)| r.key == key).map(|(n, _)| *n);
        let next = self.nodes.keys().next_back().map_or(1, |n| n.0 + 1);
        let id = known.unwrap_or(NodeId(next));
        let record = self.nodes.entry(id).or_insert(Record {
            key,
            endpoint: String::new(),
            public: false,
            requests: Vec::new(),
            responses: Vec::new(),
        });
        record.endpoint = endpoint;
        Some(json!({
            "node_id": id,
            "address": Address::backbone(id),
            "network_id": 0,
            "public_key": base64(&key),
        }))
    }

    fn verify(&self, node: NodeId, challenge: &str, request: &Value) -> Option<()> {
        let key = VerifyingKey::from_bytes(&self.nodes.get(&node)?.key).ok()?;
        let signature = Signature::from_bytes(&unbase64(request["signature"].as_str()?)?);
        key.verify(challenge.as_bytes(), &signature).ok()
    }
}

async fn serve_beacon(socket: UdpSocket) {
    let mut seen: BTreeMap<NodeId, SocketAddr> = BTreeMap::new();
    let mut buffer = vec![0; pilot_wire::tunnel::MAX_DATAGRAM];
    loop {
        let Ok((len, from)) = socket.recv_from(&mut buffer).await else { continue };
        let mut answers: Vec<(SocketAddr, beacon::Message<'_>)> = Vec::new();
        match beacon::Message::parse(&buffer[..len]) {
            Ok(beacon::Message::Discover { node }) => {
                seen.insert(node, from);
                answers.push((from, beacon::Message::DiscoverReply { endpoint: from }));
            }
            Ok(beacon::Message::PunchRequest { requester, target }) => {
                seen.insert(requester, from);
                if let Some(endpoint) = seen.get(&target).copied() {
                    answers.push((from, beacon::Message::PunchCommand { endpoint }));
                    answers.push((endpoint, beacon::Message::PunchCommand { endpoint: from }));
                }
            }
            Ok(beacon::Message::Relay { sender, destination, frame }) => {
                if let Some(endpoint) = seen.get(&destination) {
                    answers.push((*endpoint, beacon::Message::RelayDeliver { sender, frame }));
                }
            }
            _ => {}
        }
        for (to, message) in answers {
            let mut datagram = Vec::new();
            message.encode(&mut datagram);
            let _ = socket.send_to(&datagram, to).await;
        }
    }
}
