//! What the registry says by itself, and what follows from it. News are handled
//! one after the other, in their order, and never wait for the registry: what
//! must ask it is left to others.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::time::Duration;

use pilot_host::events::Happening;
use pilot_wire::NodeId;
use pilot_wire::registry::session::{News, PeerView, Push, Sync, TrustView};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::membership::Order;
use super::registry::{Moment, Told};
use super::session::Standing;
use super::{ControlEvent, ControlParts};
use crate::trust::Command;

/// Peers of which the last endpoint and pinned key that news said are
/// remembered; at the bound all are forgotten, and told to the loop again.
const MAX_SEEN: usize = 4096;
/// Trust as young as this is not ended by what the registry says before it has
/// also said that it is mutual: the peer may still be about to state it anew.
const YOUNG: u64 = 60;
/// A revocation that may have come too early is looked at again after this.
const LOOK_AGAIN: Duration = Duration::from_secs(YOUNG + 1);

pub(super) struct Listener {
    parts: ControlParts,
    orders: mpsc::Sender<Order>,
    /// With whom the registry has said that trust is mutual.
    mutual: HashSet<NodeId>,
    endpoints: HashMap<NodeId, SocketAddr>,
    /// Revocations of trust that may have been too young to end, and when they are
    /// looked at again. Only of trusted nodes, so no more than those.
    early: BTreeMap<NodeId, Instant>,
    /// Other keys than the pinned ones, of which has been told.
    foreign: HashMap<NodeId, [u8; 32]>,
}

impl Listener {
    pub(super) fn new(parts: ControlParts, orders: mpsc::Sender<Order>) -> Self {
        Self {
            parts,
            orders,
            mutual: HashSet::new(),
            endpoints: HashMap::new(),
            foreign: HashMap::new(),
            early: BTreeMap::new(),
        }
    }

    pub(super) async fn run(mut self) {
        let Some(mut news) = self.parts.member.registry().take_news() else { return };
        let mut session = self.parts.member.session().watch();
        loop {
            let next = self.early.values().min().copied();
            let told = tokio::select! {
                told = news.recv() => told,
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                    self.look_again().await;
                    continue;
                }
            };
            let Some(Told { connection, moment, push }) = told else { return };
            // They may come before the answer that opens the session was read.
            if session.wait_for(|s| s.standing != Standing::Opening).await.is_err() {
                return;
            }
            self.take(connection, moment, push).await;
        }
    }

    async fn take(&mut self, connection: u64, moment: Moment, Push { seq, news }: Push) {
        let state = self.parts.member.session().state();
        if state.connection != connection || state.standing != Standing::Open {
            // Of a session that is over: the next one says it again.
            return;
        }
        match news {
            News::Sync(sync) => {
                self.sync(sync, state.renewed, moment).await;
                // Only now: a daemon that ends before it finds out again.
                if let Some(epoch) = self.parts.member.session().synced(connection) {
                    self.parts.store.set_epoch(epoch);
                }
            }
            News::Trust(view) => self.trust(view).await,
            News::Handshakes {} => self.order(Order::Fetch).await,
            News::Peer(view) => self.peer(view).await,
            News::Joined(membership) => {
                self.parts.networks.joined(membership, moment).await;
            }
            News::Left { network, name, reason } => {
                self.parts.networks.left(network, name, reason, moment).await;
            }
            News::Invited(invitation) => self.parts.networks.invited(&invitation),
            News::Ended { code } => {
                if self.parts.member.session().ended(connection, &code) {
                    self.order(Order::Ended(code)).await;
                }
                return;
            }
        }
        self.parts.member.session().handled(connection, seq);
    }

    /// Membership may be waiting for the registry, whose answers do not wait for
    /// this: news that come meanwhile are kept until their bound.
    async fn order(&self, order: Order) {
        // An error means that membership has ended.
        let _ = self.orders.send(order).await;
    }

    /// All of it. When the registry has another state than before, it may have
    /// lost statements of trust: they are made again instead of being believed.
    async fn sync(&mut self, sync: Sync, renewed: bool, moment: Moment) {
        let Sync { trust, revoked_by, handshakes, memberships, peers, invitations } = sync;
        self.mutual = trust.into_iter().collect();
        self.early.clear();
        if renewed {
            tracing::info!("the registry's state is another one; trust is stated again");
            self.parts.member.session().settle();
        } else {
            for node in revoked_by {
                self.revoked(node).await;
            }
        }
        self.parts.networks.synced(memberships, renewed, moment).await;
        for peer in peers {
            self.peer(peer).await;
        }
        for invitation in &invitations {
            self.parts.networks.invited(invitation);
        }
        if handshakes {
            self.order(Order::Fetch).await;
        }
    }

    async fn trust(&mut self, view: TrustView) {
        let TrustView { node_id, mutual, revoked } = view;
        if revoked {
            self.revoked(node_id).await;
            self.mutual.remove(&node_id);
            return;
        }
        self.early.remove(&node_id);
        if mutual {
            self.mutual.insert(node_id);
        }
    }

    /// What the registry said of these last still stands, or it would have said
    /// so; the trust is not young any more, unless it was made anew.
    async fn look_again(&mut self) {
        let now = Instant::now();
        let due = |(node, at): (&NodeId, &Instant)| (*at <= now).then_some(*node);
        let due: Vec<NodeId> = self.early.iter().filter_map(due).collect();
        for node in due {
            self.early.remove(&node);
            if !self.parts.member.has_session() {
                // It is told once there is one, or in the sync.
                self.early.insert(node, now + LOOK_AGAIN);
            } else if self.parts.pins.is_trusted(node) {
                self.revoked(node).await;
            }
        }
    }

    async fn revoked(&mut self, node: NodeId) {
        let young = if self.mutual.contains(&node) { 0 } else { YOUNG };
        if young > 0 && self.parts.pins.is_trusted(node) {
            self.early.insert(node, Instant::now() + LOOK_AGAIN);
        }
        self.parts.trust.send(Command::RevokedByPeer { node, young }).await;
    }

    async fn peer(&mut self, view: PeerView) {
        let node = view.node_id;
        if !view.registered {
            return self.parts.networks.recheck(node);
        }
        if let Some(key) = view.public_key {
            self.key(node, key.0).await;
        }
        if let Some(endpoint) = view.endpoint.as_deref().and_then(|e| e.parse().ok()) {
            self.endpoint(node, endpoint).await;
        }
        let (networks, speaks) = (view.shared_networks.clone(), view.may_broadcast.clone());
        self.parts.peers.see(view);
        self.parts.networks.shares(node, &networks, &speaks).await;
    }

    /// The key that a peer has now. A pinned one stands against it: the tunnel
    /// ends, and comes back only with the pinned key.
    async fn key(&mut self, node: NodeId, key: [u8; 32]) {
        let pins = &self.parts.pins;
        match pins.key(node) {
            Some(pinned) if pinned != key => {
                if self.foreign.len() >= MAX_SEEN {
                    self.foreign.clear();
                }
                if self.foreign.insert(node, key) == Some(key) {
                    return;
                }
                tracing::warn!(
                    %node,
                    "trusted node {node} has another key at the registry than when trust was made; \
                     its tunnel ends and the old key stays in use. If the peer changed its \
                     identity, end trust and shake hands again"
                );
                self.parts.events.emit(|| Happening::SecurityRefused {
                    count: 1,
                    peer_node_id: node,
                    port: 0,
                    rule: "pinned_key".to_owned(),
                });
                self.parts.node.forget_peer(node).await;
                return;
            }
            None if pins.is_trusted(node) => {
                self.parts.trust.send(Command::KeyLearned { node, key }).await;
            }
            _ => {}
        }
        self.foreign.remove(&node);
        let changed = self.parts.store.peer(node).and_then(|p| p.key) != Some(key);
        if changed {
            self.parts.store.set_peer_key(node, key);
            // Ends a tunnel that an earlier key has proven.
            self.parts.node.control(ControlEvent::IdentityKey { node, key: Some(key) }).await;
        }
    }

    async fn endpoint(&mut self, node: NodeId, endpoint: SocketAddr) {
        if self.endpoints.len() >= MAX_SEEN {
            self.endpoints.clear();
        }
        if self.endpoints.insert(node, endpoint) == Some(endpoint) {
            return;
        }
        self.parts.store.set_peer_endpoint(node, endpoint);
        let endpoint = Some(endpoint);
        self.parts.node.control(ControlEvent::Endpoint { node, endpoint }).await;
    }
}
