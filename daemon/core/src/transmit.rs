//! A packet's way out: streams that have something, one peer at a time, sealed
//! into one buffer of equal-size frames; key exchanges, probes and timers.

use std::net::SocketAddr;
use std::time::Duration;

use pilot_wire::beacon::{Message, RELAY_HEADER_LEN, relay_header};
use pilot_wire::packet::{COMPACT_LEN, Flags, HEADER_LEN, Header, Protocol, port};
use pilot_wire::tunnel::{SEALED_HEADER_LEN, TAG_LEN};
use rand::RngExt;

use crate::core::{Core, Key, MAX_UDP_PAYLOAD};
use crate::event::{Event, Output, Permission, Transmit};
use crate::peer::{Outgoing, Peer};
use crate::receive::{TOKEN_LEN, Via};
use crate::time::Time;
use crate::timer::Owner;
use crate::tunnel::path::Route;
use crate::tunnel::{FRAME_OVERHEAD, Shape};

/// Segments per call that the kernel takes (UDP_MAX_SEGMENTS).
const MAX_SEGMENTS: usize = 64;
/// Unanswered exchange frames after which the beacon carries a copy as well.
const EXCHANGES_BEFORE_RELAY: u32 = 3;
/// Unanswered exchange frames after which the peer's endpoint is asked for anew.
const EXCHANGES_BEFORE_ASKING: u32 = 2;
/// Unanswered exchange frames after which an exchange that nothing waits for
/// is given up.
const MAX_IDLE_EXCHANGES: u32 = 5;
/// A path whose peer was heard within this time is searched for larger sizes.
const PATH_IN_USE: Duration = Duration::from_secs(30);
/// A timer that fired fires again after this at the earliest.
const TIMER_STEP: Duration = Duration::from_micros(100);
/// Ended streams that late packets are answered for; beyond it the oldest is
/// forgotten, and a late packet for it gets a RST.
const MAX_REMAINS: usize = 65_536;

impl Core {
    /// What to do next. Transmissions are put into `buffer`, which is cleared
    /// first. Call until it returns [`Output::Wait`].
    pub fn poll_output(&mut self, now: Time, buffer: &mut Vec<u8>) -> Output {
        buffer.clear();
        loop {
            self.look_at_dirty(now);
            if let Some(event) = self.events.pop_front() {
                return Output::Event(event);
            }
            if let Some((to, datagram)) = self.raw.pop_front() {
                buffer.extend_from_slice(&datagram);
                return Output::Transmit(Transmit { to, len: buffer.len(), segment: buffer.len() });
            }
            if self.fire_timers(now) {
                continue;
            }
            if let Some(slot) = self.ready_peers.pop_front() {
                self.peers[slot].queued = false;
                if let Some(transmit) = self.fill(slot, buffer, now) {
                    return Output::Transmit(transmit);
                }
                continue;
            }
            if self.dirty.is_empty() && self.events.is_empty() && self.raw.is_empty() {
                return Output::Wait(self.next_deadline());
            }
        }
    }

    fn next_deadline(&self) -> Option<Time> {
        let remains = self.remains_until.front().map(|(at, _)| *at);
        [self.timers.next(), remains].into_iter().flatten().min()
    }

    /// Events, timers and readiness of every stream that changed.
    fn look_at_dirty(&mut self, now: Time) {
        while let Some(slot) = self.dirty.pop() {
            let stream = &mut self.streams[slot];
            stream.dirty = false;
            let (before, held) = stream.charge();
            self.memory.change(before, held);
            stream.take_events(&mut self.events);
            stream.watch_window(now);
            let deadline = stream.deadline().map(|at| at.max(now + TIMER_STEP));
            self.timers.update(Owner::Stream(slot), &mut stream.registered, deadline);
            let node = stream.remote.address.node;
            match self.peer_slots.get(&node) {
                Some(&peer) if !stream.queued => {
                    stream.queued = true;
                    self.peers[peer].ready.push_back(slot);
                    self.queue_peer(peer);
                }
                // Ended while it waited for a tunnel: nothing else will look.
                Some(&peer) if stream.is_over() => self.queue_peer(peer),
                Some(_) => {}
                // The peer was forgotten: nothing can be sent any more.
                None => self.remove_if_over(slot, now),
            }
        }
    }

    /// Brings the account of a stream's buffers up to date.
    pub(crate) fn settle_memory(&mut self, slot: usize) {
        let stream = &mut self.streams[slot];
        let (before, held) = stream.charge();
        self.memory.change(before, held);
    }

    /// Has the next drain send to a peer.
    pub(crate) fn queue_peer(&mut self, slot: usize) {
        let peer = &mut self.peers[slot];
        if !peer.queued {
            peer.queued = true;
            self.ready_peers.push_back(slot);
        }
    }

    // ---- frames ------------------------------------------------------------

    /// Fills `buffer` with what waits for one peer: frames of equal size, the
    /// last may be shorter.
    fn fill(&mut self, slot: usize, buffer: &mut Vec<u8>, now: Time) -> Option<Transmit> {
        if !self.peers[slot].has_work() {
            self.schedule_peer(slot, now);
            return None;
        }
        let Some(route) = self.peers[slot].path.route(self.beacon) else {
            self.drop_unsendable(slot, now);
            return None;
        };
        if !self.peers[slot].tunnel.is_up() {
            self.drop_unsendable(slot, now);
            self.exchange_if_due(slot, now);
            return None;
        }
        let route = match self.peers[slot].outbox.front().and_then(|o| o.via) {
            Some(address) => Route::Direct(address),
            None => route,
        };
        let (to, relay) = match route {
            Route::Direct(to) => (to, None),
            Route::Relay(beacon) => {
                let local = self.local.unwrap_or_default();
                (beacon, Some(relay_header(local, self.peers[slot].node)))
            }
        };
        let mut batch = Batch { relay, segment: 0, frames: 0 };
        // A packet for an address of its own travels apart from the rest.
        let apart = self.fill_outbox(slot, &mut batch, buffer);
        if !apart && self.peers[slot].outbox.is_empty() {
            self.fill_streams(slot, &mut batch, buffer, now);
        }
        if self.peers[slot].has_work() {
            self.queue_peer(slot);
        }
        self.rekey_if_due(slot, now);
        if batch.frames == 0 {
            return None;
        }
        self.counters.pkts_sent += batch.frames as u64;
        self.counters.bytes_sent += buffer.len() as u64;
        Some(Transmit { to, len: buffer.len(), segment: batch.segment })
    }

    /// Returns whether the batch goes to an address of its own.
    fn fill_outbox(&mut self, slot: usize, batch: &mut Batch, buffer: &mut Vec<u8>) -> bool {
        let local = self.local.unwrap_or_default();
        let fitting = Shape::Published.overhead() + self.max_payload(slot);
        let peer = &mut self.peers[slot];
        let via = peer.outbox.front().and_then(|o| o.via);
        while let Some(front) = peer.outbox.front() {
            let len = FRAME_OVERHEAD + front.packet.len();
            if front.via != via || !batch.fits(len, buffer) {
                break;
            }
            // A probe that is too large takes nothing else down with it.
            let probe = len > fitting;
            if probe && batch.frames > 0 {
                break;
            }
            let Some(Outgoing { packet, .. }) = peer.outbox.pop_front() else { break };
            let Some(session) = peer.tunnel.sending() else { break };
            let frame = batch.push(len, buffer);
            frame[SEALED_HEADER_LEN..][..packet.len()].copy_from_slice(&packet);
            session.seal(local, Shape::Published, frame);
            if probe {
                return true;
            }
        }
        via.is_some()
    }

    fn fill_streams(&mut self, slot: usize, batch: &mut Batch, buffer: &mut Vec<u8>, now: Time) {
        let local = self.local.unwrap_or_default();
        let rooms = self.rooms(slot);
        let mut over = Vec::new();
        let peer = &mut self.peers[slot];
        let Some(session) = peer.tunnel.sending() else { return };
        // The stream that fills the batch, and its segments in it.
        let mut run: (usize, u64) = (0, 0);
        while let Some(&index) = peer.ready.front() {
            let stream = &mut self.streams[index];
            let Some(plan) = stream.plan(stream.room(rooms), now) else {
                peer.ready.pop_front();
                stream.queued = false;
                let deadline = stream.deadline().map(|at| at.max(now + TIMER_STEP));
                self.timers.update(Owner::Stream(index), &mut stream.registered, deadline);
                if stream.is_over() {
                    over.push(index);
                }
                continue;
            };
            let shape = stream.shape(&plan);
            let len = shape.overhead() + plan.len;
            if !batch.fits(len, buffer) {
                break;
            }
            let frame = batch.push(len, buffer);
            let end = frame.len() - TAG_LEN;
            let packet = &mut frame[shape.header_len()..end];
            match shape {
                Shape::Published => {
                    let header = stream.emit(plan, &mut packet[HEADER_LEN..], now);
                    header.write(packet);
                }
                Shape::Compact => {
                    let header = stream.emit(plan, &mut packet[COMPACT_LEN..], now);
                    if let Some(room) = packet.first_chunk_mut() {
                        header.write_compact(room);
                    }
                }
            }
            session.seal(local, shape, frame);
            if plan.len > 0 {
                if run.0 != index && run.1 > 0 {
                    self.streams[run.0].note_batch(run.1);
                    run.1 = 0;
                }
                run = (index, run.1 + 1);
            }
        }
        if run.1 > 0 {
            self.streams[run.0].note_batch(run.1);
        }
        // The next batch starts with another stream.
        if peer.ready.len() > 1 {
            peer.ready.rotate_left(1);
        }
        for index in over {
            self.remove_if_over(index, now);
        }
    }

    /// Streams that ended while nothing can be sent to their peer.
    fn drop_unsendable(&mut self, slot: usize, now: Time) {
        let mut kept = std::mem::take(&mut self.peers[slot].ready);
        kept.retain(|&index| {
            let over = self.streams[index].is_over();
            if over {
                self.streams[index].queued = false;
                self.remove_if_over(index, now);
            }
            !over
        });
        self.peers[slot].ready = kept;
        self.schedule_peer(slot, now);
    }

    // ---- the end of a stream -------------------------------------------------

    fn remove_if_over(&mut self, slot: usize, now: Time) {
        if !self.streams[slot].is_over() {
            return;
        }
        if self.streams[slot].dirty {
            // Its last events are still to be taken.
            return;
        }
        let until = now + self.time_wait();
        let remains = self.streams[slot].remains(until);
        let key = self.detach(slot);
        self.forget_stream(slot);
        if let Some(remains) = remains {
            if self.remains_until.len() >= MAX_REMAINS
                && let Some((_, oldest)) = self.remains_until.pop_front()
            {
                self.remains.remove(&oldest);
            }
            self.remains.insert(key, remains);
            self.remains_until.push_back((until, key));
        }
    }

    /// Takes a stream out of the table of identities, so that a new one may
    /// have its place.
    pub(crate) fn detach(&mut self, slot: usize) -> Key {
        let stream = &self.streams[slot];
        let key = Key { local_port: stream.local.port, remote: stream.remote };
        if self.keys.get(&key) == Some(&slot) {
            self.keys.remove(&key);
        }
        key
    }

    fn forget_stream(&mut self, slot: usize) {
        self.dirty.retain(|s| *s != slot);
        let mut stream = self.streams.remove(slot);
        self.memory.change(stream.charged(), 0);
        self.timers.cancel(Owner::Stream(slot), &mut stream.registered);
        self.stream_slots.remove(&stream.id);
        self.open_streams -= 1;
        if stream.accepted
            && let Some(open) = self.ports.open_on(stream.local.port)
        {
            *open = open.saturating_sub(1);
        }
        if stream.queued
            && let Some(&peer) = self.peer_slots.get(&stream.remote.address.node)
        {
            self.peers[peer].ready.retain(|s| *s != slot);
        }
    }

    // ---- timers ----------------------------------------------------------------

    /// Fires what is due. Returns whether anything was.
    fn fire_timers(&mut self, now: Time) -> bool {
        let mut fired = false;
        while let Some((_, key)) = self.remains_until.pop_front_if(|(at, _)| *at <= now) {
            match self.remains.get(&key) {
                Some(remains) if remains.until > now => {
                    self.remains_until.push_back((remains.until, key));
                }
                _ => {
                    self.remains.remove(&key);
                }
            }
        }
        while let Some(owner) = self.timers.pop_due(now) {
            fired = true;
            match owner {
                Owner::Stream(slot) => self.stream_timeout(slot, now),
                Owner::Peer(slot) => {
                    self.peers[slot].registered = None;
                    self.peer_timeout(slot, now);
                }
            }
        }
        fired
    }

    fn stream_timeout(&mut self, slot: usize, now: Time) {
        let stream = &mut self.streams[slot];
        stream.registered = None;
        let node = stream.remote.address.node;
        let peer = self.peer_slots.get(&node).copied();
        let heard = peer.and_then(|p| self.peers[p].last_heard).unwrap_or_default();
        let alarm = stream.on_timeout(now);
        self.touch(slot);
        let Some(peer) = peer else { return };
        if alarm.black_hole {
            if self.peers[peer].path.mtu.black_hole(now) {
                self.shrink_streams(peer);
                self.probe_path(peer, now);
            } else {
                // What was cut for the path before this one is still too long.
                let rooms = self.rooms(peer);
                let stream = &mut self.streams[slot];
                stream.path_shrank(stream.room(rooms));
            }
        }
        let relayable = self.beacon.is_some() && !self.peers[peer].path.relay;
        if alarm.relay && relayable && self.peers[peer].path.start_relay(now) {
            self.relay_activated(peer);
            self.probe_path(peer, now);
        }
        let silent = now.since(heard).as_secs() >= 1;
        if alarm.silent && silent && self.peers[peer].tunnel.is_up() {
            self.exchange_if_due(peer, now);
        }
    }

    fn peer_timeout(&mut self, slot: usize, now: Time) {
        let peer = &mut self.peers[slot];
        if peer.tunnel.retry_at().is_some_and(|at| at <= now) {
            if !peer.ready.is_empty() || peer.tunnel.attempts() < MAX_IDLE_EXCHANGES {
                self.exchange_if_due(slot, now);
            } else {
                // Nobody answers, and no stream waits: datagrams are not kept.
                peer.outbox.clear();
                peer.tunnel.abandon();
            }
        }
        let rng = &mut self.rng;
        let peer = &mut self.peers[slot];
        if peer.permission == Permission::Trusted
            && let Some((address, token)) = peer.path.retry_direct(|| rng.random(), now)
        {
            self.ping(slot, token, 0, Some(address));
        }
        self.probe_path(slot, now);
        self.schedule_peer(slot, now);
    }

    fn schedule_peer(&mut self, slot: usize, now: Time) {
        let peer = &mut self.peers[slot];
        // Strangers are not probed, so nothing would ever meet these deadlines.
        let trusted = peer.permission == Permission::Trusted;
        // A path that nobody uses is not searched; it is when it is used again.
        let used = peer.last_heard.is_some_and(|t| now.since(t) < PATH_IN_USE);
        let probed = trusted && used && peer.tunnel.is_up();
        let probe = peer.path.mtu.deadline().filter(|_| probed);
        let direct = peer.path.direct_retry_at(now).filter(|_| trusted);
        let wanted = [peer.tunnel.retry_at(), probe, direct].into_iter().flatten().min();
        // A deadline that is missed must not be due again in the same drain.
        let wanted = wanted.map(|at| at.max(now + TIMER_STEP));
        self.timers.update(Owner::Peer(slot), &mut peer.registered, wanted);
    }

    // ---- key exchange ------------------------------------------------------------

    pub(crate) fn exchange_if_due(&mut self, slot: usize, now: Time) {
        if self.peers[slot].tunnel.may_start(now) {
            self.start_exchange(slot, None, now);
            let peer = &mut self.peers[slot];
            // A peer that was heard before and is silent has probably moved.
            let enough = if peer.tunnel.is_up() { 1 } else { EXCHANGES_BEFORE_ASKING };
            if peer.tunnel.attempts() >= enough && !peer.endpoint_asked {
                peer.endpoint_asked = true;
                let node = peer.node;
                self.events.push_back(Event::NeedEndpoint { node });
            }
        }
        self.schedule_peer(slot, now);
    }

    fn rekey_if_due(&mut self, slot: usize, now: Time) {
        let (after, frames) = (self.config.rekey_after, self.config.rekey_frames);
        let tunnel = &mut self.peers[slot].tunnel;
        if tunnel.wants_rekey(after, frames, now) && tunnel.may_start(now) {
            self.start_exchange(slot, None, now);
            self.schedule_peer(slot, now);
        }
    }

    /// A frame that did not open: tell the sender our key, at the rate of
    /// exchanges.
    pub(crate) fn offer_keys(&mut self, slot: usize, via: Via, now: Time) {
        if self.peers[slot].tunnel.may_start(now) {
            self.start_exchange(slot, Some(via), now);
            self.schedule_peer(slot, now);
        }
    }

    fn start_exchange(&mut self, slot: usize, back: Option<Via>, now: Time) {
        let Some(local) = self.local else { return };
        let peer = &mut self.peers[slot];
        let first = peer.tunnel.attempts() == 0;
        let direct = match back {
            Some(Via::Direct(from)) => Some(from),
            Some(Via::Relay(_)) => None,
            None => peer.path.endpoint.filter(|_| !peer.path.relay),
        };
        let tried = peer.tunnel.attempts() + 1 >= EXCHANGES_BEFORE_RELAY;
        let relayed = peer.path.relay || matches!(back, Some(Via::Relay(_)));
        let relay = self.beacon.filter(|_| relayed || (tried && direct.is_some()));
        if direct.is_none() && relay.is_none() {
            // Nowhere to send it; the next frame of the peer starts it anew.
            peer.tunnel.abandon();
            return;
        }
        let frame = peer.tunnel.start(local, &self.identity, &mut self.rng, now);
        let node = peer.node;
        if let (true, Some(beacon)) = (first, self.beacon) {
            let mut punch = Vec::new();
            Message::PunchRequest { requester: local, target: node }.encode(&mut punch);
            self.push_raw(beacon, punch);
        }
        if let Some(to) = direct {
            self.send_key_frame(to, frame.to_vec());
        }
        if let Some(beacon) = relay {
            let mut relayed = relay_header(local, node).to_vec();
            relayed.extend_from_slice(&frame);
            self.send_key_frame(beacon, relayed);
        }
    }

    /// Sends our key back the way the peer's came.
    pub(crate) fn answer_exchange(&mut self, slot: usize, via: Via, now: Time) {
        let Some(local) = self.local else { return };
        let peer = &mut self.peers[slot];
        let frame = peer.tunnel.frame(local, &self.identity, &mut self.rng, now);
        match (via, self.beacon) {
            (Via::Direct(from), _) => self.send_key_frame(from, frame.to_vec()),
            (Via::Relay(_), Some(beacon)) => {
                let mut relayed = relay_header(local, peer.node).to_vec();
                relayed.extend_from_slice(&frame);
                self.send_key_frame(beacon, relayed);
            }
            (Via::Relay(_), None) => {}
        }
    }

    fn send_key_frame(&mut self, to: SocketAddr, frame: Vec<u8>) {
        self.counters.pkts_sent += 1;
        self.counters.bytes_sent += frame.len() as u64;
        self.push_raw(to, frame);
    }

    // ---- probes ---------------------------------------------------------------------

    /// Sends a ping with a token, `extra` bytes longer than the token alone.
    pub(crate) fn ping(&mut self, slot: usize, token: u64, extra: usize, via: Option<SocketAddr>) {
        let node = self.peers[slot].node;
        let header = Header {
            flags: Flags::NONE,
            protocol: Protocol::Control,
            source: self.own_socket(port::EPHEMERAL_FIRST),
            destination: pilot_wire::Address::backbone(node).port(port::PING),
            seq: 0,
            ack: 0,
            window: 0,
        };
        let mut payload = vec![0; TOKEN_LEN + extra];
        payload[..TOKEN_LEN].copy_from_slice(&token.to_be_bytes());
        self.send_outside(slot, Outgoing { packet: header.to_packet(&payload), via });
    }

    /// Sends a path MTU probe when one is due. Strangers answer no ping.
    pub(crate) fn probe_path(&mut self, slot: usize, now: Time) {
        let rng = &mut self.rng;
        let peer = &mut self.peers[slot];
        if !peer.tunnel.is_up() || peer.permission != Permission::Trusted {
            return;
        }
        if let Some((size, token)) = peer.path.mtu.poll(|| rng.random(), now) {
            let relay = if peer.path.relay { RELAY_HEADER_LEN } else { 0 };
            let extra = size - FRAME_OVERHEAD - HEADER_LEN - TOKEN_LEN - relay;
            self.ping(slot, token, extra, None);
        }
        self.schedule_peer(slot, now);
    }

    /// The system does not send `len` bytes to `to`. Several peers may be behind
    /// one beacon.
    pub(crate) fn too_large(&mut self, to: SocketAddr, len: usize, now: Time) {
        let reached = |p: &Peer| matches!(p.path.route(self.beacon), Some(Route::Direct(a) | Route::Relay(a)) if a == to);
        let slots = self.peers.iter().filter(|(_, p)| reached(p)).map(|(slot, _)| slot);
        for slot in slots.collect::<Vec<_>>() {
            if self.peers[slot].path.mtu.too_large(len, now) {
                self.shrink_streams(slot);
            }
            // What was refused may have been a probe.
            self.probe_path(slot, now);
        }
    }

    /// The path takes less: streams cut what they have in flight.
    pub(crate) fn shrink_streams(&mut self, slot: usize) {
        let (node, rooms) = (self.peers[slot].node, self.rooms(slot));
        for index in self.slots(|s| s.remote.address.node == node) {
            let stream = &mut self.streams[index];
            stream.path_shrank(stream.room(rooms));
            self.touch(index);
        }
    }

    /// Asks the beacon under which endpoint it sees this node.
    pub(crate) fn discover(&mut self) {
        let Some(beacon) = self.beacon else { return };
        let mut message = Vec::new();
        Message::Discover { node: self.local.unwrap_or_default() }.encode(&mut message);
        self.push_raw(beacon, message);
    }
}

/// Frames of equal size in one buffer.
struct Batch {
    relay: Option<[u8; RELAY_HEADER_LEN]>,
    segment: usize,
    frames: usize,
}

impl Batch {
    /// Length of a frame of `len` bytes on its way.
    fn datagram_len(&self, len: usize) -> usize {
        self.relay.map_or(0, |r| r.len()) + len
    }

    fn is_full(&self, buffer: &[u8]) -> bool {
        self.frames >= MAX_SEGMENTS || buffer.len() < self.segment * self.frames
    }

    /// Whether a frame of this length may be the next one.
    fn fits(&self, frame: usize, buffer: &[u8]) -> bool {
        let len = self.datagram_len(frame);
        self.frames == 0
            || (!self.is_full(buffer)
                && len <= self.segment
                && buffer.len() + len <= MAX_UDP_PAYLOAD)
    }

    /// Room for one more frame, after the relay header if there is one.
    fn push<'a>(&mut self, frame: usize, buffer: &'a mut Vec<u8>) -> &'a mut [u8] {
        let len = self.datagram_len(frame);
        let start = buffer.len();
        buffer.resize(start + len, 0);
        if self.frames == 0 {
            self.segment = len;
        }
        self.frames += 1;
        let frame = &mut buffer[start..];
        match self.relay {
            Some(header) => {
                frame[..header.len()].copy_from_slice(&header);
                &mut frame[header.len()..]
            }
            None => frame,
        }
    }
}
