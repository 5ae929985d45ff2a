//! Losses that were none: a flight that was overtaken, and a timeout for what
//! was only late. Both show in the statistics and cost nothing afterwards.

use std::time::Duration;

use pilot_core::CongestionControl::{self, Bbr, Cubic, NewReno};
use pilot_core::{Config, StreamInfo};

use crate::flow::{self, Flow};
use crate::world::{Link, World};

/// A stream on a path without loss. For `held` everything takes `extra` longer; then it runs for a while.
/// Returns the state before, and the first after in which an episode had been
/// undone.
fn meddled(
    kind: CongestionControl,
    rtt: Duration,
    held: Duration,
    extra: Duration,
) -> (StreamInfo, Option<StreamInfo>) {
    let link = Link { delay: rtt / 2, mtu: 1452, rate: 12_500_000, ..Link::clean() };
    // Less than the path holds: there is no queue, and nothing else to find.
    let config = Config { send_buffer: 256 << 10, ..Config::default() };
    let mut world = World::new(1, link, &config, false);
    let mut flows = [Flow::open(&mut world, 0, kind)];
    let settled = world.now + Duration::from_secs(4);
    flow::run(&mut world, &mut flows, settled);
    let before = flows[0].info(&world);
    assert_eq!((before.timeouts, before.retransmits, before.spurious), (0, 0, 0), "{before:?}");
    let delay = world.link.delay;
    world.link.delay = delay + extra;
    flow::run(&mut world, &mut flows, settled + held);
    world.link.delay = delay;
    let mut end = world.now;
    for _ in 0..400 {
        end = end + Duration::from_millis(10);
        flow::run(&mut world, &mut flows, end);
        let info = flows[0].info(&world);
        if info.spurious > 0 {
            return (before, Some(info));
        }
    }
    (before, None)
}

#[test]
fn an_overtaken_flight_is_no_loss() {
    for kind in [Cubic, NewReno, Bbr] {
        let (rtt, held) = (Duration::from_millis(100), Duration::from_millis(20));
        let (before, after) = meddled(kind, rtt, held, Duration::from_millis(60));
        let after = after.unwrap_or_else(|| panic!("{kind:?}: nothing was undone: {before:?}"));
        assert!(after.fast_retx > 0 && after.retransmits > 0, "{kind:?}: {after:?}");
        assert_eq!(after.timeouts, 0, "{kind:?}: {after:?}");
        assert!(after.cong_win >= before.cong_win, "{kind:?}: {before:?} {after:?}");
    }
}

#[test]
fn a_timeout_for_what_was_only_late_is_none() {
    for kind in [Cubic, NewReno, Bbr] {
        // The acknowledgements come soon after the timeout, sooner than any
        // round trip: they cannot be for what it repeated.
        let (rtt, held) = (Duration::from_millis(300), Duration::from_secs(2));
        let (before, after) = meddled(kind, rtt, held, Duration::from_millis(400));
        let after = after.unwrap_or_else(|| panic!("{kind:?}: nothing was undone: {before:?}"));
        assert_eq!(after.timeouts, 1, "{kind:?}: {after:?}");
        assert!(after.cong_win >= before.cong_win, "{kind:?}: {before:?} {after:?}");
    }
}
