//! Cores on a network without loss, in virtual time. Everything that a core
//! sends is recorded and checked: no packet in the clear, no nonce twice.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use pilot_core::{
    CloseReason, Config, Core, Event, Input, Output, Permission, Read, Refusal, StreamId, Time,
};
use pilot_wire::beacon::{Message, RELAY_HEADER_LEN};
use pilot_wire::tunnel::COMPACT;
use pilot_wire::{Address, NodeId};

const BEACON: &str = "10.0.9.9:9001";
const MAX_TURNS: u32 = 200_000;

/// One way.
const DELAY: Duration = Duration::from_millis(5);

/// A datagram on its way.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) data: Vec<u8>,
}

pub(crate) struct Node {
    pub(crate) id: u32,
    pub(crate) address: SocketAddr,
    pub(crate) core: Core,
    pub(crate) events: Vec<Event>,
    wake: Option<Time>,
}

pub(crate) struct Net {
    pub(crate) now: Time,
    pub(crate) nodes: Vec<Node>,
    /// Everything that cores sent, in order.
    pub(crate) log: Vec<Sent>,
    /// What was sent to an address that no core has.
    pub(crate) mail: BTreeMap<SocketAddr, Vec<Vec<u8>>>,
    /// Registered identities.
    pub(crate) keys: BTreeMap<u32, [u8; 32]>,
    /// Whether the registry answers questions for keys.
    pub(crate) registry_answers: bool,
    /// Datagrams between cores vanish.
    pub(crate) cut: bool,
    /// As above, but what goes through the beacon arrives.
    pub(crate) beacon_only: bool,
    nonces: BTreeSet<[u8; 12]>,
    in_flight: BTreeMap<(Time, u64), Sent>,
    sequence: u64,
    buffer: Vec<u8>,
}

pub(crate) fn address(n: u32) -> SocketAddr {
    format!("10.0.0.{n}:4000").parse().expect("an address")
}

pub(crate) fn identity(n: u32) -> SigningKey {
    SigningKey::from_bytes(&[n as u8; 32])
}

impl Net {
    /// Cores with the node numbers 1 to `count` that trust each other.
    pub(crate) fn new(count: u32, config: &Config) -> Self {
        let mut net = Self {
            now: Time::ZERO,
            nodes: Vec::new(),
            log: Vec::new(),
            mail: BTreeMap::new(),
            keys: BTreeMap::new(),
            registry_answers: true,
            cut: false,
            beacon_only: false,
            nonces: BTreeSet::new(),
            in_flight: BTreeMap::new(),
            sequence: 0,
            buffer: Vec::new(),
        };
        for id in 1..=count {
            let key = identity(id);
            net.keys.insert(id, key.verifying_key().to_bytes());
            let mut core = Core::new(config.clone(), key, [id as u8 + 100; 32]);
            core.handle(Input::LocalNode(NodeId(id)), net.now);
            let node = Node { id, address: address(id), core, events: Vec::new(), wake: None };
            net.nodes.push(node);
        }
        for i in 0..count as usize {
            for peer in (1..=count).filter(|peer| *peer as usize != i + 1) {
                net.permit(i, peer, Permission::Trusted);
            }
        }
        net
    }

    pub(crate) fn permit(&mut self, node: usize, peer: u32, permission: Permission) {
        self.handle(node, Input::Permission { node: NodeId(peer), permission });
    }

    pub(crate) fn handle(&mut self, node: usize, input: Input<'_>) {
        self.nodes[node].core.handle(input, self.now);
        self.drain(node);
    }

    /// Hands a datagram to a core now.
    pub(crate) fn inject(&mut self, node: usize, from: SocketAddr, data: &[u8]) {
        let mut data = data.to_vec();
        self.handle(node, Input::Datagram { from, data: &mut data });
    }

    pub(crate) fn drain(&mut self, node: usize) {
        let mut buffer = std::mem::take(&mut self.buffer);
        for turn in 0.. {
            assert!(turn < MAX_TURNS, "node {node} never stops having something to do");
            match self.nodes[node].core.poll_output(self.now, &mut buffer) {
                Output::Transmit(t) => {
                    for datagram in buffer.chunks(t.segment) {
                        self.sent(node, t.to, datagram);
                    }
                }
                Output::Event(event) => self.on_event(node, event),
                Output::Wait(at) => {
                    self.nodes[node].wake = at;
                    break;
                }
            }
        }
        self.buffer = buffer;
    }

    fn on_event(&mut self, node: usize, event: Event) {
        let core = &mut self.nodes[node].core;
        match event {
            Event::NeedKey { node: peer } if self.registry_answers => {
                let key = self.keys.get(&peer.0).copied();
                core.handle(Input::IdentityKey { node: peer, key }, self.now);
            }
            Event::NeedEndpoint { node: peer } => {
                let known = self.nodes.iter().find(|n| n.id == peer.0);
                let endpoint = known.map(|n| n.address);
                let input = Input::Endpoint { node: peer, endpoint };
                self.nodes[node].core.handle(input, self.now);
            }
            event => self.nodes[node].events.push(event),
        }
    }

    /// Checks and records what a core sends, and puts it on its way.
    fn sent(&mut self, node: usize, to: SocketAddr, datagram: &[u8]) {
        let sent = Sent { from: self.nodes[node].address, to, data: datagram.to_vec() };
        self.log.push(sent.clone());
        let relayed = datagram[0] == 0x05;
        let frame = if relayed { &datagram[RELAY_HEADER_LEN..] } else { datagram };
        if frame[0] >= 0x10 {
            let magic = &frame[..4];
            let sealed = frame[0] == COMPACT || magic == b"PILS";
            assert!(sealed || magic == b"PILA" || magic == b"PILP", "in the clear");
        }
        let nonce: Option<[u8; 12]> = if frame.starts_with(b"PILS") {
            Some(frame[8..20].try_into().expect("12 bytes"))
        } else if frame[0] == COMPACT {
            // No test comes near a counter of more than 24 bits.
            let mut nonce = [0; 12];
            nonce[..4].copy_from_slice(&frame[8..12]);
            nonce[9..].copy_from_slice(&frame[1..4]);
            Some(nonce)
        } else {
            None
        };
        if let Some(nonce) = nonce {
            assert!(self.nonces.insert(nonce), "nonce {nonce:?} used twice");
        }
        if self.cut {
            return;
        }
        if to == beacon() {
            self.relay(datagram);
        } else if !self.beacon_only {
            self.dispatch(sent);
        }
    }

    fn dispatch(&mut self, sent: Sent) {
        if self.nodes.iter().any(|n| n.address == sent.to) {
            self.sequence += 1;
            self.in_flight.insert((self.now + DELAY, self.sequence), sent);
        } else {
            self.mail.entry(sent.to).or_default().push(sent.data);
        }
    }

    /// What a beacon does with a relay message.
    fn relay(&mut self, datagram: &[u8]) {
        let Ok(Message::Relay { sender, destination, frame }) = Message::parse(datagram) else {
            return;
        };
        let mut data = Vec::new();
        Message::RelayDeliver { sender, frame }.encode(&mut data);
        let to = self.nodes.iter().find(|n| n.id == destination.0);
        let to = to.map_or_else(|| address(destination.0), |n| n.address);
        self.dispatch(Sent { from: beacon(), to, data });
    }

    /// Lets time pass until `wanted` holds. Returns whether it ever did.
    pub(crate) fn until(
        &mut self,
        limit: Duration,
        mut wanted: impl FnMut(&mut Self) -> bool,
    ) -> bool {
        let limit = self.now + limit;
        loop {
            for node in 0..self.nodes.len() {
                self.drain(node);
            }
            if wanted(self) {
                return true;
            }
            let arrival = self.in_flight.keys().next().map(|k| k.0);
            let wake = self.nodes.iter().filter_map(|n| n.wake).min();
            let next = [arrival, wake].into_iter().flatten().min().unwrap_or(limit);
            if next >= limit {
                self.now = self.now.max(limit);
                return false;
            }
            self.now = self.now.max(next);
            while let Some(entry) = self.in_flight.first_entry() {
                if entry.key().0 > self.now {
                    break;
                }
                let sent = entry.remove();
                // The receiver may have moved meanwhile.
                if let Some(node) = self.nodes.iter().position(|n| n.address == sent.to) {
                    self.inject(node, sent.from, &sent.data);
                }
            }
        }
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.until(time, |_| false);
    }

    // ---- applications --------------------------------------------------------

    /// Opens a stream from node `a` to `port` of node `b`.
    pub(crate) fn connect(&mut self, a: usize, b: usize, port: u16) -> Pair {
        let _ = self.nodes[b].core.listen(port);
        let to = Address::backbone(NodeId(self.nodes[b].id)).port(port);
        let dialled = self.nodes[a].core.dial(to, self.now).expect("the dial starts");
        let seen = self.nodes[b].events.len();
        let mut accepted = None;
        let open = self.until(Duration::from_secs(20), |net| {
            accepted = net.nodes[b].events[seen..].iter().find_map(|e| match e {
                Event::Incoming { stream, local_port, .. } if *local_port == port => Some(*stream),
                _ => None,
            });
            accepted.is_some()
                && net.nodes[a].events.contains(&Event::Connected { stream: dialled })
        });
        assert!(open, "the stream opens");
        Pair { ends: [(a, dialled), (b, accepted.expect("accepted"))] }
    }

    /// Everything that can be read from a stream now.
    pub(crate) fn read_all(&mut self, (node, stream): (usize, StreamId)) -> Vec<u8> {
        let mut out = Vec::new();
        while let Read::Data(data) = self.nodes[node].core.read(stream, 1 << 20) {
            out.extend_from_slice(&data);
        }
        out
    }

    /// Moves `len` bytes each way and checks them; `meddle` runs at every step.
    pub(crate) fn converse(&mut self, pair: &Pair, len: usize, mut meddle: impl FnMut(&mut Self)) {
        let data = [0, 1].map(|i| pattern(len, i));
        let mut got = [Vec::new(), Vec::new()];
        let mut written = [0; 2];
        let done = self.until(Duration::from_secs(300), |net| {
            for (i, end) in pair.ends.into_iter().enumerate() {
                let room = net.nodes[end.0].core.writable(end.1).min(len - written[i]);
                if room > 0 {
                    let piece = Bytes::copy_from_slice(&data[i][written[i]..written[i] + room]);
                    net.nodes[end.0].core.write(end.1, piece, net.now).expect("still open");
                    written[i] += room;
                }
                let read = net.read_all(end);
                got[i].extend(read);
                assert!(data[1 - i].starts_with(&got[i]), "wrong bytes reached end {i}");
                net.drain(end.0);
            }
            meddle(net);
            got.iter().all(|g| g.len() == len)
        });
        assert!(done, "{} and {} of {len} bytes arrived", got[0].len(), got[1].len());
    }

    pub(crate) fn closed(&self, (node, stream): (usize, StreamId)) -> Option<CloseReason> {
        self.nodes[node].events.iter().find_map(|e| match e {
            Event::Closed { stream: s, reason } if *s == stream => Some(*reason),
            _ => None,
        })
    }

    // ---- looking ------------------------------------------------------------

    pub(crate) fn refused(&self, node: usize, rule: Refusal) -> u64 {
        self.nodes[node].core.counters().refused(rule)
    }

    /// Where a node sends what is for `peer`, and whether through the beacon.
    pub(crate) fn path(&self, node: usize, peer: u32) -> Option<(SocketAddr, bool)> {
        let peers = self.nodes[node].core.peers();
        let peer = peers.iter().find(|p| p.node.0 == peer)?;
        Some((peer.endpoint?, peer.relay))
    }

    /// How many sessions were made so far.
    pub(crate) fn sessions(&self, node: usize) -> usize {
        self.nodes[node].events.iter().filter(|e| matches!(e, Event::TunnelUp { .. })).count()
    }

    /// Frames of one kind that `from` sent to `to`, oldest first.
    pub(crate) fn recorded(&self, from: usize, to: usize, magic: &[u8]) -> Vec<Vec<u8>> {
        let (from, to) = (self.nodes[from].address, self.nodes[to].address);
        let wanted = |s: &&Sent| s.from == from && s.to == to && s.data.starts_with(magic);
        self.log.iter().filter(wanted).map(|s| s.data.clone()).collect()
    }
}

/// Both ends of a stream: node and handle, the dialler first.
pub(crate) struct Pair {
    pub(crate) ends: [(usize, StreamId); 2],
}

pub(crate) fn beacon() -> SocketAddr {
    BEACON.parse().expect("an address")
}

pub(crate) fn pattern(len: usize, salt: usize) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8 ^ salt as u8).collect()
}
