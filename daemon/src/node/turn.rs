//! The turns of the loop.

mod spin;
mod wait;

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use pilot_core::{Core, Input, Output, StreamId, Time, Transmit};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Sleep;
use tracing::{debug, info, warn};

use self::spin::Spin;
use super::clients::Clients;
use super::commands::Served;
use super::conn::{Conn, Owner};
use super::ending::Ending;
use super::handle::{DialFailure, NodeInbox, Order};
use super::hub::{Answered, Hub, Listener};
use super::plane::Plane;
use super::ready::{ReadyList, Token};
use super::requests::deliver;
use super::snapshot::snapshot;
use crate::control::ControlEvent;
use crate::events::Events;
use crate::ipc::IpcListener;
use crate::ipc::client::{COMMAND_BOUND, HARD_BOUND};
use crate::service::Service;
use crate::udp::{Sent, Udp};
use crate::workers::Edge;

/// Receive calls per turn, and bytes after which it ends as well, so that
/// acknowledgements go out while more is coming in.
const RECEIVE_CALLS: usize = 32;
const RECEIVE_BYTES: usize = 1 << 20;
/// Batches sent per turn, so that what comes in is not kept waiting.
const TRANSMITS: usize = 32;
/// Events acted on per turn.
const EVENTS: usize = 4096;
/// Orders and answers taken per turn.
const ORDERS: usize = 256;
/// Rounds of passing data to one client per turn.
const CLIENT_ROUNDS: usize = 4;

/// What a loop is made of.
pub struct NodeParts {
    /// The core, with its permissions set.
    pub core: Core,
    /// The send buffer the core was configured with, in bytes: the credit that
    /// clients get is cut from it.
    pub send_buffer: usize,
    /// The tunnel's socket.
    pub udp: Udp,
    /// The driver socket; a worker has none, its clients are handed to it.
    pub listener: Option<IpcListener>,
    /// What keeps datagrams of other workers' peers out, when there are any.
    pub edge: Option<Edge>,
    /// The loop's end of the handle.
    pub inbox: NodeInbox,
    /// The control plane.
    pub plane: Rc<dyn Plane>,
    /// What listens inside the daemon.
    pub services: Vec<Rc<dyn Service>>,
    /// Clients served at once; one beyond it is disconnected at once.
    pub max_clients: usize,
    /// Lanes of all clients; 0 for none.
    pub max_lanes: usize,
    /// Where to say what happens.
    pub events: Events,
}

/// Runs a node until [`super::NodeHandle::begin_shutdown`]. Must be polled
/// inside a tokio `LocalSet`, since services run beside it on its thread.
pub async fn run(parts: NodeParts) {
    let (mut hub, answers) =
        Hub::new(parts.core, parts.plane, parts.send_buffer, parts.max_lanes, parts.events);
    for service in parts.services {
        let port = service.port();
        match hub.core.listen(port) {
            Ok(()) => {
                hub.ports.insert(port, Listener::Service(service));
            }
            Err(e) => warn!(port, service = service.name(), error = %e, "service cannot listen"),
        }
    }
    let node = Node {
        ready: Arc::clone(&hub.ready),
        hub,
        clients: Clients::default(),
        udp: parts.udp,
        listener: parts.listener,
        edge: parts.edge,
        orders: parts.inbox.orders,
        answers,
        buffer: Vec::new(),
        blocked: None,
        wake_at: None,
        sleep: Box::pin(tokio::time::sleep(Duration::ZERO)),
        armed: None,
        tokens: Vec::new(),
        max_clients: parts.max_clients,
        accept_again: None,
        ending: None,
        spin: Spin::default(),
    };
    node.run().await;
}

pub(super) struct Node {
    pub(super) hub: Hub,
    pub(super) clients: Clients,
    ready: Arc<ReadyList>,
    udp: Udp,
    /// Gone once the node is ending.
    listener: Option<IpcListener>,
    edge: Option<Edge>,
    orders: mpsc::Receiver<Order>,
    answers: mpsc::Receiver<Answered>,
    /// The batch that is being sent.
    buffer: Vec<u8>,
    /// The batch in the buffer did not go out from this offset on; the core is
    /// not asked for more until it has.
    pub(super) blocked: Option<(Transmit, usize)>,
    /// When the core wants its next timeout.
    wake_at: Option<Time>,
    sleep: Pin<Box<Sleep>>,
    /// What the sleep is set to.
    armed: Option<Time>,
    tokens: Vec<Token>,
    max_clients: usize,
    /// No client is accepted before.
    accept_again: Option<Instant>,
    pub(super) ending: Option<Ending>,
    spin: Spin,
}

impl Node {
    async fn run(mut self) {
        loop {
            // Sockets that are ready look empty once tokio's budget for this
            // task is used up; this starts a new one.
            tokio::task::consume_budget().await;
            let more = self.turn();
            if self.has_ended() {
                break;
            }
            if more {
                // Services, timers and new clients get their turn as well.
                tokio::task::yield_now().await;
                std::future::poll_fn(|cx| Poll::Ready(self.poll_accept(cx))).await;
            } else {
                self.wait().await;
            }
        }
        info!(streams = self.hub.core.open_streams(), "loop ended");
        self.reset_the_rest();
        // The socket file goes before anybody is told that the loop has ended.
        self.listener = None;
        for done in self.ending.map(|e| e.done).unwrap_or_default() {
            // Nobody may wait any more.
            let _ = done.send(());
        }
    }

    /// One turn; whether there is more to do at once.
    fn turn(&mut self) -> bool {
        let mut more = self.receive();
        let now = self.hub.now();
        if self.wake_at.is_some_and(|at| at <= now) {
            self.wake_at = None;
            self.hub.core.handle(Input::Timeout, now);
        }
        more |= self.take_orders();
        self.serve_ready();
        more |= self.end_turn();
        more |= self.drain();
        if self.pass_on() {
            // What was read opened windows, which the peers are to know.
            more |= self.drain();
        }
        more || !self.clients.dirty.is_empty()
    }

    fn receive(&mut self) -> bool {
        let now = self.hub.now();
        let more = self.take_strayed();
        let core = &mut self.hub.core;
        let edge = &mut self.edge;
        let mut bytes = 0;
        for _ in 0..RECEIVE_CALLS {
            let received = self.udp.receive(|from, data| {
                if edge.as_mut().is_none_or(|edge| edge.keeps(from, data)) {
                    core.handle(Input::Datagram { from, data }, now);
                }
            });
            let Some(n) = received else { return more };
            bytes += n;
            self.spin.moved += n;
            if bytes >= RECEIVE_BYTES {
                break;
            }
        }
        true
    }

    /// Datagrams that came to another worker's socket; whether there may be
    /// more.
    fn take_strayed(&mut self) -> bool {
        let Some(edge) = &mut self.edge else { return false };
        let now = self.hub.now();
        for _ in 0..ORDERS {
            let Some((from, mut data)) = edge.take_strayed() else { return false };
            self.hub.core.handle(Input::Datagram { from, data: &mut data }, now);
        }
        true
    }

    /// Clients and in-process streams that have something to do.
    fn serve_ready(&mut self) {
        let mut tokens = std::mem::take(&mut self.tokens);
        self.ready.take(&mut tokens);
        if !tokens.is_empty() {
            self.note_udp();
        }
        for token in tokens.drain(..) {
            match token {
                Token::Client(id) => self.serve_client(id),
                Token::Local(id) => {
                    if let Some(Conn { owner: Owner::Local { shared, .. }, .. }) =
                        self.hub.conns.get(&id)
                    {
                        shared.taken();
                        self.hub.pump_local(id);
                    }
                }
            }
        }
        self.tokens = tokens;
    }

    /// What `info` says of the sockets.
    fn note_udp(&mut self) {
        self.hub.udp = self.udp.status();
        self.hub.edge = self.edge.as_ref().map(|edge| (edge.worker(), edge.counters()));
    }

    fn serve_client(&mut self, id: u64) {
        let Some(client) = self.clients.touch(id) else { return };
        client.taken();
        let served = self.hub.serve(client);
        if served == Served::Goes {
            self.drop_client(id);
        }
        for (owner, connection) in std::mem::take(&mut self.hub.notices) {
            if let Some(owner) = self.clients.touch(owner) {
                self.hub.notice_closed(owner, connection);
            }
        }
    }

    fn drop_client(&mut self, id: u64) {
        if let Some(mut client) = self.clients.remove(id) {
            // What was answered before the client went may still be read.
            let _ = client.poll_flush();
            self.hub.drop_client(&client);
            self.hub.counters.clients = self.clients.len();
            debug!(client = id, "client gone");
        }
    }

    /// Lets the core work until it waits, a cap is reached or the socket is
    /// full.
    pub(super) fn drain(&mut self) -> bool {
        let now = self.hub.now();
        if let Some((batch, offset)) = self.blocked.take()
            && !self.send(batch, offset, now)
        {
            return false;
        }
        let (mut transmits, mut events) = (0, 0);
        loop {
            match self.hub.core.poll_output(now, &mut self.buffer) {
                Output::Wait(at) => {
                    self.wake_at = at;
                    return false;
                }
                Output::Transmit(batch) => {
                    self.spin.moved += batch.len;
                    if !self.send(batch, 0, now) {
                        return false;
                    }
                    transmits += 1;
                }
                Output::Event(event) => {
                    self.hub.event(&mut self.clients, event);
                    events += 1;
                }
            }
            if transmits >= TRANSMITS || events >= EVENTS {
                return true;
            }
        }
    }

    /// Sends what the buffer holds from `offset` on. Returns `false` when the
    /// socket is full.
    fn send(&mut self, batch: Transmit, mut offset: usize, now: Time) -> bool {
        loop {
            match self.udp.send(batch, &self.buffer, offset) {
                Sent::All => return true,
                Sent::Blocked(offset) => {
                    self.blocked = Some((batch, offset));
                    return false;
                }
                Sent::TooLarge { len, offset: next } => {
                    self.hub.core.handle(Input::TooLarge { to: batch.to, len }, now);
                    offset = next;
                }
            }
        }
    }

    /// Passes readable data to clients and writes to them. Returns whether
    /// anything was read from the core.
    pub(super) fn pass_on(&mut self) -> bool {
        let mut read = false;
        for id in std::mem::take(&mut self.clients.dirty) {
            let Some(client) = self.clients.all.get_mut(&id) else { continue };
            client.dirty = false;
            for round in 0.. {
                let had = client.readable.len();
                if had > 0 {
                    read = true;
                    self.hub.pump_client(client);
                }
                match client.poll_flush() {
                    Poll::Ready(Ok(())) if client.readable.is_empty() => break,
                    Poll::Ready(Ok(())) if round < CLIENT_ROUNDS => {}
                    Poll::Ready(Ok(())) => {
                        client.notify();
                        break;
                    }
                    Poll::Pending => break,
                    Poll::Ready(Err(error)) => {
                        debug!(client = id, %error, "client does not listen any more");
                        // What it wrote before that is still taken: its end
                        // comes after all of it.
                        client.notify();
                        break;
                    }
                }
            }
            let waiting = client.waiting();
            if client.paused && waiting < COMMAND_BOUND {
                client.paused = false;
                client.notify();
            }
            if waiting > HARD_BOUND {
                warn!(client = id, waiting, "client does not read; disconnected");
                self.drop_client(id);
            }
        }
        read
    }

    fn take_orders(&mut self) -> bool {
        for _ in 0..ORDERS {
            let Ok(order) = self.orders.try_recv() else { break };
            self.order(order);
        }
        for _ in 0..ORDERS {
            let Ok(answered) = self.answers.try_recv() else { return false };
            self.answered(&answered);
        }
        true
    }

    fn answered(&mut self, answered: &Answered) {
        if let Some(client) = self.clients.touch(answered.client) {
            deliver(client, answered);
        }
    }

    fn order(&mut self, order: Order) {
        let now = self.hub.now();
        match order {
            Order::Dial { to, answer } => self.dial(to, answer, now),
            Order::Datagram { to, data, .. }
                if to.address.is_broadcast() && to.address.network != 0 =>
            {
                self.hub.broadcast_of_plugin(to, &data);
            }
            Order::Datagram { to, source_port, data } => {
                if let Err(error) = self.hub.core.send_datagram_from(to, source_port, &data, now) {
                    debug!(%to, %error, "a plugin's datagram was not sent");
                }
            }
            Order::Listen { port, service, answer } => {
                // Nobody may wait any more.
                let _ = answer.send(self.hub.listen(port, service));
            }
            Order::Unlisten { port } => self.hub.unlisten(port),
            Order::Info { answer } => {
                self.note_udp();
                // Nobody may wait any more.
                let _ = answer.send(self.hub.info_json());
            }
            Order::Permission { node, permission } => {
                self.hub.core.handle(Input::Permission { node, permission }, now);
            }
            Order::Networks(networks) => self.hub.core.handle(Input::Networks(&networks), now),
            Order::Shared { node, networks, speaks } => {
                let (networks, speaks) = (networks.as_slice(), speaks.as_slice());
                self.hub.core.handle(Input::Shared { node, networks, speaks }, now);
            }
            Order::Broadcast { to, recipients, data } => {
                if let Err(error) = self.hub.core.broadcast(to, &recipients, 0, &data, now) {
                    debug!(%to, %error, "a broadcast was not sent");
                }
            }
            Order::Forget { node } => self.hub.core.forget_peer(node),
            Order::Control(event) => self.control(event, now),
            Order::Client(stream) => self.take_client(stream),
            Order::Snapshot { streams, answer } => {
                let registry_up = self.hub.plane.facts().registry["state"] == "up";
                let (udp, uptime) = (self.udp.status(), self.hub.started.elapsed());
                let Hub { core, counters, .. } = &self.hub;
                // Nobody may wait any more.
                let _ = answer.send(snapshot(core, uptime, registry_up, counters, udp, streams));
            }
            Order::Shutdown { deadline, done } => self.begin_end(deadline, done),
        }
    }

    fn dial(
        &mut self,
        to: pilot_wire::SocketAddress,
        answer: oneshot::Sender<Result<crate::service::LocalStream, DialFailure>>,
        now: Time,
    ) {
        let refusal = if self.ending.is_some() {
            DialFailure::ShuttingDown
        } else {
            match self.hub.core.dial(to, now) {
                Ok(StreamId(id)) => {
                    self.hub.conns.insert(id, Conn::new(Owner::DialLocal { answer }, to));
                    return;
                }
                Err(e) => DialFailure::Local(e),
            }
        };
        // Nobody may wait any more.
        let _ = answer.send(Err(refusal));
    }

    fn control(&mut self, event: ControlEvent, now: Time) {
        let core = &mut self.hub.core;
        match event {
            ControlEvent::Registered { node, .. } => core.handle(Input::LocalNode(node), now),
            ControlEvent::Endpoint { node, endpoint } => {
                core.handle(Input::Endpoint { node, endpoint }, now);
                if let Some(endpoint) = endpoint {
                    self.hub.peer_added(node, endpoint);
                }
            }
            ControlEvent::IdentityKey { node, key } => {
                core.handle(Input::IdentityKey { node, key }, now);
            }
            ControlEvent::Beacon(beacon) => core.handle(Input::Beacon(beacon), now),
            ControlEvent::Discover => core.handle(Input::Discover, now),
            ControlEvent::RegistryUp => info!("registry reached"),
            ControlEvent::RegistryDown { reason } => warn!(%reason, "registry cannot be reached"),
        }
    }
}
