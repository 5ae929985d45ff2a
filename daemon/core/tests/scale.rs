//! Many idle streams must not make one busy stream slower: what a packet costs
//! depends on what has something to do, not on what is open.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use pilot_core::{Config, Core, Event, Input, Output, Permission, Read, StreamId, Time};
use pilot_wire::{Address, NodeId};

const IDLE: usize = 10_000;
const PORT: u16 = 1000;
const ONE_WAY: Duration = Duration::from_millis(1);

struct Node {
    core: Core,
    address: SocketAddr,
    key: [u8; 32],
    events: Vec<Event>,
    wake: Option<Time>,
    /// Calls of `poll_output` so far.
    polls: u64,
    datagrams: u64,
}

struct Two {
    nodes: [Node; 2],
    now: Time,
}

fn lifted() -> Config {
    Config {
        max_streams: 2 * IDLE,
        max_streams_per_port: 2 * IDLE,
        syn_rate: 1_000_000,
        syn_rate_per_node: 1_000_000,
        ..Config::default()
    }
}

impl Two {
    fn new(config: &Config) -> Self {
        let nodes = [1u32, 2].map(|id| {
            let key = SigningKey::from_bytes(&[id as u8; 32]);
            let mut core = Core::new(config.clone(), key.clone(), [id as u8; 32]);
            core.handle(Input::LocalNode(NodeId(id)), Time::ZERO);
            let (node, permission) = (NodeId(3 - id), Permission::Trusted);
            core.handle(Input::Permission { node, permission }, Time::ZERO);
            Node {
                core,
                address: format!("10.0.0.{id}:4000").parse().expect("an address"),
                key: key.verifying_key().to_bytes(),
                events: Vec::new(),
                wake: None,
                polls: 0,
                datagrams: 0,
            }
        });
        Self { nodes, now: Time::ZERO }
    }

    /// Drains a node and hands what it sends to the other, one way later.
    fn turn(&mut self, i: usize, mail: &mut Vec<(usize, Vec<u8>)>) {
        let (endpoint, key) = (self.nodes[1 - i].address, self.nodes[1 - i].key);
        let mut buffer = Vec::new();
        loop {
            let node = &mut self.nodes[i];
            node.polls += 1;
            match node.core.poll_output(self.now, &mut buffer) {
                Output::Transmit(t) => {
                    for datagram in buffer.chunks(t.segment) {
                        node.datagrams += 1;
                        mail.push((1 - i, datagram.to_vec()));
                    }
                }
                Output::Event(Event::NeedEndpoint { node: peer }) => {
                    let endpoint = Some(endpoint);
                    node.core.handle(Input::Endpoint { node: peer, endpoint }, self.now);
                }
                Output::Event(Event::NeedKey { node: peer }) => {
                    node.core.handle(Input::IdentityKey { node: peer, key: Some(key) }, self.now);
                }
                Output::Event(event) => node.events.push(event),
                Output::Wait(at) => {
                    node.wake = at;
                    return;
                }
            }
        }
    }

    /// One way's time, or until the next timer when nothing is on its way.
    fn step(&mut self) {
        let mut mail = Vec::new();
        self.turn(0, &mut mail);
        self.turn(1, &mut mail);
        let wake = self.nodes.iter().filter_map(|n| n.wake).min();
        self.now = match wake {
            Some(at) if mail.is_empty() => self.now.max(at),
            _ => self.now + ONE_WAY,
        };
        for (to, mut data) in mail {
            let from = self.nodes[1 - to].address;
            self.nodes[to].core.handle(Input::Datagram { from, data: &mut data }, self.now);
        }
    }

    /// Opens `count` streams from node 0 to node 1; the handles of both ends.
    fn open(&mut self, count: usize) -> Vec<(StreamId, StreamId)> {
        self.nodes[1].core.listen(PORT).expect("free");
        let to = Address::backbone(NodeId(2)).port(PORT);
        let (mut dialled, mut accepted) = (Vec::new(), std::collections::BTreeMap::new());
        while accepted.len() < count {
            for _ in 0..500.min(count - dialled.len()) {
                dialled.push(self.nodes[0].core.dial(to, self.now).expect("the dial starts"));
            }
            self.step();
            accepted.extend(self.accepted());
            assert!(self.now < Time::ZERO + Duration::from_secs(60), "{} opened", accepted.len());
        }
        let ports: std::collections::BTreeMap<_, _> =
            self.nodes[0].core.streams().iter().map(|s| (s.id, s.local_port)).collect();
        dialled.iter().map(|id| (*id, accepted[&ports[id]])).collect()
    }

    /// Streams accepted since the last look, with the port at the other end.
    fn accepted(&mut self) -> Vec<(u16, StreamId)> {
        let events = std::mem::take(&mut self.nodes[1].events);
        let incoming = events.iter().filter_map(|e| match e {
            Event::Incoming { stream, remote, .. } => Some((remote.port, *stream)),
            _ => None,
        });
        incoming.collect()
    }

    /// Moves `len` bytes from node 0 to node 1; the calls and datagrams that
    /// took.
    fn transfer(&mut self, from: StreamId, to: StreamId, len: usize) -> (u64, u64) {
        let polls = |two: &Self| two.nodes.iter().map(|n| n.polls).sum::<u64>();
        let datagrams = |two: &Self| two.nodes.iter().map(|n| n.datagrams).sum::<u64>();
        let before = (polls(self), datagrams(self));
        let data = Bytes::from(vec![7; len]);
        self.nodes[0].core.write(from, data, self.now).expect("open");
        let (mut got, start) = (0, self.now);
        while got < len {
            self.step();
            while let Read::Data(data) = self.nodes[1].core.read(to, 1 << 20) {
                got += data.len();
            }
            assert!(self.now.since(start) < Duration::from_secs(20), "{got} of {len} bytes");
        }
        (polls(self) - before.0, datagrams(self) - before.1)
    }
}

#[test]
fn a_busy_stream_does_not_pay_for_idle_ones() {
    let mut two = Two::new(&lifted());
    let streams = two.open(IDLE + 1);
    for _ in 0..2000 {
        two.step();
    }
    assert_eq!(two.nodes[0].core.open_streams(), IDLE + 1);
    let (near, far) = streams[0];
    // The idle streams' keepalives come in one burst in thirty seconds, which
    // may fall into one of two transfers.
    let runs = [0, 1].map(|_| two.transfer(near, far, 1_000_000));
    let (polls, datagrams) = *runs.iter().min_by_key(|(_, datagrams)| datagrams).expect("two");
    assert!(polls < 4 * datagrams + 2000, "{polls} calls for {datagrams} datagrams");
    assert!(datagrams < 5000, "{datagrams} datagrams");
    // Keepalives of ten thousand streams come once in thirty seconds each.
    let before = two.nodes[0].datagrams;
    let start = two.now;
    while two.now.since(start) < Duration::from_secs(60) {
        two.step();
    }
    let idle = two.nodes[0].datagrams - before;
    assert!(idle < 6 * IDLE as u64, "{idle} datagrams in an idle minute");
}

/// Ten thousand streams whose readers have stopped hold no more than the node
/// may hold, at either end; and the one that is read goes on.
#[test]
fn stalled_streams_stay_within_the_memory_of_the_node() {
    const TOTAL: usize = 350 << 20;
    const PIECE: usize = 16 << 10;
    let config = Config { max_streams: IDLE + 1, buffer_memory: TOTAL, ..lifted() };
    let mut two = Two::new(&config);
    let streams = two.open(IDLE + 1);
    let piece = Bytes::from(vec![7; PIECE]);
    let mut peak = [0; 2];
    for _ in 0..30 {
        for (near, _) in &streams {
            if two.nodes[0].core.writable(*near) >= PIECE {
                two.nodes[0].core.write(*near, piece.clone(), two.now).expect("open");
            }
        }
        two.step();
        for (peak, node) in peak.iter_mut().zip(&two.nodes) {
            *peak = (*peak).max(node.core.buffered());
        }
        two.nodes[0].events.clear();
    }
    assert!(peak.iter().all(|p| *p > TOTAL / 4), "they did stall: {peak:?}");
    assert!(peak.iter().all(|p| *p <= TOTAL), "{peak:?} of {TOTAL}");
    let (near, far) = streams[IDLE / 2];
    // What the floor takes: a stream that is read goes on by that alone.
    let piece = Bytes::from(vec![7; 4096]);
    let mut read = 0;
    for _ in 0..3_000 {
        if read > 100_000 {
            break;
        }
        while two.nodes[0].core.writable(near) >= piece.len() {
            two.nodes[0].core.write(near, piece.clone(), two.now).expect("open");
        }
        two.step();
        while let Read::Data(data) = two.nodes[1].core.read(far, 1 << 20) {
            read += data.len();
        }
        two.nodes[0].events.clear();
    }
    assert!(read > 100_000, "the stream that is read has moved {read} bytes");
}
