//! The sending half of a stream: what was written, what is in flight, and what
//! is lost (RFC 8985, RACK-TLP, over a scoreboard of segments).

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::rtt::Rtt;
use crate::time::Time;

/// Writes up to this size are gathered, so that a tiny slice does not hold a
/// large buffer in memory.
const GATHER: usize = 2048;
const GATHER_CHUNK: usize = 16 << 10;
/// Reordering tolerated before a segment counts as lost, at the least.
const MIN_REORDERING: Duration = Duration::from_millis(1);
/// Added to the probe timeout when the receiver may delay its acknowledgement.
const DELAYED_ACK: Duration = Duration::from_millis(45);
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

#[derive(Debug, Default)]
pub(crate) struct SendSide {
    chunks: VecDeque<(u64, Bytes)>,
    tail: BytesMut,
    tail_start: u64,
    una: u64,
    next: u64,
    end: u64,
    segments: VecDeque<Segment>,
    in_flight: usize,
    sacked: usize,
    lost: usize,
    /// Send time and end of the newest segment known to have arrived.
    rack: Option<(Time, u64)>,
    rack_rtt: Duration,
    rack_dirty: bool,
    reordering_at: Option<Time>,
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
        if data.len() <= GATHER {
            if self.tail.capacity() - self.tail.len() < data.len() {
                self.seal_tail();
                let size = if self.una < start { GATHER_CHUNK } else { data.len() };
                self.tail = BytesMut::with_capacity(size);
            }
            if self.tail.is_empty() {
                self.tail_start = start;
            }
            self.tail.extend_from_slice(&data);
        } else {
            self.seal_tail();
            self.chunks.push_back((start, data));
        }
    }

    fn seal_tail(&mut self) {
        if self.tail.is_empty() {
            return;
        }
        self.chunks.push_back((self.tail_start, std::mem::take(&mut self.tail).freeze()));
    }

    /// Copies `out.len()` written bytes from `offset` on.
    pub(crate) fn copy(&self, offset: u64, out: &mut [u8]) {
        let mut filled = 0;
        let first = self.chunks.partition_point(|(s, d)| s + d.len() as u64 <= offset);
        for (start, data) in self.chunks.range(first..) {
            if filled == out.len() {
                return;
            }
            let skip = index((offset + filled as u64).saturating_sub(*start));
            let n = (data.len() - skip).min(out.len() - filled);
            out[filled..filled + n].copy_from_slice(&data[skip..skip + n]);
            filled += n;
        }
        if filled < out.len() {
            let skip = index(offset + filled as u64 - self.tail_start);
            let n = out.len() - filled;
            out[filled..].copy_from_slice(&self.tail[skip..skip + n]);
        }
    }

    fn free_acked(&mut self) {
        while let Some((start, data)) = self.chunks.front() {
            if start + data.len() as u64 > self.una {
                break;
            }
            self.chunks.pop_front();
        }
        if self.chunks.is_empty() {
            let gone = index(self.una.saturating_sub(self.tail_start)).min(self.tail.len());
            if gone == self.tail.len() {
                self.tail = BytesMut::new();
            } else if gone > 0 {
                let _ = self.tail.split_to(gone);
                self.tail_start += gone as u64;
            }
        }
    }

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
                result.delivered += front.len as usize;
                self.delivered(front, min_rtt, now, &mut result.rtt);
            }
        }
        if let Some(front) = self.segments.front_mut().filter(|s| s.start < ack) {
            // A peer that re-cut the stream: the rest stays as it was.
            let cut = ack - front.start;
            front.start = ack;
            // Less than the segment's own length.
            #[expect(clippy::cast_possible_truncation, reason = "below a u32 length")]
            let cut = cut as u32;
            front.len -= cut;
            let fate = front.fate;
            *self.total(fate) -= cut as usize;
        }
        self.una = ack;
        self.free_acked();
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
        let first = self.segments.partition_point(|s| s.start < left);
        for i in first..self.segments.len() {
            let segment = self.segments[i];
            if segment.end() > right {
                break;
            }
            if segment.fate == Fate::Sacked {
                continue;
            }
            self.leave(segment);
            self.segments[i].fate = Fate::Sacked;
            self.sacked += segment.len as usize;
            self.rack_dirty = true;
            result.delivered += segment.len as usize;
            self.delivered(segment, min_rtt, now, &mut result.rtt);
        }
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
    }

    /// Updates RACK's newest delivery (RFC 8985, section 6.2, step 2).
    fn delivered(
        &mut self,
        segment: Segment,
        min_rtt: Option<Duration>,
        now: Time,
        sample: &mut Option<Duration>,
    ) {
        let rtt = now.since(segment.sent);
        if segment.transmissions > 1 {
            self.rack_dirty = true;
            if min_rtt.is_none_or(|min| rtt < min) {
                return;
            }
        } else {
            *sample = Some(rtt);
        }
        let key = (segment.sent, segment.end());
        if self.rack.is_none_or(|rack| key > rack) {
            self.rack = Some(key);
            self.rack_rtt = rtt;
        }
    }

    /// Marks segments as lost that were sent long enough before one that
    /// arrived (RFC 8985, section 6.2, step 5). Returns bytes newly lost.
    pub(crate) fn detect_losses(&mut self, rtt: &Rtt, now: Time) -> usize {
        if !self.rack_dirty && self.sacked == 0 && self.reordering_at.is_none() {
            return 0;
        }
        self.rack_dirty = false;
        self.reordering_at = None;
        let Some(rack) = self.rack else { return 0 };
        let window = MIN_REORDERING.max(rtt.min().unwrap_or_default() / 4);
        let mut newly = 0;
        for segment in &mut self.segments {
            if segment.fate != Fate::InFlight || (segment.sent, segment.end()) >= rack {
                continue;
            }
            let deadline = segment.sent + self.rack_rtt + window;
            if deadline <= now {
                segment.fate = Fate::Lost;
                newly += segment.len as usize;
            } else {
                self.reordering_at = Some(self.reordering_at.map_or(deadline, |t| t.min(deadline)));
            }
        }
        self.in_flight -= newly;
        self.lost += newly;
        newly
    }

    /// The retransmission timer fired: everything in flight counts as lost.
    /// Returns the bytes that were in flight.
    pub(crate) fn lose_all(&mut self) -> usize {
        let newly = self.in_flight;
        for segment in &mut self.segments {
            if segment.fate == Fate::InFlight {
                segment.fate = Fate::Lost;
            }
        }
        self.lost += newly;
        self.in_flight = 0;
        self.reordering_at = None;
        newly
    }

    /// Marks the first segment in flight as lost (three duplicate ACKs from a
    /// peer that sent no SACK list). Returns its bytes.
    pub(crate) fn lose_first(&mut self) -> usize {
        let Some(first) = self.segments.iter_mut().find(|s| s.fate == Fate::InFlight) else {
            return 0;
        };
        first.fate = Fate::Lost;
        let len = first.len as usize;
        self.in_flight -= len;
        self.lost += len;
        len
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
    }

    /// The first lost segment.
    pub(crate) fn next_lost(&self) -> Option<Span> {
        if self.lost == 0 {
            return None;
        }
        let segment = self.segments.iter().find(|s| s.fate == Fate::Lost)?;
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
        let len = u32::try_from(span.len).unwrap_or(u32::MAX);
        if !span.again {
            self.next += span.len as u64;
            self.in_flight += span.len;
            let segment = Segment {
                start: span.offset,
                len,
                sent: now,
                fate: Fate::InFlight,
                transmissions: 1,
            };
            self.segments.push_back(segment);
            return;
        }
        let i = self.segments.partition_point(|s| s.start < span.offset);
        let Some(&segment) = self.segments.get(i) else { return };
        self.leave(segment);
        self.in_flight += span.len;
        self.segments[i] = Segment {
            sent: now,
            fate: Fate::InFlight,
            transmissions: segment.transmissions.saturating_add(1),
            ..segment
        };
    }

    /// When [`SendSide::detect_losses`] may find more.
    pub(crate) fn reordering_deadline(&self) -> Option<Time> {
        self.reordering_at
    }

    /// Pause before a tail loss probe (RFC 8985, section 7.2).
    pub(crate) fn probe_timeout(&self, rtt: &Rtt) -> Option<Duration> {
        let srtt = rtt.smoothed()?;
        let extra = if self.segments.len() == 1 { DELAYED_ACK } else { Duration::ZERO };
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
