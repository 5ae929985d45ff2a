//! The one loop of a published daemon: packets, streams, the clock. Frames are
//! in [`frames`].

mod frames;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ed25519_dalek::SigningKey;
use pilot_wire::packet::{Flags, Header, Packet, Protocol};
use pilot_wire::{Address, NodeId, SocketAddress, beacon};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot};

use super::connection::{Connection, Due, Out, State};
use super::counters::Counters;
use super::crypto::{ProcessKey, Session};
use super::{Datagram, DialError, Shared, Stream, Switches};

const TICK: Duration = Duration::from_millis(10);
/// Packets queued per peer while no key is held; the oldest is dropped.
const QUEUE_PER_PEER: usize = 64;
/// Peers for which packets are queued; for further ones nothing is.
const QUEUED_PEERS: usize = 256;

/// What the application asks of the loop.
pub(super) enum Command {
    Dial {
        to: SocketAddress,
        endpoint: SocketAddr,
        reply: oneshot::Sender<Result<Stream, DialError>>,
    },
    Listen {
        port: u16,
        accepted: mpsc::Sender<Stream>,
        reply: oneshot::Sender<bool>,
    },
    Write {
        id: u64,
        data: Vec<u8>,
        done: oneshot::Sender<bool>,
    },
    Close {
        id: u64,
    },
    Datagram {
        to: SocketAddress,
        endpoint: Option<SocketAddr>,
        data: Vec<u8>,
    },
    Packet {
        node: NodeId,
        header: Header,
        payload: Vec<u8>,
        plain: bool,
    },
    Frame {
        to: SocketAddr,
        frame: Vec<u8>,
    },
    Forget {
        node: NodeId,
    },
    Discover,
    Shutdown {
        done: oneshot::Sender<()>,
    },
}

struct Peer {
    endpoint: SocketAddr,
    relayed: bool,
}

/// How a peer's registered key got into the faulty cache.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Path {
    Direct,
    Relayed,
}

pub(super) struct Node {
    pub(super) shared: Arc<Shared>,
    socket: UdpSocket,
    beacon: Option<SocketAddr>,
    identity: SigningKey,
    key: ProcessKey,
    switches: Switches,
    datagrams: mpsc::Sender<Datagram>,
    peers: HashMap<NodeId, Peer>,
    sessions: HashMap<NodeId, Session>,
    cached: HashMap<NodeId, Path>,
    queues: HashMap<NodeId, VecDeque<Vec<u8>>>,
    connections: BTreeMap<u64, Connection>,
    dials: HashMap<u64, oneshot::Sender<Result<Stream, DialError>>>,
    listeners: HashMap<u16, mpsc::Sender<Stream>>,
    next_id: u64,
    next_port: u16,
    next_sweep: Instant,
    counters: Counters,
    outgoing: Vec<(SocketAddr, Vec<u8>)>,
}

impl Node {
    pub(super) fn new(
        shared: Arc<Shared>,
        socket: UdpSocket,
        beacon: Option<SocketAddr>,
        identity: SigningKey,
        switches: Switches,
        datagrams: mpsc::Sender<Datagram>,
    ) -> Self {
        Self {
            shared,
            socket,
            beacon,
            identity,
            key: ProcessKey::from_bytes(rand::random()),
            next_port: switches.first_port,
            next_sweep: Instant::now() + switches.sweep,
            switches,
            datagrams,
            peers: HashMap::new(),
            sessions: HashMap::new(),
            cached: HashMap::new(),
            queues: HashMap::new(),
            connections: BTreeMap::new(),
            dials: HashMap::new(),
            listeners: HashMap::new(),
            next_id: 1,
            counters: Counters::default(),
            outgoing: Vec::new(),
        }
    }

    /// Runs until shutdown, or until nobody can send commands any more.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut tick = tokio::time::interval(TICK);
        let mut buffer = vec![0; pilot_wire::tunnel::MAX_DATAGRAM];
        loop {
            tokio::select! {
                received = self.socket.recv_from(&mut buffer) => {
                    // An ICMP error of an earlier send is no reason to stop.
                    if let Ok((len, from)) = received {
                        self.counters.largest_datagram = self.counters.largest_datagram.max(len);
                        self.datagram(&buffer[..len], from).await;
                    }
                }
                command = commands.recv() => match command {
                    Some(Command::Shutdown { done }) => {
                        self.shutdown().await;
                        let _ = done.send(());
                        return;
                    }
                    Some(command) => self.command(command),
                    None => return,
                },
                _ = tick.tick() => self.tick(),
            }
            self.flush().await;
        }
    }

    async fn flush(&mut self) {
        for (to, datagram) in self.outgoing.drain(..) {
            // A lost datagram is what the protocol above is for.
            let _ = self.socket.send_to(&datagram, to).await;
        }
        self.shared.publish(self.counters);
    }

    async fn shutdown(&mut self) {
        let now = Instant::now();
        let ids: Vec<u64> = self.connections.keys().copied().collect();
        for id in ids {
            self.with_connection(id, |c, counters, out| c.close(now, counters, out));
        }
        self.flush().await;
    }

    fn packet(&mut self, bytes: &[u8], from: SocketAddr) {
        let Ok(packet) = Packet::decode(bytes) else {
            self.counters.bad_packets += 1;
            return;
        };
        let node = packet.header.source.address.node;
        if !self.peers.contains_key(&node) && self.sessions.contains_key(&node) {
            self.peers.insert(node, Peer { endpoint: from, relayed: false });
            self.send_key(node);
        }
        match packet.header.protocol {
            Protocol::Stream => self.stream_packet(&packet),
            Protocol::Datagram if !packet.payload.is_empty() => {
                let datagram = Datagram {
                    source: packet.header.source,
                    destination_port: packet.header.destination.port,
                    data: packet.payload.to_vec(),
                };
                // Full: the application does not read; datagrams may be lost.
                let _ = self.datagrams.try_send(datagram);
            }
            Protocol::Control if packet.header.destination.port == 0 => self.pong(&packet),
            _ => {}
        }
    }

    fn pong(&mut self, ping: &Packet<'_>) {
        let header = Header {
            flags: Flags::ACK,
            protocol: Protocol::Control,
            source: self.address().port(0),
            destination: ping.header.source,
            seq: ping.header.seq,
            ack: ping.header.seq.wrapping_add(1),
            window: 0,
        };
        let packet = header.to_packet(ping.payload);
        self.send_packet(ping.header.source.address.node, &packet);
    }

    fn stream_packet(&mut self, packet: &Packet<'_>) {
        let header = packet.header;
        let known = self
            .connections
            .iter()
            .find(|(_, c)| c.local_port == header.destination.port && c.remote == header.source)
            .map(|(id, _)| *id);
        if header.flags.contains(Flags::RST) {
            self.counters.resets_received += 1;
        }
        if header.flags.contains(Flags::SYN) && !header.flags.contains(Flags::ACK) {
            self.syn(packet, known);
            return;
        }
        if !header.flags.intersects(Flags::SYN | Flags::FIN | Flags::RST)
            && !packet.payload.is_empty()
        {
            self.counters.longest_segment = self.counters.longest_segment.max(packet.payload.len());
        }
        // Unknown connections are left without an answer.
        let Some(id) = known else { return };
        let switches = self.switches.clone();
        let now = Instant::now();
        self.with_connection(id, |c, counters, out| {
            c.receive(packet, &switches, now, counters, out)
        });
        self.settle(id);
    }

    fn syn(&mut self, packet: &Packet<'_>, known: Option<u64>) {
        let header = packet.header;
        let port = header.destination.port;
        let Some(listener) = self.listeners.get(&port).cloned() else {
            self.reset(port, header.source);
            return;
        };
        if let Some(id) = known {
            self.with_connection(id, |c, _, out| out.push(c.syn_ack()));
            return;
        }
        let mut out = Vec::new();
        let connection = Connection::accept(packet, &self.switches, Instant::now(), &mut out);
        let id = self.next_id;
        self.next_id += 1;
        let stream = self.shared.stream(id, connection.remote, &connection);
        // The accept queue is full, or the listener is gone.
        if listener.try_send(stream).is_err() {
            self.reset(port, header.source);
            return;
        }
        self.connections.insert(id, connection);
        self.emit(id, out);
    }

    fn reset(&mut self, port: u16, to: SocketAddress) {
        self.counters.resets_sent += 1;
        let packet = self.stream_header(port, to, Flags::RST, 0, 0, 0).to_packet(&[]);
        self.send_packet(to.address.node, &packet);
    }

    /// After a packet: answers the dial, removes what is closed.
    fn settle(&mut self, id: u64) {
        let Some(connection) = self.connections.get(&id) else { return };
        match connection.state {
            State::SynSent => {}
            State::Closed => {
                self.counters.retransmits += connection.retransmits();
                self.connections.remove(&id);
                if let Some(reply) = self.dials.remove(&id) {
                    let _ = reply.send(Err(DialError::Refused));
                }
            }
            State::Established | State::TimeWait => {
                if let Some(reply) = self.dials.remove(&id) {
                    let _ = reply.send(Ok(self.shared.stream(id, connection.remote, connection)));
                }
            }
        }
    }

    fn command(&mut self, command: Command) {
        let now = Instant::now();
        match command {
            Command::Dial { to, endpoint, reply } => self.dial(to, endpoint, reply, now),
            Command::Listen { port, accepted, reply } => {
                let free = !self.listeners.contains_key(&port);
                if free {
                    self.listeners.insert(port, accepted);
                }
                let _ = reply.send(free);
            }
            Command::Write { id, data, done } => {
                // Dropping `done` tells the writer as well.
                self.with_connection(id, |c, counters, out| {
                    c.write(&data, done, now, counters, out)
                });
            }
            Command::Close { id } => {
                self.with_connection(id, |c, counters, out| c.close(now, counters, out));
            }
            Command::Datagram { to, endpoint, data } => {
                if let Some(endpoint) = endpoint {
                    self.add_peer(to.address.node, endpoint);
                }
                let port = self.ephemeral();
                let mut header = self.stream_header(port, to, Flags::NONE, 0, 0, 0);
                header.protocol = Protocol::Datagram;
                let packet = header.to_packet(&data);
                self.send_packet(to.address.node, &packet);
            }
            Command::Packet { node, header, payload, plain } => {
                let packet = header.to_packet(&payload);
                if plain {
                    self.send_plain(node, &packet);
                } else {
                    self.send_packet(node, &packet);
                }
            }
            Command::Forget { node } => {
                self.peers.remove(&node);
                self.sessions.remove(&node);
            }
            Command::Frame { to, frame } => self.outgoing.push((to, frame)),
            Command::Discover => self.discover(),
            // Handled by the loop.
            Command::Shutdown { .. } => {}
        }
    }

    fn discover(&mut self) {
        let Some(beacon) = self.beacon else { return };
        let mut message = Vec::new();
        beacon::Message::Discover { node: self.shared.node }.encode(&mut message);
        self.outgoing.push((beacon, message));
    }

    fn dial(
        &mut self,
        to: SocketAddress,
        endpoint: SocketAddr,
        reply: oneshot::Sender<Result<Stream, DialError>>,
        now: Instant,
    ) {
        let node = to.address.node;
        self.add_peer(node, endpoint);
        let port = self.ephemeral();
        let mut out = Vec::new();
        let connection = Connection::dial(port, to, &self.switches, now, &mut out);
        let id = self.next_id;
        self.next_id += 1;
        self.connections.insert(id, connection);
        self.dials.insert(id, reply);
        self.emit(id, out);
    }

    /// First contact: asks the beacon for a punch and offers our key.
    fn add_peer(&mut self, node: NodeId, endpoint: SocketAddr) {
        if self.peers.contains_key(&node) {
            return;
        }
        if let Some(beacon) = self.beacon {
            let mut message = Vec::new();
            let request =
                beacon::Message::PunchRequest { requester: self.shared.node, target: node };
            request.encode(&mut message);
            self.outgoing.push((beacon, message));
        }
        self.peers.insert(node, Peer { endpoint, relayed: false });
        self.send_key(node);
    }

    fn ephemeral(&mut self) -> u16 {
        loop {
            let port = self.next_port;
            self.next_port =
                port.checked_add(1).unwrap_or(pilot_wire::packet::port::EPHEMERAL_FIRST);
            let taken = self.connections.values().any(|c| {
                c.local_port == port && !matches!(c.state, State::Closed | State::TimeWait)
            });
            if !taken {
                return port;
            }
        }
    }

    fn tick(&mut self) {
        let now = Instant::now();
        let sweep = now >= self.next_sweep;
        if sweep {
            self.next_sweep = now + self.switches.sweep;
        }
        let (beacon, switches) = (self.beacon.is_some(), self.switches.clone());
        let ids: Vec<u64> = self.connections.keys().copied().collect();
        for id in ids {
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            let node = connection.remote.address.node;
            let relayed = self.peers.get(&node).is_some_and(|p| p.relayed);
            let mut out = Vec::new();
            let mut due = connection.tick(relayed, beacon, now, &mut self.counters, &mut out);
            if sweep && due == Due::Nothing {
                due = connection.sweep(&switches, now, &mut self.counters, &mut out);
            }
            match due {
                Due::Nothing => {}
                Due::Relay => {
                    if let Some(peer) = self.peers.get_mut(&node) {
                        peer.relayed = true;
                        self.counters.relay_marks += 1;
                    }
                }
                Due::DialTimeout | Due::Remove => {
                    if let Some(reply) = self.dials.remove(&id) {
                        let _ = reply.send(Err(DialError::Timeout));
                    }
                }
            }
            self.emit(id, out);
            if matches!(due, Due::DialTimeout | Due::Remove)
                && let Some(gone) = self.connections.remove(&id)
            {
                self.counters.retransmits += gone.retransmits();
            }
        }
    }

    fn with_connection(
        &mut self,
        id: u64,
        act: impl FnOnce(&mut Connection, &mut Counters, &mut Vec<Out>),
    ) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let mut out = Vec::new();
        act(connection, &mut self.counters, &mut out);
        self.emit(id, out);
    }

    fn emit(&mut self, id: u64, out: Vec<Out>) {
        let Some(connection) = self.connections.get(&id) else { return };
        let (port, remote) = (connection.local_port, connection.remote);
        for packet in out {
            self.counters.resets_sent += u64::from(packet.flags.contains(Flags::RST));
            let header = self.stream_header(
                port,
                remote,
                packet.flags,
                packet.seq,
                packet.ack,
                packet.window,
            );
            let bytes = header.to_packet(&packet.payload);
            self.send_packet(remote.address.node, &bytes);
        }
    }

    fn address(&self) -> Address {
        Address::backbone(self.shared.node)
    }

    fn stream_header(
        &self,
        port: u16,
        to: SocketAddress,
        flags: Flags,
        seq: u32,
        ack: u32,
        window: u16,
    ) -> Header {
        let source = self.address().port(port);
        Header { flags, protocol: Protocol::Stream, source, destination: to, seq, ack, window }
    }
}
