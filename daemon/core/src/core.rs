//! The core's state and the application's side of it.
//!
//! A packet's way in is `receive.rs`, its way out `transmit.rs`; both read from
//! top to bottom.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use pilot_wire::beacon::RELAY_HEADER_LEN;
use pilot_wire::tunnel::AuthKey;
use pilot_wire::{Address, NodeId, SocketAddress};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustc_hash::FxHashMap;
use slab::Slab;

use crate::config::{Config, CongestionControl};
use crate::event::{
    CloseReason, DialFailure, Event, Input, Permission, Read, Refusal, RefusalDetail, StreamId,
};
use crate::info::{Counters, PeerInfo, StreamInfo};
use crate::memory::Memory;
use crate::networks::{Networks, datagram_header};
use crate::peer::{Outgoing, Peer};
use crate::ports::{Bucket, Ports};
use crate::receive::Via;
use crate::stream::{Remains, Rooms, State, Stream};
use crate::time::Time;
use crate::timer::{Owner, Timers};
use crate::tunnel::Shape;

/// Key exchange frames whose signature is checked, per second; those beyond
/// are dropped, so that a flood of them does not take the processor.
const EXCHANGES_PER_SECOND: u32 = 400;
/// Punch commands followed per second.
const PUNCHES_PER_SECOND: u32 = 20;
/// Refusals that become events, per second.
const REFUSAL_EVENTS_PER_SECOND: u32 = 10;
/// Datagrams outside tunnels that wait; beyond it the oldest go.
const MAX_RAW: usize = 1024;
/// Largest UDP payload over IPv4.
pub(crate) const MAX_UDP_PAYLOAD: usize = 65_507;

/// What identifies a stream on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) local_port: u16,
    pub(crate) remote: SocketAddress,
}

/// A node's protocol state. See the crate's documentation for the protocol of
/// calls.
pub struct Core {
    pub(crate) config: Config,
    pub(crate) identity: SigningKey,
    pub(crate) rng: StdRng,
    pub(crate) local: Option<NodeId>,
    pub(crate) beacon: Option<SocketAddr>,
    pub(crate) peers: Slab<Peer>,
    pub(crate) peer_slots: FxHashMap<NodeId, usize>,
    pub(crate) permissions: FxHashMap<NodeId, Permission>,
    pub(crate) networks: Networks,
    pub(crate) streams: Slab<Stream>,
    pub(crate) stream_slots: FxHashMap<StreamId, usize>,
    pub(crate) keys: FxHashMap<Key, usize>,
    /// Ended streams that still answer late packets, oldest first in the queue.
    pub(crate) remains: FxHashMap<Key, Remains>,
    pub(crate) remains_until: VecDeque<(Time, Key)>,
    pub(crate) next_stream: u32,
    pub(crate) open_streams: usize,
    pub(crate) ports: Ports,
    pub(crate) timers: Timers,
    pub(crate) events: VecDeque<Event>,
    pub(crate) raw: VecDeque<(SocketAddr, Vec<u8>)>,
    pub(crate) dirty: Vec<usize>,
    pub(crate) ready_peers: VecDeque<usize>,
    /// Exchange frames that wait for the sender's registered key; bounded by
    /// `MAX_PENDING_KEYS` in `receive.rs`.
    pub(crate) pending_keys: FxHashMap<NodeId, (AuthKey, Via)>,
    pub(crate) counters: Counters,
    pub(crate) memory: Memory,
    pub(crate) syns: Bucket,
    pub(crate) exchanges: Bucket,
    pub(crate) punches: Bucket,
    pub(crate) refusal_events: Bucket,
}

/// Why a port cannot be listened on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListenError {
    /// Somebody listens there already.
    #[error("port {0} already bound")]
    InUse(u16),
}

/// Why a dial cannot even start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// This node has no address yet: it has never reached a registry.
    #[error("this node has no address yet: it has not reached its registry")]
    NoAddressYet,
    /// The address is this node's own, or nobody's.
    #[error("cannot dial {0}: it is this node's own address, or not that of one node")]
    NotAPeer(Address),
    /// The address is in a network that this node is not in.
    #[error("this node is not a member of network {0}")]
    NotAMember(u16),
    /// The configured limit of streams is reached.
    #[error("too many streams: the limit of {0} is reached")]
    StreamLimit(usize),
    /// Every ephemeral port to that destination is in use.
    #[error("no ephemeral port is free")]
    NoFreePort,
}

/// Why an operation on a stream is not possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// No such stream.
    #[error("connection {0} not found")]
    Unknown(u32),
    /// It is not open, or its writing side has ended.
    #[error("connection not established")]
    NotOpen,
}

/// Why a datagram cannot be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DatagramError {
    /// This node has no address yet.
    #[error("this node has no address yet: it has not reached its registry")]
    NoAddressYet,
    /// The destination is a broadcast address.
    #[error("broadcast is not available — custom networks are WIP")]
    Broadcast,
    /// The destination is in a network that this node is not in.
    #[error("this node is not a member of network {0}")]
    NotAMember(u16),
    /// The destination is this node.
    #[error("cannot send to {0}: it is this node's own address")]
    NotAPeer(Address),
    /// Larger than the path to the peer takes in one piece.
    #[error("datagram of {len} bytes is too large: the path takes {limit}")]
    TooLarge {
        /// Its size.
        len: usize,
        /// What fits now.
        limit: usize,
    },
}

impl Core {
    /// A core without address, peers or streams. `seed` feeds every random
    /// choice: keys, sequence numbers, ports.
    pub fn new(config: Config, identity: SigningKey, seed: [u8; 32]) -> Self {
        let mut rng = StdRng::from_seed(seed);
        let now = Time::ZERO;
        Self {
            ports: Ports::new(rng.random()),
            next_stream: config.stream_numbers.first(),
            syns: Bucket::new(config.syn_rate, now),
            exchanges: Bucket::new(EXCHANGES_PER_SECOND, now),
            punches: Bucket::new(PUNCHES_PER_SECOND, now),
            refusal_events: Bucket::new(REFUSAL_EVENTS_PER_SECOND, now),
            memory: Memory::new(config.buffer_memory, config.max_streams),
            config,
            identity,
            rng,
            local: None,
            beacon: None,
            peers: Slab::new(),
            peer_slots: FxHashMap::default(),
            permissions: FxHashMap::default(),
            networks: Networks::default(),
            streams: Slab::new(),
            stream_slots: FxHashMap::default(),
            keys: FxHashMap::default(),
            remains: FxHashMap::default(),
            remains_until: VecDeque::new(),
            open_streams: 0,
            timers: Timers::default(),
            events: VecDeque::new(),
            raw: VecDeque::new(),
            dirty: Vec::new(),
            ready_peers: VecDeque::new(),
            pending_keys: FxHashMap::default(),
            counters: Counters::default(),
        }
    }

    /// Takes one input. Drain [`Core::poll_output`] afterwards.
    pub fn handle(&mut self, input: Input<'_>, now: Time) {
        match input {
            Input::Datagram { from, data } => self.on_datagram(from, data, now),
            // Due timers are looked at by every drain.
            Input::Timeout => {}
            Input::LocalNode(node) => self.set_local(node),
            Input::Beacon(beacon) => self.beacon = beacon,
            Input::Discover => self.discover(),
            Input::Endpoint { node, endpoint } => self.on_endpoint(node, endpoint, now),
            Input::IdentityKey { node, key } => self.on_identity_key(node, key, now),
            Input::Permission { node, permission } => self.set_permission(node, permission, now),
            Input::Networks(networks) => self.set_networks(networks),
            Input::Shared { node, networks, speaks } => self.set_shared(node, networks, speaks),
            Input::TooLarge { to, len } => self.too_large(to, len, now),
        }
    }

    // ---- streams ---------------------------------------------------------

    /// Takes streams on a port.
    ///
    /// # Errors
    /// When somebody does already.
    pub fn listen(&mut self, port: u16) -> Result<(), ListenError> {
        if self.ports.listen(port) { Ok(()) } else { Err(ListenError::InUse(port)) }
    }

    /// Takes no more streams on a port; those that are open stay.
    pub fn unlisten(&mut self, port: u16) {
        self.ports.unlisten(port);
    }

    /// Starts to open a stream; [`Event::Connected`] or [`Event::DialFailed`]
    /// follows. It may be written to at once.
    ///
    /// # Errors
    /// When it cannot even start.
    pub fn dial(&mut self, to: SocketAddress, now: Time) -> Result<StreamId, DialError> {
        let local = self.local.ok_or(DialError::NoAddressYet)?;
        if to.address.node == local || to.address.is_broadcast() || to.address.node.0 == 0 {
            return Err(DialError::NotAPeer(to.address));
        }
        let network = to.address.network;
        if !self.networks.has(network) {
            return Err(DialError::NotAMember(network));
        }
        if self.open_streams >= self.config.max_streams {
            return Err(DialError::StreamLimit(self.config.max_streams));
        }
        let local_port = self.free_port(to).ok_or(DialError::NoFreePort)?;
        let id = self.next_id();
        let source = Address { network, node: local }.port(local_port);
        let iss = self.rng.random();
        let window = self.initial_buffer();
        let stream = Stream::dial(id, source, to, iss, window, &self.config, now);
        let slot = self.insert_stream(stream);
        let peer = self.ensure_peer(to.address.node, now);
        self.streams[slot].epoch = self.peers[peer].epoch;
        self.touch(slot);
        self.want_endpoint(peer);
        Ok(id)
    }

    fn free_port(&mut self, remote: SocketAddress) -> Option<u16> {
        let (keys, remains) = (&self.keys, &self.remains);
        self.ports.ephemeral(|local_port| {
            let key = Key { local_port, remote };
            !keys.contains_key(&key) && !remains.contains_key(&key)
        })
    }

    pub(crate) fn next_id(&mut self) -> StreamId {
        let id = StreamId(self.next_stream);
        self.next_stream = self.config.stream_numbers.after(self.next_stream);
        id
    }

    pub(crate) fn insert_stream(&mut self, stream: Stream) -> usize {
        let key = Key { local_port: stream.local.port, remote: stream.remote };
        let id = stream.id;
        let slot = self.streams.insert(stream);
        self.keys.insert(key, slot);
        self.stream_slots.insert(id, slot);
        self.open_streams += 1;
        slot
    }

    /// A SYN-ACK answered an older incarnation: start again from another port.
    pub(crate) fn redial(&mut self, slot: usize) {
        let remote = self.streams[slot].remote;
        let Some(port) = self.free_port(remote) else { return };
        let iss = self.rng.random();
        let stream = &mut self.streams[slot];
        self.keys.remove(&Key { local_port: stream.local.port, remote });
        stream.restart_dial(port, iss);
        self.keys.insert(Key { local_port: port, remote }, slot);
        self.touch(slot);
    }

    /// Appends `data` to a stream. Takes all of it: keep to
    /// [`Core::writable`].
    ///
    /// # Errors
    /// When the stream is unknown or its writing side has ended.
    pub fn write(&mut self, stream: StreamId, data: Bytes, now: Time) -> Result<(), StreamError> {
        let slot = *self.stream_slots.get(&stream).ok_or(StreamError::Unknown(stream.0))?;
        let s = &mut self.streams[slot];
        if !s.may_write() {
            return Err(StreamError::NotOpen);
        }
        s.write(data, now);
        self.touch(slot);
        Ok(())
    }

    /// Free send buffer of a stream in bytes; 0 when it is unknown.
    pub fn writable(&self, stream: StreamId) -> usize {
        let cap = self.send_allowance();
        self.stream_slots.get(&stream).map_or(0, |slot| self.streams[*slot].writable(cap))
    }

    /// The own port of a stream; `None` when it is unknown.
    pub fn local_port(&self, stream: StreamId) -> Option<u16> {
        self.stream_slots.get(&stream).map(|slot| self.streams[*slot].local.port)
    }

    /// What a stream should have written and not acknowledged at most, in
    /// bytes: less than its limit while the node's memory is short.
    pub fn send_allowance(&self) -> usize {
        let limit = self.config.send_buffer;
        self.memory.allowance(limit).cap.min(limit)
    }

    /// What a new stream starts with in each direction, in bytes; its windows
    /// grow with use.
    pub fn initial_buffer(&self) -> usize {
        self.memory.start(self.open_streams, self.config.initial_window)
    }

    /// Bytes in the buffers of all streams.
    pub fn buffered(&self) -> usize {
        self.memory.used()
    }

    /// The next received bytes, at most `max`. An unknown stream is at its end.
    pub fn read(&mut self, stream: StreamId, max: usize) -> Read {
        let Some(&slot) = self.stream_slots.get(&stream) else { return Read::End };
        let allowance = self.memory.allowance(self.config.receive_buffer);
        self.streams[slot].set_allowance(allowance);
        let read = self.streams[slot].read(max);
        if read != Read::Blocked {
            self.touch(slot);
        }
        read
    }

    /// Ends the writing side: FIN follows all data. Reading goes on.
    pub fn shutdown(&mut self, stream: StreamId, now: Time) {
        self.with_stream(stream, |s| s.shut_down(now));
    }

    /// Gives a stream up in good order: written data is delivered, what still
    /// arrives is thrown away. [`Event::Closed`] follows.
    pub fn close(&mut self, stream: StreamId, now: Time) {
        self.with_stream(stream, |s| s.release(now));
    }

    /// Ends a stream at once with RST. [`Event::Closed`] follows.
    pub fn reset(&mut self, stream: StreamId) {
        self.with_stream(stream, |s| s.abort(CloseReason::Aborted));
    }

    /// Sends small writes at once (Nagle off) or gathers them.
    pub fn set_no_delay(&mut self, stream: StreamId, on: bool) {
        self.with_stream(stream, |s| s.set_no_delay(on));
    }

    /// Gives a stream another congestion controller, which starts with its
    /// initial window.
    pub fn set_congestion(&mut self, stream: StreamId, kind: CongestionControl) {
        self.with_stream(stream, |s| s.set_congestion(kind));
    }

    /// Ends every stream in good order, as [`Core::shutdown`] does.
    pub fn shutdown_all(&mut self, now: Time) {
        for slot in self.slots(|_| true) {
            self.streams[slot].release(now);
            self.touch(slot);
        }
    }

    fn with_stream(&mut self, stream: StreamId, change: impl FnOnce(&mut Stream)) {
        if let Some(&slot) = self.stream_slots.get(&stream) {
            change(&mut self.streams[slot]);
            self.touch(slot);
        }
    }

    /// Slots of the streams for which `wanted` holds. Walks all of them: for
    /// rare events only.
    pub(crate) fn slots(&self, wanted: impl Fn(&Stream) -> bool) -> Vec<usize> {
        self.streams.iter().filter(|(_, s)| wanted(s)).map(|(slot, _)| slot).collect()
    }

    /// Has the next drain look at a stream.
    pub(crate) fn touch(&mut self, slot: usize) {
        let stream = &mut self.streams[slot];
        if !stream.dirty {
            stream.dirty = true;
            self.dirty.push(slot);
        }
    }

    // ---- datagrams -------------------------------------------------------

    /// Sends one datagram, from a new ephemeral port. Nothing tells whether it
    /// arrives.
    ///
    /// # Errors
    /// When it can certainly not arrive.
    pub fn send_datagram(
        &mut self,
        to: SocketAddress,
        data: &[u8],
        now: Time,
    ) -> Result<(), DatagramError> {
        self.send_datagram_from(to, 0, data, now)
    }

    /// The same from a given port; 0 is a new ephemeral one.
    ///
    /// # Errors
    /// When it can certainly not arrive.
    pub fn send_datagram_from(
        &mut self,
        to: SocketAddress,
        source_port: u16,
        data: &[u8],
        now: Time,
    ) -> Result<(), DatagramError> {
        let local = self.local.ok_or(DatagramError::NoAddressYet)?;
        if to.address.is_broadcast() {
            return Err(DatagramError::Broadcast);
        }
        if to.address.node == local || to.address.node.0 == 0 {
            return Err(DatagramError::NotAPeer(to.address));
        }
        let network = to.address.network;
        if !self.networks.has(network) {
            return Err(DatagramError::NotAMember(network));
        }
        let slot = self.ensure_peer(to.address.node, now);
        let limit = self.max_payload(slot);
        if data.len() > limit {
            return Err(DatagramError::TooLarge { len: data.len(), limit });
        }
        let port = match source_port {
            0 => self.ports.ephemeral(|_| true).unwrap_or(u16::MAX),
            port => port,
        };
        let header = datagram_header(Address { network, node: local }.port(port), to);
        self.send_outside(slot, Outgoing { packet: header.to_packet(data), via: None });
        self.want_endpoint(slot);
        Ok(())
    }

    /// Largest packet payload that the path to a peer takes now, in a published
    /// frame. The relay header has room in it, so that segments, which published
    /// peers do not let us cut again, still pass when the path changes to the
    /// relay.
    pub(crate) fn max_payload(&self, peer: usize) -> usize {
        let path = &self.peers[peer].path;
        path.mtu.current() - Shape::Published.overhead() - RELAY_HEADER_LEN
    }

    /// What stream packets may carry to a peer now, by form of frame.
    pub(crate) fn rooms(&self, peer: usize) -> Rooms {
        let path = &self.peers[peer].path;
        let relay = if path.relay { RELAY_HEADER_LEN } else { 0 };
        Rooms {
            published: self.max_payload(peer),
            compact: path.mtu.current() - Shape::Compact.overhead() - relay,
        }
    }

    /// Queues a packet outside any stream.
    pub(crate) fn send_outside(&mut self, peer: usize, outgoing: Outgoing) {
        self.peers[peer].push(outgoing);
        self.queue_peer(peer);
    }

    // ---- peers -----------------------------------------------------------

    /// The peer's slot; made when it is not there.
    pub(crate) fn ensure_peer(&mut self, node: NodeId, now: Time) -> usize {
        if let Some(&slot) = self.peer_slots.get(&node) {
            return slot;
        }
        if self.peers.len() >= self.config.max_peers {
            self.evict_peer();
        }
        let permission = self.permissions.get(&node).copied().unwrap_or_default();
        let slot = self.peers.insert(Peer::new(node, permission, &self.config, now));
        self.peer_slots.insert(node, slot);
        slot
    }

    fn evict_peer(&mut self) {
        let idle =
            self.peers.iter().filter(|(_, p)| !p.has_work()).min_by_key(|(_, p)| p.last_heard);
        if let Some(node) = idle.map(|(_, p)| p.node) {
            self.forget_peer(node);
        }
    }

    /// Drops what is held for a peer: keys, path, and its streams, which end
    /// with [`CloseReason::Untrusted`].
    pub fn forget_peer(&mut self, node: NodeId) {
        for slot in self.slots(|s| s.remote.address.node == node) {
            self.streams[slot].abort(CloseReason::Untrusted);
            self.touch(slot);
        }
        self.pending_keys.remove(&node);
        let Some(slot) = self.peer_slots.remove(&node) else { return };
        for stream in std::mem::take(&mut self.peers[slot].ready) {
            self.streams[stream].queued = false;
        }
        let mut registered = self.peers[slot].registered.take();
        self.timers.cancel(Owner::Peer(slot), &mut registered);
        self.ready_peers.retain(|s| *s != slot);
        self.peers.remove(slot);
    }

    fn set_local(&mut self, node: NodeId) {
        if self.local == Some(node) {
            return;
        }
        self.local = Some(node);
        for node in self.peers.iter().map(|(_, p)| p.node).collect::<Vec<_>>() {
            self.forget_peer(node);
        }
    }

    fn set_permission(&mut self, node: NodeId, permission: Permission, now: Time) {
        if permission == Permission::Stranger {
            self.permissions.remove(&node);
        } else {
            self.permissions.insert(node, permission);
        }
        if let Some(&slot) = self.peer_slots.get(&node) {
            self.peers[slot].permission = permission;
            if permission == Permission::Trusted {
                self.probe_path(slot, now);
            }
        }
        if permission == Permission::Trusted {
            return;
        }
        let trust = pilot_wire::packet::port::TRUST;
        let blocked = permission == Permission::Blocked;
        for slot in self.slots(|s| {
            s.remote.address.node == node
                && (blocked || (s.local.port != trust && s.remote.port != trust))
        }) {
            self.streams[slot].abort(CloseReason::Untrusted);
            self.touch(slot);
        }
    }

    /// Asks where a peer is, when that is not known and not asked yet; starts
    /// the key exchange when it is.
    pub(crate) fn want_endpoint(&mut self, slot: usize) {
        let peer = &mut self.peers[slot];
        if !peer.tunnel.is_up() && peer.path.endpoint.is_none() && !peer.endpoint_asked {
            peer.endpoint_asked = true;
            let node = peer.node;
            self.events.push_back(Event::NeedEndpoint { node });
        }
        self.queue_peer(slot);
    }

    fn on_endpoint(&mut self, node: NodeId, endpoint: Option<SocketAddr>, now: Time) {
        let Some(&slot) = self.peer_slots.get(&node) else { return };
        let peer = &mut self.peers[slot];
        peer.endpoint_asked = false;
        if let Some(endpoint) = endpoint {
            let moved = peer.path.offer_endpoint(endpoint, now);
            if moved && peer.tunnel.attempts() > 0 {
                // What was sent so far went to where it was before.
                peer.tunnel.hurry();
                self.exchange_if_due(slot, now);
            }
            if moved {
                self.shrink_streams(slot);
            }
            self.queue_peer(slot);
            return;
        }
        if peer.tunnel.is_up() || peer.path.endpoint.is_some() {
            return;
        }
        peer.outbox.clear();
        for slot in self.slots(|s| s.remote.address.node == node && s.state == State::SynSent) {
            self.streams[slot].fail_dial(DialFailure::Unresolved);
            self.touch(slot);
        }
    }

    // ---- small things ----------------------------------------------------

    pub(crate) fn push_raw(&mut self, to: SocketAddr, datagram: Vec<u8>) {
        if self.raw.len() >= MAX_RAW {
            self.raw.pop_front();
        }
        self.raw.push_back((to, datagram));
    }

    /// Counts a refused packet, and tells of it at a bounded rate.
    pub(crate) fn refuse(&mut self, rule: Refusal, node: Option<NodeId>, port: u16, now: Time) {
        self.refuse_packet(rule, node, port, RefusalDetail::None, now);
    }

    /// The same with what else is known of the packet.
    pub(crate) fn refuse_packet(
        &mut self,
        rule: Refusal,
        node: Option<NodeId>,
        port: u16,
        detail: RefusalDetail,
        now: Time,
    ) {
        self.counters.refuse(rule);
        if self.refusal_events.take(now) {
            self.events.push_back(Event::Refused { node, port, rule, detail });
        }
    }

    pub(crate) fn may_punch(&mut self, now: Time) -> bool {
        self.punches.take(now)
    }

    // ---- snapshots -------------------------------------------------------

    /// This node's number, once known.
    pub fn local_node(&self) -> Option<NodeId> {
        self.local
    }

    /// Every peer that is known to be somewhere.
    pub fn peers(&self) -> Vec<PeerInfo> {
        let info = |p: &Peer| PeerInfo {
            node: p.node,
            endpoint: p.path.endpoint,
            encrypted: p.tunnel.is_up(),
            authenticated: p.tunnel.is_up(),
            relay: p.path.relay,
            path_mtu: p.path.mtu.current(),
            last_heard: p.last_heard,
        };
        let known = |p: &Peer| p.tunnel.is_up() || p.path.endpoint.is_some();
        self.peers.iter().filter(|(_, p)| known(p)).map(|(_, p)| info(p)).collect()
    }

    /// Every stream whose handle is alive.
    pub fn streams(&self) -> Vec<StreamInfo> {
        let info = |s: &Stream| {
            let mut info = StreamInfo::new(s.id, s.local.port, s.remote, s.state_name());
            let peer = self.peer_slots.get(&s.remote.address.node);
            info.path_mtu = peer.map_or(0, |&slot| self.peers[slot].path.mtu.current());
            s.describe(&mut info);
            info
        };
        self.streams.iter().map(|(_, s)| info(s)).collect()
    }

    /// Totals.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Streams that are opening or open.
    pub fn open_streams(&self) -> usize {
        self.open_streams
    }

    /// Ports listened on.
    pub fn bound_ports(&self) -> usize {
        self.ports.len()
    }

    /// How long ended streams are answered for.
    pub(crate) fn time_wait(&self) -> Duration {
        self.config.time_wait
    }
}
