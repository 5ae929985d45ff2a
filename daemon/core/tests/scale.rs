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

impl Two {
    fn new() -> Self {
        let config = Config {
            max_streams: 2 * IDLE,
            max_streams_per_port: 2 * IDLE,
            syn_rate: 1_000_000,
            syn_rate_per_node: 1_000_000,
            ..Config::default()
        };
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
    let mut two = Two::new();
    two.nodes[1].core.listen(PORT).expect("free");
    let to = Address::backbone(NodeId(2)).port(PORT);
    let mut dialled = Vec::new();
    let mut accepted = Vec::new();
    while accepted.len() <= IDLE {
        for _ in 0..500.min(IDLE + 1 - dialled.len()) {
            dialled.push(two.nodes[0].core.dial(to, two.now).expect("the dial starts"));
        }
        two.step();
        accepted.extend(two.accepted());
        assert!(two.now < Time::ZERO + Duration::from_secs(60), "{} opened", accepted.len());
    }
    for _ in 0..2000 {
        two.step();
    }
    assert_eq!(two.nodes[0].core.open_streams(), IDLE + 1);
    let port =
        two.nodes[0].core.streams().iter().find(|s| s.id == dialled[0]).map(|s| s.local_port);
    let far = accepted.iter().find(|(p, _)| Some(*p) == port).expect("accepted").1;
    // The idle streams' keepalives come in one burst in thirty seconds, which
    // may fall into one of two transfers.
    let runs = [0, 1].map(|_| two.transfer(dialled[0], far, 1_000_000));
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
