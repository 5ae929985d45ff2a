//! What a stream sends next, and writing it.

use pilot_wire::options::MAX_ENCODED_LEN;
use pilot_wire::packet::{Flags, Header, Protocol};
use pilot_wire::sack::{Blocks, MAX_BLOCKS, MAX_PUBLISHED_BLOCKS, looks_like_list};

use super::send::Span;
use super::{Fin, PUBLISHED_SEGMENT, State, Stream, seq_after};
use crate::time::Time;
use crate::tunnel::Shape;

/// Smallest segment size that a peer may ask for.
const MIN_SEGMENT: usize = 536;
/// Data that a published receiver would take for a SACK list is cut so that
/// the first segment is shorter than the shortest list.
const SACK_LOOKALIKE_CUT: usize = 12;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Reset,
    Syn,
    SynAck,
    Ack,
    Data(Span),
    Fin,
    FinAnswer(u32),
    /// Empty, with a number already acknowledged: a peer of ours answers it.
    Probe,
}

/// One packet that a stream would send now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    kind: Kind,
    /// Payload length in bytes.
    pub(crate) len: usize,
}

/// Largest payloads of stream packets on a path, by form of frame, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rooms {
    pub(crate) published: usize,
    pub(crate) compact: usize,
}

impl Stream {
    fn compact(&self) -> bool {
        self.ours.is_some_and(|o| o.compact)
    }

    /// What of `rooms` is this stream's.
    pub(crate) fn room(&self, rooms: Rooms) -> usize {
        if self.compact() { rooms.compact } else { rooms.published }
    }

    /// The form of frame for a packet. What opens and ends a stream comes as
    /// published: the peer may not know yet, or no more, what we agreed on.
    pub(crate) fn shape(&self, plan: &Plan) -> Shape {
        match plan.kind {
            Kind::Syn | Kind::SynAck | Kind::Reset => Shape::Published,
            _ if self.compact() => Shape::Compact,
            _ => Shape::Published,
        }
    }

    /// The next packet to send, if any. `max_payload` is what the path takes.
    pub(crate) fn plan(&self, max_payload: usize, now: Time) -> Option<Plan> {
        let plan = |kind, len| Some(Plan { kind, len });
        if self.reset_due {
            return plan(Kind::Reset, 0);
        }
        match self.state {
            State::Dead => return None,
            State::SynSent => {
                return if self.timers.syn_due { plan(Kind::Syn, MAX_ENCODED_LEN) } else { None };
            }
            State::TimeWait | State::Open => {}
        }
        if self.timers.syn_ack_due {
            return plan(Kind::SynAck, self.ours.map_or(0, |_| MAX_ENCODED_LEN));
        }
        if let Some(ack) = self.fin_answer {
            return plan(Kind::FinAnswer(ack), 0);
        }
        let ack_due = self.recv.ack_due(now);
        if ack_due && self.has_blocks() {
            return plan(Kind::Ack, self.block_bytes());
        }
        if self.state == State::Open {
            if let Some(span) = self.next_span(max_payload, now) {
                return plan(Kind::Data(span), span.len);
            }
            if self.fin_sendable() {
                return plan(Kind::Fin, 0);
            }
            if self.timers.probe_due {
                return plan(Kind::Probe, 0);
            }
        }
        if ack_due { plan(Kind::Ack, 0) } else { None }
    }

    fn fin_sendable(&self) -> bool {
        self.fin == Fin::Due
            && self.send.next() == self.send.end()
            && !self.send.has_lost()
            && (self.ours.is_some() || self.send.all_acked())
    }

    /// Largest segment for this peer on this path.
    fn segment_limit(&self, max_payload: usize) -> usize {
        match self.ours {
            Some(offer) => {
                let theirs = offer.max_segment.map_or(PUBLISHED_SEGMENT, usize::from);
                // RFC 9293, section 3.7.1: nobody takes less.
                let theirs = theirs.max(MIN_SEGMENT);
                max_payload.min(theirs).min(usize::from(self.max_segment))
            }
            None => max_payload.min(PUBLISHED_SEGMENT),
        }
        .max(1)
    }

    /// When the pacer lets data go on that nothing else holds back.
    pub(super) fn paced_until(&self) -> Option<Time> {
        let waiting = self.send.has_lost() || self.send.next() < self.send.end();
        let room = self.send.in_flight() < self.congestion.window();
        self.pacer.next().filter(|_| waiting && room)
    }

    fn next_span(&self, max_payload: usize, now: Time) -> Option<Span> {
        let in_flight = self.send.in_flight();
        let room = self.congestion.window().saturating_sub(in_flight);
        if !self.pacer.allows(now) && !self.timers.tail_probe_due {
            return None;
        }
        if let Some(lost) = self.send.next_lost() {
            return (in_flight == 0 || lost.len <= room).then_some(lost);
        }
        let tail_probe = self.timers.tail_probe_due;
        if let Some(new) = self.new_span(self.segment_limit(max_payload))
            && (tail_probe || in_flight == 0 || new.len <= room)
        {
            return Some(new);
        }
        if tail_probe { self.send.last_in_flight() } else { None }
    }

    /// The next unsent bytes that window, Nagle and the peer allow.
    fn new_span(&self, limit: usize) -> Option<Span> {
        let waiting = usize::try_from(self.send.end() - self.send.next()).unwrap_or(usize::MAX);
        let full = waiting.min(limit);
        if full == 0 {
            return None;
        }
        let idle = self.send.segments() == 0;
        let mut len = full;
        if self.ours.is_some() {
            let window = self.right_edge.saturating_sub(self.send.next());
            len = len.min(usize::try_from(window).unwrap_or(usize::MAX));
            // Silly window avoidance: part of a segment only when nothing else
            // would ask for more window.
            if len == 0 || (len < full && !idle) {
                return None;
            }
        } else if self.send.segments() >= usize::from(self.peer_segments) {
            return None;
        }
        // Minshall's form of Nagle's rule: only another small segment that is
        // not acknowledged holds this one back.
        let small = len < limit && self.send.una() < self.timers.small_until;
        if small && !self.no_delay && !self.shutdown && !self.timers.flush {
            return None;
        }
        let offset = self.send.next();
        if self.ours.is_none() && len > SACK_LOOKALIKE_CUT {
            let mut head = [0; 37];
            let n = len.min(head.len());
            self.send.copy(offset, &mut head[..n]);
            if looks_like_list(&head[..n]) {
                len = SACK_LOOKALIKE_CUT;
            }
        }
        Some(Span { offset, len, again: false, small: len < limit })
    }

    /// Whether data waits for the peer's window alone.
    pub(super) fn window_closed(&self) -> bool {
        self.ours.is_some()
            && self.state == State::Open
            && self.send.segments() == 0
            && self.send.end() > self.send.next()
            && self.right_edge <= self.send.next()
    }

    /// What came twice is reported to peers of ours only.
    fn has_blocks(&self) -> bool {
        if self.ours.is_some() { self.recv.has_blocks() } else { self.recv.out_of_order_len() > 0 }
    }

    fn block_bytes(&self) -> usize {
        match self.ours {
            Some(_) => 1 + self.recv.block_count(MAX_BLOCKS) * 8,
            None => 5 + self.published_blocks().as_slice().len() * 8,
        }
    }

    fn published_blocks(&self) -> Blocks {
        self.recv.lowest_blocks(MAX_PUBLISHED_BLOCKS, |offset| self.receive_seq(offset))
    }

    /// Writes the payload of `plan` into `payload` (exactly `plan.len` bytes)
    /// and returns the header. The packet counts as sent.
    pub(crate) fn emit(&mut self, plan: Plan, payload: &mut [u8], now: Time) -> Header {
        let mut header = Header {
            flags: Flags::ACK,
            protocol: Protocol::Stream,
            source: self.local,
            destination: self.remote,
            seq: self.seq_of(self.send.next()),
            ack: 0,
            window: 0,
        };
        match plan.kind {
            Kind::Reset => {
                header.flags = Flags::RST;
                // A published peer looks at no number of a RST.
                if self.ours.is_none() {
                    header.seq = 0;
                }
                self.reset_due = false;
            }
            Kind::Syn | Kind::SynAck => self.emit_syn(plan, &mut header, payload, now),
            Kind::FinAnswer(ack) => {
                header.flags = Flags::FIN | Flags::ACK;
                header.ack = ack;
                self.fin_answer = None;
                self.settle(now);
            }
            Kind::Fin => self.emit_fin(&mut header, now),
            Kind::Ack => {
                self.emit_ack(&mut header, payload);
            }
            Kind::Probe => {
                self.timers.probe_due = false;
                if self.ours.is_some() {
                    header.seq = self.seq_of(self.send.una()).wrapping_sub(1);
                    self.acknowledge_in(&mut header);
                } else {
                    header.ack = self.ack_number();
                }
            }
            Kind::Data(span) => {
                self.send.copy(span.offset, payload);
                header.seq = self.seq_of(span.offset);
                self.acknowledge_in(&mut header);
                self.emitted_data(span, now);
            }
        }
        self.stats.segs_sent += 1;
        self.timers.last_sent = now;
        header
    }

    fn emit_syn(&mut self, plan: Plan, header: &mut Header, payload: &mut [u8], now: Time) {
        header.seq = self.iss;
        if plan.kind == Kind::Syn {
            header.flags = Flags::SYN;
            header.window = self.recv.advertise_segments();
            self.timers.syn_sent(now);
        } else {
            header.flags = Flags::SYN | Flags::ACK;
            self.timers.syn_ack_sent(now);
            self.acknowledge_in(header);
        }
        let mut options = Vec::with_capacity(MAX_ENCODED_LEN);
        self.offer().encode(&mut options);
        let n = options.len().min(payload.len());
        payload[..n].copy_from_slice(&options[..n]);
    }

    fn emit_fin(&mut self, header: &mut Header, now: Time) {
        self.fin = Fin::Sent;
        self.note_close_order();
        self.rearm(now);
        if self.ours.is_some() {
            header.flags = Flags::FIN | Flags::ACK;
            self.acknowledge_in(header);
        } else {
            header.flags = Flags::FIN;
        }
    }

    fn emit_ack(&mut self, header: &mut Header, payload: &mut [u8]) {
        self.acknowledge_in(header);
        if payload.is_empty() {
            return;
        }
        let mut bytes = Vec::with_capacity(payload.len());
        let blocks = if self.ours.is_some() {
            header.protocol = Protocol::StreamAck;
            let irs = self.irs;
            let blocks = self.recv.take_blocks(MAX_BLOCKS, |offset| seq_after(irs, offset));
            blocks.encode(&mut bytes);
            blocks
        } else {
            let blocks = self.published_blocks();
            blocks.encode_published(&mut bytes);
            blocks
        };
        self.stats.sack_sent += blocks.as_slice().len() as u64;
        payload.copy_from_slice(&bytes);
    }

    /// Puts acknowledgement and window into a header and notes that the peer
    /// is told.
    fn acknowledge_in(&mut self, header: &mut Header) {
        header.ack = self.ack_number();
        header.window = if self.ours.is_some() {
            self.recv.advertise()
        } else {
            self.recv.advertise_segments()
        };
        self.recv.ack_sent();
    }

    fn emitted_data(&mut self, span: Span, now: Time) {
        if span.len > self.timers.last_segment {
            self.timers.last_segment = span.len;
            if self.send.una() == 0 {
                self.congestion.on_segment_size(span.len);
            }
        }
        let probe = self.timers.tail_probe_due;
        self.send.sent(span, now);
        let rate = self.congestion.pacing(self.rtt.smoothed());
        self.pacer.sent(span.len, self.segment_guess(), rate, now);
        self.stats.bytes_sent += span.len as u64;
        if span.again {
            self.stats.retransmits += 1;
            self.recovery.sent_again(span.offset + span.len as u64, probe);
        } else {
            let left = self.send.next() < self.send.end();
            self.timers.sent_new(left, now);
            if span.small {
                self.timers.small_until = self.send.next();
            }
            let room = self.send.in_flight() < self.congestion.window();
            if !left && room && !self.send.has_lost() {
                self.send.note_app_limited();
            }
        }
        self.sent_data(now);
    }
}
