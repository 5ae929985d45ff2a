//! The states of BBR: filling the pipe, draining it, probing for more rate and
//! for the least round trip (draft-ietf-ccwg-bbr, sections 5.3).

use std::time::Duration;

use super::{
    BETA, Bbr, DRAIN_PACING, STARTUP_PACING, Sample, WINDOW_GAIN, bytes, scale, too_much_loss,
};

/// Gains of the phases (section 5.3.3).
const UP_PACING: f64 = 1.25;
const UP_WINDOW: f64 = 2.25;
const DOWN_PACING: f64 = 0.9;
/// How often the round trip is probed, and for how long (section 2.13).
pub(super) const RTT_INTERVAL: Duration = Duration::from_secs(5);
const RTT_PROBE: Duration = Duration::from_millis(200);
const RTT_WINDOW_GAIN: f64 = 0.5;
/// A probe for rate comes after two to three seconds (section 5.3.3.5)...
const PROBE_WAIT: Duration = Duration::from_secs(2);
const PROBE_SPREAD_MS: u32 = 1000;
/// ...or as soon as Reno would have grown by a segment a round for so long.
const MAX_RENO_ROUNDS: usize = 63;
const MAX_UP_ROUNDS: u32 = 30;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Startup,
    Drain,
    /// ProbeBW_DOWN and so on.
    Down,
    Cruise,
    Refill,
    Up,
    ProbeRtt,
}

impl Mode {
    /// Losses are expected: they are a probe's answer (section 5.5.10.3).
    pub(super) fn probes_bandwidth(self) -> bool {
        matches!(self, Self::Startup | Self::Refill | Self::Up)
    }

    fn in_cycle(self) -> bool {
        matches!(self, Self::Down | Self::Cruise | Self::Refill | Self::Up)
    }
}

/// Which part of a probe the acknowledgements coming now belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AckPhase {
    Init,
    Refilling,
    Starting,
    Feedback,
    Stopping,
}

impl Bbr {
    pub(super) fn leave_startup_or_drain(&mut self, s: &Sample) {
        if self.mode == Mode::Startup && self.full_reached {
            self.mode = Mode::Drain;
            self.pacing_gain = DRAIN_PACING;
            self.window_gain = WINDOW_GAIN;
        }
        if self.mode == Mode::Drain && s.in_flight <= self.inflight(self.max_bw.max(), 1.0) {
            self.start_down(s);
        }
    }

    fn start_down(&mut self, s: &Sample) {
        self.losses_in_round = 0;
        self.bw_latest = 0;
        self.inflight_latest = 0;
        self.up_per_segment = usize::MAX;
        self.rounds_since_probe = self.draw(2);
        let spread = u64::from(self.draw(PROBE_SPREAD_MS));
        self.probe_wait = PROBE_WAIT + Duration::from_millis(spread);
        self.cycle_at = s.now;
        self.ack_phase = AckPhase::Stopping;
        self.start_round(s.delivered);
        self.enter(Mode::Down, DOWN_PACING, WINDOW_GAIN);
    }

    fn start_refill(&mut self, s: &Sample) {
        self.reset_short_term();
        self.up_rounds = 0;
        self.up_acked = 0;
        self.ack_phase = AckPhase::Refilling;
        self.start_round(s.delivered);
        self.enter(Mode::Refill, 1.0, WINDOW_GAIN);
    }

    fn start_up(&mut self, s: &Sample) {
        self.ack_phase = AckPhase::Starting;
        self.start_round(s.delivered);
        self.reset_full();
        self.full_bw = s.rate.rate.unwrap_or(0);
        self.cycle_at = s.now;
        self.enter(Mode::Up, UP_PACING, UP_WINDOW);
        self.steepen();
    }

    fn enter(&mut self, mode: Mode, pacing: f64, window: f64) {
        self.mode = mode;
        self.pacing_gain = pacing;
        self.window_gain = window;
    }

    fn reset_short_term(&mut self) {
        self.bw_short = None;
        self.inflight_short = None;
    }

    /// Sections 5.3.3.6 and 5.5.3.
    pub(super) fn probe_bandwidth(&mut self, s: &Sample) {
        if !self.full_reached {
            return;
        }
        self.adapt_long_term(s);
        match self.mode {
            Mode::Down => {
                if !self.probe_if_time(s) && self.drained(s) {
                    self.enter(Mode::Cruise, 1.0, WINDOW_GAIN);
                }
            }
            Mode::Cruise => {
                self.probe_if_time(s);
            }
            Mode::Refill if self.round_start => {
                self.probe_samples = true;
                self.start_up(s);
            }
            Mode::Up => {
                if self.went_up(s) {
                    self.start_down(s);
                }
            }
            _ => {}
        }
    }

    fn drained(&self, s: &Sample) -> bool {
        self.with_headroom().is_none_or(|room| s.in_flight <= room)
            && s.in_flight <= self.inflight(self.max_bw.max(), 1.0)
    }

    fn probe_if_time(&mut self, s: &Sample) -> bool {
        let reno = (self.target() / self.segment.max(1)).min(MAX_RENO_ROUNDS);
        let time = s.now.since(self.cycle_at) > self.probe_wait
            || self.rounds_since_probe as usize >= reno.max(1);
        if time {
            self.start_refill(s);
        }
        time
    }

    fn went_up(&mut self, s: &Sample) -> bool {
        if s.limited && self.inflight_long.is_some_and(|long| self.window >= long) {
            // The bound, not the path, keeps the rate where it is.
            self.reset_full();
            self.full_bw = s.rate.rate.unwrap_or(0);
            return false;
        }
        self.full_now
    }

    fn target(&self) -> usize {
        self.bdp(1.0).min(self.window)
    }

    fn adapt_long_term(&mut self, s: &Sample) {
        if self.ack_phase == AckPhase::Starting && self.round_start {
            self.ack_phase = AckPhase::Feedback;
        }
        if self.ack_phase == AckPhase::Stopping && self.round_start {
            if self.mode.in_cycle() && !s.rate.app_limited {
                self.max_bw.advance();
            }
            self.ack_phase = AckPhase::Init;
        }
        if too_much_loss(s) {
            if self.probe_samples {
                self.too_high(s);
            }
            return;
        }
        let Some(long) = self.inflight_long else { return };
        if s.rate.flight > long {
            self.inflight_long = Some(s.rate.flight);
        }
        if self.mode == Mode::Up {
            self.grow_long_term(s);
        }
    }

    /// The probe lost too much: that is what the path holds.
    fn too_high(&mut self, s: &Sample) {
        self.probe_samples = false;
        if !s.rate.app_limited {
            let floor = bytes(scale(self.target() as u64, BETA));
            self.inflight_long = Some(s.rate.flight.max(floor));
        }
        if self.mode == Mode::Up {
            self.start_down(s);
        }
    }

    fn grow_long_term(&mut self, s: &Sample) {
        let Some(long) = self.inflight_long else { return };
        if !s.limited || self.window < long {
            return;
        }
        self.up_acked += s.acked;
        if self.up_acked >= self.up_per_segment {
            let segments = self.up_acked / self.up_per_segment;
            self.up_acked -= segments * self.up_per_segment;
            self.inflight_long = Some(long + segments * self.segment);
        }
        if self.round_start {
            self.steepen();
        }
    }

    /// Doubles the growth of the next round.
    fn steepen(&mut self) {
        let growth = 1usize << self.up_rounds;
        self.up_rounds = (self.up_rounds + 1).min(MAX_UP_ROUNDS);
        self.up_per_segment = (self.window / growth).max(1);
    }

    // ---- the round trip --------------------------------------------------------

    pub(super) fn rtt_probe_window(&self) -> usize {
        self.bdp(RTT_WINDOW_GAIN).max(self.least_window())
    }

    /// Section 5.3.4.
    pub(super) fn probe_round_trip(&mut self, s: &Sample) {
        if self.mode != Mode::ProbeRtt && self.probe_min_expired {
            self.saved_window = self.window;
            self.rtt_probe_done = None;
            self.ack_phase = AckPhase::Stopping;
            self.start_round(s.delivered);
            self.enter(Mode::ProbeRtt, 1.0, RTT_WINDOW_GAIN);
        }
        if self.mode != Mode::ProbeRtt {
            return;
        }
        match self.rtt_probe_done {
            None if s.in_flight <= self.rtt_probe_window() => {
                self.rtt_probe_done = Some(s.now + RTT_PROBE);
                self.rtt_probe_round = false;
                self.start_round(s.delivered);
            }
            None => {}
            Some(done) => {
                self.rtt_probe_round |= self.round_start;
                if self.rtt_probe_round && s.now > done {
                    self.probe_min_rtt_at = s.now;
                    self.window = self.window.max(self.saved_window);
                    self.saved_window = 0;
                    self.leave_probe_rtt(s);
                }
            }
        }
    }

    fn leave_probe_rtt(&mut self, s: &Sample) {
        self.reset_short_term();
        if self.full_reached {
            self.start_down(s);
            self.enter(Mode::Cruise, 1.0, WINDOW_GAIN);
        } else {
            self.enter(Mode::Startup, STARTUP_PACING, WINDOW_GAIN);
        }
    }

    /// A number below `below`, from a sequence of its own (xorshift).
    fn draw(&mut self, below: u32) -> u32 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 17;
        self.random ^= self.random << 5;
        self.random % below.max(1)
    }
}
