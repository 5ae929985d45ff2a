//! Questions about peers, and commands of the user. Answers come from pinned
//! and remembered keys where they may, from the registry otherwise.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pilot_host::events::Happening;
use pilot_wire::NodeId;
use pilot_wire::registry::Lookup;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::handle::{Ask, Call};
use super::member::Member;
use super::membership::Order;
use super::registry::RegistryError;
use super::{CallError, ControlEvent, ControlParts, ControlStatus};
use crate::events::Events;
use crate::networks::Networks;
use crate::node::NodeHandle;
use crate::plugins::PeerBook;
use crate::state::Store;
use crate::trust::{Command, Pins, TrustHandle};

/// Questions and commands being worked on; beyond it questions of the loop are
/// answered with nothing, others with an error.
const MAX_RUNNING: usize = 1024;
/// A key that the registry gave is taken as current for this long.
const FRESH: Duration = Duration::from_secs(300);
/// A node that the registry does not know is not asked for again for this long.
const REFUSED: Duration = Duration::from_secs(5);
/// Nodes remembered as fresh or refused; at the bound all are forgotten, which
/// costs lookups.
const MAX_NODES: usize = 4096;
/// Key lookups that strangers can cause, per second and at once.
const LOOKUP_RATE: f64 = 50.0;
const LOOKUP_BURST: f64 = 100.0;

enum Found {
    Key(NodeId, Result<Lookup, RegistryError>),
    Endpoint(NodeId, Option<SocketAddr>),
    Done,
}

/// Who waits for a key.
#[derive(Default)]
struct Waiters {
    loop_asked: bool,
    others: Vec<oneshot::Sender<Option<[u8; 32]>>>,
}

pub(super) struct Lookups {
    member: Member,
    store: Store,
    pins: Pins,
    node: NodeHandle,
    trust: TrustHandle,
    peers: PeerBook,
    networks: Networks,
    events: Events,
    orders: mpsc::Sender<Order>,
    status: Arc<watch::Sender<ControlStatus>>,
    keys: HashMap<NodeId, Waiters>,
    endpoints: HashSet<NodeId>,
    fresh: HashMap<NodeId, Instant>,
    refused: HashMap<NodeId, Instant>,
    /// What was found when this node was in other networks says nothing of who
    /// shares those of now.
    generation: u64,
    tokens: f64,
    refilled: Instant,
    running: JoinSet<Found>,
}

impl Lookups {
    pub(super) fn new(
        parts: &ControlParts,
        orders: mpsc::Sender<Order>,
        status: Arc<watch::Sender<ControlStatus>>,
    ) -> Self {
        Self {
            member: parts.member.clone(),
            store: parts.store.clone(),
            pins: parts.pins.clone(),
            node: parts.node.clone(),
            trust: parts.trust.clone(),
            peers: parts.peers.clone(),
            networks: parts.networks.clone(),
            events: parts.events.clone(),
            orders,
            status,
            keys: HashMap::new(),
            endpoints: HashSet::new(),
            fresh: HashMap::new(),
            refused: HashMap::new(),
            generation: 0,
            tokens: LOOKUP_BURST,
            refilled: Instant::now(),
            running: JoinSet::new(),
        }
    }

    pub(super) async fn run(mut self, mut asks: mpsc::Receiver<Ask>) {
        loop {
            tokio::select! {
                ask = asks.recv() => match ask {
                    Some(ask) => self.take(ask).await,
                    None => return,
                },
                Some(found) = self.running.join_next(), if !self.running.is_empty() => {
                    match found {
                        Ok(Found::Key(node, result)) => self.found_key(node, result).await,
                        Ok(Found::Endpoint(node, endpoint)) => {
                            self.endpoints.remove(&node);
                            self.node.control(ControlEvent::Endpoint { node, endpoint }).await;
                        }
                        Ok(Found::Done) => {}
                        Err(e) => tracing::error!("a question to the registry ended badly: {e}"),
                    }
                }
            }
        }
    }

    async fn take(&mut self, ask: Ask) {
        match ask {
            Ask::Endpoint(node) => self.endpoint(node).await,
            Ask::Key(node) => self.key_for_loop(node).await,
            Ask::KeyFor(node, answer) => self.key_for(node, answer),
            Ask::Observed(endpoint) => self.order(Order::Observed(endpoint)),
            Ask::Peer(node, endpoint) => self.store.set_peer_endpoint(node, endpoint),
            Ask::Call(call, answer) => self.call(call, answer),
            Ask::Expect => self.order(Order::Expect),
            Ask::Poll(done) => {
                // When nothing can be fetched the asker need not wait.
                let able = {
                    let status = self.status.borrow();
                    status.registered && status.up
                };
                if able {
                    self.order(Order::Poll(done));
                }
            }
        }
    }

    /// What membership cannot take now is dropped: it comes again, or its
    /// asker sees that the answer will not come.
    fn order(&self, order: Order) {
        if self.orders.try_send(order).is_err() {
            tracing::debug!("membership is busy, an order was dropped");
        }
    }

    async fn endpoint(&mut self, node: NodeId) {
        self.networks.watched().touch(node);
        if self.endpoints.contains(&node) {
            return;
        }
        if self.running.len() >= MAX_RUNNING {
            return self.node.control(ControlEvent::Endpoint { node, endpoint: None }).await;
        }
        self.endpoints.insert(node);
        let (member, store) = (self.member.clone(), self.store.clone());
        self.running.spawn(async move {
            Found::Endpoint(node, find_endpoint(&member, &store, node).await)
        });
    }

    async fn key_for_loop(&mut self, node: NodeId) {
        let known = match self.known_key(node) {
            Some(known) => known,
            None if !self.keys.contains_key(&node) && !self.take_token() => None,
            None => {
                if self.look_up(node) {
                    self.keys.entry(node).or_default().loop_asked = true;
                    return;
                }
                None
            }
        };
        self.node.control(ControlEvent::IdentityKey { node, key: known }).await;
    }

    fn key_for(&mut self, node: NodeId, answer: oneshot::Sender<Option<[u8; 32]>>) {
        if let Some(known) = self.known_key(node) {
            // An error means that the asker no longer waits.
            let _ = answer.send(known);
        } else if self.look_up(node) {
            self.keys.entry(node).or_default().others.push(answer);
        }
    }

    /// A key, or that there is none, as far as it is known without asking.
    fn known_key(&mut self, node: NodeId) -> Option<Option<[u8; 32]>> {
        let generation = self.networks.generation();
        if std::mem::replace(&mut self.generation, generation) != generation {
            self.fresh.clear();
        }
        if self.networks.was_forgotten(node) {
            // What it shares has to be found again.
            self.fresh.remove(&node);
        }
        let fresh = self.fresh.get(&node).is_some_and(|at| at.elapsed() < FRESH);
        if let Some(pinned) = self.pins.key(node) {
            if !fresh && !self.member.is_cut_off() {
                // Not to be believed, but a difference is worth knowing.
                self.look_up(node);
            }
            return Some(Some(pinned));
        }
        // While the registry is away, what is remembered must do.
        if (fresh || self.member.is_cut_off())
            && let Some(key) = self.store.peer(node).and_then(|p| p.key)
        {
            return Some(Some(key));
        }
        self.refused.get(&node).is_some_and(|at| at.elapsed() < REFUSED).then_some(None)
    }

    /// Whether an answer will come.
    fn look_up(&mut self, node: NodeId) -> bool {
        if self.keys.contains_key(&node) {
            return true;
        }
        if self.running.len() >= MAX_RUNNING {
            return false;
        }
        self.keys.insert(node, Waiters::default());
        let member = self.member.clone();
        self.running.spawn(async move { Found::Key(node, member.lookup(node).await) });
        true
    }

    async fn found_key(&mut self, node: NodeId, result: Result<Lookup, RegistryError>) {
        let key = match result {
            Ok(found) if found.node_id == node => {
                self.refused.remove(&node);
                remember(&mut self.fresh, node);
                let key = found.public_key.0;
                // Before the key: what the peer sends next is to be permitted.
                self.networks.found(node, &found.networks).await;
                let networks = self.networks.ours(&found.networks);
                self.peers.learn(Lookup { networks, ..found });
                Some(self.accept_key(node, key).await)
            }
            Ok(_) => None,
            Err(e) if e.is_refusal() => {
                remember(&mut self.refused, node);
                self.pins.key(node)
            }
            // The registry is away: what is remembered must do.
            Err(_) => self.pins.key(node).or_else(|| self.store.peer(node)?.key),
        };
        let Some(waiters) = self.keys.remove(&node) else { return };
        for other in waiters.others {
            // An error means that the asker no longer waits.
            let _ = other.send(key);
        }
        if waiters.loop_asked {
            self.node.control(ControlEvent::IdentityKey { node, key }).await;
        }
    }

    /// The key to use when the registry says `key`.
    async fn accept_key(&self, node: NodeId, key: [u8; 32]) -> [u8; 32] {
        match self.pins.key(node) {
            Some(pinned) if pinned != key => {
                tracing::warn!(
                    %node,
                    "the registry has another key for trusted node {node} than it had when trust \
                     was made; the old key stays in use. If the peer changed its identity, end \
                     trust and shake hands again"
                );
                return pinned;
            }
            Some(_) => {}
            None if self.pins.is_trusted(node) => {
                self.trust.send(Command::KeyLearned { node, key }).await;
            }
            None => {}
        }
        self.store.set_peer_key(node, key);
        key
    }

    fn call(&mut self, call: Call, answer: oneshot::Sender<Result<Value, CallError>>) {
        let name = call.name();
        if self.running.len() >= MAX_RUNNING {
            let code = pilot_wire::ipc::ErrorCode::LIMIT;
            let error = CallError::new(code, name, "too many requests at once; try again");
            // An error means that the asker no longer waits.
            let _ = answer.send(Err(error));
            return;
        }
        let (member, store) = (self.member.clone(), self.store.clone());
        let (orders, status) = (self.orders.clone(), self.status.clone());
        let events = self.events.clone();
        self.running.spawn(async move {
            let result = member.command(&call).await;
            if result.is_ok() {
                if call == Call::Deregister {
                    events.emit(|| Happening::NodeDeregistered);
                }
                apply(call, &store, &status, &orders).await;
            }
            let result = result.map_err(|e| CallError::new(e.code(), name, e));
            // An error means that the asker no longer waits.
            let _ = answer.send(result);
            Found::Done
        });
    }

    fn take_token(&mut self) -> bool {
        let passed = self.refilled.elapsed().as_secs_f64();
        self.refilled = Instant::now();
        self.tokens = (self.tokens + passed * LOOKUP_RATE).min(LOOKUP_BURST);
        let some = self.tokens >= 1.0;
        if some {
            self.tokens -= 1.0;
        }
        some
    }
}

fn remember(nodes: &mut HashMap<NodeId, Instant>, node: NodeId) {
    if nodes.len() >= MAX_NODES {
        nodes.clear();
    }
    nodes.insert(node, Instant::now());
}

async fn find_endpoint(member: &Member, store: &Store, node: NodeId) -> Option<SocketAddr> {
    let remembered = || store.peer(node)?.endpoint;
    if member.is_cut_off()
        && let Some(endpoint) = remembered()
    {
        return Some(endpoint);
    }
    match member.resolve(node).await {
        Ok(resolved) => {
            let endpoint = match resolved.real_addr.parse() {
                Ok(endpoint) => Some(endpoint),
                Err(_) => tokio::net::lookup_host(&resolved.real_addr).await.ok()?.next(),
            };
            if let Some(endpoint) = endpoint {
                store.set_peer_endpoint(node, endpoint);
            }
            endpoint
        }
        Err(e) if e.is_refusal() => {
            tracing::debug!(%node, "resolve was refused: {e}");
            None
        }
        Err(e) => {
            tracing::debug!(%node, "resolve failed, using what is remembered: {e}");
            remembered()
        }
    }
}

/// A command that the registry confirmed becomes what this node wants.
async fn apply(
    call: Call,
    store: &Store,
    status: &watch::Sender<ControlStatus>,
    orders: &mpsc::Sender<Order>,
) {
    match call {
        Call::ResolveHostname(_)
        | Call::Lookup(_)
        | Call::PoloScore(_)
        | Call::UpdatePoloScore { .. } => {}
        Call::SetHostname(hostname) => {
            store.wish(|w| w.hostname.clone_from(&hostname));
            status.send_modify(|s| (s.hostname, s.hostname_error) = (hostname, None));
        }
        Call::SetVisibility(public) => {
            store.wish(|w| w.public = public);
            status.send_modify(|s| s.public = public);
        }
        Call::SetTags(tags) => store.wish(|w| w.tags = tags),
        Call::SetTaskExec(on) => store.wish(|w| w.task_exec = on),
        Call::Deregister => {
            status.send_modify(|s| s.registered = false);
            // An error means that membership has ended already.
            let _ = orders.send(Order::Left).await;
        }
    }
}
