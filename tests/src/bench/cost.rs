//! `peers.cost`: what a packet of a busy stream costs a node that knows 10,000
//! peers, each with a tunnel and an idle stream, against one that knows 1.
//!
//! At the level of the protocol core, in this process and without sockets: ten
//! thousand daemons do not fit on a machine. Packets are real and sealed; the
//! clock is the machine's, ahead of it by the waits that are left out.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use ed25519_dalek::SigningKey;
use pilot_core::{Config, Core, Event, Input, Output, Permission, Read, StreamId, Time};
use pilot_wire::{Address, NodeId};

use super::client::pattern;
use super::report::Report;
use super::rows::{Plan, RUNS};

/// The row, and the figures that it is the ratio of.
pub(super) const ROWS: [&str; 3] = ["peers.cost", "peers.cost.1", "peers.cost.10000"];
/// Peers of the crowded node.
const CROWD: usize = 10_000;
/// The busy one is the last: number, port, address.
const PORT: u16 = 1000;
/// Number of the node that is measured.
const NODE: u32 = 1;
/// Largest UDP payload of an Ethernet path; what is larger gets lost, so that
/// packets are what they are on such a path.
const PATH: usize = 1472;
/// Bytes that go through the stream for each figure.
const AMOUNT: usize = 256 << 20;
/// What an application writes at once.
const WRITE: usize = 64 << 10;
/// Key exchanges a second are bounded; between two this passes on the clock.
const BETWEEN: Duration = Duration::from_millis(5);
/// A stream opens within this.
const MEETING_LIMIT: Duration = Duration::from_secs(2);
/// The search for the path MTU ends within this.
const SETTLED: Duration = Duration::from_secs(10);

/// Runs the rows that are wanted.
pub(super) fn run(plan: &Plan, report: &mut Report) -> Result<()> {
    eprintln!("peers.cost: {CROWD} peers with an idle stream each, and one with a busy one");
    let crowd = if plan.quick { CROWD / 10 } else { CROWD };
    let amount = if plan.quick { AMOUNT / 10 } else { AMOUNT };
    let (mut lone, mut crowded) = (World::new(0)?, World::new(crowd - 1)?);
    for world in [&mut lone, &mut crowded] {
        world.settle();
        // The window opens.
        world.packet_cost(AMOUNT / 10)?;
    }
    for _ in 0..RUNS {
        let one = lone.packet_cost(amount)?;
        let many = crowded.packet_cost(amount)?;
        report.add("peers.cost.1", "ns", one);
        report.add("peers.cost.10000", "ns", many);
        report.add("peers.cost", "ratio", many / one);
    }
    Ok(())
}

/// A core and who it is.
struct Node {
    core: Core,
    number: u32,
    key: SigningKey,
    events: Vec<Event>,
    wake: Option<Time>,
    buffer: Vec<u8>,
}

impl Node {
    fn new(number: u32) -> Self {
        let config = Config {
            max_streams: 2 * CROWD,
            max_streams_per_port: 2 * CROWD,
            syn_rate: 1_000_000,
            syn_rate_per_node: 1_000_000,
            // Nobody answers for the idle peers.
            keepalive: Duration::from_secs(86_400),
            idle_timeout: Duration::from_secs(86_400),
            ..Config::default()
        };
        let mut seed = [7; 32];
        seed[..4].copy_from_slice(&number.to_be_bytes());
        let key = SigningKey::from_bytes(&seed);
        let mut core = Core::new(config, key.clone(), seed);
        core.handle(Input::LocalNode(NodeId(number)), Time::ZERO);
        Self { core, number, key, events: Vec::new(), wake: None, buffer: Vec::new() }
    }

    fn endpoint(&self) -> SocketAddr {
        // Below 10.0.0.0/8 there is room for all numbers.
        let ip = Ipv4Addr::from(0x0A00_0000 + self.number);
        SocketAddr::from((ip, 4000))
    }

    fn trust(&mut self, other: &Node, now: Time) {
        let (node, permission) = (NodeId(other.number), Permission::Trusted);
        self.core.handle(Input::Permission { node, permission }, now);
    }

    /// Takes what arrived, then drains; what is sent goes to `mail`. Questions
    /// about the other side are answered at once.
    fn turn(&mut self, other: &Known, arrived: &mut Mail, mail: &mut Mail, now: Time) -> u64 {
        for mut data in arrived.drain(..) {
            let datagram = Input::Datagram { from: other.endpoint, data: &mut data };
            self.core.handle(datagram, now);
        }
        let mut sent = 0;
        loop {
            match self.core.poll_output(now, &mut self.buffer) {
                Output::Transmit(transmit) => {
                    let datagrams = self.buffer.chunks(transmit.segment);
                    sent += datagrams.len() as u64;
                    if transmit.to == other.endpoint {
                        mail.extend(datagrams.filter(|d| d.len() <= PATH).map(<[u8]>::to_vec));
                    }
                }
                Output::Event(Event::NeedEndpoint { node }) => {
                    let endpoint = (node == other.node).then_some(other.endpoint);
                    self.core.handle(Input::Endpoint { node, endpoint }, now);
                }
                Output::Event(Event::NeedKey { node }) => {
                    let key = (node == other.node).then_some(other.key);
                    self.core.handle(Input::IdentityKey { node, key }, now);
                }
                Output::Event(event) => self.events.push(event),
                Output::Wait(at) => {
                    self.wake = at;
                    return sent;
                }
            }
        }
    }
}

/// Datagrams under way.
type Mail = Vec<Vec<u8>>;

/// What a registry says of a node.
struct Known {
    node: NodeId,
    endpoint: SocketAddr,
    key: [u8; 32],
}

impl Known {
    fn of(node: &Node) -> Self {
        Self {
            node: NodeId(node.number),
            endpoint: node.endpoint(),
            key: node.key.verifying_key().to_bytes(),
        }
    }
}

/// The node that is measured and the peer at the other end of its busy stream.
/// The other peers have gone without a word.
struct World {
    node: Node,
    peer: Node,
    sending: StreamId,
    receiving: StreamId,
    clock: Clock,
    payload: Bytes,
}

/// The machine's time since the start, and what was skipped.
struct Clock {
    start: Instant,
    skipped: Duration,
}

impl Clock {
    fn now(&self) -> Time {
        Time::ZERO + self.start.elapsed() + self.skipped
    }
}

impl World {
    fn new(idle: usize) -> Result<Self> {
        let mut clock = Clock { start: Instant::now(), skipped: Duration::ZERO };
        let mut node = Node::new(NODE);
        node.core.listen(PORT)?;
        for number in (NODE + 1..).take(idle) {
            let mut peer = Node::new(number);
            meet(&mut node, &mut peer, &mut clock)
                .with_context(|| format!("the peer with number {number}"))?;
        }
        let mut peer = Node::new(u32::try_from(CROWD)? + NODE);
        let (receiving, sending) = meet(&mut node, &mut peer, &mut clock)?;
        ensure!(node.core.open_streams() == idle + 1, "not every stream is open");
        ensure!(node.core.peers().len() == idle + 1, "not every peer is known");
        let payload = Bytes::from(pattern(WRITE));
        Ok(Self { node, peer, sending, receiving, clock, payload })
    }

    /// Lets the path MTU be found, and what was said to gone peers be over.
    fn settle(&mut self) {
        let (node_known, peer_known) = (Known::of(&self.node), Known::of(&self.peer));
        let (mut to_node, mut to_peer) = (Mail::new(), Mail::new());
        let end = self.clock.now() + SETTLED;
        loop {
            let now = self.clock.now();
            self.node.turn(&peer_known, &mut to_node, &mut to_peer, now);
            self.peer.turn(&node_known, &mut to_peer, &mut to_node, now);
            if now >= end {
                return;
            }
            if to_node.is_empty() && to_peer.is_empty() {
                let next = [self.node.wake, self.peer.wake].into_iter().flatten().min();
                let next = next.map_or(end, |next| next.min(end));
                self.clock.skipped += next.since(self.clock.now());
            }
        }
    }

    /// Sends `amount` bytes; nanoseconds of the node for each packet that it
    /// sent, acknowledgements that came for them included.
    fn packet_cost(&mut self, amount: usize) -> Result<f64> {
        let (node_known, peer_known) = (Known::of(&self.node), Known::of(&self.peer));
        let (mut to_node, mut to_peer) = (Mail::new(), Mail::new());
        let (mut written, mut read, mut sent) = (0, 0, 0);
        let mut spent = Duration::ZERO;
        while read < amount {
            let now = self.clock.now();
            let start = Instant::now();
            while written < amount && self.node.core.writable(self.sending) >= WRITE {
                self.node.core.write(self.sending, self.payload.clone(), now)?;
                written += WRITE;
            }
            sent += self.node.turn(&peer_known, &mut to_node, &mut to_peer, now);
            spent += start.elapsed();
            self.node.events.clear();

            let now = self.clock.now();
            self.peer.turn(&node_known, &mut to_peer, &mut to_node, now);
            loop {
                match self.peer.core.read(self.receiving, 1 << 20) {
                    Read::Data(data) => read += data.len(),
                    Read::Blocked => break,
                    Read::End => bail!("the stream ended after {read} bytes"),
                }
            }
            self.peer.events.clear();
            // Reading opens the window; that goes out with what follows.
            self.peer.turn(&node_known, &mut to_peer, &mut to_node, now);
            if to_node.is_empty() {
                skip(&mut self.clock, [&self.node, &self.peer])?;
            }
        }
        Ok(spent.as_nanos() as f64 / sent as f64)
    }
}

/// To the next timer, when nothing is under way.
fn skip(clock: &mut Clock, nodes: [&Node; 2]) -> Result<()> {
    let next = nodes.into_iter().filter_map(|n| n.wake).min();
    clock.skipped += next.context("both wait for nothing")?.since(clock.now());
    Ok(())
}

/// Has a peer open a stream to the node, and returns both ends when there is
/// nothing more to say.
fn meet(node: &mut Node, peer: &mut Node, clock: &mut Clock) -> Result<(StreamId, StreamId)> {
    clock.skipped += BETWEEN;
    let start = clock.now();
    node.trust(peer, start);
    peer.trust(node, start);
    let (node_known, peer_known) = (Known::of(node), Known::of(peer));
    let theirs = peer.core.dial(Address::backbone(NodeId(NODE)).port(PORT), start)?;
    let (mut to_node, mut to_peer) = (Mail::new(), Mail::new());
    let (mut ours, mut connected) = (None, false);
    loop {
        let now = clock.now();
        peer.turn(&node_known, &mut to_peer, &mut to_node, now);
        node.turn(&peer_known, &mut to_node, &mut to_peer, now);
        connected |= peer.events.drain(..).any(|e| e == Event::Connected { stream: theirs });
        for event in node.events.drain(..) {
            if let Event::Incoming { stream, .. } = event {
                ours = Some(stream);
            }
        }
        match ours {
            Some(ours) if connected && to_node.is_empty() && to_peer.is_empty() => {
                return Ok((theirs, ours));
            }
            _ => ensure!(now.since(start) < MEETING_LIMIT, "no stream opened"),
        }
        if to_node.is_empty() && to_peer.is_empty() {
            skip(clock, [node, peer])?;
        }
    }
}
