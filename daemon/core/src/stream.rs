//! One reliable stream (protocol page "Transport layer").
//!
//! The state machine knows sequence numbers and timers; it does not know how
//! its packets travel. [`Stream::plan`] says what to send next without changing
//! anything, [`Stream::emit`] writes exactly that, so that the tunnel can fill
//! a batch of equal-size frames.
//!
//! Two dialects: with peers of ours FIN is sequenced and ends one direction
//! (RFC 9293), ranges of received bytes travel in packets of their own, and the
//! window is exact. With published peers the page's own rules and its advice
//! are followed.

mod close;
mod congestion;
mod pacer;
mod ranges;
mod recovery;
mod recv;
mod rtt;
mod send;
mod timers;
mod transmit;

use std::time::Duration;

use bytes::Bytes;
pub(crate) use close::Remains;
use congestion::{Controller, controller};
use pacer::Pacer;
use pilot_wire::SocketAddress;
use pilot_wire::options::Options;
use pilot_wire::packet::{Flags, Header, Protocol};
use pilot_wire::sack::Blocks;
use recovery::Recovery;
use recv::RecvSide;
use rtt::Rtt;
use send::SendSide;
pub(crate) use transmit::Rooms;

use crate::config::{Config, CongestionControl};
use crate::event::{CloseReason, DialFailure, Event, Read, StreamId};
use crate::memory::Allowance;
use crate::time::Time;

/// The unit of the window field.
const WINDOW_UNIT: u64 = 4096;
/// Largest segment a published peer is sent.
const PUBLISHED_SEGMENT: usize = 4096;
/// Payload that every path carries in one segment: 1,280 bytes of IPv6 less the
/// headers of IP, UDP, tunnel and packet.
const BASE_SEGMENT: usize = 1152;
/// How far into a stream a number from before its start can be told from one
/// that has wrapped.
const START_KNOWN: u64 = 1 << 30;
/// Duplicate ACKs without a SACK list that mean loss (RFC 5681, section 3.2).
const DUPLICATE_THRESHOLD: u32 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    SynSent,
    Open,
    /// Both directions are over; late packets are still answered.
    TimeWait,
    /// To be removed.
    Dead,
}

/// How far our FIN is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fin {
    None,
    Due,
    Sent,
    Acked,
}

/// What the packet asks the core to answer with, beyond the stream itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reaction {
    None,
    /// The packet belongs to no state of this stream; count it.
    OutOfState,
    /// A SYN-ACK for another incarnation: reset it and dial from another port.
    Redial,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Stats {
    pub(crate) bytes_sent: u64,
    pub(crate) bytes_recv: u64,
    pub(crate) segs_sent: u64,
    pub(crate) segs_recv: u64,
    pub(crate) retransmits: u64,
    pub(crate) fast_retx: u64,
    pub(crate) sack_recv: u64,
    pub(crate) sack_sent: u64,
    pub(crate) dup_acks: u64,
    /// Retransmission timeouts.
    pub(crate) timeouts: u64,
    /// Loss episodes that turned out to have been none.
    pub(crate) spurious: u64,
    /// Batches that carried data of this stream, and its segments in them.
    pub(crate) batches: u64,
    pub(crate) batched: u64,
}

#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) id: StreamId,
    pub(crate) local: SocketAddress,
    pub(crate) remote: SocketAddress,
    pub(crate) state: State,
    /// Counted against this listening port's limit; `None` for dialled ones.
    pub(crate) accepted: bool,
    /// Tunnel epoch in which it was opened.
    pub(crate) epoch: u32,
    /// Registered deadline, kept by the core.
    pub(crate) registered: Option<Time>,
    /// On the core's list of streams to look at.
    pub(crate) dirty: bool,
    /// In the peer's queue of streams that may have something to send.
    pub(crate) queued: bool,
    pub(crate) stats: Stats,

    /// What both sides offered; `None` with a published peer.
    ours: Option<Options>,
    iss: u32,
    irs: u32,
    send: SendSide,
    recv: RecvSide,
    rtt: Rtt,
    congestion: Box<dyn Controller>,
    /// First offset that a peer of ours does not take yet.
    right_edge: u64,
    /// Segments that a published peer takes in flight.
    peer_segments: u16,
    peer_window: u16,
    no_delay: bool,
    send_limit: usize,
    /// Bytes of its buffers that the core has counted.
    charged: usize,
    max_segment: u16,

    shutdown: bool,
    /// The application closed: what still arrives is thrown away.
    released: bool,
    fin: Fin,
    /// A published peer's FIN is to be answered with FIN+ACK for this number.
    fin_answer: Option<u32>,
    ending: Option<CloseReason>,
    dial_failure: Option<DialFailure>,
    reset_due: bool,
    announced_open: bool,
    closed_announced: bool,
    read_interest: bool,
    freed: usize,

    recovery: Recovery,
    duplicates: u32,
    pacer: Pacer,
    /// The last measured rate, in bytes per second, that the application did
    /// not limit.
    delivery_rate: u64,
    timers: timers::Timers,
}

impl Stream {
    fn new(
        id: StreamId,
        local: SocketAddress,
        remote: SocketAddress,
        window: usize,
        config: &Config,
        now: Time,
    ) -> Self {
        Self {
            id,
            local,
            remote,
            state: State::SynSent,
            accepted: false,
            epoch: 0,
            registered: None,
            dirty: false,
            queued: false,
            stats: Stats::default(),
            ours: None,
            iss: 0,
            irs: 0,
            send: SendSide::default(),
            recv: RecvSide::new(window, config.receive_buffer),
            rtt: Rtt::default(),
            congestion: controller(config.congestion, id.0),
            right_edge: 0,
            peer_segments: 1,
            peer_window: 0,
            no_delay: !config.nagle,
            send_limit: config.send_buffer,
            charged: 0,
            max_segment: config.max_segment,
            shutdown: false,
            released: false,
            fin: Fin::None,
            fin_answer: None,
            ending: None,
            dial_failure: None,
            reset_due: false,
            announced_open: false,
            closed_announced: false,
            read_interest: true,
            freed: 0,
            recovery: Recovery::default(),
            duplicates: 0,
            pacer: Pacer::default(),
            delivery_rate: 0,
            timers: timers::Timers::new(config, now),
        }
    }

    /// A stream that this side opens. `window` is what it takes at first, in
    /// bytes.
    pub(crate) fn dial(
        id: StreamId,
        local: SocketAddress,
        remote: SocketAddress,
        iss: u32,
        window: usize,
        config: &Config,
        now: Time,
    ) -> Self {
        let mut stream = Self::new(id, local, remote, window, config, now);
        stream.iss = iss;
        stream.timers.start_dial(now);
        stream
    }

    /// A stream that a peer opens with the SYN `header`.
    pub(crate) fn accept(
        id: StreamId,
        header: &Header,
        payload: &[u8],
        iss: u32,
        window: usize,
        config: &Config,
        now: Time,
    ) -> Self {
        let mut stream = Self::new(id, header.destination, header.source, window, config, now);
        stream.accepted = true;
        stream.announced_open = true;
        stream.iss = iss;
        stream.establish(header, payload);
        stream.timers.syn_ack_due = true;
        stream
    }

    /// A dial starts again from another port.
    pub(crate) fn restart_dial(&mut self, port: u16, iss: u32) {
        self.local.port = port;
        self.iss = iss;
        self.timers.restart_dial();
    }

    /// The dial cannot succeed.
    pub(crate) fn fail_dial(&mut self, reason: DialFailure) {
        self.dial_failure = Some(reason);
        self.state = State::Dead;
    }

    /// A repeated SYN: the SYN-ACK was lost. `false` when the SYN belongs to
    /// another incarnation of the peer.
    pub(crate) fn on_syn_again(&mut self, header: &Header, epoch: u32) -> bool {
        let carried = self.recv.next() > 0 || self.send.next() > 0;
        if self.state != State::Open
            || header.seq != self.irs
            || (self.ours.is_none() && carried && epoch != self.epoch)
        {
            return false;
        }
        if self.accepted && !carried {
            self.timers.syn_ack_due = true;
        }
        true
    }

    /// Ends without a RST: the peer has forgotten this stream.
    pub(crate) fn forgotten(&mut self) {
        self.reset_due = false;
        self.die(CloseReason::Reset);
    }

    /// Takes what the peer's SYN or SYN-ACK says.
    fn establish(&mut self, header: &Header, payload: &[u8]) {
        self.irs = header.seq;
        self.ours = Options::decode(payload);
        if let Some(ours) = &mut self.ours
            && self.remote.address.network != 0
        {
            ours.compact = false;
        }
        if self.ours.is_some() {
            self.rtt.peer_is_prompt();
        }
        self.state = State::Open;
        self.peer_window = header.window;
        self.right_edge = u64::from(header.window) * WINDOW_UNIT;
        self.peer_segments = header.window.max(1);
    }

    /// What this side offers in SYN and SYN-ACK.
    fn offer(&self) -> Options {
        Options {
            max_segment: Some(self.max_segment),
            stream_ack: true,
            half_close: true,
            byte_window: true,
            // Compact packets have no room for a network.
            compact: self.remote.address.network == 0,
        }
    }

    // ---- numbers -------------------------------------------------------

    fn seq_of(&self, offset: u64) -> u32 {
        seq_after(self.iss, offset)
    }

    /// Offset that an acknowledgement number stands for, relative to the last.
    fn ack_offset(&self, ack: u32) -> Option<u64> {
        let delta = ack.wrapping_sub(self.seq_of(self.send.una())).cast_signed();
        self.send.una().checked_add_signed(i64::from(delta))
    }

    /// Offset of a received sequence number; negative before the stream.
    fn receive_offset(&self, seq: u32) -> i64 {
        let next = self.recv.next();
        let delta = seq.wrapping_sub(self.receive_seq(next)).cast_signed();
        next.cast_signed() + i64::from(delta)
    }

    fn receive_seq(&self, offset: u64) -> u32 {
        seq_after(self.irs, offset)
    }

    /// The acknowledgement number to send now.
    fn ack_number(&self) -> u32 {
        let fin = u32::from(self.recv.finished() && self.ours.is_some());
        self.receive_seq(self.recv.next()).wrapping_add(fin)
    }

    // ---- the application's side ------------------------------------------

    /// Free bytes of the send buffer, of which the node's memory allows `cap`.
    pub(crate) fn writable(&self, cap: usize) -> usize {
        self.send_limit.min(cap).saturating_sub(self.send.buffered())
    }

    /// What the node's memory allows the receive buffer.
    pub(crate) fn set_allowance(&mut self, allowance: Allowance) {
        self.recv.set_cap(allowance.cap, allowance.strict);
    }

    /// Bytes counted for its buffers so far, and those to be counted now.
    pub(crate) fn charge(&mut self) -> (usize, usize) {
        let held = self.recv.held() + self.send.buffered();
        (std::mem::replace(&mut self.charged, held), held)
    }

    pub(crate) fn charged(&self) -> usize {
        self.charged
    }

    pub(crate) fn may_write(&self) -> bool {
        !self.shutdown
            && self.ending.is_none()
            && matches!(self.state, State::SynSent | State::Open)
            && !self.write_side_over()
    }

    pub(crate) fn write(&mut self, data: Bytes, now: Time) {
        if data.is_empty() {
            return;
        }
        self.timers.hold_small(now);
        self.send.write(data);
    }

    pub(crate) fn read(&mut self, max: usize) -> Read {
        if let Some(data) = self.recv.read(max.max(1)) {
            if self.state == State::Open && !self.recv.finished() && self.recv.window_update_due() {
                self.recv.demand_ack();
            }
            return Read::Data(data);
        }
        if self.recv.drained() {
            return Read::End;
        }
        self.read_interest = true;
        Read::Blocked
    }

    pub(crate) fn set_no_delay(&mut self, on: bool) {
        self.no_delay = on;
    }

    /// Another congestion controller from now on; it starts with its initial
    /// window.
    pub(crate) fn set_congestion(&mut self, kind: CongestionControl) {
        self.congestion = controller(kind, self.id.0);
        self.pacer = Pacer::default();
        if self.timers.last_segment > 0 {
            self.congestion.on_segment_size(self.timers.last_segment);
        }
    }

    /// A batch with `segments` of this stream leaves.
    pub(crate) fn note_batch(&mut self, segments: u64) {
        self.stats.batches += 1;
        self.stats.batched += segments;
    }

    // ---- packets ---------------------------------------------------------

    /// A packet of this stream, neither a plain SYN nor a RST.
    pub(crate) fn on_packet(&mut self, header: &Header, payload: &[u8], now: Time) -> Reaction {
        if header.flags.contains(Flags::SYN | Flags::ACK) {
            return self.on_syn_ack(header, payload, now);
        }
        if self.state == State::SynSent {
            // Data ahead of its SYN-ACK, which may then be lost.
            self.timers.doubt_start();
            return Reaction::OutOfState;
        }
        self.timers.heard(now);
        self.timers.syn_ack_answered(&mut self.rtt, now);
        self.stats.segs_recv += 1;
        if self.state == State::TimeWait {
            self.late_packet(header);
            return Reaction::None;
        }
        if header.protocol == Protocol::StreamAck {
            let Some(blocks) = Blocks::decode(payload) else { return Reaction::OutOfState };
            return self.on_ack(header, Some(&blocks), true, now);
        }
        if header.flags.contains(Flags::FIN) && self.ours.is_none() {
            return self.on_published_fin(header, now);
        }
        if !header.flags.contains(Flags::ACK) {
            return Reaction::OutOfState;
        }
        let blocks = if self.ours.is_none() { Blocks::recognise_exact(payload) } else { None };
        let blocks = blocks.filter(|b| self.plausible(header, b));
        let reaction = self.on_ack(header, blocks.as_ref(), payload.is_empty(), now);
        if reaction != Reaction::None || blocks.is_some() {
            return reaction;
        }
        self.on_data(header, payload, now);
        if header.flags.contains(Flags::FIN) {
            self.on_fin(header, payload.len());
        }
        self.settle(now);
        Reaction::None
    }

    fn on_syn_ack(&mut self, header: &Header, payload: &[u8], now: Time) -> Reaction {
        if self.state != State::SynSent {
            // Ours: the ACK of the SYN-ACK was lost. Published peers ignore it.
            self.recv.demand_ack();
            return Reaction::None;
        }
        if header.ack != self.iss.wrapping_add(1) {
            return Reaction::Redial;
        }
        // A published peer that has sent data since repeats its SYN-ACK with
        // the number that follows it: the data before would be missing. Its
        // first one has the number 0.
        let published = Options::decode(payload).is_none();
        if published && header.seq != 0 && self.timers.start_is_doubtful() {
            return Reaction::Redial;
        }
        self.establish(header, payload);
        self.timers.dialled(&mut self.rtt, now);
        self.recv.demand_ack();
        Reaction::None
    }

    /// Whether every block lies between the packet's own acknowledgement and
    /// the end of what was sent; otherwise the payload is data that happens to
    /// look like a list. A list that was overtaken on the way names bytes that
    /// are acknowledged by now, and is still no data.
    fn plausible(&self, header: &Header, blocks: &Blocks) -> bool {
        let Some(ack) = self.ack_offset(header.ack) else { return false };
        blocks.as_slice().iter().all(|b| {
            let (Some(left), Some(right)) = (self.ack_offset(b.left), self.ack_offset(b.right))
            else {
                return false;
            };
            ack <= left && left < right && right <= self.send.next()
        })
    }

    fn update_window(&mut self, header: &Header, ack: u64) {
        if self.ours.is_some() {
            let edge = ack + u64::from(header.window) * WINDOW_UNIT;
            if edge > self.right_edge {
                self.right_edge = edge;
                self.timers.window_opened();
            }
        } else if header.window > 0 {
            // Zero means "no limit" to a published peer, and keepalives carry
            // it: never more than it last offered.
            self.peer_segments = header.window;
        }
    }

    fn on_data(&mut self, header: &Header, payload: &[u8], now: Time) {
        let offset = self.receive_offset(header.seq);
        if payload.is_empty() {
            if self.ours.is_none() && header.window == 0 {
                self.answer_keepalive(now);
            }
            // A probe or keepalive of a peer of ours repeats an old number.
            if self.ours.is_some() && offset < self.recv.next().cast_signed() {
                self.recv.demand_ack();
            }
            return;
        }
        if offset < 0 && self.ours.is_none() && self.recv.next() < START_KNOWN {
            // Data from before the start: the SYN-ACK was a repeated one.
            self.abort(CloseReason::Truncated);
            return;
        }
        let skip = usize::try_from(-offset).unwrap_or(0);
        if skip >= payload.len() && skip > 0 {
            self.recv.demand_ack();
            return;
        }
        let offset = u64::try_from(offset).unwrap_or(0);
        self.recv.set_ack_delay(self.rtt.ack_delay());
        let taken = self.recv.insert(offset, &payload[skip..], self.ours.is_none(), now);
        self.stats.bytes_recv += taken as u64;
        self.recv.tune(self.rtt.min(), now);
        if self.released {
            self.recv.discard();
        }
    }

    /// The segment size that congestion control counts in. A stream of small
    /// writes is not held to their size: every path takes more.
    fn segment_guess(&self) -> usize {
        self.timers.last_segment.max(BASE_SEGMENT)
    }

    // ---- what the application is told ------------------------------------

    /// Appends events that are due.
    pub(crate) fn take_events(&mut self, events: &mut impl Extend<Event>) {
        let stream = self.id;
        if let Some(reason) = self.dial_failure.take() {
            self.state = State::Dead;
            self.closed_announced = true;
            events.extend([Event::DialFailed { stream, reason }]);
            return;
        }
        if self.state == State::Open && !self.announced_open {
            self.announced_open = true;
            events.extend([Event::Connected { stream }]);
        }
        if !self.released && self.read_interest && (self.recv.has_data() || self.recv.drained()) {
            self.read_interest = false;
            events.extend([Event::Readable { stream }]);
        }
        if self.freed > 0 && !self.released {
            let freed = std::mem::take(&mut self.freed);
            events.extend([Event::Writable { stream, freed }]);
        }
        self.take_closed(events);
    }

    // ---- numbers for people ------------------------------------------------

    pub(crate) fn state_name(&self) -> &'static str {
        match (self.state, self.fin, self.recv.finished()) {
            (State::SynSent, ..) => "SYN_SENT",
            (State::Open, Fin::None | Fin::Due, false) => "ESTABLISHED",
            (State::Open, Fin::None | Fin::Due, true) => "CLOSE_WAIT",
            (State::Open, ..) => "FIN_WAIT",
            (State::TimeWait, ..) => "TIME_WAIT",
            (State::Dead, ..) => "CLOSED",
        }
    }

    pub(crate) fn describe(&self, info: &mut crate::info::StreamInfo) {
        info.half_close = self.ours.is_some();
        info.cong_win = self.congestion.window();
        info.ssthresh = self.congestion.threshold();
        info.in_flight = self.send.in_flight();
        info.srtt = self.rtt.smoothed().unwrap_or(Duration::ZERO);
        info.rttvar = self.rtt.variation();
        info.unacked = self.send.segments();
        info.ooo_buf = self.recv.out_of_order_len();
        info.peer_recv_win = if self.ours.is_some() {
            usize::try_from(self.right_edge.saturating_sub(self.send.next())).unwrap_or(usize::MAX)
        } else {
            usize::from(self.peer_segments) * PUBLISHED_SEGMENT
        };
        info.recv_win = self.recv.free();
        info.in_recovery = self.recovery.active();
        info.congestion = self.congestion.name();
        info.mss = self.timers.last_segment;
        info.delivery_rate = self.delivery_rate;
        info.pacing_rate = self.congestion.pacing(self.rtt.smoothed()).unwrap_or(0);
        info.min_rtt = self.rtt.min().unwrap_or(Duration::ZERO);
        info.rto = self.rtt.timeout();
        info.stats_from(&self.stats);
    }
}

/// The sequence number of `offset` in a stream that started with `initial`.
fn seq_after(initial: u32, offset: u64) -> u32 {
    // Sequence numbers wrap: the low half of the offset is what counts.
    #[expect(clippy::cast_possible_truncation, reason = "modulo 2^32 by design")]
    let low = offset as u32;
    initial.wrapping_add(1).wrapping_add(low)
}
