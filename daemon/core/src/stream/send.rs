//! The sending half of a stream: what was written, what is in flight, and what
//! is lost (RFC 8985, RACK-TLP, over a scoreboard of segments).
//!
//! An acknowledgement costs what it newly says: ranges that were reported
//! before are not walked again, and losses are looked for in the order of
//! sending, from the oldest on.

mod buffer;
mod rate;

use std::collections::VecDeque;
use std::time::Duration;

use buffer::Buffer;
use bytes::Bytes;
pub(crate) use rate::RateSample;
use rate::{Newest, Rate, Stamp};

use super::ranges::Ranges;
use super::rtt::Rtt;
use crate::time::Time;

/// Reordering tolerated before a segment counts as lost once any was seen, at
/// the least; clocks and batches are coarse.
const MIN_REORDERING: Duration = Duration::from_millis(1);
/// SACKed segments that mean loss while no reordering has been seen (RFC 8985,
/// section 6.2, step 4: DupThresh).
const DUPLICATE_THRESHOLD: usize = 3;
/// The reordering window is at most this many quarters of the least round trip
/// (RFC 8985, section 6.2, step 4; bounded further by SRTT).
const MAX_REORDERING_QUARTERS: u32 = 20;
/// Recoveries after which a widened reordering window shrinks back.
const REORDERING_PERSISTS: u32 = 16;
/// Added to the longest delay of an acknowledgement, for timers that are late.
const LATE: Duration = Duration::from_millis(5);
const MIN_PROBE: Duration = Duration::from_millis(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    InFlight,
    Sacked,
    Lost,
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    start: u64,
    len: u32,
    sent: Time,
    fate: Fate,
    transmissions: u16,
    stamp: Stamp,
}

impl Segment {
    const fn end(&self) -> u64 {
        self.start + self.len as u64
    }
}

/// What an acknowledgement did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Acked {
    /// Bytes newly acknowledged in order.
    pub(crate) freed: usize,
    /// Bytes newly known to have arrived.
    pub(crate) delivered: usize,
    /// A round trip measured without ambiguity.
    pub(crate) rtt: Option<Duration>,
    /// A segment arrived sooner after its last transmission than any round
    /// trip: an earlier transmission was what arrived.
    pub(crate) original: bool,
    newest: Newest,
}

/// A segment to send now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) offset: u64,
    pub(crate) len: usize,
    /// Sent before with the same boundaries.
    pub(crate) again: bool,
    /// Shorter than the path and the peer take.
    pub(crate) small: bool,
}

/// How far reordering is tolerated (RFC 8985, section 6.2, step 4).
#[derive(Clone, Copy, Debug, Default)]
struct Reordering {
    seen: bool,
    /// Quarters of the least round trip; 0 stands for the first.
    widened: u32,
    /// Recoveries left until the width is the first one again.
    persists: u32,
    /// Widened at most once a round trip: until this offset is acknowledged.
    round_end: u64,
}

#[derive(Debug, Default)]
pub(crate) struct SendSide {
    buffer: Buffer,
    una: u64,
    next: u64,
    end: u64,
    segments: VecDeque<Segment>,
    /// Send time and start of transmissions, oldest first; entries whose
    /// segment has arrived, was lost or was sent again are stale.
    by_time: VecDeque<(Time, u64)>,
    sacked_ranges: Ranges,
    in_flight: usize,
    sacked: usize,
    sacked_segments: usize,
    lost: usize,
    /// No lost segment starts before this.
    lost_from: u64,
    /// Send time and end of the newest segment known to have arrived.
    rack: Option<(Time, u64)>,
    rack_rtt: Duration,
    rack_dirty: bool,
    /// Highest offset known to have arrived.
    forward: u64,
    reordering: Reordering,
    reordering_at: Option<Time>,
    rate: Rate,
}

impl SendSide {
    /// First offset not acknowledged.
    pub(crate) const fn una(&self) -> u64 {
        self.una
    }

    /// Next new offset to send.
    pub(crate) const fn next(&self) -> u64 {
        self.next
    }

    /// First offset not written.
    pub(crate) const fn end(&self) -> u64 {
        self.end
    }

    /// Bytes sent and neither acknowledged, SACKed nor lost.
    pub(crate) const fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Segments not acknowledged in order.
    pub(crate) fn segments(&self) -> usize {
        self.segments.len()
    }

    /// Bytes written and not acknowledged.
    pub(crate) fn buffered(&self) -> usize {
        index(self.end - self.una)
    }

    pub(crate) fn has_lost(&self) -> bool {
        self.lost > 0
    }

    pub(crate) fn all_acked(&self) -> bool {
        self.una == self.end
    }

    pub(crate) fn write(&mut self, data: Bytes) {
        let start = self.end;
        self.end += data.len() as u64;
        self.buffer.write(start, data, self.una < start);
    }

    /// Copies `out.len()` written bytes from `offset` on.
    pub(crate) fn copy(&self, offset: u64, out: &mut [u8]) {
        self.buffer.copy(offset, out);
    }

    // ---- acknowledgements ------------------------------------------------

    /// Takes the acknowledgement of everything before `ack`, which lies in
    /// `una..=next`.
    pub(crate) fn acknowledge(&mut self, ack: u64, min_rtt: Option<Duration>, now: Time) -> Acked {
        let mut result = Acked { freed: index(ack - self.una), ..Acked::default() };
        while let Some(&front) = self.segments.front() {
            if front.end() > ack {
                break;
            }
            self.segments.pop_front();
            self.leave(front);
            if front.fate != Fate::Sacked {
                self.delivered(front, min_rtt, now, &mut result);
            }
        }
        if let Some(front) = self.segments.front_mut().filter(|s| s.start < ack) {
            // A peer that re-cut the stream: the rest stays as it was.
            let cut = ack - front.start;
            let old = front.start;
            front.start = ack;
            // Less than the segment's own length.
            #[expect(clippy::cast_possible_truncation, reason = "below a u32 length")]
            let cut = cut as u32;
            front.len -= cut;
            let fate = front.fate;
            *self.total(fate) -= cut as usize;
            for (_, start) in self.by_time.iter_mut().filter(|(_, start)| *start == old) {
                *start = ack;
            }
            // Known ranges may hold the rest whole now.
            self.sacked_ranges = Ranges::default();
        }
        self.una = ack;
        self.forward = self.forward.max(ack);
        self.sacked_ranges.forget_before(ack);
        self.buffer.free(ack);
        self.drop_stale();
        result
    }

    /// Marks what lies wholly in `left..right`.
    pub(crate) fn sack(
        &mut self,
        (left, right): (u64, u64),
        min_rtt: Option<Duration>,
        now: Time,
        result: &mut Acked,
    ) {
        let Some((left, right)) = self.whole_segments(left, right) else { return };
        // A hole that closes joins two ranges, and a segment may lie across the
        // seam: look from the end of what was known before the hole.
        let Some((whole, fresh)) = self.sacked_ranges.add(left, right) else { return };
        let first = self.segments.partition_point(|s| s.end() <= fresh.0);
        for i in first..self.segments.len() {
            let segment = self.segments[i];
            if segment.start >= fresh.1 {
                break;
            }
            if segment.fate == Fate::Sacked || segment.start < whole.0 || segment.end() > whole.1 {
                continue;
            }
            self.leave(segment);
            self.segments[i].fate = Fate::Sacked;
            self.sacked += segment.len as usize;
            self.sacked_segments += 1;
            self.rack_dirty = true;
            self.delivered(segment, min_rtt, now, result);
        }
    }

    /// The part of `left..right` that consists of whole segments, so that there
    /// are never more ranges than segments, whatever a peer reports.
    fn whole_segments(&self, left: u64, right: u64) -> Option<(u64, u64)> {
        let first = self.segments.partition_point(|s| s.start < left);
        let after = self.segments.partition_point(|s| s.end() <= right);
        let last = after.checked_sub(1).filter(|last| *last >= first)?;
        Some((self.segments.get(first)?.start, self.segments[last].end()))
    }

    fn total(&mut self, fate: Fate) -> &mut usize {
        match fate {
            Fate::InFlight => &mut self.in_flight,
            Fate::Sacked => &mut self.sacked,
            Fate::Lost => &mut self.lost,
        }
    }

    fn leave(&mut self, segment: Segment) {
        *self.total(segment.fate) -= segment.len as usize;
        if segment.fate == Fate::Sacked {
            self.sacked_segments -= 1;
        }
    }

    /// Updates RACK's newest delivery (RFC 8985, section 6.2, steps 1 to 3).
    fn delivered(
        &mut self,
        segment: Segment,
        min_rtt: Option<Duration>,
        now: Time,
        acked: &mut Acked,
    ) {
        acked.delivered += segment.len as usize;
        let len = segment.len as usize;
        self.rate.arrived(segment.stamp, segment.sent, len, &mut acked.newest, now);
        let rtt = now.since(segment.sent);
        if segment.transmissions > 1 {
            self.rack_dirty = true;
            if min_rtt.is_none_or(|min| rtt < min) {
                acked.original = true;
                return;
            }
        } else {
            acked.rtt = Some(rtt);
            if segment.end() < self.forward {
                self.reordering.seen = true;
            }
        }
        self.forward = self.forward.max(segment.end());
        let key = (segment.sent, segment.end());
        if self.rack.is_none_or(|rack| key > rack) {
            self.rack = Some(key);
            self.rack_rtt = rtt;
        }
    }

    /// The rate that an acknowledgement shows.
    pub(crate) fn rate_sample(&mut self, acked: &Acked, min_rtt: Option<Duration>) -> RateSample {
        self.rate.sample(acked.newest, min_rtt)
    }

    /// Everything that was written is out and the window has room: what the
    /// path could carry is not known from now on.
    pub(crate) fn note_app_limited(&mut self) {
        self.rate.app_limited(self.in_flight);
    }

    /// Total bytes delivered since the start.
    pub(crate) fn total_delivered(&self) -> u64 {
        self.rate.delivered()
    }

    // ---- losses ------------------------------------------------------------

    /// Marks segments as lost that were sent long enough before one that
    /// arrived (RFC 8985, section 6.2, step 5). Returns bytes newly lost.
    pub(crate) fn detect_losses(&mut self, rtt: &Rtt, recovering: bool, now: Time) -> usize {
        if !self.rack_dirty && self.sacked == 0 && self.reordering_at.is_none() {
            return 0;
        }
        self.rack_dirty = false;
        self.reordering_at = None;
        let Some(rack) = self.rack else { return 0 };
        let window = self.reordering_window(rtt, recovering);
        let mut newly = 0;
        while let Some(&(sent, start)) = self.by_time.front() {
            let Some(i) = self.current(sent, start) else {
                self.by_time.pop_front();
                continue;
            };
            if (sent, self.segments[i].end()) >= rack {
                break;
            }
            let deadline = sent + self.rack_rtt + window;
            if deadline > now {
                // What was sent later is due later.
                self.reordering_at = Some(deadline);
                break;
            }
            self.by_time.pop_front();
            newly += self.lose(i);
        }
        newly
    }

    /// RFC 8985, section 6.2, step 4.
    fn reordering_window(&self, rtt: &Rtt, recovering: bool) -> Duration {
        if !self.reordering.seen && (recovering || self.sacked_segments >= DUPLICATE_THRESHOLD) {
            return Duration::ZERO;
        }
        let quarters = self.reordering.widened.max(1);
        let window = rtt.min().unwrap_or_default() / 4 * quarters;
        window.min(rtt.smoothed().unwrap_or_default()).max(MIN_REORDERING)
    }

    /// The peer received a segment twice: reordering was taken for loss, so
    /// more of it is tolerated, at most once a round trip.
    pub(crate) fn widen_reordering(&mut self) {
        self.reordering.seen = true;
        self.reordering.persists = REORDERING_PERSISTS;
        if self.una >= self.reordering.round_end {
            self.reordering.round_end = self.next;
            let quarters = self.reordering.widened.max(1) + 1;
            self.reordering.widened = quarters.min(MAX_REORDERING_QUARTERS);
        }
    }

    /// A recovery has ended.
    pub(crate) fn recovered(&mut self) {
        self.reordering.persists = self.reordering.persists.saturating_sub(1);
        if self.reordering.persists == 0 {
            self.reordering.widened = 0;
        }
    }

    /// The segment in flight that this transmission is the last of.
    fn current(&self, sent: Time, start: u64) -> Option<usize> {
        let i = self.segments.partition_point(|s| s.start < start);
        let segment = self.segments.get(i)?;
        let same = segment.start == start && segment.sent == sent;
        (same && segment.fate == Fate::InFlight).then_some(i)
    }

    fn drop_stale(&mut self) {
        while let Some(&(sent, start)) = self.by_time.front() {
            if self.current(sent, start).is_some() {
                break;
            }
            self.by_time.pop_front();
        }
    }

    /// Marks one segment in flight. Returns its bytes.
    fn lose(&mut self, i: usize) -> usize {
        let segment = &mut self.segments[i];
        segment.fate = Fate::Lost;
        let (start, len) = (segment.start, segment.len as usize);
        self.lost_from = if self.lost == 0 { start } else { self.lost_from.min(start) };
        self.in_flight -= len;
        self.lost += len;
        self.rate.lost(len);
        len
    }

    /// The retransmission timer fired: everything in flight counts as lost.
    /// Returns the bytes that were in flight.
    pub(crate) fn lose_all(&mut self) -> usize {
        let newly = self.in_flight;
        for i in 0..self.segments.len() {
            if self.segments[i].fate == Fate::InFlight {
                self.lose(i);
            }
        }
        self.by_time.clear();
        self.reordering_at = None;
        newly
    }

    /// The timeout was a mistake: what was lost by it and not sent again is in
    /// flight as it was.
    pub(crate) fn unlose(&mut self) {
        let mut found = 0;
        for segment in self.segments.iter_mut().filter(|s| s.fate == Fate::Lost) {
            segment.fate = Fate::InFlight;
            found += segment.len as usize;
        }
        self.lost -= found;
        self.in_flight += found;
        self.order_by_time();
    }

    fn order_by_time(&mut self) {
        let in_flight = self.segments.iter().filter(|s| s.fate == Fate::InFlight);
        let mut order: Vec<_> = in_flight.map(|s| (s.sent, s.start)).collect();
        order.sort_unstable();
        self.by_time = order.into();
    }

    /// Marks the first segment in flight as lost (three duplicate ACKs from a
    /// peer that sent no SACK list). Returns its bytes.
    pub(crate) fn lose_first(&mut self) -> usize {
        let first = self.segments.iter().position(|s| s.fate == Fate::InFlight);
        first.map_or(0, |i| self.lose(i))
    }

    /// Throws away everything that was written.
    pub(crate) fn discard(&mut self) {
        *self = Self { una: self.end, next: self.end, end: self.end, ..Self::default() };
    }

    /// Cuts segments that the path does not take any more. Only for peers that
    /// reassemble by byte.
    pub(crate) fn recut(&mut self, max: usize) {
        if self.segments.iter().all(|s| s.len as usize <= max) {
            return;
        }
        let max = u32::try_from(max).unwrap_or(u32::MAX).max(1);
        let old = std::mem::take(&mut self.segments);
        for mut segment in old {
            while segment.len > max {
                self.segments.push_back(Segment { len: max, ..segment });
                segment.start += u64::from(max);
                segment.len -= max;
            }
            self.segments.push_back(segment);
        }
        self.sacked_segments = self.segments.iter().filter(|s| s.fate == Fate::Sacked).count();
        // Known ranges may hold pieces whole now.
        self.sacked_ranges = Ranges::default();
        self.order_by_time();
    }

    // ---- sending -----------------------------------------------------------

    /// The first lost segment.
    pub(crate) fn next_lost(&self) -> Option<Span> {
        if self.lost == 0 {
            return None;
        }
        let from = self.segments.partition_point(|s| s.start < self.lost_from);
        let segment = self.segments.range(from..).find(|s| s.fate == Fate::Lost)?;
        Some(Span { offset: segment.start, len: segment.len as usize, again: true, small: false })
    }

    /// The last segment in flight, for a tail loss probe.
    pub(crate) fn last_in_flight(&self) -> Option<Span> {
        let segment = self.segments.iter().rev().find(|s| s.fate == Fate::InFlight)?;
        Some(Span { offset: segment.start, len: segment.len as usize, again: true, small: false })
    }

    /// When the last segment was sent.
    pub(crate) fn newest_sent(&self) -> Option<Time> {
        self.segments.back().map(|s| s.sent)
    }

    /// Records that `span` is sent now.
    pub(crate) fn sent(&mut self, span: Span, now: Time) {
        let stamp = self.rate.sent(span.len, self.in_flight, now);
        if !span.again {
            let len = u32::try_from(span.len).unwrap_or(u32::MAX);
            self.next += span.len as u64;
            self.in_flight += span.len;
            self.segments.push_back(Segment {
                start: span.offset,
                len,
                sent: now,
                fate: Fate::InFlight,
                transmissions: 1,
                stamp,
            });
            self.by_time.push_back((now, span.offset));
            return;
        }
        let i = self.segments.partition_point(|s| s.start < span.offset);
        let Some(&segment) = self.segments.get(i) else { return };
        self.leave(segment);
        if segment.fate == Fate::Lost {
            self.lost_from = segment.end();
        }
        self.in_flight += span.len;
        self.segments[i] = Segment {
            sent: now,
            fate: Fate::InFlight,
            transmissions: segment.transmissions.saturating_add(1),
            stamp,
            ..segment
        };
        self.by_time.push_back((now, segment.start));
    }

    /// When [`SendSide::detect_losses`] may find more.
    pub(crate) fn reordering_deadline(&self) -> Option<Time> {
        self.reordering_at
    }

    /// Pause before a tail loss probe (RFC 8985, section 7.2).
    pub(crate) fn probe_timeout(&self, rtt: &Rtt) -> Option<Duration> {
        let srtt = rtt.smoothed()?;
        let extra = if self.segments.len() == 1 { rtt.ack_delay() + LATE } else { Duration::ZERO };
        Some((srtt * 2 + extra).max(MIN_PROBE))
    }
}

/// A difference of offsets inside one buffer.
#[expect(clippy::cast_possible_truncation, reason = "bounded by the send buffer")]
const fn index(n: u64) -> usize {
    n as usize
}

#[cfg(test)]
mod tests;
