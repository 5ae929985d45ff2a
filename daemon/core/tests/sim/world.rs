//! Two cores, a link between them, and a clock that only moves when nothing
//! is left to do.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use ed25519_dalek::SigningKey;
use pilot_core::{Config, Core, Event, Input, Output, Permission, Time};
use pilot_wire::NodeId;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// What the link does to datagrams. Ratios are per datagram.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) loss: f64,
    pub(crate) duplicate: f64,
    pub(crate) corrupt: f64,
    pub(crate) reorder: f64,
    pub(crate) delay: Duration,
    pub(crate) jitter: Duration,
    /// Larger UDP payloads vanish.
    pub(crate) mtu: usize,
    /// The system refuses UDP payloads of this size or larger, and says so.
    pub(crate) refused_from: Option<usize>,
    /// Bytes per second; 0 is without limit.
    pub(crate) rate: u64,
    /// Bytes that wait for the link; more are dropped. 0 is without limit.
    pub(crate) queue: u64,
}

impl Link {
    pub(crate) fn clean() -> Self {
        Self {
            loss: 0.0,
            duplicate: 0.0,
            corrupt: 0.0,
            reorder: 0.0,
            delay: Duration::from_millis(10),
            jitter: Duration::ZERO,
            mtu: 65_507,
            refused_from: None,
            rate: 0,
            queue: 0,
        }
    }
}

pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) address: SocketAddr,
    pub(crate) core: Core,
    pub(crate) events: Vec<Event>,
    pub(crate) restarts: u32,
    wake: Option<Time>,
    link_free: Time,
    config: Config,
    key: SigningKey,
}

pub(crate) struct World {
    pub(crate) now: Time,
    pub(crate) link: Link,
    pub(crate) rng: StdRng,
    pub(crate) nodes: [Node; 2],
    in_flight: BTreeMap<(Time, u64), (usize, Vec<u8>)>,
    sequence: u64,
    buffer: Vec<u8>,
    trace: bool,
    stuck: u32,
    /// Datagrams that reached a core.
    pub(crate) delivered: u64,
    /// Datagrams sent, by node.
    pub(crate) sent: [u64; 2],
}

impl World {
    pub(crate) fn new(seed: u64, link: Link, config: &Config, loopback: bool) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let ip = if loopback { "127.0.0" } else { "10.0.0" };
        let nodes = [1u32, 2].map(|n| {
            let key = SigningKey::from_bytes(&[n as u8; 32]);
            let address = format!("{ip}.{n}:4000").parse().expect("an address");
            let core = Core::new(config.clone(), key.clone(), rng.random());
            Node {
                id: NodeId(n),
                address,
                core,
                events: Vec::new(),
                restarts: 0,
                wake: None,
                link_free: Time::ZERO,
                config: config.clone(),
                key,
            }
        });
        let mut world = Self {
            now: Time::ZERO,
            link,
            rng,
            nodes,
            in_flight: BTreeMap::new(),
            sequence: 0,
            buffer: Vec::new(),
            stuck: 0,
            trace: std::env::var_os("PILOT_SIM_SEED").is_some(),
            delivered: 0,
            sent: [0; 2],
        };
        world.introduce(0);
        world.introduce(1);
        world
    }

    fn introduce(&mut self, i: usize) {
        let peer = self.nodes[1 - i].id;
        let node = &mut self.nodes[i];
        node.core.handle(Input::LocalNode(node.id), self.now);
        node.core
            .handle(Input::Permission { node: peer, permission: Permission::Trusted }, self.now);
    }

    /// Replaces a node by a fresh one with the same identity and address.
    pub(crate) fn restart(&mut self, i: usize) {
        let seed = self.rng.random();
        let node = &mut self.nodes[i];
        node.core = Core::new(node.config.clone(), node.key.clone(), seed);
        node.events.clear();
        node.restarts += 1;
        self.introduce(i);
    }

    /// Drains both cores; events stay in `nodes[i].events`.
    pub(crate) fn settle(&mut self) {
        for i in 0..2 {
            self.drain(i);
        }
    }

    fn drain(&mut self, i: usize) {
        let mut turns = 0u32;
        loop {
            turns += 1;
            assert!(turns < 1_000_000, "node {i} never stops having something to do");
            let mut buffer = std::mem::take(&mut self.buffer);
            let output = self.nodes[i].core.poll_output(self.now, &mut buffer);
            match output {
                Output::Transmit(t) => {
                    assert!(t.segment > 0 && t.len == buffer.len());
                    for datagram in buffer.chunks(t.segment) {
                        let len = datagram.len();
                        if self.link.refused_from.is_some_and(|from| len >= from) {
                            let refused = Input::TooLarge { to: t.to, len };
                            self.nodes[i].core.handle(refused, self.now);
                            continue;
                        }
                        self.sent[i] += 1;
                        self.send(i, t.to, datagram);
                    }
                }
                Output::Event(Event::NeedEndpoint { node }) => {
                    let endpoint = self.nodes.iter().find(|n| n.id == node).map(|n| n.address);
                    self.nodes[i].core.handle(Input::Endpoint { node, endpoint }, self.now);
                }
                Output::Event(Event::NeedKey { node }) => {
                    // A damaged frame may name a node that does not exist.
                    let known = self.nodes.iter().find(|n| n.id == node);
                    let key = known.map(|n| n.key.verifying_key().to_bytes());
                    self.nodes[i].core.handle(Input::IdentityKey { node, key }, self.now);
                }
                Output::Event(event) => {
                    if self.trace {
                        eprintln!("{:?} node {i}: {event:?}", self.now);
                    }
                    self.nodes[i].events.push(event);
                }
                Output::Wait(at) => {
                    self.nodes[i].wake = at;
                    self.buffer = buffer;
                    return;
                }
            }
            self.buffer = buffer;
        }
    }

    fn send(&mut self, from: usize, to: SocketAddr, datagram: &[u8]) {
        let Some(target) = self.nodes.iter().position(|n| n.address == to) else { return };
        if datagram.len() > self.link.mtu || self.rng.random_bool(self.link.loss) {
            return;
        }
        let copies = if self.rng.random_bool(self.link.duplicate) { 2 } else { 1 };
        for _ in 0..copies {
            let mut data = datagram.to_vec();
            if self.rng.random_bool(self.link.corrupt) {
                let at = self.rng.random_range(0..data.len());
                data[at] ^= 1 << self.rng.random_range(0..8);
            }
            let mut arrival = self.now + self.link.delay;
            if self.link.rate > 0 {
                let node = &mut self.nodes[from];
                let waiting = node.link_free.since(self.now).as_secs_f64() * self.link.rate as f64;
                if self.link.queue > 0 && waiting + datagram.len() as f64 > self.link.queue as f64 {
                    return;
                }
                let wire = Duration::from_secs_f64(datagram.len() as f64 / self.link.rate as f64);
                node.link_free = node.link_free.max(self.now) + wire;
                arrival = node.link_free + self.link.delay;
            }
            if self.rng.random_bool(self.link.reorder) {
                let jitter = self.link.jitter.as_nanos() as u64;
                arrival = arrival + Duration::from_nanos(self.rng.random_range(0..=jitter));
            }
            self.sequence += 1;
            self.in_flight.insert((arrival, self.sequence), (target, data));
        }
    }

    /// Moves time to the next arrival or deadline and handles it. Returns
    /// whether there was one.
    pub(crate) fn step(&mut self) -> bool {
        self.settle();
        let arrival = self.in_flight.keys().next().map(|k| k.0);
        let wake = self.nodes.iter().filter_map(|n| n.wake).min();
        let Some(next) = [arrival, wake].into_iter().flatten().min() else { return false };
        self.stuck = if next <= self.now { self.stuck + 1 } else { 0 };
        assert!(self.stuck < 10_000, "a deadline in the past is never met at {:?}", self.now);
        self.now = self.now.max(next);
        while let Some(entry) = self.in_flight.first_entry() {
            if entry.key().0 > self.now {
                break;
            }
            let (target, mut data) = entry.remove();
            let from = self.nodes[1 - target].address;
            self.delivered += 1;
            self.nodes[target].core.handle(Input::Datagram { from, data: &mut data }, self.now);
        }
        for node in &mut self.nodes {
            if node.wake.is_some_and(|at| at <= self.now) {
                node.core.handle(Input::Timeout, self.now);
            }
        }
        self.settle();
        true
    }
}
