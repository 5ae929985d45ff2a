//! A node as published, reduced to what streams need: one static X25519 key,
//! a replay window that every accepted exchange empties, segments with exact
//! boundaries, SACK lists in the payload, a FIN that is sent once and an answer
//! to every FIN. Faults included (protocol pages "Tunnel layer" and "Transport
//! layer"); it shares nothing with the core but header layouts.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use ed25519_dalek::SigningKey;
use pilot_core::Time;
use pilot_wire::packet::{Flags, Header, Packet, Protocol};
use pilot_wire::{Address, NodeId, SocketAddress};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::crypto::{Channel, KeyPair, offered_key};
use crate::stream::{Connection, Out, State};

const SWEEP: Duration = Duration::from_secs(15);
const TICK: Duration = Duration::from_millis(10);
const QUEUE: usize = 64;

/// Replay check as published: 256 counters, the prefix plays no part, and a
/// counter is recorded before the frame is opened.
#[derive(Default)]
struct Window {
    max: u64,
    seen: BTreeMap<u64, ()>,
}

impl Window {
    fn accept(&mut self, counter: u64) -> bool {
        if self.max != 0 && counter <= self.max {
            if self.max - counter >= 256 || self.seen.contains_key(&counter) {
                return false;
            }
        } else {
            self.max = counter;
            self.seen = self.seen.split_off(&counter.saturating_sub(255));
        }
        self.seen.insert(counter, ());
        true
    }
}

pub(crate) struct Published {
    pub(crate) node: u32,
    pub(crate) address: SocketAddr,
    identity: SigningKey,
    keys: KeyPair,
    channel: Option<Channel>,
    window: Window,
    queue: VecDeque<Vec<u8>>,
    /// The core: node number and endpoint.
    peer: (u32, SocketAddr),
    known: bool,
    pub(crate) connections: BTreeMap<(u16, SocketAddress), Connection>,
    pub(crate) listening: Vec<u16>,
    next_port: u16,
    next_sweep: Time,
    next_tick: Time,
    rng: StdRng,
    /// Datagrams to send.
    pub(crate) outgoing: Vec<Vec<u8>>,
    /// FIN packets sent and received since the start.
    pub(crate) fins: [u64; 2],
    /// RST packets received.
    pub(crate) resets: u64,
    /// Exchanges sent.
    pub(crate) exchanges: u64,
}

impl Published {
    pub(crate) fn new(node: u32, address: SocketAddr, peer: (u32, SocketAddr), seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x9B);
        Self {
            node,
            address,
            identity: SigningKey::from_bytes(&[node as u8; 32]),
            keys: KeyPair::new(rng.random()),
            channel: None,
            window: Window::default(),
            queue: VecDeque::new(),
            peer,
            known: false,
            connections: BTreeMap::new(),
            listening: Vec::new(),
            next_port: 49_152,
            next_sweep: Time::ZERO,
            next_tick: Time::ZERO,
            rng,
            outgoing: Vec::new(),
            fins: [0; 2],
            resets: 0,
            exchanges: 0,
        }
    }

    pub(crate) fn public_key(&self) -> [u8; 32] {
        self.identity.verifying_key().to_bytes()
    }

    /// When [`Published::tick`] is next due.
    pub(crate) fn wake(&self) -> Time {
        self.next_tick
    }

    // ---- tunnel --------------------------------------------------------------

    fn offer(&mut self) {
        self.exchanges += 1;
        self.outgoing.push(self.keys.offer(self.node, &self.identity));
    }

    pub(crate) fn datagram(&mut self, frame: &[u8], now: Time) {
        if let Some(key) = offered_key(frame) {
            return self.exchange(frame, key);
        }
        if !frame.starts_with(b"PILS") || frame.len() < 36 {
            return;
        }
        let Some(channel) = &self.channel else { return };
        let counter = u64::from_be_bytes(frame[12..20].try_into().expect("8 bytes"));
        if !self.window.accept(counter) {
            return;
        }
        let Some((_, bytes)) = channel.open(frame) else {
            self.window.seen.remove(&counter);
            return;
        };
        let Ok(packet) = Packet::decode(&bytes) else { return };
        if !self.known {
            self.known = true;
            self.offer();
        }
        match packet.header.protocol {
            Protocol::Stream => self.stream_packet(&packet, now),
            Protocol::Control if packet.header.destination.port == 0 => self.pong(&packet),
            _ => {}
        }
    }

    fn exchange(&mut self, frame: &[u8], key: [u8; 32]) {
        // A damaged one fails its signature; the link of these tests damages none.
        if frame.len() < 136 || frame[4..8] != self.peer.0.to_be_bytes() {
            return;
        }
        self.known = true;
        let answer = self.channel.as_ref().is_none_or(|c| c.remote != key);
        let prefix = self.rng.random();
        self.channel = Some(self.keys.channel(key, prefix));
        self.window = Window::default();
        if answer {
            self.offer();
        }
        for packet in std::mem::take(&mut self.queue) {
            self.send_packet(packet);
        }
    }

    fn send_packet(&mut self, packet: Vec<u8>) {
        let node = self.node;
        match &mut self.channel {
            Some(channel) => {
                let frame = channel.seal(node, &packet);
                self.outgoing.push(frame);
            }
            None => {
                self.offer();
                let mut plain = b"PILT".to_vec();
                plain.extend_from_slice(&packet);
                self.outgoing.push(plain);
                if self.queue.len() == QUEUE {
                    self.queue.pop_front();
                }
                self.queue.push_back(packet);
            }
        }
    }

    fn pong(&mut self, ping: &Packet<'_>) {
        let header = Header {
            flags: Flags::ACK,
            protocol: Protocol::Control,
            source: self.socket(0),
            destination: ping.header.source,
            seq: ping.header.seq,
            ack: ping.header.seq.wrapping_add(1),
            window: 0,
        };
        self.send_packet(header.to_packet(ping.payload));
    }

    fn socket(&self, port: u16) -> SocketAddress {
        Address::backbone(NodeId(self.node)).port(port)
    }

    // ---- streams ---------------------------------------------------------------

    pub(crate) fn dial(&mut self, port: u16, now: Time) -> (u16, SocketAddress) {
        if !self.known {
            self.known = true;
            self.offer();
        }
        let local = self.next_port;
        self.next_port += 1;
        let remote = Address::backbone(NodeId(self.peer.0)).port(port);
        let mut out = Vec::new();
        self.connections.insert((local, remote), Connection::dial(now, &mut out));
        self.emit((local, remote), out);
        (local, remote)
    }

    fn stream_packet(&mut self, packet: &Packet<'_>, now: Time) {
        let header = packet.header;
        let key = (header.destination.port, header.source);
        self.fins[1] += u64::from(header.flags.contains(Flags::FIN));
        self.resets += u64::from(header.flags.contains(Flags::RST));
        let mut out = Vec::new();
        if header.flags.contains(Flags::SYN) && !header.flags.contains(Flags::ACK) {
            if !self.listening.contains(&key.0) {
                out.push(Out::bare(Flags::RST, 0, 0));
            } else if let Some(connection) = self.connections.get(&key) {
                out.push(connection.syn_ack());
            } else {
                self.connections.insert(key, Connection::accept(&header, now, &mut out));
            }
            return self.emit(key, out);
        }
        let Some(connection) = self.connections.get_mut(&key) else { return };
        connection.receive(packet, now, &mut out);
        let closed = connection.state == State::Closed && connection.inbox.is_empty();
        self.emit(key, out);
        if closed && header.flags.contains(Flags::RST) {
            self.connections.remove(&key);
        }
    }

    /// Lets the application and the clock act on one connection.
    pub(crate) fn with(
        &mut self,
        key: (u16, SocketAddress),
        act: impl FnOnce(&mut Connection, &mut Vec<Out>),
    ) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        let mut out = Vec::new();
        act(connection, &mut out);
        self.emit(key, out);
    }

    pub(crate) fn tick(&mut self, now: Time) {
        if now < self.next_tick {
            return;
        }
        self.next_tick = now + TICK;
        let sweep = now >= self.next_sweep;
        if sweep {
            self.next_sweep = now + SWEEP;
        }
        for key in self.connections.keys().copied().collect::<Vec<_>>() {
            self.with(key, |c, out| c.tick(now, out));
            if sweep {
                self.with(key, |c, out| c.sweep(now, out));
            }
        }
        self.connections.retain(|_, c| c.state != State::Closed || !c.inbox.is_empty());
    }

    fn emit(&mut self, (port, remote): (u16, SocketAddress), out: Vec<Out>) {
        for packet in out {
            self.fins[0] += u64::from(packet.flags.contains(Flags::FIN));
            let header = Header {
                flags: packet.flags,
                protocol: Protocol::Stream,
                source: self.socket(port),
                destination: remote,
                seq: packet.seq,
                ack: packet.ack,
                window: packet.window,
            };
            self.send_packet(header.to_packet(&packet.payload));
        }
    }
}
