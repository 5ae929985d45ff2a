//! One stream as published: opening, acknowledging, sending, closing.

use std::collections::VecDeque;
use std::time::Duration;

use pilot_core::Time;
use pilot_wire::packet::{Flags, Header, Packet};
use pilot_wire::sack::{Block, Blocks};

const SEGMENT: usize = 4096;
const QUEUE: usize = 512;
const HELD: usize = 128;
const INITIAL_WINDOW: usize = 40_960;
const MAX_WINDOW: usize = 1_048_576;
const DELAYED_ACK: Duration = Duration::from_millis(40);
const NAGLE: Duration = Duration::from_millis(40);
const MIN_RTO: Duration = Duration::from_millis(200);
const MAX_RTO: Duration = Duration::from_secs(10);
const TRANSMISSIONS: u32 = 8;
const TIME_WAIT: Duration = Duration::from_secs(10);
const KEEPALIVE: Duration = Duration::from_secs(30);
const IDLE: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    SynSent,
    Established,
    TimeWait,
    Closed,
}

/// A packet to send: what a connection decides of it.
#[derive(Debug)]
pub(crate) struct Out {
    pub(crate) flags: Flags,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) window: u16,
    pub(crate) payload: Vec<u8>,
}

impl Out {
    pub(crate) fn bare(flags: Flags, seq: u32, ack: u32) -> Self {
        Self { flags, seq, ack, window: 0, payload: Vec::new() }
    }
}

struct Segment {
    seq: u32,
    data: Vec<u8>,
    sent: Time,
    transmissions: u32,
    sacked: bool,
}

pub(crate) struct Connection {
    pub(crate) state: State,
    /// Segments that the application has not taken.
    pub(crate) inbox: VecDeque<Vec<u8>>,
    /// A FIN came.
    pub(crate) ended: bool,
    /// Ended by RST, or because nothing was acknowledged.
    pub(crate) broken: bool,
    next: u32,
    acked: u32,
    expected: u32,
    held: Vec<(u32, Vec<u8>)>,
    flight: VecDeque<Segment>,
    pending: VecDeque<u8>,
    pending_since: Option<Time>,
    window: usize,
    threshold: usize,
    peer_window: usize,
    duplicates: u32,
    srtt: Option<(Duration, Duration)>,
    rto: Duration,
    last_timeout: Option<Time>,
    episode: Option<u32>,
    to_ack: u32,
    ack_at: Option<Time>,
    syn: Option<(u32, Time)>,
    active: Time,
}

fn ahead(a: u32, b: u32) -> i32 {
    a.wrapping_sub(b).cast_signed()
}

impl Connection {
    fn new(state: State, now: Time) -> Self {
        Self {
            state,
            inbox: VecDeque::new(),
            ended: false,
            broken: false,
            next: 1,
            acked: 0,
            expected: 0,
            held: Vec::new(),
            flight: VecDeque::new(),
            pending: VecDeque::new(),
            pending_since: None,
            window: INITIAL_WINDOW,
            threshold: MAX_WINDOW / 2,
            peer_window: 0,
            duplicates: 0,
            srtt: None,
            rto: Duration::from_secs(1),
            last_timeout: None,
            episode: None,
            to_ack: 0,
            ack_at: None,
            syn: None,
            active: now,
        }
    }

    pub(crate) fn dial(now: Time, out: &mut Vec<Out>) -> Self {
        let mut new = Self::new(State::SynSent, now);
        new.syn = Some((1, now + Duration::from_secs(1)));
        out.push(Out { window: QUEUE as u16, ..Out::bare(Flags::SYN, 0, 0) });
        new
    }

    /// The remains of a conversation that the other side has forgotten.
    pub(crate) fn stale(now: Time) -> Self {
        Self { next: 777, acked: 777, expected: 4242, ..Self::new(State::Established, now) }
    }

    /// Payload and options of the SYN are not looked at.
    pub(crate) fn accept(syn: &Header, now: Time, out: &mut Vec<Out>) -> Self {
        let mut new = Self::new(State::Established, now);
        new.expected = syn.seq.wrapping_add(1);
        new.peer_window = usize::from(syn.window) * SEGMENT;
        out.push(new.syn_ack());
        new
    }

    pub(crate) fn syn_ack(&self) -> Out {
        let flags = Flags::SYN | Flags::ACK;
        let bare = Out::bare(flags, self.next.wrapping_sub(1), self.expected);
        Out { window: self.free(), ..bare }
    }

    fn free(&self) -> u16 {
        (QUEUE - self.inbox.len().min(QUEUE)) as u16
    }

    fn ack(&self) -> Out {
        Out { window: self.free(), ..Out::bare(Flags::ACK, self.next, self.expected) }
    }

    // ---- the application ---------------------------------------------------

    pub(crate) fn write(&mut self, data: &[u8], now: Time, out: &mut Vec<Out>) {
        self.pending.extend(data);
        self.pending_since.get_or_insert(now);
        self.transmit(now, out);
    }

    pub(crate) fn unsent(&self) -> usize {
        self.pending.len()
    }

    /// Whether everything written was acknowledged.
    pub(crate) fn settled(&self) -> bool {
        self.pending.is_empty() && self.flight.is_empty()
    }

    pub(crate) fn close(&mut self, now: Time, out: &mut Vec<Out>) {
        if self.state == State::Established {
            self.state = State::TimeWait;
            self.active = now;
            out.push(Out::bare(Flags::FIN, self.next, 0));
        }
    }

    // ---- packets -------------------------------------------------------------

    pub(crate) fn receive(&mut self, packet: &Packet<'_>, now: Time, out: &mut Vec<Out>) {
        let h = packet.header;
        if h.flags.contains(Flags::RST) {
            self.state = State::Closed;
            self.broken = true;
        } else if h.flags.contains(Flags::SYN) {
            if self.state == State::SynSent {
                self.state = State::Established;
                self.syn = None;
                self.expected = h.seq.wrapping_add(1);
                self.acked = 0;
                self.peer_window = usize::from(h.window) * SEGMENT;
                self.active = now;
                out.push(self.ack());
                self.transmit(now, out);
            }
        } else if h.flags.contains(Flags::FIN) {
            self.ended = true;
            self.state = State::TimeWait;
            self.active = now;
            out.push(Out::bare(Flags::FIN | Flags::ACK, self.next, h.seq.wrapping_add(1)));
        } else if h.flags.contains(Flags::ACK) {
            self.acknowledgement(&h, packet.payload, now, out);
        }
    }

    fn acknowledgement(&mut self, h: &Header, payload: &[u8], now: Time, out: &mut Vec<Out>) {
        self.active = now;
        self.peer_window = usize::from(h.window) * SEGMENT;
        if h.ack != 0 {
            self.acknowledged(h.ack, payload.is_empty(), now, out);
        }
        if let Some(blocks) = Blocks::recognise(payload) {
            self.sacked(blocks.as_slice());
        } else if !payload.is_empty() && self.state == State::Established {
            self.deliver(h.seq, payload);
            self.to_ack += 1;
            if !self.held.is_empty() {
                out.push(self.sack_list());
                self.acked_now();
            } else if self.to_ack >= 2 {
                out.push(self.ack());
                self.acked_now();
            } else {
                self.ack_at.get_or_insert(now + DELAYED_ACK);
            }
        }
        if self.state == State::Established {
            self.transmit(now, out);
        }
    }

    fn acked_now(&mut self) {
        self.to_ack = 0;
        self.ack_at = None;
    }

    /// Exactly at the next expected byte, or not at all.
    fn deliver(&mut self, seq: u32, data: &[u8]) {
        let distance = ahead(seq, self.expected);
        if distance > 0 {
            if self.held.len() < HELD && self.held.iter().all(|(s, _)| *s != seq) {
                self.held.push((seq, data.to_vec()));
            }
            return;
        }
        let mut next = (distance == 0).then(|| data.to_vec());
        while let Some(data) = next {
            // Full: where the published daemon would block, this one drops.
            if self.inbox.len() >= QUEUE {
                return;
            }
            self.expected = self.expected.wrapping_add(data.len() as u32);
            self.inbox.push_back(data);
            let at = self.held.iter().position(|(s, _)| *s == self.expected);
            next = at.map(|i| self.held.swap_remove(i).1);
        }
    }

    fn sack_list(&self) -> Out {
        let mut ranges: Vec<(i32, i32)> = self
            .held
            .iter()
            .map(|(s, d)| (ahead(*s, self.expected), ahead(*s, self.expected) + d.len() as i32))
            .collect();
        ranges.sort_unstable();
        let mut merged: Vec<(i32, i32)> = Vec::new();
        for (left, right) in ranges {
            match merged.last_mut() {
                Some(last) if left <= last.1 => last.1 = last.1.max(right),
                _ => merged.push((left, right)),
            }
        }
        let mut blocks = Blocks::default();
        for (left, right) in merged.into_iter().take(4) {
            let at = |offset: i32| self.expected.wrapping_add(offset.cast_unsigned());
            blocks.push(Block { left: at(left), right: at(right) });
        }
        let mut list = self.ack();
        blocks.encode_published(&mut list.payload);
        list
    }

    // ---- sending ---------------------------------------------------------------

    fn transmit(&mut self, now: Time, out: &mut Vec<Out>) {
        loop {
            let in_flight: usize = self.flight.iter().map(|s| s.data.len()).sum();
            // Zero means "no limit".
            let peer = if self.peer_window == 0 { usize::MAX } else { self.peer_window };
            let waited = self.pending_since.is_some_and(|t| now >= t + NAGLE);
            let len = self.pending.len().min(SEGMENT);
            let small = len < SEGMENT && !self.flight.is_empty() && !waited;
            if len == 0 || in_flight >= self.window.min(peer) || small {
                return;
            }
            let data: Vec<u8> = self.pending.drain(..len).collect();
            self.pending_since = (!self.pending.is_empty()).then_some(now);
            out.push(Out { seq: self.next, payload: data.clone(), ..self.ack() });
            self.acked_now();
            let seq = self.next;
            self.next = self.next.wrapping_add(len as u32);
            self.flight.push_back(Segment {
                seq,
                data,
                sent: now,
                transmissions: 1,
                sacked: false,
            });
            self.active = now;
        }
    }

    fn again(&mut self, index: usize, now: Time, out: &mut Vec<Out>) {
        let ack = self.ack();
        let segment = &mut self.flight[index];
        segment.sent = now;
        segment.transmissions += 1;
        out.push(Out { seq: segment.seq, payload: segment.data.clone(), ..ack });
    }

    fn acknowledged(&mut self, ack: u32, pure: bool, now: Time, out: &mut Vec<Out>) {
        let advance = ahead(ack, self.acked);
        if advance == 0 && pure {
            self.duplicates += 1;
            if self.duplicates == 3
                && let Some(first) = self.flight.iter().position(|s| !s.sacked)
            {
                self.threshold = (self.window / 2).max(SEGMENT);
                self.window = self.threshold + 3 * SEGMENT;
                self.again(first, now, out);
            }
        }
        if advance <= 0 {
            return;
        }
        self.acked = ack;
        self.duplicates = 0;
        while let Some(front) = self.flight.front() {
            if ahead(ack, front.seq.wrapping_add(front.data.len() as u32)) < 0 {
                break;
            }
            if front.transmissions == 1 && !front.sacked {
                let r = now.since(front.sent);
                let (srtt, var) = match self.srtt {
                    None => (r, r / 2),
                    Some((s, v)) => (s * 7 / 8 + r / 8, v * 3 / 4 + s.abs_diff(r) / 4),
                };
                self.srtt = Some((srtt, var));
                self.rto = (srtt + Duration::from_millis(10).max(var * 4)).clamp(MIN_RTO, MAX_RTO);
            }
            self.flight.pop_front();
        }
        for segment in &mut self.flight {
            segment.sacked = false;
        }
        let grown = if self.window < self.threshold {
            advance as usize
        } else {
            (SEGMENT * advance as usize / self.window).max(1)
        };
        self.window = (self.window + grown).min(MAX_WINDOW);
        self.episode = self.episode.filter(|end| ahead(ack, *end) < 0);
    }

    fn sacked(&mut self, blocks: &[Block]) {
        for segment in &mut self.flight {
            let end = segment.seq.wrapping_add(segment.data.len() as u32);
            segment.sacked |=
                blocks.iter().any(|b| ahead(segment.seq, b.left) >= 0 && ahead(b.right, end) >= 0);
        }
    }

    // ---- the clock -----------------------------------------------------------

    pub(crate) fn tick(&mut self, now: Time, out: &mut Vec<Out>) {
        if let Some((sent, at)) = self.syn
            && now >= at
        {
            if sent == 7 {
                self.state = State::Closed;
                self.broken = true;
                return;
            }
            let pause = Duration::from_secs(1 << sent.min(3));
            self.syn = Some((sent + 1, now + pause));
            out.push(Out { window: QUEUE as u16, ..Out::bare(Flags::SYN, 0, 0) });
        }
        if self.state != State::Established {
            return;
        }
        if self.ack_at.is_some_and(|at| now >= at) {
            self.acked_now();
            out.push(self.ack());
        }
        let recent = self.last_timeout.is_some_and(|at| now < at + self.rto);
        let first = self.flight.iter().position(|s| !s.sacked);
        if let Some(first) = first.filter(|i| !recent && now >= self.flight[*i].sent + self.rto) {
            if self.flight[first].transmissions >= TRANSMISSIONS {
                self.state = State::Closed;
                self.broken = true;
                out.push(Out::bare(Flags::RST, 0, 0));
                return;
            }
            self.last_timeout = Some(now);
            if self.episode.is_none() {
                self.episode = Some(self.next);
                self.threshold = (self.window / 2).max(SEGMENT);
                self.window = INITIAL_WINDOW;
                self.rto = (self.rto * 2).min(MAX_RTO);
            }
            self.again(first, now, out);
        }
        self.transmit(now, out);
    }

    pub(crate) fn sweep(&mut self, now: Time, out: &mut Vec<Out>) {
        let idle = now.since(self.active);
        match self.state {
            State::TimeWait if idle > TIME_WAIT => self.state = State::Closed,
            State::Established if idle > IDLE => self.close(now, out),
            State::Established if idle > KEEPALIVE => {
                out.push(Out { window: 0, ..self.ack() });
            }
            _ => {}
        }
    }
}
