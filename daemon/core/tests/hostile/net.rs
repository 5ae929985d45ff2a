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
use pilot_wire::{Address, NodeId};

pub(crate) const BEACON: &str = "10.0.9.9:9001";
const MAX_SILENT_TURNS: u32 = 200_000;

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
        for turn in 0.. {
            assert!(turn < MAX_SILENT_TURNS, "node {node} never has enough");
            let mut buffer = std::mem::take(&mut self.buffer);
            let output = self.nodes[node].core.poll_output(self.now, &mut buffer);
            match output {
                Output::Transmit(t) => {
                    for datagram in buffer.chunks(t.segment) {
                        self.sent(node, t.to, datagram);
                    }
                }
                Output::Event(event) => self.on_event(node, event),
                Output::Wait(at) => self.nodes[node].wake = at,
            }
            self.buffer = buffer;
            if matches!(output_kind(&self.nodes[node], turn), Kind::Done) {
                unreachable!();
            }
        }
    }
}
