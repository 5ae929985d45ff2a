//! The receiving half of a stream: reassembly by byte, flow control, and when
//! an acknowledgement is due.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use pilot_wire::sack::{Block, Blocks};

use super::ranges::Ranges;
use super::rtt::MAX_ACK_DELAY;
use crate::time::Time;

/// Segments received in order are gathered into chunks of this size.
const CHUNK: usize = 64 << 10;
/// Pieces that came out of order and are at least this long stay as they are.
const OWN_CHUNK: usize = 4096;
/// Pieces held out of order: at least so many, and one for so many bytes of the
/// limit; beyond it new ones are dropped and sent again.
const MIN_PIECES: usize = 64;
const BYTES_PER_PIECE: usize = 512;
/// What a piece costs beside its bytes: its allocation, its places in the map
/// and among the ranges.
const PIECE_COST: usize = 128;
/// Ranges that changed last and are reported first.
const RECENT: usize = 32;
/// A segment this large is acknowledged at once: it counts as two full-sized
/// ones (RFC 5681, section 4.2), and a sender whose first window holds only one
/// such segment would wait for the timer.
const LARGE_SEGMENT: usize = 8 << 10;
/// The unit of the window field.
const WINDOW_UNIT: u64 = 4096;
/// A published peer takes a window of zero for "no limit" and gives a stream up
/// when one segment stays unacknowledged. So one is taken this often beyond the
/// buffer's limit...
const OVERFLOW_INTERVAL: Duration = Duration::from_secs(1);
/// ...up to this many bytes.
const OVERFLOW_LIMIT: usize = 512 << 10;

/// Received data by stream offset. Offsets count payload bytes from zero.
#[derive(Debug)]
pub(crate) struct RecvSide {
    next: u64,
    chunks: VecDeque<Bytes>,
    tail: BytesMut,
    buffered: usize,
    out_of_order: BTreeMap<u64, Bytes>,
    out_of_order_bytes: usize,
    /// What is held out of order, joined.
    ranges: Ranges,
    /// Starts of the pieces that came last, newest first.
    recent: VecDeque<u64>,
    /// A piece that came twice, to be reported once (RFC 2883).
    twice: Option<(u64, u64)>,
    end: Option<u64>,
    /// In-order data was not taken for want of memory.
    refused: bool,
    window: Window,
    /// First offset beyond what the peer was last told it may send.
    edge: u64,
    unacked_segments: u32,
    ack_at: Option<Time>,
    /// An acknowledgement waits at most this long, and for at most one segment
    /// (RFC 9293, section 3.8.6.3; protocol page "Transport layer", section 1).
    ack_delay: Duration,
    ack_now: bool,
    overflow_at: Option<Time>,
}

impl RecvSide {
    /// The window starts with `limit` bytes and grows up to `most`.
    pub(crate) fn new(limit: usize, most: usize) -> Self {
        let limit = limit.min(most);
        Self {
            next: 0,
            chunks: VecDeque::new(),
            tail: BytesMut::new(),
            buffered: 0,
            out_of_order: BTreeMap::new(),
            out_of_order_bytes: 0,
            ranges: Ranges::default(),
            recent: VecDeque::new(),
            twice: None,
            end: None,
            refused: false,
            window: Window { limit, most, cap: usize::MAX, strict: false, round: None },
            edge: limit as u64,
            unacked_segments: 0,
            ack_at: None,
            ack_delay: MAX_ACK_DELAY,
            ack_now: false,
            overflow_at: None,
        }
    }

    /// Offset of the next byte expected.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Pieces held out of order.
    pub(crate) fn out_of_order_len(&self) -> usize {
        self.out_of_order.len()
    }

    /// Whether an acknowledgement has ranges to report.
    pub(crate) fn has_blocks(&self) -> bool {
        self.twice.is_some() || self.ranges.len() > 0
    }

    /// Bytes of memory held: what waits to be read, room in the newest chunk
    /// included, and pieces out of order with what each costs beside its bytes.
    pub(crate) fn held(&self) -> usize {
        let room = self.tail.capacity() - self.tail.len();
        let pieces = self.out_of_order.len() * PIECE_COST;
        self.buffered + room + self.out_of_order_bytes + pieces
    }

    /// Whether every byte before the end has arrived.
    pub(crate) fn finished(&self) -> bool {
        self.end.is_some_and(|end| self.next >= end)
    }

    /// Whether everything was read, and no more will come.
    pub(crate) fn drained(&self) -> bool {
        self.finished() && self.buffered == 0
    }

    pub(crate) fn has_data(&self) -> bool {
        self.buffered > 0
    }

    /// The peer's FIN, at `end`. The first one counts.
    pub(crate) fn set_end(&mut self, end: u64) {
        if self.end.is_none() && end >= self.next {
            self.end = Some(end);
        }
        self.ack_now = true;
    }

    /// As [`RecvSide::set_end`], for a peer that keeps to the window: an end
    /// beyond what it may send is not believed.
    pub(crate) fn set_end_within(&mut self, end: u64) {
        let allowed = self.edge.max(self.next + (self.free() as u64).max(WINDOW_UNIT));
        if end <= allowed {
            self.set_end(end);
        }
        self.ack_now = true;
    }

    pub(crate) fn end(&self) -> Option<u64> {
        self.end
    }

    /// Takes a segment at `offset`. Returns the bytes newly in order. With
    /// `trickle` (published peers) one segment a second is taken beyond the
    /// limit.
    pub(crate) fn insert(&mut self, offset: u64, data: &[u8], trickle: bool, now: Time) -> usize {
        self.unacked_segments += if data.len() >= LARGE_SEGMENT { 2 } else { 1 };
        let stop =
            self.end.unwrap_or(u64::MAX).min(self.acceptable_until(data.len(), trickle, now));
        let from = offset.max(self.next);
        let until = (offset + data.len() as u64).min(stop);
        if from >= until {
            // Old, or beyond the window: say at once what is expected.
            self.ack_now = true;
            if offset + data.len() as u64 <= self.next {
                self.twice = Some((offset, offset + data.len() as u64));
            }
            return 0;
        }
        let data = &data[index(from - offset)..index(until - offset)];
        if from > self.next {
            self.insert_out_of_order(from, data);
            self.ack_now = true;
            return 0;
        }
        let before = self.next;
        self.append(data);
        if !self.out_of_order.is_empty() {
            self.join_out_of_order();
            self.ack_now = true;
        }
        if self.unacked_segments >= 2 {
            self.ack_now = true;
        } else if self.ack_at.is_none() {
            self.ack_at = Some(now + self.ack_delay);
        }
        index(self.next - before)
    }

    fn acceptable_until(&mut self, len: usize, trickle: bool, now: Time) -> u64 {
        let room = self.free();
        let limit = self.next + room as u64;
        // What was promised is taken, unless the daemon has no memory left: it
        // is not acknowledged then, and comes again.
        let edge = if self.window.strict { limit } else { limit.max(self.edge) };
        self.refused |= self.next + len as u64 > edge;
        if !trickle || room >= len {
            return edge;
        }
        let due = self.overflow_at.is_none_or(|t| now.since(t) >= OVERFLOW_INTERVAL);
        if due && self.buffered < self.window.limit + OVERFLOW_LIMIT {
            self.overflow_at = Some(now);
            return self.next + len as u64;
        }
        self.next + room as u64
    }

    fn append(&mut self, data: &[u8]) {
        self.next += data.len() as u64;
        self.buffered += data.len();
        if self.tail.capacity() - self.tail.len() < data.len() {
            if !self.tail.is_empty() {
                self.chunks.push_back(std::mem::take(&mut self.tail).freeze());
            }
            // A lone small segment gets a small chunk, so that idle streams
            // stay small; a stream in flow gets full ones.
            let size = if self.buffered > data.len() { CHUNK.max(data.len()) } else { data.len() };
            self.tail = BytesMut::with_capacity(size);
        }
        self.tail.extend_from_slice(data);
    }

    fn insert_out_of_order(&mut self, mut from: u64, mut data: &[u8]) {
        if self.out_of_order.len() >= MIN_PIECES.max(self.window.limit / BYTES_PER_PIECE) {
            return;
        }
        let whole = (from, from + data.len() as u64);
        if self.ranges.add(whole.0, whole.1).is_none() {
            self.twice = Some(whole);
            return;
        }
        self.recent.push_front(from);
        self.recent.truncate(RECENT);
        // Keep what is held; add only the bytes that fill gaps.
        if let Some((start, held)) = self.out_of_order.range(..=from).next_back() {
            let covered = (start + held.len() as u64).saturating_sub(from);
            data = &data[index(covered.min(data.len() as u64))..];
            from += covered;
        }
        while !data.is_empty() {
            let following = self.out_of_order.range(from..).next().map(|(s, d)| (*s, d.len()));
            let gap =
                following.map_or(data.len() as u64, |(s, _)| (s - from).min(data.len() as u64));
            let (fill, rest) = data.split_at(index(gap));
            if !fill.is_empty() {
                self.out_of_order_bytes += fill.len();
                self.out_of_order.insert(from, Bytes::copy_from_slice(fill));
            }
            let skip = following.map_or(0, |(_, len)| len).min(rest.len());
            data = &rest[skip..];
            from += gap + skip as u64;
        }
    }

    fn join_out_of_order(&mut self) {
        while let Some(entry) = self.out_of_order.first_entry() {
            let start = *entry.key();
            if start > self.next {
                break;
            }
            let mut data = entry.remove();
            self.out_of_order_bytes -= data.len();
            let seen = index((self.next - start).min(data.len() as u64));
            let fresh = data.split_off(seen);
            if fresh.is_empty() {
                continue;
            }
            if fresh.len() < OWN_CHUNK {
                // Small pieces share a chunk, so that memory follows the bytes.
                self.append(&fresh);
                continue;
            }
            self.next += fresh.len() as u64;
            self.buffered += fresh.len();
            self.seal_tail();
            self.chunks.push_back(fresh);
        }
        self.ranges.forget_before(self.next);
        if self.out_of_order.is_empty() {
            // An idle stream holds nothing for them.
            self.recent = VecDeque::new();
            self.ranges = Ranges::default();
        }
    }

    /// Puts the tail among the full chunks; a mostly empty one is copied, so
    /// that it does not hold its whole room.
    fn seal_tail(&mut self) {
        if self.tail.is_empty() {
            return;
        }
        if self.tail.len() < CHUNK / 4 {
            self.chunks.push_back(Bytes::copy_from_slice(&self.tail));
            self.tail.clear();
        } else {
            self.chunks.push_back(std::mem::take(&mut self.tail).freeze());
        }
    }

    /// The next bytes in order, at most `max`.
    pub(crate) fn read(&mut self, max: usize) -> Option<Bytes> {
        let data = match self.chunks.front_mut() {
            Some(front) if front.len() <= max => self.chunks.pop_front()?,
            Some(front) => front.split_to(max),
            None if self.tail.is_empty() => return None,
            None => self.tail.split_to(self.tail.len().min(max)).freeze(),
        };
        self.buffered -= data.len();
        if self.buffered == 0 {
            // Nothing waits: an idle stream holds no chunk.
            self.tail = BytesMut::new();
        }
        Some(data)
    }

    /// What was received in order is all there will be.
    pub(crate) fn truncate(&mut self) {
        self.end = Some(self.next);
        self.out_of_order.clear();
        self.out_of_order_bytes = 0;
        self.ranges = Ranges::default();
    }

    /// Throws away what was received and not read.
    pub(crate) fn discard(&mut self) {
        self.chunks.clear();
        self.tail = BytesMut::new();
        self.buffered = 0;
    }

    /// Free bytes that may be advertised.
    pub(crate) fn free(&self) -> usize {
        self.window.limit.min(self.window.cap).saturating_sub(self.buffered)
    }

    /// The daemon's memory allows this stream `cap` bytes; with `strict` also
    /// what the peer was promised beyond them is not taken.
    pub(crate) fn set_cap(&mut self, cap: usize, strict: bool) {
        self.window.cap = cap;
        self.window.strict = strict;
    }

    /// How long acknowledgements wait from now on.
    pub(crate) fn set_ack_delay(&mut self, delay: Duration) {
        self.ack_delay = delay;
    }

    /// Grows the window when a large part of it arrives within one round trip:
    /// then it may be what limits the peer. `rtt` is the least round trip, so
    /// that a queue on the path makes this no less eager.
    pub(crate) fn tune(&mut self, rtt: Option<Duration>, now: Time) {
        self.window.tune(self.next, rtt, now);
    }

    /// The window field for a peer of ours: exact, zero means closed. The right
    /// edge never moves back.
    pub(crate) fn advertise(&mut self) -> u16 {
        let edge = self.next + self.free() as u64;
        let units = (edge.max(self.edge) - self.next) / WINDOW_UNIT;
        let field = u16::try_from(units).unwrap_or(u16::MAX);
        self.edge = self.edge.max(self.next + u64::from(field) * WINDOW_UNIT);
        field
    }

    /// The window field for a published peer: segments, never zero.
    pub(crate) fn advertise_segments(&mut self) -> u16 {
        self.edge = self.edge.max(self.next + self.free() as u64);
        u16::try_from(self.free() as u64 / WINDOW_UNIT).unwrap_or(u16::MAX).clamp(1, 512)
    }

    /// After a read: whether the window grew enough to tell the peer
    /// (RFC 9293, section 3.8.6.2.2).
    pub(crate) fn window_update_due(&mut self) -> bool {
        let possible = self.next + self.free() as u64;
        // What was refused comes again when the peer hears that there is room.
        if self.refused && self.free() as u64 >= 2 * WINDOW_UNIT {
            self.refused = false;
            return true;
        }
        possible >= self.edge + self.window.limit as u64 / 2
            || (self.edge < self.next + 2 * WINDOW_UNIT && possible >= self.edge + 2 * WINDOW_UNIT)
    }

    /// Asks for an acknowledgement as soon as something can be sent.
    pub(crate) fn demand_ack(&mut self) {
        self.ack_now = true;
    }

    pub(crate) fn ack_due(&self, now: Time) -> bool {
        self.ack_now || self.ack_at.is_some_and(|t| t <= now)
    }

    /// A delayed acknowledgement that has waited long enough is due.
    pub(crate) fn expire_ack(&mut self, now: Time) {
        if self.ack_at.is_some_and(|at| at <= now) {
            self.ack_at = None;
            self.ack_now = true;
        }
    }

    pub(crate) fn ack_deadline(&self) -> Option<Time> {
        self.ack_at
    }

    /// A packet that carries the acknowledgement number was sent.
    pub(crate) fn ack_sent(&mut self) {
        self.ack_now = false;
        self.ack_at = None;
        self.unacked_segments = 0;
    }

    /// Blocks that [`RecvSide::take_blocks`] would give.
    pub(crate) fn block_count(&self, max: usize) -> usize {
        (usize::from(self.twice.is_some()) + self.ranges.len()).min(max)
    }

    /// What was received twice, then what is held out of order, newest first
    /// (RFC 2018, section 4; RFC 2883, section 4), as numbers translated by
    /// `to_seq`; at most `max` blocks.
    pub(crate) fn take_blocks(&mut self, max: usize, to_seq: impl Fn(u64) -> u32) -> Blocks {
        let mut chosen: Vec<(u64, u64)> = Vec::with_capacity(max);
        chosen.extend(self.twice.take());
        let reported = chosen.len();
        let recent = self.recent.iter().filter_map(|at| self.ranges.containing(*at));
        // Newest first; those not among the newest, lowest first.
        for range in recent.chain(self.ranges.iter()) {
            if chosen.len() == max {
                break;
            }
            if !chosen[reported..].contains(&range) {
                chosen.push(range);
            }
        }
        let mut blocks = Blocks::default();
        for (left, right) in chosen {
            blocks.push(Block { left: to_seq(left), right: to_seq(right) });
        }
        blocks
    }

    /// As published: what is held out of order, lowest first.
    pub(crate) fn lowest_blocks(&self, max: usize, to_seq: impl Fn(u64) -> u32) -> Blocks {
        let mut blocks = Blocks::default();
        for (left, right) in self.ranges.iter().take(max) {
            blocks.push(Block { left: to_seq(left), right: to_seq(right) });
        }
        blocks
    }
}

/// How large the receive window is.
#[derive(Clone, Copy, Debug)]
struct Window {
    /// What this stream takes, in bytes, read or not.
    limit: usize,
    /// What it may grow to.
    most: usize,
    /// What the daemon's memory allows it now.
    cap: usize,
    strict: bool,
    /// Where the stream stood when the present round trip began.
    round: Option<(u64, Time)>,
}

impl Window {
    fn tune(&mut self, next: u64, rtt: Option<Duration>, now: Time) {
        let Some(rtt) = rtt.filter(|_| self.limit < self.most) else { return };
        let Some((start, since)) = self.round else {
            self.round = Some((next, now));
            return;
        };
        if next - start >= self.limit as u64 / 4 {
            // Twice a window per round trip, as slow start grows the peer's.
            self.limit = (self.limit * 2).min(self.most);
            self.round = Some((next, now));
        } else if now.since(since) >= rtt {
            self.round = Some((next, now));
        }
    }
}

/// A difference of offsets inside one buffer.
#[expect(clippy::cast_possible_truncation, reason = "bounded by a slice length")]
const fn index(n: u64) -> usize {
    n as usize
}

#[cfg(test)]
mod tests;
