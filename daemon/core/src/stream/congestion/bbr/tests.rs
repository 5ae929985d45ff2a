//! The model against samples as a path of known rate and delay would give.

use super::*;
use crate::stream::send::RateSample;

const SEGMENT: usize = 1000;
const RTT: Duration = Duration::from_millis(50);

/// A path of ten megabytes a second; a round trip is half a megabyte.
struct Path {
    now: Time,
    delivered: u64,
}

impl Path {
    fn new() -> Self {
        Self { now: Time::ZERO + Duration::from_secs(1), delivered: 0 }
    }

    /// One round trip's acknowledgement, of a window or what the path carries.
    fn round(&mut self, bbr: &mut Bbr, capacity: u64, loss: f64) {
        let flight = bbr.window();
        let acked = (flight as u64).min(capacity);
        self.now = self.now + RTT;
        let prior = self.delivered;
        self.delivered += acked;
        let lost = scale(flight as u64, loss);
        let rate = RateSample {
            rate: Some(acked * 20),
            prior_delivered: prior,
            delivered: acked,
            flight,
            lost,
            app_limited: false,
        };
        bbr.on_ack(&Sample {
            now: self.now,
            acked: bytes(acked),
            lost: bytes(lost),
            segment: SEGMENT,
            rtt: Some(RTT),
            smoothed: RTT,
            una: self.delivered,
            next: self.delivered + flight as u64,
            in_flight: bytes(acked),
            delivered: self.delivered,
            rate,
            limited: true,
            growing: true,
        });
    }
}

#[test]
fn startup_finds_the_rate_and_ends() {
    let (mut bbr, mut path) = (Bbr::new(1), Path::new());
    bbr.on_segment_size(SEGMENT);
    for _ in 0..20 {
        path.round(&mut bbr, 500_000, 0.0);
    }
    assert!(bbr.full_reached);
    assert!(bbr.mode.probes_bandwidth() || matches!(bbr.mode, Mode::Down | Mode::Cruise));
    assert_eq!(bbr.bw, 10_000_000);
    assert_eq!(bbr.min_rtt, Some(RTT));
    let pacing = bbr.pacing(None).expect("paced") as f64;
    assert!((0.85e7..1.3e7).contains(&pacing), "{pacing}");
    // Twice the path, and another one because acknowledgements come in lumps of
    // a whole round trip.
    assert!((500_000..=1_500_000).contains(&bbr.window()), "{}", bbr.window());
}

#[test]
fn a_path_that_gets_wider_is_found_within_some_probes() {
    let (mut bbr, mut path) = (Bbr::new(2), Path::new());
    bbr.on_segment_size(SEGMENT);
    for _ in 0..100 {
        path.round(&mut bbr, 500_000, 0.0);
    }
    for _ in 0..400 {
        path.round(&mut bbr, 1_000_000, 0.0);
    }
    assert!(bbr.bw > 18_000_000, "{}", bbr.bw);
}

#[test]
fn a_path_that_gets_narrower_is_followed() {
    let (mut bbr, mut path) = (Bbr::new(3), Path::new());
    bbr.on_segment_size(SEGMENT);
    for _ in 0..100 {
        path.round(&mut bbr, 500_000, 0.0);
    }
    for _ in 0..200 {
        path.round(&mut bbr, 100_000, 0.0);
    }
    assert!(bbr.bw < 2_500_000, "{}", bbr.bw);
}

#[test]
fn loss_below_the_threshold_does_not_slow_it_and_more_bounds_the_flight() {
    let run = |loss: f64| {
        let (mut bbr, mut path) = (Bbr::new(4), Path::new());
        bbr.on_segment_size(SEGMENT);
        for _ in 0..300 {
            path.round(&mut bbr, 500_000, loss);
        }
        bbr
    };
    assert!(run(0.01).inflight_long.is_none());
    assert!(run(0.05).inflight_long.is_some());
}

#[test]
fn the_round_trip_is_probed_with_half_the_flight() {
    let (mut bbr, mut path) = (Bbr::new(5), Path::new());
    bbr.on_segment_size(SEGMENT);
    let mut least = usize::MAX;
    for _ in 0..400 {
        path.round(&mut bbr, 500_000, 0.0);
        if bbr.mode == Mode::ProbeRtt {
            assert!(bbr.holds_back());
            least = least.min(bbr.window());
        }
    }
    assert!((200_000..=260_000).contains(&least), "{least}");
    assert_ne!(bbr.window(), least, "restored after");
}

#[test]
fn an_undone_timeout_restores_the_window() {
    let (mut bbr, mut path) = (Bbr::new(6), Path::new());
    bbr.on_segment_size(SEGMENT);
    for _ in 0..50 {
        path.round(&mut bbr, 500_000, 0.0);
    }
    let before = bbr.window();
    bbr.on_timeout(0, SEGMENT, true, path.now);
    assert_eq!(bbr.window(), SEGMENT);
    bbr.undo();
    assert_eq!(bbr.window(), before);
}
