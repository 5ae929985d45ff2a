//! Two flows between different nodes share one bottleneck.

use std::time::Duration;

use pilot_core::CongestionControl::{self, Bbr, Cubic, NewReno};
use pilot_core::{Config, Time};

use crate::flow::{self, Flow};
use crate::world::{Link, World};

/// 20 Mbit/s, in bytes per second.
const RATE: u64 = 2_500_000;
const RTT: Duration = Duration::from_millis(20);
/// The second one starts so much later: it has to be let in.
const LATER: Duration = Duration::from_secs(2);
/// Both have run for this long when it begins to count...
const CONVERGED: Duration = Duration::from_secs(10);
/// ...for this long.
const WINDOW: Duration = Duration::from_secs(20);

/// Bytes per second of each in the window.
fn rates(kinds: [CongestionControl; 2], queue: f64) -> [f64; 2] {
    let queue = (RATE as f64 * RTT.as_secs_f64() * queue) as u64;
    let link = Link { delay: RTT / 2, mtu: 1452, rate: RATE, queue, ..Link::clean() };
    let mut world = World::pairs(2, 1, link, &Config::default(), false);
    let mut flows = vec![Flow::open(&mut world, 0, kinds[0])];
    flow::run(&mut world, &mut flows, Time::ZERO + LATER);
    flows.push(Flow::open(&mut world, 2, kinds[1]));
    let begin = world.now + CONVERGED;
    flow::run(&mut world, &mut flows, begin);
    let before = [flows[0].received, flows[1].received];
    flow::run(&mut world, &mut flows, begin + WINDOW);
    [0, 1].map(|i| (flows[i].received - before[i]) as f64 / WINDOW.as_secs_f64())
}

/// Jain's index: 1 when all have the same, 1/n when one has everything.
fn jain(rates: &[f64]) -> f64 {
    let sum: f64 = rates.iter().sum();
    sum * sum / (rates.len() as f64 * rates.iter().map(|r| r * r).sum::<f64>())
}

fn measured(kinds: [CongestionControl; 2], queue: f64) -> (f64, [f64; 2]) {
    let rates = rates(kinds, queue);
    let shares = rates.map(|r| r / RATE as f64);
    let index = jain(&rates);
    println!(
        "{:?} {:.3} and {:?} {:.3} of the bottleneck, queue of {queue} BDP: Jain's index {index:.3}",
        kinds[0], shares[0], kinds[1], shares[1]
    );
    (index, shares)
}

#[test]
fn two_flows_of_a_kind_share_evenly() {
    for kind in [Cubic, NewReno, Bbr] {
        for queue in [1.0, 2.0] {
            let (index, shares) = measured([kind, kind], queue);
            assert!(index >= 0.95, "{kind:?}, queue of {queue} BDP: {index:.3}, {shares:?}");
            assert!(shares.iter().sum::<f64>() > 0.8, "{kind:?}: {shares:?}");
        }
    }
}

/// Different controllers do not share evenly by design; none may starve.
#[test]
fn flows_of_different_kinds_leave_each_other_room() {
    for kinds in [[Cubic, NewReno], [Cubic, Bbr], [Bbr, Cubic]] {
        for queue in [1.0, 4.0] {
            let (_, shares) = measured(kinds, queue);
            assert!(shares.iter().all(|share| *share > 0.05), "{kinds:?}: {shares:?}");
            assert!(shares.iter().sum::<f64>() > 0.8, "{kinds:?}: {shares:?}");
        }
    }
}
