//! The receiving half of a stream as published: whole segments only, a
//! segment that does not start exactly at the next expected byte is of no use.

use std::collections::VecDeque;
use std::sync::Mutex;

use pilot_wire::sack::{Block, Blocks, MAX_PUBLISHED_BLOCKS};
use tokio::sync::Notify;

/// Segments that may wait for the application.
pub(super) const QUEUE: usize = 512;
/// Segments buffered out of order; further ones are dropped.
const HELD: usize = 128;

/// Puts segments in order.
#[derive(Default)]
pub(super) struct Receiver {
    /// Sequence number of the next byte for the application.
    pub(super) expected: u32,
    held: Vec<(u32, Vec<u8>)>,
}

impl Receiver {
    pub(super) fn new(expected: u32) -> Self {
        Self { expected, held: Vec::new() }
    }

    /// Takes one segment. `deliver` is called for each one that is in order
    /// now, and says whether there was room; if not, the segment is lost.
    pub(super) fn segment(
        &mut self,
        seq: u32,
        data: &[u8],
        mut deliver: impl FnMut(Vec<u8>) -> bool,
    ) {
        let ahead = seq.wrapping_sub(self.expected).cast_signed();
        if ahead > 0 {
            if self.held.len() < HELD && !self.held.iter().any(|(s, _)| *s == seq) {
                self.held.push((seq, data.to_vec()));
            }
            return;
        }
        if ahead < 0 {
            return;
        }
        let mut next = data.to_vec();
        loop {
            let len = next.len();
            if !deliver(next) {
                return;
            }
            // A segment is at most 65,535 bytes.
            self.expected = self.expected.wrapping_add(u32::try_from(len).unwrap_or(0));
            let Some(at) = self.held.iter().position(|(s, _)| *s == self.expected) else { return };
            next = self.held.remove(at).1;
        }
    }

    /// How many segments are buffered out of order.
    pub(super) fn buffered(&self) -> usize {
        self.held.len()
    }

    /// The four lowest ranges that are buffered.
    pub(super) fn blocks(&self) -> Blocks {
        let ahead = |seq: u32| seq.wrapping_sub(self.expected).cast_signed();
        let mut ranges: Vec<(i32, i32)> = self
            .held
            .iter()
            .map(|(seq, data)| {
                let left = ahead(*seq);
                (left, left.wrapping_add(i32::try_from(data.len()).unwrap_or(i32::MAX)))
            })
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
        let absolute = |offset: i32| self.expected.wrapping_add(offset.cast_unsigned());
        for (left, right) in merged.into_iter().take(MAX_PUBLISHED_BLOCKS) {
            blocks.push(Block { left: absolute(left), right: absolute(right) });
        }
        blocks
    }
}

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// By FIN, the peer's or our own.
    Finished,
    /// By RST, or because retransmission gave up.
    Reset,
}

#[derive(Default)]
struct Queue {
    segments: VecDeque<Vec<u8>>,
    end: Option<End>,
}

/// What lies between the node's loop and the application. Bounded at
/// [`QUEUE`]: a segment beyond it is dropped and counted, where the published
/// daemon would stop its only loop.
#[derive(Default)]
pub(super) struct Inbox {
    queue: Mutex<Queue>,
    changed: Notify,
}

impl Inbox {
    fn with<T>(&self, act: impl FnOnce(&mut Queue) -> T) -> T {
        act(&mut self.queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Whether there was room.
    pub(super) fn push(&self, segment: Vec<u8>) -> bool {
        let pushed = self.with(|q| {
            let room = q.segments.len() < QUEUE && q.end.is_none();
            if room {
                q.segments.push_back(segment);
            }
            room
        });
        self.changed.notify_one();
        pushed
    }

    /// Free places: the window that is advertised.
    pub(super) fn free(&self) -> u16 {
        u16::try_from(QUEUE - self.with(|q| q.segments.len())).unwrap_or(0)
    }

    pub(super) fn end(&self, end: End) {
        self.with(|q| q.end.get_or_insert(end).to_owned());
        self.changed.notify_one();
    }

    /// The next segment, or how it ended. One reader at a time.
    pub(super) async fn read(&self) -> Result<Vec<u8>, End> {
        loop {
            let next = self.with(|q| match q.segments.pop_front() {
                Some(segment) => Some(Ok(segment)),
                None => q.end.map(Err),
            });
            if let Some(next) = next {
                return next;
            }
            self.changed.notified().await;
        }
    }
}
