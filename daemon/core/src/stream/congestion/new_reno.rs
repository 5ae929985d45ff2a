//! NewReno (RFC 5681 and 6582) with appropriate byte counting (RFC 3465), as
//! the published protocol describes it.

use std::time::Duration;

use super::{Controller, MIN_SEGMENTS, Sample, initial_window, window_pacing};
use crate::time::Time;

#[derive(Clone, Copy, Debug)]
struct State {
    window: usize,
    threshold: usize,
    /// Bytes acknowledged since the window last grew in congestion avoidance.
    counted: usize,
}

#[derive(Debug)]
pub(crate) struct NewReno {
    state: State,
    /// What stood before the last episode.
    before: Option<State>,
}

impl NewReno {
    pub(crate) fn new() -> Self {
        let state = State { window: initial_window(0), threshold: usize::MAX, counted: 0 };
        Self { state, before: None }
    }

    fn reduce(&mut self, in_flight: usize, segment: usize) {
        self.before = Some(self.state);
        self.state.threshold = (in_flight / 2).max(MIN_SEGMENTS * segment);
        self.state.counted = 0;
    }
}

impl Controller for NewReno {
    fn name(&self) -> &'static str {
        "newreno"
    }

    fn window(&self) -> usize {
        self.state.window
    }

    fn threshold(&self) -> usize {
        self.state.threshold
    }

    fn pacing(&self, smoothed: Option<Duration>) -> Option<u64> {
        window_pacing(self.state.window, self.state.window < self.state.threshold, smoothed)
    }

    fn on_segment_size(&mut self, segment: usize) {
        self.state.window = self.state.window.max(initial_window(segment));
    }

    fn on_ack(&mut self, sample: &Sample) {
        if !sample.limited || !sample.growing {
            return;
        }
        let state = &mut self.state;
        if state.window < state.threshold {
            state.window = state.window.saturating_add(sample.acked);
            return;
        }
        state.counted += sample.acked;
        if state.counted >= state.window {
            state.counted -= state.window;
            state.window += sample.segment;
        }
    }

    fn on_loss(&mut self, in_flight: usize, segment: usize, _now: Time) {
        self.reduce(in_flight, segment);
        self.state.window = self.state.threshold;
    }

    fn on_timeout(&mut self, in_flight: usize, segment: usize, first: bool, _now: Time) {
        if first {
            self.reduce(in_flight, segment);
        }
        self.state.window = segment;
    }

    fn on_recovered(&mut self) {}

    fn undo(&mut self) {
        if let Some(before) = self.before.take() {
            self.state = State { window: before.window.max(self.state.window), ..before };
        }
    }
}
