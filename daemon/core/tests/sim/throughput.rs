//! Goodput over a bottleneck in virtual time: a change that slows recovery
//! shows here before it shows on a network.

use std::time::Duration;

use bytes::Bytes;
use pilot_core::{Config, CongestionControl, Read};

use crate::app::connect;
use crate::world::{Link, World};

/// 100 Mbit/s, in bytes per second.
const RATE: u64 = 12_500_000;
const SECONDS: u64 = 20;

/// Seeds averaged: which datagrams are lost matters more than most changes.
const SEEDS: u64 = 5;

/// Goodput of one stream as a share of the bottleneck, over a queue of one
/// bandwidth-delay product.
fn share(loss: f64, rtt: Duration, congestion: CongestionControl) -> f64 {
    let sum: f64 = (1..=SEEDS).map(|seed| share_of(seed, loss, rtt, congestion)).sum();
    sum / SEEDS as f64
}

fn share_of(seed: u64, loss: f64, rtt: Duration, congestion: CongestionControl) -> f64 {
    let queue = (RATE as f64 * rtt.as_secs_f64()) as u64;
    let link = Link { loss, delay: rtt / 2, mtu: 1472, rate: RATE, queue, ..Link::clean() };
    let config = Config { congestion, ..Config::default() };
    let mut world = World::new(seed, link, &config, false);
    let (a, b) = connect(&mut world, 1000).expect("connected");
    let end = world.now + Duration::from_secs(SECONDS);
    let block = Bytes::from(vec![7; 64 << 10]);
    let mut received = 0u64;
    let mut next = world.now;
    while world.now < end {
        while world.nodes[0].core.writable(a) >= block.len() {
            world.nodes[0].core.write(a, block.clone(), world.now).expect("open");
        }
        while let Read::Data(data) = world.nodes[1].core.read(b, 1 << 20) {
            received += data.len() as u64;
        }
        for node in &mut world.nodes {
            node.events.clear();
        }
        assert!(world.step());
        if std::env::var_os("PILOT_SIM_TRACE").is_some() && world.now >= next {
            next = world.now + Duration::from_millis(100);
            let s = &world.nodes[0].core.streams()[0];
            eprintln!(
                "{:?} w {} ss {} fl {} una {} rec {} retx {} to {} rate {} srtt {:?} sent {} peer {} {}",
                world.now,
                s.cong_win,
                s.ssthresh,
                s.in_flight,
                s.unacked,
                s.in_recovery,
                s.retransmits,
                s.timeouts,
                s.delivery_rate,
                s.srtt,
                s.bytes_sent,
                s.peer_recv_win,
                s.pacing_rate
            );
        }
    }
    received as f64 / SECONDS as f64 / RATE as f64
}

#[test]
fn goodput_over_a_bottleneck_stays_what_it_was() {
    // (loss, round trip in ms, smallest share that is no step back)
    let cells = [
        (0.0, 20, 0.92),
        (0.001, 20, 0.23),
        (0.01, 20, 0.065),
        (0.03, 20, 0.033),
        (0.0, 100, 0.81),
        (0.001, 100, 0.08),
        (0.01, 100, 0.015),
        (0.03, 100, 0.0065),
    ];
    for (loss, ms, floor) in cells {
        let rtt = Duration::from_millis(ms);
        let cubic = share(loss, rtt, CongestionControl::Cubic);
        let reno = share(loss, rtt, CongestionControl::NewReno);
        let bbr = share(loss, rtt, CongestionControl::Bbr);
        println!("loss {loss:>5}, {ms:>3} ms: CUBIC {cubic:.3}, NewReno {reno:.3}, BBR {bbr:.3}");
        assert!(cubic >= floor, "loss {loss}, {ms} ms: CUBIC has {cubic:.3}, had {floor}");
    }
}
