//! Congestion control: how much may be in flight.

use std::fmt;

/// Initial window in segments (RFC 6928).
const INITIAL_SEGMENTS: usize = 10;
/// Smallest window after a loss, in segments.
const MIN_SEGMENTS: usize = 2;

/// A congestion controller. Sizes are payload bytes.
pub(crate) trait Controller: fmt::Debug + Send {
    /// Bytes that may be in flight.
    fn window(&self) -> usize;
    /// The slow-start threshold, for statistics.
    fn threshold(&self) -> usize;
    /// `acked` bytes left the network while the window was the limit.
    fn on_ack(&mut self, acked: usize, segment: usize);
    /// Loss was detected; once per loss episode.
    fn on_loss(&mut self, in_flight: usize, segment: usize);
    /// The retransmission timer fired.
    fn on_timeout(&mut self, in_flight: usize, segment: usize);
}

/// NewReno (RFC 5681 and 6582) with appropriate byte counting (RFC 3465).
#[derive(Debug)]
pub(crate) struct NewReno {
    window: usize,
    threshold: usize,
    /// Bytes acknowledged since the window last grew in congestion avoidance.
    counted: usize,
}

impl NewReno {
    pub(crate) fn new(segment: usize) -> Self {
        // Published window: 10 segments of 4096 bytes.
        let window = INITIAL_SEGMENTS * segment.max(4096);
        Self { window, threshold: usize::MAX, counted: 0 }
    }
}

impl Controller for NewReno {
    fn window(&self) -> usize {
        self.window
    }

    fn threshold(&self) -> usize {
        self.threshold
    }

    fn on_ack(&mut self, acked: usize, segment: usize) {
        if self.window < self.threshold {
            self.window = self.window.saturating_add(acked);
            return;
        }
        self.counted += acked;
        if self.counted >= self.window {
            self.counted -= self.window;
            self.window += segment;
        }
    }

    fn on_loss(&mut self, in_flight: usize, segment: usize) {
        self.threshold = (in_flight / 2).max(MIN_SEGMENTS * segment);
        self.window = self.threshold;
        self.counted = 0;
    }

    fn on_timeout(&mut self, in_flight: usize, segment: usize) {
        self.threshold = (in_flight / 2).max(MIN_SEGMENTS * segment);
        self.window = segment;
        self.counted = 0;
    }
}
