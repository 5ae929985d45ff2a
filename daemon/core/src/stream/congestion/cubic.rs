//! CUBIC (RFC 9438) with HyStart++ (RFC 9406).
//!
//! One departure, as TCP Veno does for Reno (decision 5): a loss while no queue
//! stands on the path was not made by one, and takes less of the window.

use std::time::Duration;

use super::hystart::{Growth, HyStart};
use super::{Controller, MIN_SEGMENTS, Sample, initial_window, window_pacing};
use crate::time::Time;

/// RFC 9438, section 4.1 and 4.6.
const C: f64 = 0.4;
const BETA: f64 = 0.7;
/// The same for a loss while the path has no queue.
const BETA_UNQUEUED: f64 = 0.85;
/// Round trips looked at for a queue, and what of the least one they may exceed
/// it by: a queue so short is none that this stream has built.
const RECENT: usize = 8;
const QUEUE_DIVISOR: u32 = 16;
const QUEUE_MIN: Duration = Duration::from_millis(1);
/// Additive increase of the Reno-friendly region (section 4.3).
const ALPHA: f64 = 3.0 * (1.0 - BETA) / (1.0 + BETA);

/// A congestion avoidance stage. Windows in segments.
#[derive(Clone, Copy, Debug)]
struct Epoch {
    start: Time,
    /// Seconds until the cubic curve is back at `w_max`.
    k: f64,
    origin: f64,
    /// What Reno would have.
    w_est: f64,
}

#[derive(Clone, Copy, Debug)]
struct State {
    /// Bytes; fractions gather between acknowledgements.
    window: f64,
    threshold: usize,
    /// Window before the last reduction, in bytes.
    w_max: f64,
    epoch: Option<Epoch>,
}

#[derive(Debug)]
pub(crate) struct Cubic {
    state: State,
    /// What stood before the last episode (RFC 9438, section 4.9.1).
    before: Option<State>,
    hystart: HyStart,
    delay: Delay,
}

/// The round trips measured lately, beside the least of all.
#[derive(Debug, Default)]
struct Delay {
    least: Option<Duration>,
    recent: [Option<Duration>; RECENT],
    next: usize,
}

impl Delay {
    fn sample(&mut self, rtt: Duration) {
        self.least = Some(self.least.map_or(rtt, |least| least.min(rtt)));
        self.recent[self.next] = Some(rtt);
        self.next = (self.next + 1) % RECENT;
    }

    /// Whether some recent packet met no queue. Unknown counts as a queue.
    fn no_queue(&self) -> bool {
        let recent = self.recent.iter().flatten().min();
        let full = self.recent.iter().all(Option::is_some);
        self.least.zip(recent).is_some_and(|(least, recent)| {
            full && recent.saturating_sub(least) <= QUEUE_MIN.max(least / QUEUE_DIVISOR)
        })
    }
}

impl Cubic {
    pub(crate) fn new() -> Self {
        let window = initial_window(0) as f64;
        let state = State { window, threshold: usize::MAX, w_max: 0.0, epoch: None };
        Self { state, before: None, hystart: HyStart::default(), delay: Delay::default() }
    }

    fn slow_start(&mut self, sample: &Sample) {
        // After a loss HyStart has nothing to find (RFC 9406, section 4.3).
        let first = self.state.threshold == usize::MAX;
        if !first {
            self.state.window += sample.acked as f64;
            return;
        }
        match self.hystart.on_ack(sample, self.pacing(Some(sample.smoothed)).is_some()) {
            Growth::By(bytes) => self.state.window += bytes as f64,
            Growth::Leave(bytes) => {
                self.state.window += bytes as f64;
                self.state.threshold = bytes_of(self.state.window);
            }
        }
    }

    /// Section 4.2 to 4.5.
    fn avoidance(&mut self, sample: &Sample) {
        let segment = sample.segment.max(1) as f64;
        let window = self.state.window / segment;
        let w_max = self.state.w_max / segment;
        let epoch = self.state.epoch.get_or_insert_with(|| {
            let below = (w_max - window).max(0.0);
            Epoch {
                start: sample.now,
                k: (below / C).cbrt(),
                origin: w_max.max(window),
                w_est: window,
            }
        });
        let acked = sample.acked as f64 / segment;
        let alpha = if epoch.w_est >= w_max { 1.0 } else { ALPHA };
        epoch.w_est += alpha * acked / window;
        let t = sample.now.since(epoch.start) + sample.smoothed;
        let target = cubic(*epoch, t).clamp(window, 1.5 * window);
        let w_now = cubic(*epoch, sample.now.since(epoch.start));
        if w_now < epoch.w_est {
            self.state.window = self.state.window.max(epoch.w_est * segment);
        } else {
            self.state.window += (target - window) / window * acked * segment;
        }
    }

    fn reduce(&mut self, beta: f64, in_flight: usize, segment: usize) {
        self.before = Some(self.state);
        // Fast convergence (section 4.7).
        self.state.w_max = if self.state.window < self.state.w_max {
            self.state.window * (1.0 + BETA) / 2.0
        } else {
            self.state.window
        };
        let reduced = bytes_of(in_flight as f64 * beta);
        self.state.threshold = reduced.max(MIN_SEGMENTS * segment);
        self.state.epoch = None;
    }
}

impl Controller for Cubic {
    fn name(&self) -> &'static str {
        "cubic"
    }

    fn window(&self) -> usize {
        bytes_of(self.state.window)
    }

    fn threshold(&self) -> usize {
        self.state.threshold
    }

    fn pacing(&self, smoothed: Option<Duration>) -> Option<u64> {
        window_pacing(self.window(), self.window() < self.state.threshold, smoothed)
    }

    fn on_segment_size(&mut self, segment: usize) {
        self.state.window = self.state.window.max(initial_window(segment) as f64);
    }

    fn on_ack(&mut self, sample: &Sample) {
        if let Some(rtt) = sample.rtt {
            self.delay.sample(rtt);
        }
        if !sample.growing {
            return;
        }
        if !sample.limited {
            // Not the window but the application was the limit: the curve must
            // not run ahead (section 5.8).
            if let Some(epoch) = &mut self.state.epoch {
                epoch.start = epoch.start + sample.smoothed.min(Duration::from_millis(1));
            }
            return;
        }
        if self.window() < self.state.threshold {
            self.slow_start(sample);
        } else {
            self.avoidance(sample);
        }
    }

    fn on_loss(&mut self, in_flight: usize, segment: usize, _now: Time) {
        let beta = if self.delay.no_queue() { BETA_UNQUEUED } else { BETA };
        self.reduce(beta, in_flight, segment);
        self.state.window = self.state.threshold as f64;
    }

    fn on_timeout(&mut self, in_flight: usize, segment: usize, first: bool, _now: Time) {
        if first {
            self.reduce(BETA, in_flight, segment);
        }
        self.state.window = segment as f64;
    }

    fn on_recovered(&mut self) {}

    fn undo(&mut self) {
        if let Some(before) = self.before.take() {
            self.state = State { window: before.window.max(self.state.window), ..before };
        }
    }
}

/// The cubic function W(t), in segments (section 4.2, figure 1).
fn cubic(epoch: Epoch, t: Duration) -> f64 {
    C * (t.as_secs_f64() - epoch.k).powi(3) + epoch.origin
}

/// A window that is never negative and never beyond what a send buffer holds.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "floats saturate, and windows are positive"
)]
fn bytes_of(window: f64) -> usize {
    window as usize
}
