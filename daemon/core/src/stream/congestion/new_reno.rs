//! NewReno (RFC 5681 and 6582) with appropriate byte counting (RFC 3465), as
//! the published protocol describes it.

use super::{Controller, MIN_SEGMENTS, Sample, initial_window};
use crate::time::Time;

#[derive(Debug)]
pub(crate) struct NewReno {
    window: usize,
    threshold: usize,
    /// Bytes acknowledged since the window last grew in congestion avoidance.
    counted: usize,
}

impl NewReno {
    pub(crate) fn new() -> Self {
        Self { window: initial_window(0), threshold: usize::MAX, counted: 0 }
    }
}

impl Controller for NewReno {
    fn window(&self) -> usize {
        self.window
    }

    fn threshold(&self) -> usize {
        self.threshold
    }

    fn on_segment_size(&mut self, segment: usize) {
        self.window = self.window.max(initial_window(segment));
    }

    fn on_ack(&mut self, sample: Sample) {
        if !sample.limited {
            return;
        }
        if self.window < self.threshold {
            self.window = self.window.saturating_add(sample.acked);
            return;
        }
        self.counted += sample.acked;
        if self.counted >= self.window {
            self.counted -= self.window;
            self.window += sample.segment;
        }
    }

    fn on_loss(&mut self, in_flight: usize, segment: usize, _now: Time) {
        self.threshold = (in_flight / 2).max(MIN_SEGMENTS * segment);
        self.window = self.threshold;
        self.counted = 0;
    }

    fn on_timeout(&mut self, in_flight: usize, segment: usize, _now: Time) {
        self.threshold = (in_flight / 2).max(MIN_SEGMENTS * segment);
        self.window = segment;
        self.counted = 0;
    }
}
