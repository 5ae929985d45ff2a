//! The sending half of a stream as published: 4096-byte segments, Nagle, a
//! window where zero means "no limit", one retransmission per timeout.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use pilot_wire::sack::Block;
use tokio::sync::oneshot;

/// Payload of a full segment.
pub(super) const SEGMENT: usize = 4096;
const INITIAL_WINDOW: usize = 40_960;
const INITIAL_THRESHOLD: usize = 524_288;
const INITIAL_RTO: Duration = Duration::from_secs(1);
const MIN_RTO: Duration = Duration::from_millis(200);
const MAX_RTO: Duration = Duration::from_secs(10);
const GRANULARITY: Duration = Duration::from_millis(10);
const NAGLE: Duration = Duration::from_millis(40);
const PROBE: Duration = Duration::from_millis(500);
const MAX_PROBE: Duration = Duration::from_secs(30);
const TRANSMISSIONS: u32 = 8;

struct Segment {
    seq: u32,
    data: Vec<u8>,
    sent: Instant,
    transmissions: u32,
    sacked: bool,
}

/// One segment to put on the wire.
pub(super) type Transmit = (u32, Vec<u8>);

/// What a look at the clock asks for.
pub(super) enum Timeout {
    /// Nothing.
    None,
    /// Send this segment again.
    Again(Transmit),
    /// Send an empty ACK into the closed window.
    Probe,
    /// Too many transmissions: reset.
    GiveUp,
}

/// A write that waits until its last byte has become a segment.
struct Writer {
    until: u64,
    done: oneshot::Sender<bool>,
}

/// Everything on its way to the peer.
pub(super) struct Sender {
    /// Next sequence number to use.
    pub(super) next: u32,
    /// Segments sent more than once.
    pub(super) retransmits: u64,
    acked: u32,
    flight: VecDeque<Segment>,
    pending: VecDeque<u8>,
    pending_since: Option<Instant>,
    written: u64,
    writers: VecDeque<Writer>,
    window: usize,
    window_limit: usize,
    threshold: usize,
    peer_window: usize,
    rtt: Option<(Duration, Duration)>,
    rto: Duration,
    last_timeout: Option<Instant>,
    duplicates: u32,
    episode: Option<u32>,
    probe: Option<(Instant, Duration)>,
}

impl Sender {
    /// `next` is the number after the SYN's.
    pub(super) fn new(next: u32, window_limit: usize) -> Self {
        Self {
            next,
            retransmits: 0,
            acked: next.wrapping_sub(1),
            flight: VecDeque::new(),
            pending: VecDeque::new(),
            pending_since: None,
            written: 0,
            writers: VecDeque::new(),
            window: INITIAL_WINDOW.min(window_limit),
            window_limit,
            threshold: INITIAL_THRESHOLD,
            peer_window: 0,
            rtt: None,
            rto: INITIAL_RTO,
            last_timeout: None,
            duplicates: 0,
            episode: None,
            probe: None,
        }
    }

    /// Takes bytes; `done` is told when the last full segment of them has left.
    pub(super) fn write(&mut self, data: &[u8], done: oneshot::Sender<bool>, now: Instant) {
        self.pending.extend(data);
        self.pending_since.get_or_insert(now);
        self.written += data.len() as u64;
        self.writers.push_back(Writer { until: self.written, done });
    }

    /// Fails every write that waits.
    pub(super) fn abandon(&mut self) {
        for writer in self.writers.drain(..) {
            let _ = writer.done.send(false);
        }
    }

    fn in_flight(&self) -> usize {
        self.flight.iter().map(|s| s.data.len()).sum()
    }

    fn is_open(&self) -> bool {
        let limit = if self.peer_window == 0 { usize::MAX } else { self.peer_window };
        self.in_flight() < self.window.min(limit)
    }

    /// The next segment that may leave now.
    pub(super) fn poll(&mut self, now: Instant) -> Option<Transmit> {
        let len = self.pending.len().min(SEGMENT);
        let waited = self.pending_since.is_some_and(|since| now >= since + NAGLE);
        let small_may_go = self.flight.is_empty() || waited;
        if len == 0 || !self.is_open() || (len < SEGMENT && !small_may_go) {
            self.tell_writers();
            return None;
        }
        let data: Vec<u8> = self.pending.drain(..len).collect();
        self.pending_since = (!self.pending.is_empty()).then_some(now);
        self.probe = None;
        let seq = self.next;
        self.next = seq.wrapping_add(u32::try_from(len).unwrap_or(0));
        let sent = Segment { seq, data: data.clone(), sent: now, transmissions: 1, sacked: false };
        self.flight.push_back(sent);
        self.tell_writers();
        Some((seq, data))
    }

    fn tell_writers(&mut self) {
        // A rest below a segment is out of the writer's hands.
        let gone = self.written - self.pending.len() as u64;
        let rest = if self.pending.len() < SEGMENT { SEGMENT as u64 } else { 0 };
        while self.writers.front().is_some_and(|w| w.until <= gone + rest) {
            if let Some(writer) = self.writers.pop_front() {
                let _ = writer.done.send(true);
            }
        }
    }

    /// The window field of a packet from the peer.
    pub(super) fn peer_window(&mut self, segments: u16) {
        self.peer_window = usize::from(segments) * SEGMENT;
    }

    /// An acknowledgement number; `pure` when the packet had no payload.
    pub(super) fn acknowledge(&mut self, ack: u32, pure: bool, now: Instant) -> Option<Transmit> {
        let advance = ack.wrapping_sub(self.acked).cast_signed();
        if advance < 0 {
            return None;
        }
        if advance == 0 {
            return if pure { self.duplicate(now) } else { None };
        }
        self.acked = ack;
        self.duplicates = 0;
        let mut samples = Vec::new();
        self.flight.retain_mut(|s| {
            let end = s.seq.wrapping_add(u32::try_from(s.data.len()).unwrap_or(0));
            let covered = ack.wrapping_sub(end).cast_signed() >= 0;
            if covered && s.transmissions == 1 && !s.sacked {
                samples.push(now - s.sent);
            }
            s.sacked = false;
            !covered
        });
        for sample in samples {
            self.sample(sample);
        }
        let acked = usize::try_from(advance).unwrap_or(0);
        self.window += if self.window < self.threshold {
            acked
        } else {
            (SEGMENT * acked / self.window).max(1)
        };
        self.window = self.window.min(self.window_limit);
        self.episode = self.episode.filter(|end| ack.wrapping_sub(*end).cast_signed() < 0);
        None
    }

    fn duplicate(&mut self, now: Instant) -> Option<Transmit> {
        self.duplicates += 1;
        if self.duplicates > 3 {
            self.window = (self.window + SEGMENT).min(self.window_limit);
        }
        if self.duplicates != 3 {
            return None;
        }
        self.threshold = (self.window / 2).max(SEGMENT);
        self.window = (self.threshold + 3 * SEGMENT).min(self.window_limit);
        let segment = self.flight.iter_mut().find(|s| !s.sacked)?;
        segment.transmissions += 1;
        segment.sent = now;
        self.retransmits += 1;
        Some((segment.seq, segment.data.clone()))
    }

    fn sample(&mut self, r: Duration) {
        let (srtt, var) = match self.rtt {
            None => (r, r / 2),
            Some((srtt, var)) => (srtt * 7 / 8 + r / 8, var * 3 / 4 + srtt.abs_diff(r) / 4),
        };
        self.rtt = Some((srtt, var));
        self.rto = (srtt + GRANULARITY.max(var * 4)).clamp(MIN_RTO, MAX_RTO);
    }

    /// Ranges that the peer holds.
    pub(super) fn sacked(&mut self, blocks: &[Block]) {
        for segment in &mut self.flight {
            let end = segment.seq.wrapping_add(u32::try_from(segment.data.len()).unwrap_or(0));
            segment.sacked |= blocks.iter().any(|b| {
                segment.seq.wrapping_sub(b.left).cast_signed() >= 0
                    && b.right.wrapping_sub(end).cast_signed() >= 0
            });
        }
    }

    /// Looked at every 100 ms.
    pub(super) fn timeout(&mut self, now: Instant) -> Timeout {
        if !self.pending.is_empty() && !self.is_open() {
            let (at, pause) = *self.probe.get_or_insert((now + PROBE, PROBE));
            if now >= at {
                let pause = (pause * 2).min(MAX_PROBE);
                self.probe = Some((now + pause, pause));
                return Timeout::Probe;
            }
        }
        let recent = self.last_timeout.is_some_and(|at| now < at + self.rto);
        let (rto, next) = (self.rto, self.next);
        let Some(segment) = self.flight.iter_mut().find(|s| !s.sacked) else {
            return Timeout::None;
        };
        if recent || now < segment.sent + rto {
            return Timeout::None;
        }
        if segment.transmissions >= TRANSMISSIONS {
            return Timeout::GiveUp;
        }
        segment.transmissions += 1;
        segment.sent = now;
        let again = (segment.seq, segment.data.clone());
        self.retransmits += 1;
        self.last_timeout = Some(now);
        if self.episode.is_none() {
            self.episode = Some(next);
            self.threshold = (self.window / 2).max(SEGMENT);
            self.window = INITIAL_WINDOW.min(self.window_limit);
            self.rto = (self.rto * 2).min(MAX_RTO);
        }
        Timeout::Again(again)
    }
}
