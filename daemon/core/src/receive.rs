//! A packet's way in: datagram, frame, tunnel, packet, stream. Each step in
//! one place, in the order block list, tunnel authentication, inner source,
//! trust, listener, rate and limits.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use ed25519_dalek::{Signature, VerifyingKey};
use pilot_wire::beacon::{DELIVER_HEADER_LEN, Message, TYPE_LIMIT};
use pilot_wire::packet::{Flags, Header, Packet, Protocol, port};
use pilot_wire::tunnel::{AuthKey, Ed25519Public, Frame, MAGIC_PUNCH, Nonce, auth_challenge};
use pilot_wire::{Address, NodeId, SocketAddress};
use rand::RngExt;

use crate::core::{Core, Key};
use crate::event::{Event, Permission, Refusal, RefusalDetail};
use crate::peer::Outgoing;
use crate::stream::{Reaction, State, Stream};
use crate::time::Time;
use crate::tunnel::{Accepted, OpenError, Shape, Tunnel};

/// Exchange frames that may wait for a key at once; those beyond are dropped.
const MAX_PENDING_KEYS: usize = 256;
/// A peer heard within this time is not offered keys for a frame that does not
/// open.
const SILENCE_BEFORE_OFFER: Duration = Duration::from_secs(1);
/// Punches sent for one punch command (protocol page "Tunnel layer", section 8).
const PUNCHES: usize = 3;
/// Bytes of the token at the start of a ping that this node sends.
pub(crate) const TOKEN_LEN: usize = 8;

/// How a frame came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Via {
    Direct(SocketAddr),
    /// Through the beacon, which names this sender.
    Relay(NodeId),
}

impl Core {
    /// Step 1: beacon message or tunnel frame.
    pub(crate) fn on_datagram(&mut self, from: SocketAddr, data: &mut [u8], now: Time) {
        match data.first() {
            Some(first) if *first < TYPE_LIMIT => self.on_beacon(from, data, now),
            Some(_) => self.on_frame(data, Via::Direct(from), now),
            None => self.refuse(Refusal::Malformed, None, 0, now),
        }
    }

    fn on_beacon(&mut self, from: SocketAddr, data: &mut [u8], now: Time) {
        if self.beacon != Some(from) {
            return self.refuse(Refusal::NotTheBeacon, None, 0, now);
        }
        match Message::parse(data) {
            Ok(Message::DiscoverReply { endpoint }) => {
                self.events.push_back(Event::Observed { endpoint });
            }
            Ok(Message::PunchCommand { endpoint }) => {
                if self.may_punch(now) {
                    for _ in 0..PUNCHES {
                        self.push_raw(endpoint, MAGIC_PUNCH.to_vec());
                    }
                }
            }
            Ok(Message::RelayDeliver { sender, .. }) => {
                self.on_frame(&mut data[DELIVER_HEADER_LEN..], Via::Relay(sender), now);
            }
            Ok(_) | Err(_) => self.refuse(Refusal::Malformed, None, 0, now),
        }
    }

    /// Step 2: what kind of frame.
    fn on_frame(&mut self, data: &mut [u8], via: Via, now: Time) {
        match Frame::parse(data) {
            Ok(Frame::Sealed { sender, nonce }) => {
                self.on_sealed(data, sender, |_| nonce, Shape::Published, via, now);
            }
            Ok(Frame::Compact { sender, prefix, counter }) => {
                let nonce = |tunnel: &Tunnel| tunnel.whole_nonce(prefix, counter);
                self.on_sealed(data, sender, nonce, Shape::Compact, via, now);
            }
            Ok(Frame::AuthKey(frame)) => self.on_auth_key(frame, via, now),
            // Nothing is lost: a published peer repeats the packet encrypted.
            Ok(Frame::Plain(_) | Frame::Key { .. }) => {
                self.refuse(Refusal::Unauthenticated, None, 0, now);
            }
            Ok(Frame::Punch) => {}
            Err(_) => self.refuse(Refusal::Malformed, None, 0, now),
        }
    }

    /// Step 3: open with the sender's key, in place.
    fn on_sealed(
        &mut self,
        data: &mut [u8],
        sender: NodeId,
        nonce: impl Fn(&Tunnel) -> Nonce,
        shape: Shape,
        via: Via,
        now: Time,
    ) {
        let Some(local) = self.local else { return };
        if self.permissions.get(&sender) == Some(&Permission::Blocked) {
            return self.refuse(Refusal::Blocked, Some(sender), 0, now);
        }
        if matches!(via, Via::Relay(claimed) if claimed != sender) {
            return self.refuse(Refusal::AddressMismatch, None, 0, now);
        }
        let Some(&slot) = self.peer_slots.get(&sender) else {
            return self.on_unknown_sealed(sender, via, now);
        };
        let len = data.len();
        let body = &mut data[shape.header_len()..];
        let tunnel = &mut self.peers[slot].tunnel;
        let nonce = nonce(tunnel);
        let (bytes, newest) = match tunnel.open(nonce, shape, body) {
            Ok(opened) => opened,
            Err(OpenError::Replay) => {
                let detail = RefusalDetail::Counter(nonce.counter);
                return self.refuse_packet(Refusal::Replay, Some(sender), 0, detail, now);
            }
            Err(OpenError::Tag | OpenError::TooManyPrefixes) => {
                // The peer may have lost our state, or we its; but not while
                // frames of it open: then this one is forged or damaged.
                let heard = self.peers[slot].last_heard;
                if heard.is_none_or(|t| now.since(t) >= SILENCE_BEFORE_OFFER) {
                    self.offer_keys(slot, via, now);
                }
                return self.refuse(Refusal::Undecryptable, Some(sender), 0, now);
            }
        };
        let decoded = match shape {
            Shape::Published => Packet::decode(bytes),
            Shape::Compact => Packet::decode_compact(bytes, sender, local),
        };
        let Ok(packet) = decoded else {
            return self.refuse(Refusal::Malformed, Some(sender), 0, now);
        };
        let header = &packet.header;
        let (source, destination) = (header.source.address, header.destination.address);
        let everybody = destination.is_broadcast()
            && destination.network != 0
            && header.protocol == Protocol::Datagram;
        if source.node != sender
            || !(everybody || destination.node == local)
            || source.network != destination.network
        {
            return self.refuse(Refusal::AddressMismatch, Some(sender), 0, now);
        }
        self.counters.pkts_recv += 1;
        self.counters.bytes_recv += len as u64;
        self.heard(slot, via, newest, now);
        if self.peers[slot].tunnel.take_switched() {
            self.repeat_syns(slot);
        }
        self.on_packet(slot, &packet, via, now);
    }

    /// A sealed frame from a node without tunnel state here: if we trust it, we
    /// have probably restarted, and it must be told.
    fn on_unknown_sealed(&mut self, sender: NodeId, via: Via, now: Time) {
        if self.permissions.get(&sender) == Some(&Permission::Trusted) {
            let slot = self.ensure_peer(sender, now);
            self.offer_keys(slot, via, now);
            if matches!(via, Via::Relay(_)) {
                // A published peer that met us directly before takes a new key
                // by that way only, so the repeated offer has to go there.
                self.want_endpoint(slot);
            }
        }
        self.refuse(Refusal::Undecryptable, Some(sender), 0, now);
    }

    /// Notes a sign of life, and follows the peer to a new address once that
    /// has answered a probe.
    fn heard(&mut self, slot: usize, via: Via, newest: bool, now: Time) {
        let rng = &mut self.rng;
        let peer = &mut self.peers[slot];
        peer.last_heard = Some(now);
        match via {
            Via::Direct(from) => {
                if let Some(token) = peer.path.heard_direct(from, newest, || rng.random(), now) {
                    self.ping(slot, token, 0, Some(from));
                }
            }
            Via::Relay(_) => {
                if peer.path.heard_relayed(now) {
                    self.relay_activated(slot);
                }
            }
        }
    }

    pub(crate) fn relay_activated(&mut self, slot: usize) {
        let node = self.peers[slot].node;
        self.events.push_back(Event::RelayActivated { node });
        for stream in self.slots(|s| s.remote.address.node == node) {
            self.streams[stream].relayed();
        }
        self.shrink_streams(slot);
    }

    /// Step 4: what the packet is, now that its sender is certain.
    fn on_packet(&mut self, slot: usize, packet: &Packet<'_>, via: Via, now: Time) {
        let header = &packet.header;
        match header.protocol {
            Protocol::Stream | Protocol::StreamAck => {
                self.on_stream(slot, header, packet.payload, now);
            }
            Protocol::Control => self.on_control(slot, header, packet.payload, via, now),
            Protocol::Datagram => self.on_datagram_packet(slot, packet, now),
            Protocol::Unknown(_) => {}
        }
    }

    fn on_datagram_packet(&mut self, slot: usize, packet: &Packet<'_>, now: Time) {
        let (node, to) = (self.peers[slot].node, packet.header.destination.port);
        if self.peers[slot].permission != Permission::Trusted {
            return self.refuse(Refusal::Untrusted, Some(node), to, now);
        }
        let destination = packet.header.destination.address;
        if !self.networks.shared_with(node, destination.network) {
            return self.refuse(Refusal::NotShared, Some(node), to, now);
        }
        if destination.is_broadcast() && !self.networks.may_broadcast(node, destination.network) {
            return self.refuse(Refusal::BroadcastRight, Some(node), to, now);
        }
        if destination.is_broadcast() && !self.peers[slot].broadcasts.take(now) {
            return self.refuse(Refusal::BroadcastRate, Some(node), to, now);
        }
        if !packet.payload.is_empty() {
            self.events.push_back(Event::Datagram {
                source: packet.header.source,
                destination,
                destination_port: to,
                data: Bytes::copy_from_slice(packet.payload),
            });
        }
    }

    /// Pings (protocol page "Transport layer", section 10) and their answers.
    fn on_control(&mut self, slot: usize, header: &Header, payload: &[u8], via: Via, now: Time) {
        if header.flags.contains(Flags::ACK) {
            if let Some(token) = payload.first_chunk::<TOKEN_LEN>() {
                self.on_pong(slot, u64::from_be_bytes(*token), via, now);
            }
            return;
        }
        let trusted = self.peers[slot].permission == Permission::Trusted;
        // A ping from port 0 would be answered by a ping, for ever.
        if header.destination.port != port::PING || header.source.port == port::PING || !trusted {
            return;
        }
        let answer = Header {
            flags: Flags::ACK,
            protocol: Protocol::Control,
            source: header.destination,
            destination: header.source,
            seq: header.seq,
            ack: header.seq.wrapping_add(1),
            window: 0,
        };
        let via = match via {
            Via::Direct(from) => Some(from),
            Via::Relay(_) => None,
        };
        self.send_outside(slot, Outgoing { packet: answer.to_packet(payload), via });
    }

    fn on_pong(&mut self, slot: usize, token: u64, via: Via, now: Time) {
        let path = &mut self.peers[slot].path;
        if let Via::Direct(from) = via
            && path.validated(from, token, now)
        {
            self.shrink_streams(slot);
        }
        self.peers[slot].path.mtu.acknowledged(token, now);
        self.probe_path(slot, now);
        self.queue_peer(slot);
    }

    pub(crate) fn own_socket(&self, port: u16) -> SocketAddress {
        Address::backbone(self.local.unwrap_or_default()).port(port)
    }

    // ---- streams -----------------------------------------------------------

    /// Step 5: which stream.
    fn on_stream(&mut self, slot: usize, header: &Header, payload: &[u8], now: Time) {
        let key = Key { local_port: header.destination.port, remote: header.source };
        if header.flags.contains(Flags::SYN) && !header.flags.contains(Flags::ACK) {
            return self.on_syn(slot, key, header, payload, now);
        }
        let Some(&stream) = self.keys.get(&key) else {
            return self.on_strayed(slot, key, header, payload, now);
        };
        let allowance = self.memory.allowance(self.config.receive_buffer);
        self.streams[stream].set_allowance(allowance);
        let reaction = if header.flags.contains(Flags::RST) {
            self.streams[stream].on_reset(header)
        } else {
            self.streams[stream].on_packet(header, payload, now)
        };
        self.settle_memory(stream);
        match reaction {
            Reaction::None => {}
            Reaction::OutOfState => self.counters.refuse(Refusal::OutOfState),
            Reaction::Redial => {
                self.send_reset(slot, header, payload, now);
                self.redial(stream);
            }
        }
        self.touch(stream);
    }

    /// Step 6: a SYN passes trust, listener, rates, limits, in this order.
    fn on_syn(&mut self, slot: usize, key: Key, header: &Header, payload: &[u8], now: Time) {
        let (node, to) = (self.peers[slot].node, key.local_port);
        if self.peers[slot].permission != Permission::Trusted && to != port::TRUST {
            return self.refuse(Refusal::Untrusted, Some(node), to, now);
        }
        // Silence, as to strangers: in that network this node is not there.
        if !self.networks.shared_with(node, header.destination.address.network) {
            return self.refuse(Refusal::NotShared, Some(node), to, now);
        }
        let Some(open) = self.ports.open_on(to).map(|n| *n) else {
            self.refuse(Refusal::NoListener, Some(node), to, now);
            return self.send_reset(slot, header, payload, now);
        };
        let existing = self.keys.get(&key).copied();
        if let Some(stream) = existing {
            let epoch = self.peers[slot].epoch;
            if self.streams[stream].on_syn_again(header, epoch) {
                return self.touch(stream);
            }
        }
        // The node's own limit first: it must not use up everybody's.
        if !self.peers[slot].syns.take(now) || !self.syns.take(now) {
            let detail = RefusalDetail::SourcePort(header.source.port);
            return self.refuse_packet(Refusal::SynRate, Some(node), to, detail, now);
        }
        if let Some(stream) = existing {
            // The peer has restarted, or TIME_WAIT is cut short.
            self.streams[stream].forgotten();
            self.touch(stream);
            self.detach(stream);
        }
        self.remains.remove(&key);
        if open >= self.config.max_streams_per_port || self.open_streams >= self.config.max_streams
        {
            self.refuse(Refusal::StreamLimit, Some(node), to, now);
            return self.send_reset(slot, header, payload, now);
        }
        let id = self.next_id();
        let iss = self.rng.random();
        let window = self.initial_buffer();
        let mut stream = Stream::accept(id, header, payload, iss, window, &self.config, now);
        stream.epoch = self.peers[slot].epoch;
        let stream = self.insert_stream(stream);
        if let Some(open) = self.ports.open_on(to) {
            *open += 1;
        }
        self.events.push_back(Event::Incoming { stream: id, local_port: to, remote: key.remote });
        self.touch(stream);
    }

    /// A packet for no stream: an answer from what is left of an ended one, or
    /// RST, so that the peer does not repeat itself into the void.
    fn on_strayed(&mut self, slot: usize, key: Key, header: &Header, payload: &[u8], now: Time) {
        if header.flags.contains(Flags::RST) {
            return;
        }
        let fin = header.flags.contains(Flags::FIN);
        let until = now + self.time_wait();
        if let Some(remains) = self.remains.get_mut(&key) {
            remains.until = until;
            let remains = *remains;
            // A bare acknowledgement is never answered: the other side may be
            // no more than this either, and the two would go on for ever.
            let bare = payload.is_empty() && header.seq == remains.ack;
            let answer = match (remains.ours, fin) {
                (true, true) => true,
                (true, false) => !bare,
                (false, _) => fin && !header.flags.contains(Flags::ACK),
            };
            if answer {
                let mut flags = Flags::ACK;
                let mut ack = remains.ack;
                if !remains.ours {
                    flags = flags | Flags::FIN;
                    ack = header.seq.wrapping_add(1);
                }
                self.send_bare(slot, header, flags, remains.seq, ack);
            }
            return;
        }
        self.counters.refuse(Refusal::OutOfState);
        // A published FIN+ACK is never answered; one of ours has a window.
        if fin && header.flags.contains(Flags::ACK) && header.window == 0 {
            return;
        }
        self.send_reset(slot, header, payload, now);
    }

    /// RST for a packet that belongs nowhere. Only to those who may know that
    /// we are here.
    fn send_reset(&mut self, slot: usize, header: &Header, payload: &[u8], now: Time) {
        let peer = &mut self.peers[slot];
        let open = peer.permission == Permission::Trusted || header.destination.port == port::TRUST;
        if !open || !peer.resets.take(now) {
            return;
        }
        let published_syn = header.flags.contains(Flags::SYN) && payload.is_empty();
        let (seq, ack) = if published_syn && !header.flags.contains(Flags::ACK) {
            (0, 0)
        } else {
            (header.ack, header.seq.wrapping_add(1))
        };
        self.send_bare(slot, header, Flags::RST, seq, ack);
    }

    /// A packet without payload to whom `to` came from.
    fn send_bare(&mut self, slot: usize, to: &Header, flags: Flags, seq: u32, ack: u32) {
        let header = Header {
            flags,
            protocol: Protocol::Stream,
            source: to.destination,
            destination: to.source,
            seq,
            ack,
            window: 0,
        };
        self.send_outside(slot, Outgoing { packet: header.to_packet(&[]), via: None });
    }

    // ---- key exchange ------------------------------------------------------

    /// An authenticated key exchange: identity, then signature, then the key.
    fn on_auth_key(&mut self, frame: AuthKey, via: Via, now: Time) {
        let sender = frame.sender;
        let Some(local) = self.local else { return };
        if sender == local || sender.0 == 0 {
            return self.refuse(Refusal::BadIdentity, None, 0, now);
        }
        if self.permissions.get(&sender) == Some(&Permission::Blocked) {
            return self.refuse(Refusal::Blocked, Some(sender), 0, now);
        }
        if matches!(via, Via::Relay(claimed) if claimed != sender) {
            return self.refuse(Refusal::AddressMismatch, None, 0, now);
        }
        // Peers have a budget each, so that a flood under other names does not
        // take theirs.
        let allowed = match self.peer_slots.get(&sender) {
            Some(&slot) => self.peers[slot].exchanges.take(now),
            None => self.exchanges.take(now),
        };
        if !allowed {
            return self.refuse(Refusal::Overload, Some(sender), 0, now);
        }
        let known = self.peer_slots.get(&sender).and_then(|s| self.peers[*s].identity);
        match known {
            Some(identity) if identity == frame.identity => self.check_signature(frame, via, now),
            Some(_) => {
                // The registered key may have been rotated.
                let slot = self.ensure_peer(sender, now);
                if self.peers[slot].may_ask_key(now) {
                    self.ask_key(frame, via, now);
                } else {
                    self.refuse(Refusal::BadIdentity, Some(sender), 0, now);
                }
            }
            None => self.ask_key(frame, via, now),
        }
    }

    fn ask_key(&mut self, frame: AuthKey, via: Via, now: Time) {
        let node = frame.sender;
        if self.pending_keys.len() >= MAX_PENDING_KEYS && !self.pending_keys.contains_key(&node) {
            return self.refuse(Refusal::Overload, Some(node), 0, now);
        }
        match self.pending_keys.get_mut(&node) {
            // The first one waits; a forged one must not take its place.
            Some((waiting, from)) if waiting.identity == frame.identity => {
                *waiting = frame;
                *from = via;
            }
            Some(_) => self.refuse(Refusal::Overload, Some(node), 0, now),
            None => {
                self.pending_keys.insert(node, (frame, via));
                self.events.push_back(Event::NeedKey { node });
            }
        }
    }

    pub(crate) fn on_identity_key(&mut self, node: NodeId, key: Option<Ed25519Public>, now: Time) {
        let pending = self.pending_keys.remove(&node);
        let Some(key) = key else { return };
        if let Some(&slot) = self.peer_slots.get(&node) {
            if self.peers[slot].identity.is_some_and(|old| old != key) {
                // Sessions proven by the old key are worth nothing any more.
                self.forget_peer(node);
            } else {
                self.peers[slot].identity = Some(key);
            }
        }
        let Some((frame, via)) = pending else { return };
        if frame.identity == key {
            self.check_signature(frame, via, now);
        } else {
            self.refuse(Refusal::BadIdentity, Some(node), 0, now);
        }
    }

    /// The identity is the registered one; the signature must be its.
    fn check_signature(&mut self, frame: AuthKey, via: Via, now: Time) {
        let challenge = auth_challenge(frame.sender, &frame.key);
        let good = VerifyingKey::from_bytes(&frame.identity).is_ok_and(|key| {
            key.verify_strict(&challenge, &Signature::from_bytes(&frame.signature)).is_ok()
        });
        if !good {
            return self.refuse(Refusal::BadIdentity, Some(frame.sender), 0, now);
        }
        let slot = self.ensure_peer(frame.sender, now);
        self.peers[slot].identity = Some(frame.identity);
        let accepted = self.peers[slot].tunnel.accept(frame.key, &mut self.rng, now);
        match accepted {
            Accepted::Refused => self.refuse(Refusal::RetiredKey, Some(frame.sender), 0, now),
            Accepted::Repeated { answer } => {
                if answer {
                    self.answer_exchange(slot, via, now);
                }
            }
            Accepted::New { answer, rekeyed } => self.new_session(slot, via, answer, rekeyed, now),
        }
    }

    /// The peer opens our frames from now on: dials need not wait for the SYN
    /// timer.
    fn repeat_syns(&mut self, slot: usize) {
        let node = self.peers[slot].node;
        for index in self.slots(|s| s.remote.address.node == node && s.state == State::SynSent) {
            self.streams[index].repeat_syn();
            self.touch(index);
        }
    }

    fn new_session(&mut self, slot: usize, via: Via, answer: bool, rekeyed: bool, now: Time) {
        let peer = &mut self.peers[slot];
        peer.epoch = peer.epoch.wrapping_add(1);
        match via {
            // The exchange may be a recorded one: it fills a gap, but moves
            // nothing. A peer that has moved is followed by its next frame.
            Via::Direct(from) if peer.path.endpoint.is_none() => {
                peer.path.offer_endpoint(from, now);
            }
            Via::Direct(_) => {}
            Via::Relay(_) => {
                if peer.path.heard_relayed(now) {
                    self.relay_activated(slot);
                }
            }
        }
        let peer = &self.peers[slot];
        let (node, relay) = (peer.node, peer.path.relay);
        self.events.push_back(Event::TunnelUp { node, relay, rekeyed });
        if answer {
            self.answer_exchange(slot, via, now);
        } else {
            for stream in self.slots(|s| s.remote.address.node == node) {
                if self.streams[stream].keys_replaced(now) {
                    self.touch(stream);
                }
            }
            // Shows the peer that we hold the new key, so that it may use it.
            let token = self.rng.random();
            self.ping(slot, token, 0, None);
        }
        if self.peers[slot].tunnel.take_switched() {
            self.repeat_syns(slot);
        }
        self.probe_path(slot, now);
        self.queue_peer(slot);
    }
}
