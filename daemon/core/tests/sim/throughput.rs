//! Goodput over a bottleneck in virtual time: a change that slows recovery
//! shows here before it shows on a network. Virtual time is exact, so the rows
//! are compared with those in `snapshots/throughput.txt` as text.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pilot_core::{Config, CongestionControl};

use crate::flow::{self, Flow};
use crate::world::{Link, World};

const BLESS: &str = "PILOT_BLESS";
const HEADER: &str = "\
# One stream over a bottleneck. Written by the test; do not edit by hand:
#   PILOT_BLESS=1 cargo test -p pilot-core --test sim goodput
# share: goodput / rate. again: segments sent again, of all. wait: mean time in
# the queue. srtt: at the end, in least round trips.
# Mbit/s  rtt ms  loss %  queue BDP  seconds  controller    share   again  timeouts  wait ms   srtt
";

/// A bottleneck in bits per second, a round trip in milliseconds, per cent of
/// loss, queue in bandwidth-delay products, seconds to run; and the least share
/// that CUBIC must have whatever the snapshot says.
type Cell = (u64, u64, f64, f64, u64, f64);

const MBIT: u64 = 1_000_000;
const CELLS: [Cell; 19] = [
    (MBIT, 20, 0.0, 1.0, 20, 0.45),
    (MBIT, 100, 1.0, 1.0, 20, 0.40),
    (MBIT, 300, 0.0, 4.0, 30, 0.75),
    (10 * MBIT, 20, 0.0, 0.25, 10, 0.60),
    (10 * MBIT, 20, 1.0, 1.0, 10, 0.40),
    (10 * MBIT, 100, 0.1, 1.0, 20, 0.40),
    (10 * MBIT, 300, 0.0, 1.0, 20, 0.50),
    (100 * MBIT, 1, 0.0, 1.0, 2, 0.80),
    (100 * MBIT, 20, 0.0, 0.25, 5, 0.60),
    (100 * MBIT, 20, 0.0, 1.0, 10, 0.90),
    (100 * MBIT, 20, 0.0, 4.0, 5, 0.90),
    (100 * MBIT, 20, 0.1, 1.0, 20, 0.23),
    (100 * MBIT, 20, 1.0, 1.0, 20, 0.065),
    (100 * MBIT, 20, 3.0, 1.0, 20, 0.035),
    (100 * MBIT, 100, 0.0, 1.0, 20, 0.81),
    (100 * MBIT, 100, 0.1, 1.0, 20, 0.06),
    (100 * MBIT, 100, 1.0, 1.0, 20, 0.015),
    (100 * MBIT, 100, 3.0, 1.0, 20, 0.008),
    (1000 * MBIT, 20, 0.0, 1.0, 3, 0.60),
];
const KINDS: [CongestionControl; 3] =
    [CongestionControl::Cubic, CongestionControl::NewReno, CongestionControl::Bbr];

/// One row of the snapshot, and the share in it.
fn row(cell: Cell, kind: CongestionControl) -> (String, f64) {
    let (rate, ms, loss, bdp, seconds, _) = cell;
    let (rtt, bytes) = (Duration::from_millis(ms), rate / 8);
    // Two packets fit even where the product is less.
    let queue = ((bytes as f64 * rtt.as_secs_f64() * bdp) as u64).max(3000);
    let link =
        Link { loss: loss / 100.0, delay: rtt / 2, mtu: 1472, rate: bytes, queue, ..Link::clean() };
    let mut world = World::new(1, link, &Config::default(), false);
    let mut flows = [Flow::open(&mut world, 0, kind)];
    let end = world.now + Duration::from_secs(seconds);
    flow::run(&mut world, &mut flows, end);
    let info = flows[0].info(&world);
    let share = flows[0].received as f64 / (seconds * bytes) as f64;
    let again = info.retransmits as f64 / info.segs_sent as f64;
    let text = format!(
        "{:>8} {ms:>7} {loss:>7} {bdp:>10} {seconds:>8}  {:<10} {share:>8.3} {again:>7.4} {:>9} \
         {:>8.2} {:>6.2}\n",
        rate / MBIT,
        info.congestion,
        info.timeouts,
        world.bottleneck(0).mean_wait().as_secs_f64() * 1e3,
        info.srtt.as_secs_f64() / info.min_rtt.as_secs_f64(),
    );
    (text, share)
}

#[test]
fn goodput_over_a_bottleneck_stays_what_it_was() {
    let runs: Vec<_> = CELLS.iter().flat_map(|&cell| KINDS.map(|kind| (cell, kind))).collect();
    let next = AtomicUsize::new(0);
    let rows = Mutex::new(vec![(String::new(), 0.0); runs.len()]);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(&(cell, kind)) = runs.get(i) else { return };
                    let row = row(cell, kind);
                    rows.lock().expect("not poisoned")[i] = row;
                }
            });
        }
    });
    let rows = rows.into_inner().expect("not poisoned");
    let mut text = HEADER.to_owned();
    for (row, _) in &rows {
        text.push_str(row);
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sim/snapshots/throughput.txt");
    if std::env::var_os(BLESS).is_some() {
        std::fs::write(&file, &text).expect("the snapshot can be written");
    }
    for ((cell, kind), (row, share)) in runs.iter().zip(&rows) {
        let floor = cell.5;
        assert!(*kind != CongestionControl::Cubic || *share >= floor, "below {floor}: {row}");
    }
    let known = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        known == text,
        "goodput in virtual time has changed:\n{}if that is meant, and the new rows are as good, \
         write them with {BLESS}=1 cargo test -p pilot-core --test sim goodput",
        difference(&known, &text)
    );
}

fn difference(known: &str, new: &str) -> String {
    let (known, new): (Vec<_>, Vec<_>) = (known.lines().collect(), new.lines().collect());
    let mut text = String::new();
    for i in 0..known.len().max(new.len()) {
        let (was, is) = (known.get(i), new.get(i));
        if was != is {
            let _ = was.map(|line| writeln!(text, "- {line}"));
            let _ = is.map(|line| writeln!(text, "+ {line}"));
        }
    }
    text
}
