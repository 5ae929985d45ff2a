//! BBR version 3 (draft-ietf-ccwg-bbr): sends at the rate that the path was
//! seen to deliver, and bounds what is in flight by the product of that rate
//! and the least round trip. Random loss below two per cent does not slow it.
//!
//! This file holds the model of the path and what follows from it; how the
//! model is probed is in `probe.rs`. Section numbers are the draft's.

mod probe;
mod slots;

use std::time::Duration;

use probe::{AckPhase, Mode};
use slots::Slots;

use super::{Controller, Sample, initial_window};
use crate::time::Time;

/// Gains (section 2.4 and 5.6.1).
const STARTUP_PACING: f64 = 2.77;
const DRAIN_PACING: f64 = 0.5;
const WINDOW_GAIN: f64 = 2.0;
/// Share of the estimated rate that is left free, so that queues drain (2.5).
const PACING_MARGIN: f64 = 0.99;
/// Loss that a probe for more tolerates (2.6).
const LOSS_THRESHOLD: f64 = 0.02;
/// Multiplicative decrease on too much loss (2.6).
const BETA: f64 = 0.7;
/// Share of the known capacity in flight that is left to others (2.6).
const HEADROOM: f64 = 0.15;
/// Smallest window in segments (2.7).
const MIN_WINDOW: usize = 4;
/// Growth in a round that shows a pipe that is not full, and rounds without it
/// that show a full one (5.3.1.2).
const FULL_GROWTH: f64 = 1.25;
const FULL_ROUNDS: u32 = 3;
/// Losses in a round that end Startup, with a rate above the threshold
/// (5.3.1.3).
const FULL_LOSSES: u32 = 6;
/// How long a least round trip counts (2.12).
const MIN_RTT_WINDOW: Duration = Duration::from_secs(10);
/// Rounds of the aggregation filter (2.11), in two slots.
const EXTRA_ROUNDS: u64 = 5;
/// The burst that the window must have room for (5.6.3).
const MAX_QUANTUM: u64 = 64 << 10;

#[derive(Debug)]
pub(super) struct Bbr {
    mode: Mode,
    segment: usize,
    window: usize,
    pacing_rate: u64,
    pacing_gain: f64,
    window_gain: f64,
    random: u32,

    // The model (2.9 to 2.12).
    max_bw: Slots,
    /// Bound of the last rounds with loss; `None` when there is none.
    bw_short: Option<u64>,
    inflight_short: Option<usize>,
    inflight_long: Option<usize>,
    bw: u64,
    min_rtt: Option<Duration>,
    min_rtt_at: Time,
    probe_min_rtt: Option<Duration>,
    probe_min_rtt_at: Time,
    probe_min_expired: bool,

    // Rounds (5.5.1).
    next_round: u64,
    round_start: bool,
    rounds: u64,

    // Signals of the last round (5.5.10).
    bw_latest: u64,
    inflight_latest: usize,
    loss_round: u64,
    loss_round_start: bool,
    losses_in_round: u32,

    // Acknowledgement aggregation (5.5.9).
    extra: Slots,
    extra_since: Time,
    extra_delivered: u64,
    extra_round: u64,

    // Whether the pipe is full (5.3.1.2).
    full_bw: u64,
    full_count: u32,
    full_now: bool,
    full_reached: bool,

    // Probing; see `probe.rs`.
    ack_phase: AckPhase,
    probe_samples: bool,
    cycle_at: Time,
    probe_wait: Duration,
    rounds_since_probe: u32,
    up_rounds: u32,
    up_acked: usize,
    /// Bytes acknowledged per segment of growth while probing up.
    up_per_segment: usize,
    rtt_probe_done: Option<Time>,
    rtt_probe_round: bool,

    /// The window before a round-trip probe or a timeout took it away.
    saved_window: usize,
    /// What an undo restores: window and bounds.
    before: Option<(usize, Option<u64>, Option<usize>, Option<usize>)>,
}

impl Bbr {
    pub(super) fn new(seed: u32) -> Self {
        Self {
            mode: Mode::Startup,
            segment: 0,
            window: initial_window(0),
            pacing_rate: 0,
            pacing_gain: STARTUP_PACING,
            window_gain: WINDOW_GAIN,
            random: seed | 1,
            max_bw: Slots::default(),
            bw_short: None,
            inflight_short: None,
            inflight_long: None,
            bw: 0,
            min_rtt: None,
            min_rtt_at: Time::ZERO,
            probe_min_rtt: None,
            probe_min_rtt_at: Time::ZERO,
            probe_min_expired: false,
            next_round: 0,
            round_start: false,
            rounds: 0,
            bw_latest: 0,
            inflight_latest: 0,
            loss_round: 0,
            loss_round_start: false,
            losses_in_round: 0,
            extra: Slots::default(),
            extra_since: Time::ZERO,
            extra_delivered: 0,
            extra_round: 0,
            full_bw: 0,
            full_count: 0,
            full_now: false,
            full_reached: false,
            ack_phase: AckPhase::Init,
            probe_samples: false,
            cycle_at: Time::ZERO,
            probe_wait: Duration::ZERO,
            rounds_since_probe: 0,
            up_rounds: 0,
            up_acked: 0,
            up_per_segment: usize::MAX,
            rtt_probe_done: None,
            rtt_probe_round: false,
            saved_window: 0,
            before: None,
        }
    }

    // ---- the model ---------------------------------------------------------

    /// Section 5.5.10: what the last round delivered.
    fn latest_signals(&mut self, s: &Sample) {
        self.loss_round_start = false;
        let Some(rate) = s.rate.rate else { return };
        self.bw_latest = self.bw_latest.max(rate);
        self.inflight_latest = self.inflight_latest.max(bytes(s.rate.delivered));
        if s.rate.prior_delivered >= self.loss_round {
            self.loss_round = s.delivered;
            self.loss_round_start = true;
        }
    }

    /// Section 5.5.1 and 5.5.5: rounds, and the largest rate.
    fn max_bandwidth(&mut self, s: &Sample) {
        self.round_start = false;
        if s.acked > 0 && s.rate.prior_delivered >= self.next_round {
            self.start_round(s.delivered);
            self.rounds += 1;
            self.rounds_since_probe = self.rounds_since_probe.saturating_add(1);
            self.round_start = true;
        }
        if let Some(rate) = s.rate.rate
            && (rate >= self.max_bw.max() || !s.rate.app_limited)
        {
            self.max_bw.note(rate);
        }
    }

    fn start_round(&mut self, delivered: u64) {
        self.next_round = delivered;
    }

    /// Section 5.5.10.3: bounds of the short term follow losses.
    fn lower_bounds(&mut self, s: &Sample) {
        if s.lost > 0 {
            self.losses_in_round += 1;
        }
        if !self.loss_round_start {
            return;
        }
        self.startup_loss(s);
        if self.losses_in_round > 0 && !self.mode.probes_bandwidth() {
            let bw = self.bw_short.unwrap_or_else(|| self.max_bw.max());
            self.bw_short = Some(self.bw_latest.max(scale(bw, BETA)));
            let inflight = self.inflight_short.unwrap_or(self.window);
            let reduced = bytes(scale(inflight as u64, BETA));
            self.inflight_short = Some(self.inflight_latest.max(reduced));
        }
        self.losses_in_round = 0;
    }

    /// Section 5.5.9: acknowledgements that come in lumps need a larger window.
    fn aggregation(&mut self, s: &Sample) {
        if self.rounds >= self.extra_round + EXTRA_ROUNDS {
            self.extra_round = self.rounds;
            self.extra.advance();
        }
        let expected = s.now.since(self.extra_since).as_secs_f64() * self.bw as f64;
        let mut extra = self.extra_delivered as f64 - expected;
        if extra <= 0.0 {
            self.extra_delivered = 0;
            self.extra_since = s.now;
            extra = 0.0;
        }
        self.extra_delivered += s.acked as u64;
        extra += s.acked as f64;
        self.extra.note(whole(extra).min(self.window as u64));
    }

    /// Section 5.3.1.2.
    fn full_pipe(&mut self, s: &Sample) {
        let Some(rate) = s.rate.rate else { return };
        if self.full_now || !self.round_start || s.rate.app_limited {
            return;
        }
        if rate as f64 >= self.full_bw as f64 * FULL_GROWTH {
            self.reset_full();
            self.full_bw = rate;
            return;
        }
        self.full_count += 1;
        self.full_now = self.full_count >= FULL_ROUNDS;
        self.full_reached |= self.full_now;
    }

    fn reset_full(&mut self) {
        self.full_bw = 0;
        self.full_count = 0;
        self.full_now = false;
    }

    /// Section 5.3.1.3: Startup ends when it overflows the path.
    fn startup_loss(&mut self, s: &Sample) {
        if self.mode == Mode::Startup
            && !self.full_reached
            && self.losses_in_round >= FULL_LOSSES
            && too_much_loss(s)
        {
            self.full_reached = true;
            self.inflight_long = Some(self.bdp(1.0).max(self.inflight_latest));
        }
    }

    /// Section 5.5.7.
    fn min_round_trip(&mut self, s: &Sample) {
        self.probe_min_expired = s.now.since(self.probe_min_rtt_at) > probe::RTT_INTERVAL
            && self.probe_min_rtt.is_some();
        if let Some(rtt) = s.rtt
            && (self.probe_min_rtt.is_none_or(|min| rtt < min) || self.probe_min_expired)
        {
            self.probe_min_rtt = Some(rtt);
            self.probe_min_rtt_at = s.now;
        }
        let expired = s.now.since(self.min_rtt_at) > MIN_RTT_WINDOW;
        if let Some(probed) = self.probe_min_rtt
            && (self.min_rtt.is_none_or(|min| probed < min) || expired)
        {
            self.min_rtt = Some(probed);
            self.min_rtt_at = self.probe_min_rtt_at;
        }
    }

    // ---- what follows from it -------------------------------------------------

    /// Bytes that fill the path `gain` times.
    fn bdp(&self, gain: f64) -> usize {
        self.bdp_of(self.bw, gain)
    }

    fn bdp_of(&self, bw: u64, gain: f64) -> usize {
        match self.min_rtt {
            Some(rtt) => bytes(whole(bw as f64 * rtt.as_secs_f64() * gain)),
            None => initial_window(self.segment),
        }
    }

    /// As much as that, and what bursts need (5.6.4.2).
    fn inflight(&self, bw: u64, gain: f64) -> usize {
        let quantum = bytes(self.quantum());
        let mut inflight = self.bdp_of(bw, gain).max(3 * quantum).max(self.least_window());
        if self.mode == Mode::Up {
            inflight += 2 * self.segment;
        }
        inflight
    }

    /// What one burst carries: a millisecond, at most one system call's worth.
    fn quantum(&self) -> u64 {
        (self.pacing_rate / 1000)
            .clamp(2 * self.segment as u64, MAX_QUANTUM.max(2 * self.segment as u64))
    }

    fn least_window(&self) -> usize {
        MIN_WINDOW * self.segment.max(1)
    }

    fn with_headroom(&self) -> Option<usize> {
        let long = self.inflight_long?;
        let headroom = bytes(scale(long as u64, HEADROOM)).max(self.segment);
        Some(long.saturating_sub(headroom).max(self.least_window()))
    }

    fn set_pacing_rate(&mut self, s: &Sample) {
        if self.pacing_rate == 0 && !s.smoothed.is_zero() {
            let nominal = initial_window(self.segment) as f64 / s.smoothed.as_secs_f64();
            self.pacing_rate = whole(nominal * STARTUP_PACING);
        }
        let rate = whole(self.pacing_gain * self.bw as f64 * PACING_MARGIN);
        if rate > 0 && (self.full_reached || rate > self.pacing_rate) {
            self.pacing_rate = rate;
        }
    }

    /// Section 5.6.4.
    fn set_window(&mut self, s: &Sample) {
        let most = self.inflight(self.bw, self.window_gain) + bytes(self.extra.max());
        if self.full_reached {
            self.window = (self.window + s.acked).min(most);
        } else if self.window < most || s.delivered < initial_window(self.segment) as u64 {
            self.window += s.acked;
        }
        self.window = self.window.max(self.least_window());
        if self.mode == Mode::ProbeRtt {
            self.window = self.window.min(self.rtt_probe_window());
        }
        let long = match self.mode {
            Mode::Startup | Mode::Drain => None,
            Mode::Down | Mode::Refill | Mode::Up => self.inflight_long,
            Mode::Cruise | Mode::ProbeRtt => self.with_headroom(),
        };
        let cap = [long, self.inflight_short].into_iter().flatten().min();
        if let Some(cap) = cap {
            self.window = self.window.min(cap.max(self.least_window()));
        }
    }
}

impl Controller for Bbr {
    fn name(&self) -> &'static str {
        "bbr"
    }

    fn window(&self) -> usize {
        self.window
    }

    fn threshold(&self) -> usize {
        self.inflight_long.unwrap_or(usize::MAX)
    }

    fn pacing(&self, _smoothed: Option<Duration>) -> Option<u64> {
        (self.pacing_rate > 0).then_some(self.pacing_rate)
    }

    fn on_segment_size(&mut self, segment: usize) {
        self.segment = segment;
        self.window = self.window.max(initial_window(segment));
    }

    fn on_ack(&mut self, s: &Sample) {
        self.segment = s.segment;
        self.latest_signals(s);
        self.max_bandwidth(s);
        self.lower_bounds(s);
        self.aggregation(s);
        self.full_pipe(s);
        self.leave_startup_or_drain(s);
        self.probe_bandwidth(s);
        self.min_round_trip(s);
        self.probe_round_trip(s);
        if self.loss_round_start {
            self.bw_latest = s.rate.rate.unwrap_or(0);
            self.inflight_latest = bytes(s.rate.delivered);
        }
        self.bw = self.max_bw.max().min(self.bw_short.unwrap_or(u64::MAX));
        self.set_pacing_rate(s);
        self.set_window(s);
    }

    fn on_loss(&mut self, _in_flight: usize, _segment: usize, _now: Time) {
        self.before = Some((self.window, self.bw_short, self.inflight_short, self.inflight_long));
    }

    fn on_timeout(&mut self, _in_flight: usize, segment: usize, first: bool, _now: Time) {
        if first {
            self.before =
                Some((self.window, self.bw_short, self.inflight_short, self.inflight_long));
            self.saved_window = self.window;
        }
        self.window = segment.max(1);
    }

    fn on_recovered(&mut self) {
        self.window = self.window.max(self.saved_window);
        self.saved_window = 0;
    }

    fn undo(&mut self) {
        if let Some((window, bw_short, inflight_short, inflight_long)) = self.before.take() {
            self.window = self.window.max(window);
            self.bw_short = bw_short;
            self.inflight_short = inflight_short;
            self.inflight_long = inflight_long;
        }
    }

    fn holds_back(&self) -> bool {
        self.mode == Mode::ProbeRtt
    }
}

/// Whether more was lost than a probe tolerates, of what was in flight when the
/// newest acknowledged segment left.
fn too_much_loss(s: &Sample) -> bool {
    s.rate.lost as f64 > s.rate.flight as f64 * LOSS_THRESHOLD
}

fn scale(value: u64, factor: f64) -> u64 {
    whole(value as f64 * factor)
}

/// A product of a rate or a size that is never negative.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "floats saturate, and sizes are positive"
)]
fn whole(value: f64) -> u64 {
    value as u64
}

fn bytes(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
