//! Two cores, a link between them, and a clock that only moves when nothing
//! is left to do. Or several pairs on the two sides of one bottleneck: nodes
//! with an even index sit on the left and talk to the next one, on the right.

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
    config: Config,
    key: SigningKey,
}

pub(crate) struct World {
    pub(crate) now: Time,
    pub(crate) link: Link,
    pub(crate) rng: StdRng,
    pub(crate) nodes: Vec<Node>,
    /// By arrival: sender, receiver, datagram.
    in_flight: BTreeMap<(Time, u64), (usize, usize, Vec<u8>)>,
    /// The bottleneck from left to right, and back.
    bottleneck: [Bottleneck; 2],
    sequence: u64,
    buffer: Vec<u8>,
    trace: bool,
    stuck: u32,
    /// Datagrams that reached a core.
    pub(crate) delivered: u64,
    /// Datagrams sent, by node.
    pub(crate) sent: Vec<u64>,
}

/// One direction of the link, shared by all that send that way.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bottleneck {
    free: Time,
    waited: Duration,
    passed: u32,
}

impl Bottleneck {
    /// How long datagrams waited behind others, on average.
    pub(crate) fn mean_wait(&self) -> Duration {
        self.waited / self.passed.max(1)
    }
}

impl World {
    pub(crate) fn new(seed: u64, link: Link, config: &Config, loopback: bool) -> Self {
        Self::pairs(1, seed, link, config, loopback)
    }

    pub(crate) fn pairs(pairs: u8, seed: u64, link: Link, config: &Config, loopback: bool) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let ip = if loopback { "127.0.0" } else { "10.0.0" };
        let node = |n: u8| {
            let key = SigningKey::from_bytes(&[n; 32]);
            let address = format!("{ip}.{n}:4000").parse().expect("an address");
            let core = Core::new(config.clone(), key.clone(), rng.random());
            Node {
                id: NodeId(n.into()),
                address,
                core,
                events: Vec::new(),
                restarts: 0,
                wake: None,
                config: config.clone(),
                key,
            }
        };
        let nodes: Vec<Node> = (1..=2 * pairs).map(node).collect();
        let mut world = Self {
            now: Time::ZERO,
            link,
            rng,
            sent: vec![0; nodes.len()],
            nodes,
            in_flight: BTreeMap::new(),
            bottleneck: [Bottleneck::default(); 2],
            sequence: 0,
            buffer: Vec::new(),
            stuck: 0,
            trace: std::env::var_os("PILOT_SIM_SEED").is_some(),
            delivered: 0,
        };
        for i in 0..world.nodes.len() {
            world.introduce(i);
        }
        world
    }

    fn introduce(&mut self, i: usize) {
        let peer = self.nodes[i ^ 1].id;
        let node = &mut self.nodes[i];
        node.core.handle(Input::LocalNode(node.id), self.now);
        node.core
            .handle(Input::Permission { node: peer, permission: Permission::Trusted }, self.now);
    }

    /// The bottleneck that node `i` sends through.
    pub(crate) fn bottleneck(&self, i: usize) -> Bottleneck {
        self.bottleneck[i % 2]
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
        for i in 0..self.nodes.len() {
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
                let bottleneck = &mut self.bottleneck[from % 2];
                let wait = bottleneck.free.since(self.now);
                let waiting = wait.as_secs_f64() * self.link.rate as f64;
                if self.link.queue > 0 && waiting + datagram.len() as f64 > self.link.queue as f64 {
                    return;
                }
                let wire = Duration::from_secs_f64(datagram.len() as f64 / self.link.rate as f64);
                bottleneck.waited += wait;
                bottleneck.passed += 1;
                bottleneck.free = bottleneck.free.max(self.now) + wire;
                arrival = bottleneck.free + self.link.delay;
            }
            if self.rng.random_bool(self.link.reorder) {
                let jitter = self.link.jitter.as_nanos() as u64;
                arrival = arrival + Duration::from_nanos(self.rng.random_range(0..=jitter));
            }
            self.sequence += 1;
            self.in_flight.insert((arrival, self.sequence), (from, target, data));
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
            let (from, target, mut data) = entry.remove();
            let from = self.nodes[from].address;
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
