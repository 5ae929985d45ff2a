//! Joining the registry and staying joined: discovery, registration, the
//! session, restoring what the user set, heartbeats, and waiting handshakes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pilot_host::events::Happening;
use pilot_wire::NodeId;
use pilot_wire::registry::{Handshakes, Registered};
use serde_json::json;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};

use super::handle::Call;
use super::member::Member;
use super::registry::RegistryError;
use super::session::Standing;
use super::{ControlEvent, ControlParts, ControlStatus};
use crate::events::{Events, other};
use crate::node::NodeHandle;
use crate::trust;

/// Orders waiting; beyond it one is dropped, its asker sees that at once.
pub(super) const ORDERS: usize = 64;
/// How long a node waits for the beacon before it registers without it.
const DISCOVERY: Duration = Duration::from_secs(2);
/// Discovery is asked again after this long, since a datagram may be lost.
const DISCOVERY_REPEAT: Duration = Duration::from_millis(500);
/// Failed heartbeats after which the node registers again.
const MAX_FAILED: u32 = 3;
/// Pauses between attempts to join that the registry refused.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A session that the registry ended is opened again at a random moment within
/// this time; ...
const REOPEN: Duration = Duration::from_secs(3);
/// ... one that another connection of this node has taken, within this time
/// after it, so that two daemons with one identity do not chase each other.
const REPLACED: Duration = Duration::from_secs(30);
/// A registry that is known to have sessions and refuses them permits nothing
/// through networks after this.
const WITHDRAWN: Duration = Duration::from_secs(60);
/// What is said of it.
const REFUSES: &str = "this registry was known to have sessions and now refuses them; what networks \
                       permit ends after 60 seconds without one";
/// While an answer is expected, handshakes are fetched this often ...
const EAGER_POLL: Duration = Duration::from_secs(1);
/// ... for this long, ...
const EAGER_FOR: Duration = Duration::from_secs(30);
/// ... then this often ...
const CALM_POLL: Duration = Duration::from_secs(5);
/// ... until this long after the request.
const CALM_FOR: Duration = Duration::from_secs(600);
/// Nodes whose handshakes of one poll are looked at, each at the cost of a
/// lookup; the registry has forgotten the rest, whose senders must ask again.
const MAX_HANDSHAKES: usize = 4096;

/// What membership is told by `lookups`.
#[derive(Debug)]
pub(super) enum Order {
    /// The beacon sees this node here.
    Observed(SocketAddr),
    /// Fetch handshakes now; answered when they were handed to trust.
    Poll(oneshot::Sender<()>),
    /// An answer to a handshake is expected.
    Expect,
    /// The registry says that handshakes wait.
    Fetch,
    /// The registry ended the session, with this code.
    Ended(String),
    /// The user left the registry.
    Left,
}

pub(super) struct Membership {
    parts: ControlParts,
    orders: mpsc::Receiver<Order>,
    status: Arc<watch::Sender<ControlStatus>>,
    observed: Option<SocketAddr>,
    /// The listen address this node is registered with.
    registered_as: Option<String>,
    expected_since: Option<Instant>,
    failed: u32,
    /// The connection on which the registry was last told everything it must
    /// know. What was said while it was away is lost, so each new connection
    /// starts with that.
    told_on: u64,
    /// It has been registered in this run.
    was_registered: bool,
    /// When what is only due every keepalive interval was last done.
    last_round: Instant,
    /// When a session that ended is opened again.
    reopen: Option<Instant>,
    /// When what networks permit ends, since the registry refuses sessions that it
    /// was known to have.
    withdraw: Option<Instant>,
    /// It refuses them.
    refuses: bool,
}

impl Membership {
    pub(super) fn new(
        parts: ControlParts,
        orders: mpsc::Receiver<Order>,
        status: Arc<watch::Sender<ControlStatus>>,
    ) -> Self {
        Self {
            parts,
            orders,
            status,
            observed: None,
            registered_as: None,
            expected_since: None,
            failed: 0,
            told_on: 0,
            was_registered: false,
            last_round: Instant::now(),
            reopen: None,
            withdraw: None,
            refuses: false,
        }
    }

    pub(super) async fn run(mut self) {
        if let Some((node, address)) = self.parts.store.member() {
            self.parts.node.control(ControlEvent::Registered { node, address }).await;
        }
        self.find_beacon().await;
        self.discover().await;
        if self.join().await {
            self.stay().await;
        } else {
            self.stay_away().await;
        }
    }

    async fn find_beacon(&self) {
        let Some(beacon) = &self.parts.settings.beacon else { return };
        let found = match tokio::net::lookup_host(beacon).await {
            Ok(mut found) => {
                // One family for both ends of the tunnel socket.
                let v4 = self.parts.settings.listen.is_ipv4();
                found.find(|a| a.is_ipv4() == v4 || !v4)
            }
            Err(e) => {
                tracing::warn!("beacon {beacon} cannot be found: {e}");
                None
            }
        };
        if found.is_some() {
            self.parts.node.control(ControlEvent::Beacon(found)).await;
        }
    }

    /// Asks the beacon where this node is, and waits a little for the answer.
    async fn discover(&mut self) {
        if self.parts.settings.beacon.is_none() || self.parts.settings.endpoint.is_some() {
            return;
        }
        let deadline = Instant::now() + DISCOVERY;
        while self.observed.is_none() && Instant::now() < deadline {
            self.parts.node.control(ControlEvent::Discover).await;
            let until = deadline.min(Instant::now() + DISCOVERY_REPEAT);
            while self.observed.is_none() {
                match tokio::time::timeout_at(until, self.orders.recv()).await {
                    Ok(Some(order)) => self.note(order),
                    Ok(None) => return,
                    Err(_) => break,
                }
            }
        }
        if self.observed.is_none() {
            let beacon = self.parts.settings.beacon.as_deref().unwrap_or_default();
            tracing::warn!("beacon {beacon} does not answer; registering with the local address");
        }
    }

    /// Takes an order outside of [`Self::stay`].
    fn note(&mut self, order: Order) {
        match order {
            Order::Observed(endpoint) => self.observed = Some(endpoint),
            Order::Expect => self.expected_since = Some(Instant::now()),
            // Dropping the sender is the answer: nothing was fetched.
            Order::Ended(code) => self.put_off(&code),
            Order::Poll(_) | Order::Left | Order::Fetch => {}
        }
    }

    fn listen_addr(&self) -> String {
        let settings = &self.parts.settings;
        match (&settings.endpoint, self.observed) {
            (Some(endpoint), _) => endpoint.clone(),
            (None, Some(observed)) => observed.to_string(),
            (None, None) => settings.listen.to_string(),
        }
    }

    /// Registers, however long it takes. Returns false when this node may never
    /// register again.
    async fn join(&mut self) -> bool {
        let mut pause = FIRST_PAUSE;
        let mut link = self.parts.member.registry().link();
        loop {
            let listen_addr = self.listen_addr();
            let owner = &self.parts.settings.owner;
            match self.parts.member.register(&listen_addr, owner).await {
                Ok(registered) => {
                    self.joined(&registered, listen_addr).await;
                    return true;
                }
                Err(RegistryError::Unreachable(reason)) => {
                    tracing::debug!("not joined: registry {reason}");
                    self.pause(pause, async {
                        // An error means that there is no registry at all.
                        if link.wait_for(|link| link.connected).await.is_err() {
                            std::future::pending::<()>().await;
                        }
                    })
                    .await;
                    // A connection that never answers must not be hammered.
                    sleep(Duration::from_millis(100)).await;
                }
                Err(e) if e.has_code("revoked") => {
                    self.revoked(&e.to_string()).await;
                    return false;
                }
                Err(e) => {
                    tracing::warn!("the registry does not register this node: {e}");
                    self.pause(Duration::MAX, sleep(pause.mul_f64(rand::random_range(0.5..1.0))))
                        .await;
                }
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Waits for `until`, at most `longest`, and takes orders meanwhile.
    async fn pause(&mut self, longest: Duration, until: impl Future<Output = ()>) {
        let deadline = Instant::now().checked_add(longest);
        tokio::pin!(until);
        loop {
            let order = tokio::select! {
                () = &mut until => return,
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => return,
                order = self.orders.recv() => order,
            };
            match order {
                Some(order) => self.note(order),
                // The daemon is ending; there is nothing left to wait for.
                None => std::future::pending().await,
            }
        }
    }

    async fn joined(&mut self, registered: &Registered, listen_addr: String) {
        let (node, address) = (registered.node_id, registered.address);
        if let Some((before, _)) = self.parts.store.member()
            && before != node
        {
            tracing::warn!(
                "the registry calls this node {node}, not {before} as before: it is another \
                 registry or has lost its state; the new number is used"
            );
        }
        self.parts.store.set_member(node, address);
        self.parts.member.set_node(node);
        self.parts.events.set_node(node);
        self.failed = 0;
        self.parts.node.control(ControlEvent::Registered { node, address }).await;
        self.open_session().await;
        // Whoever has to register anew is not known there with its trust.
        self.tell_everything(true).await;
        tracing::info!(%node, %address, endpoint = listen_addr, "registered");
        self.status.send_modify(|s| {
            s.node = Some(node);
            s.address = Some(address);
            s.registered = true;
            s.endpoint = listen_addr.parse().ok();
        });
        self.last_round = Instant::now();
        let again = std::mem::replace(&mut self.was_registered, true);
        self.parts.events.emit(|| match again {
            true => Happening::NodeReregistered { address },
            false => Happening::NodeRegistered { address, endpoint: listen_addr.clone() },
        });
        self.registered_as = Some(listen_addr);
        self.parts.node.control(ControlEvent::Discover).await;
        self.poll().await;
    }

    /// Tells the registry what it must know of this node: what it has not heard,
    /// and `all` trust when it may have forgotten some.
    async fn tell_everything(&mut self, all: bool) {
        self.told_on = self.opened();
        self.restore().await;
        self.parts.trust.send(trust::Command::Joined { all }).await;
    }

    /// Opens a session, if that has not been tried on this connection and is not
    /// put off. A published registry does not know the request; it is polled
    /// then. Returns whether the registry may have lost what it was told.
    async fn open_session(&mut self) -> bool {
        let (member, networks) = (self.parts.member.clone(), self.parts.networks.clone());
        let session = member.session();
        // The order that says so may still wait.
        if let Some(code) = session.take_end() {
            self.put_off(&code);
        }
        // One that the registry ended has its time, also when the connection went
        // with it.
        if self.reopen.is_some_and(|at| at > Instant::now()) {
            return false;
        }
        self.reopen = None;
        let connection = self.opened();
        if session.was_tried(connection) {
            return false;
        }
        session.begin();
        let result = member.open_session(networks.watched().take_all()).await;
        let standing = match result {
            Ok((opened, on)) => {
                // One that was never heard of has lost nothing of this node's,
                // so what it says of trust is believed.
                let known = self.parts.store.epoch();
                let renewed = !opened.resumed && known.is_some_and(|k| k != opened.epoch);
                session.opened(on, opened.epoch, opened.resumed, renewed);
                if opened.resumed {
                    networks.resumed().await;
                }
                tracing::info!(resumed = opened.resumed, "session with the registry");
                networks.watched().tell();
                (self.withdraw, self.refuses) = (None, false);
                self.status.send_modify(|s| (s.session, s.warning) = ("open", None));
                return renewed;
            }
            Err(RegistryError::Refused(reply))
                if matches!(reply.code.as_deref(), None | Some("unknown_type")) =>
            {
                self.without_sessions();
                Standing::Unsupported
            }
            Err(e) => {
                tracing::warn!("no session with the registry: {e}");
                Standing::Failed
            }
        };
        session.failed(connection, standing);
        let text = if standing == Standing::Unsupported { "unsupported" } else { "none" };
        self.status.send_modify(|s| s.session = text);
        standing == Standing::Unsupported
    }

    /// The registry says that it has no sessions. One that had some may be another
    /// one now, or somebody on the way.
    fn without_sessions(&mut self) {
        let store = &self.parts.store;
        if store.epoch().is_none() && store.memberships().is_empty() {
            tracing::info!("the registry has no sessions; it is asked for news every so often");
            return;
        }
        if std::mem::replace(&mut self.refuses, true) {
            return;
        }
        tracing::error!("{REFUSES}");
        self.withdraw = Some(Instant::now() + WITHDRAWN);
        self.status.send_modify(|s| s.warning = Some(REFUSES.to_owned()));
        let registry = self.parts.settings.registry.clone();
        self.parts.events.emit(|| {
            other("registry.sessions_refused", json!({"reason": REFUSES, "registry": registry}))
        });
    }

    /// The time between heartbeats.
    fn interval(&self) -> Duration {
        if self.parts.member.has_session() {
            self.parts.member.registry().limits().beat_interval.min(self.parts.settings.keepalive)
        } else {
            self.parts.settings.keepalive
        }
    }

    async fn revoked(&mut self, why: &str) {
        let text = format!(
            "an administrator has revoked this node ({why}); it does not register again. A new \
             identity makes it a new node"
        );
        tracing::error!("{text}");
        self.registered_as = None;
        self.status.send_modify(|s| {
            (s.registered, s.endpoint) = (false, None);
            s.revoked = Some(text);
        });
        // It is in no network any more, and nobody trusts it; no session will say
        // so. Peers that know where it is must find its ports closed as well.
        self.parts.networks.synced(Vec::new(), false, u64::MAX).await;
        for node in self.parts.pins.trusted() {
            self.parts.trust.send(trust::Command::RevokedByPeer { node, young: 0 }).await;
        }
    }

    /// Nothing is said any more until the daemon starts again.
    async fn stay_away(&mut self) {
        while let Some(order) = self.orders.recv().await {
            self.note(order);
        }
    }

    /// Which connection to the registry this is.
    fn opened(&self) -> u64 {
        self.parts.member.registry().link().borrow().opened
    }

    /// Tells the registry what the user set.
    async fn restore(&self) {
        let wishes = self.parts.store.wishes();
        let mut calls = vec![Call::SetVisibility(wishes.public)];
        if !wishes.hostname.is_empty() {
            calls.push(Call::SetHostname(wishes.hostname.clone()));
        }
        if !wishes.tags.is_empty() {
            calls.push(Call::SetTags(wishes.tags.clone()));
        }
        if wishes.task_exec {
            calls.push(Call::SetTaskExec(true));
        }
        for call in calls {
            let error = self.parts.member.command(&call).await.err();
            if let Some(error) = &error {
                tracing::warn!("{} at the registry failed: {error}", call.name());
            }
            match call {
                Call::SetHostname(hostname) => self.status.send_modify(|s| {
                    s.hostname = if error.is_none() { hostname } else { String::new() };
                    s.hostname_error =
                        error.map(|e| format!("hostname {:?} was not taken: {e}", wishes.hostname));
                }),
                Call::SetVisibility(public) if error.is_none() => {
                    self.status.send_modify(|s| s.public = public);
                }
                _ => {}
            }
        }
    }

    /// Heartbeats and handshakes, for ever.
    async fn stay(&mut self) {
        let mut link = self.parts.member.registry().link();
        let mut next_beat = Instant::now() + self.interval();
        loop {
            let poll = self.next_poll();
            let (reopen, withdraw) = (self.reopen, self.withdraw);
            tokio::select! {
                () = sleep_until(next_beat) => {
                    if !self.beat().await {
                        return self.stay_away().await;
                    }
                    next_beat = Instant::now() + self.interval();
                }
                () = sleep_until(reopen.unwrap_or(next_beat)), if reopen.is_some() => {
                    if self.open_session().await {
                        self.parts.trust.send(trust::Command::Joined { all: true }).await;
                    }
                    next_beat = Instant::now() + self.interval();
                }
                () = sleep_until(withdraw.unwrap_or(next_beat)), if withdraw.is_some() => {
                    self.withdraw = None;
                    self.parts.networks.withdrawn().await;
                }
                () = sleep_until(poll.unwrap_or(next_beat)), if poll.is_some() => self.poll().await,
                changed = link.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let (connected, opened) = {
                        let link = link.borrow_and_update();
                        (link.connected, link.opened)
                    };
                    // A new connection: is this node still known there?
                    if connected && opened != self.told_on {
                        if !self.beat().await {
                            return self.stay_away().await;
                        }
                        next_beat = Instant::now() + self.interval();
                    }
                }
                order = self.orders.recv() => match order {
                    Some(order) => if !self.obey(order).await { return },
                    None => return,
                },
            }
        }
    }

    /// Whether to go on.
    async fn obey(&mut self, order: Order) -> bool {
        match order {
            Order::Observed(endpoint) => {
                self.observed = Some(endpoint);
                if self.registered_as.as_ref() != Some(&self.listen_addr()) {
                    tracing::info!(%endpoint, "this node's endpoint changed, registering again");
                    if !self.join().await {
                        self.stay_away().await;
                        return false;
                    }
                }
            }
            Order::Fetch => self.poll().await,
            Order::Ended(code) => return self.session_ended(&code).await,
            Order::Poll(done) => {
                self.poll().await;
                // An error means that the asker no longer waits.
                let _ = done.send(());
            }
            Order::Expect => self.expected_since = Some(Instant::now()),
            Order::Left => {
                tracing::info!("left the registry until the daemon starts again");
                self.registered_as = None;
                self.status.send_modify(|s| (s.registered, s.endpoint) = (false, None));
                self.stay_away().await;
                return false;
            }
        }
        true
    }

    /// What follows from the end of a session; whether to go on.
    async fn session_ended(&mut self, code: &str) -> bool {
        tracing::info!("the registry ended the session: {code}");
        self.parts.member.session().take_end();
        self.status.send_modify(|s| s.session = "none");
        match code {
            "revoked" => {
                self.revoked("said the registry").await;
                self.stay_away().await;
                return false;
            }
            "deregistered" => {
                self.status.send_modify(|s| s.registered = false);
                if self.join().await {
                    return true;
                }
                self.stay_away().await;
                return false;
            }
            _ => self.put_off(code),
        }
        true
    }

    /// A session that ended with this code is not opened again at once.
    fn put_off(&mut self, code: &str) {
        let again = match code {
            "replaced" => REPLACED + REPLACED.mul_f64(rand::random_range(0.0..1.0)),
            _ => REOPEN.mul_f64(rand::random_range(0.0..1.0)),
        };
        self.reopen = Some(Instant::now() + again);
    }

    /// Whether to go on.
    async fn beat(&mut self) -> bool {
        let session = self.parts.member.has_session();
        let answered = match session {
            true => self.parts.member.beat().await,
            false => self.parts.member.heartbeat().await,
        };
        match answered {
            Ok(()) => {
                self.failed = 0;
                let new = self.told_on != self.opened();
                if new {
                    // Without a session nothing says what the registry still knows.
                    let lost = self.open_session().await || !self.parts.member.has_session();
                    self.tell_everything(lost).await;
                }
                if new || !session || self.last_round.elapsed() >= self.parts.settings.keepalive {
                    self.round(new).await;
                }
                return true;
            }
            Err(e) if e.is_refusal() => {
                // A node that the registry knows is not refused.
                tracing::info!("the registry does not know this node any more: {e}");
                self.failed = MAX_FAILED;
            }
            Err(e) => {
                self.failed += 1;
                tracing::debug!("heartbeat {} failed: {e}", self.failed);
            }
        }
        if self.failed >= MAX_FAILED {
            self.status.send_modify(|s| s.registered = false);
            return self.join().await;
        }
        true
    }

    /// What is done every keepalive interval, and on each new connection.
    async fn round(&mut self, new: bool) {
        self.last_round = Instant::now();
        if self.observed.is_none() {
            // The beacon may have had no address at start.
            self.find_beacon().await;
        }
        self.parts.node.control(ControlEvent::Discover).await;
        let state = self.parts.member.session().state();
        let lacking = matches!(state.standing, Standing::Failed | Standing::None);
        if !new && lacking && self.reopen.is_none() {
            // Whatever stood against it may have gone.
            self.parts.member.session().forget();
            if self.open_session().await {
                self.parts.trust.send(trust::Command::Joined { all: true }).await;
            }
        }
        if new || !self.parts.member.has_session() {
            self.poll().await;
        }
    }

    /// When handshakes are to be fetched between heartbeats.
    fn next_poll(&mut self) -> Option<Instant> {
        if self.parts.member.has_session() {
            // It says by itself when there is something.
            return None;
        }
        let since = self.expected_since?.elapsed();
        if since > CALM_FOR {
            self.expected_since = None;
            return None;
        }
        let pause = if since < EAGER_FOR { EAGER_POLL } else { CALM_POLL };
        Some(Instant::now() + pause)
    }

    async fn poll(&mut self) {
        let handshakes = match self.parts.member.poll_handshakes().await {
            Ok(handshakes) => handshakes,
            Err(e) => {
                tracing::debug!("waiting handshakes could not be fetched: {e}");
                return;
            }
        };
        self.relay(handshakes).await;
    }

    /// Hands relayed handshakes to trust, each with its sender's key.
    async fn relay(&mut self, handshakes: Handshakes) {
        let me = self.parts.member.node();
        let real = |node: &NodeId| node.0 != 0 && Some(*node) != me;
        // The last word of a node counts; an answer often waits there twice.
        let requests: BTreeMap<_, _> =
            handshakes.requests.into_iter().map(|r| (r.from_node_id, r.justification)).collect();
        for (from, justification) in requests.into_iter().take(MAX_HANDSHAKES) {
            if real(&from) {
                let key = self.key(from).await;
                let command = trust::Command::RelayedRequest { from, justification, key };
                self.parts.trust.send(command).await;
            }
        }
        let answers: BTreeMap<_, _> =
            handshakes.responses.into_iter().map(|r| (r.from_node_id, r.accept)).collect();
        for (from, accept) in answers.into_iter().take(MAX_HANDSHAKES) {
            if real(&from) {
                let key = self.key(from).await;
                let command = trust::Command::RelayedAnswer { from, accept, key };
                self.parts.trust.send(command).await;
            }
        }
    }

    async fn key(&self, node: NodeId) -> Option<[u8; 32]> {
        let found = self.parts.member.lookup(node).await.ok()?;
        let key = found.public_key.0;
        self.parts.peers.learn(found);
        self.parts.store.set_peer_key(node, key);
        Some(key)
    }
}

/// Tells the loop and `status` when the registry comes and goes.
pub(super) async fn watch_link(
    member: Member,
    node: NodeHandle,
    status: Arc<watch::Sender<ControlStatus>>,
    events: Events,
) {
    let mut link = member.registry().link();
    let mut told = None;
    loop {
        let ended = link.changed().await.is_err();
        let now = link.borrow_and_update().clone();
        if !ended {
            status.send_modify(|s| {
                (s.up, s.since) = (now.up, now.since);
                s.last_error.clone_from(&now.error);
                if !now.connected {
                    s.session = "none";
                }
            });
        }
        // Connected and not yet answered is neither up nor down.
        let undecided = now.connected && !now.up;
        if !undecided && told != Some(now.up) {
            let registry = status.borrow().registry.clone().unwrap_or_default();
            if now.up {
                events.emit(|| Happening::RegistryUp { registry });
                node.control(ControlEvent::RegistryUp).await;
            } else {
                let reason = now.error.unwrap_or_default();
                events.emit(|| Happening::RegistryDown { reason: reason.clone(), registry });
                node.control(ControlEvent::RegistryDown { reason }).await;
            }
            told = Some(now.up);
        }
        if ended {
            return;
        }
    }
}
