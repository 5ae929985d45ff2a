//! The search against links of every size, in virtual time.

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;

const V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1));
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A link on which the answers to small enough probes come back.
struct Link {
    mtu: Mtu,
    now: Time,
    /// Largest UDP payload that passes.
    size: usize,
    round_trip: Duration,
    /// What befalls the next probes that would pass.
    lost: Vec<bool>,
    /// Larger sizes are refused by the system rather than lost.
    refused_from: usize,
    answers: VecDeque<(Time, u64)>,
    /// Sizes of the probes sent.
    sent: Vec<usize>,
    tokens: u64,
}

impl Link {
    fn new(peer: IpAddr, size: usize) -> Self {
        Self {
            mtu: Mtu::direct(peer, Time::ZERO),
            now: Time::ZERO,
            size,
            round_trip: Duration::from_millis(5),
            lost: Vec::new(),
            refused_from: usize::MAX,
            answers: VecDeque::new(),
            sent: Vec::new(),
            tokens: 0,
        }
    }

    fn send_due(&mut self) {
        while let Some((size, token)) = self.mtu.poll(|| self.tokens, self.now) {
            assert_eq!(token, self.tokens);
            self.tokens += 1;
            self.sent.push(size);
            assert!(self.sent.len() < 1000, "no end: {:?}", self.sent);
            if size >= self.refused_from {
                self.mtu.too_large(size, self.now);
            } else if size <= self.size && !self.lost.pop().unwrap_or(false) {
                self.answers.push_back((self.now + self.round_trip, token));
            }
        }
    }

    /// Until nothing happens before `until`.
    fn run(&mut self, until: Time) {
        loop {
            self.send_due();
            let answer = self.answers.front().map(|a| a.0);
            let next = [answer, self.mtu.deadline()].into_iter().flatten().min();
            let Some(next) = next.filter(|at| *at <= until) else { break };
            self.now = self.now.max(next);
            while let Some((_, token)) = self.answers.pop_front_if(|a| a.0 <= self.now) {
                self.mtu.acknowledged(token, self.now);
                assert!(self.mtu.current() <= self.size, "above the path's size");
            }
        }
        self.now = until;
    }

    /// Until the search rests; how long it took.
    fn search(&mut self) -> Duration {
        let started = self.now;
        let mut took = Duration::ZERO;
        while !matches!(self.mtu.state, State::Complete | State::Error) {
            let due = self.mtu.deadline().expect("a search under way has a deadline");
            let next = self.answers.front().map_or(due, |a| a.0.min(due));
            self.run(next.max(self.now));
            took = self.now.since(started);
        }
        took
    }

    fn later(&mut self, pause: Duration) {
        self.run(self.now + pause);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_size_is_found_whatever_probes_are_lost(
        packet in prop_oneof![1280usize..2000, 1280usize..65_536],
        peer in prop_oneof![Just(V4), Just(V6), Just(LOOPBACK)],
        // Runs of losses that leave one probe of three.
        runs in proptest::collection::vec(0usize..3, 0..60),
        round_trip in 0u64..600,
    ) {
        let headers = if peer.is_ipv4() { 28 } else { 48 };
        let mut link = Link::new(peer, packet - headers);
        link.round_trip = Duration::from_millis(round_trip);
        link.lost = runs.iter().flat_map(|n| [vec![true; *n], vec![false]].concat()).collect();
        link.search();
        let (found, size) = (link.mtu.current(), link.size);
        prop_assert!(found <= size && size < found + GRANULARITY, "{found} of {size}");
        prop_assert!(link.sent.len() <= 90, "{} probes: {:?}", link.sent.len(), link.sent);
    }
}

/// Sizes of packet, probes sent and time taken, on a path of 5 ms.
fn effort(peer: IpAddr, packet: usize) -> (usize, Duration) {
    let headers = if peer.is_ipv4() { 28 } else { 48 };
    let mut link = Link::new(peer, packet - headers);
    let took = link.search();
    assert!(packet - headers - link.mtu.current() < GRANULARITY, "{packet}: {:?}", link.sent);
    (link.sent.len(), took)
}

#[test]
fn common_sizes_take_few_probes_and_little_time() {
    for peer in [V4, V6] {
        for (packet, most) in [(1280, 13), (1420, 11), (1492, 6), (1500, 8), (9000, 9), (9001, 9)] {
            let (probes, took) = effort(peer, packet);
            assert!(probes <= most, "{packet}: {probes} probes");
            assert!(took < Duration::from_millis(150), "{packet}: {took:?}");
        }
    }
    let (probes, took) = effort(LOOPBACK, 65_535);
    assert!(probes == 2 && took <= Duration::from_millis(10), "{probes} probes, {took:?}");
}

#[test]
fn the_limits_are_those_of_the_address_family() {
    for (peer, limit) in [(LOOPBACK, 65_507), (V4, 65_507), (V6, 65_487)] {
        let mut link = Link::new(peer, limit);
        link.search();
        assert_eq!(link.mtu.current(), limit);
        assert_eq!(link.mtu.deadline(), None, "nothing more to look for");
    }
    for (peer, packet, expected) in
        [(V4, 1500, 1472), (V4, 9000, 8972), (V6, 1500, 1452), (V6, 9000, 8952)]
    {
        let headers = if peer.is_ipv4() { 28 } else { 48 };
        let mut link = Link::new(peer, packet - headers);
        link.search();
        assert_eq!(link.mtu.current(), expected);
    }
}

#[test]
fn an_answer_after_its_time_counts() {
    let mut link = Link::new(V4, 1472);
    link.search();
    // A queue fills: answers come far later than one and a half round trips.
    link.round_trip = Duration::from_millis(90);
    link.size = 8972;
    link.later(LONG_REST + Duration::from_secs(20));
    assert_eq!(link.mtu.current(), 8972, "{:?}", link.sent);
}

#[test]
fn a_black_hole_is_left_and_what_still_passes_is_found_at_once() {
    let mut link = Link::new(V4, 1472);
    link.search();
    link.later(Duration::from_secs(5));
    link.size = 1372;
    assert!(link.mtu.black_hole(link.now));
    assert_eq!(link.mtu.current(), BASE_DATAGRAM);
    assert!(!link.mtu.black_hole(link.now), "at the base already");
    let before = link.sent.len();
    let took = link.search();
    assert!(link.mtu.current() > 1372 - GRANULARITY, "{:?}", link.sent);
    assert!(link.sent[before..].iter().all(|size| *size < 1472), "the failed size is not tried");
    assert!(took < Duration::from_millis(200), "{took:?}");
    // And the path recovers.
    link.size = 1472;
    link.later(SHORT_REST + Duration::from_secs(1));
    assert_eq!(link.mtu.current(), 1472);
}

#[test]
fn a_path_that_flaps_is_left_alone_for_longer_each_time() {
    let mut link = Link::new(V4, 1472);
    link.search();
    link.later(Duration::from_secs(5));
    let mut holes = 0;
    // The size changes each second for an hour.
    for second in 0..3600 {
        link.size = if second % 2 == 0 { 1252 } else { 1472 };
        if link.mtu.current() > link.size {
            holes += 1;
            link.mtu.black_hole(link.now);
        }
        link.later(Duration::from_secs(1));
    }
    assert!((2..=12).contains(&holes), "{holes} black holes in an hour");
    assert!(link.sent.len() < 500, "{} probes in an hour", link.sent.len());
    link.size = 1472;
    link.later(UNSTEADY);
    assert_eq!(link.mtu.current(), 1472, "and used again once it is steady");
}

#[test]
fn a_size_that_the_system_refuses_is_known_without_waiting() {
    let mut link = Link::new(V4, 1472);
    link.refused_from = 1473;
    let took = link.search();
    assert_eq!(link.mtu.current(), 1472);
    assert_eq!(link.sent, [1232, 1472, 8972, 1488]);
    assert_eq!(took, Duration::from_millis(10), "two answers");
    assert!(!link.mtu.too_large(9000, link.now), "known");
    // A link of the own machine becomes narrower under traffic.
    (link.size, link.refused_from) = (1252, 1253);
    assert!(link.mtu.too_large(1472, link.now));
    assert_eq!(link.mtu.current(), BASE_DATAGRAM);
    link.search();
    assert_eq!(link.mtu.current(), 1252);
    assert!(link.mtu.too_large(100, link.now));
    assert_eq!(link.mtu.current(), BASE_DATAGRAM, "there is nothing below");
    assert!(!link.mtu.too_large(100, link.now), "known");
}

#[test]
fn a_peer_that_answers_no_probe_is_asked_ever_more_rarely() {
    let mut link = Link::new(V4, 0);
    link.search();
    assert_eq!((link.mtu.state, link.mtu.current()), (State::Error, BASE_DATAGRAM));
    assert_eq!(link.sent, [BASE_DATAGRAM; MAX_PROBES as usize]);
    link.later(Duration::from_secs(3600));
    assert!(link.sent.len() <= 30, "{} probes", link.sent.len());
    link.size = 1472;
    link.later(LONG_REST * 2);
    assert_eq!(link.mtu.current(), 1472);
}

#[test]
fn strange_tokens_and_very_late_answers_prove_nothing() {
    let mut mtu = Mtu::direct(V4, Time::ZERO);
    mtu.poll(|| 1, Time::ZERO).expect("the base is probed");
    assert!(!mtu.acknowledged(2, Time::ZERO));
    assert_eq!(mtu.state, State::Base);
    mtu.acknowledged(1, Time::ZERO);
    let (size, _) = mtu.poll(|| 3, Time::ZERO).expect("a wider size is probed");
    assert!(!mtu.acknowledged(1, Time::ZERO), "a token counts once");
    assert!(!mtu.acknowledged(3, Time::ZERO + LATE * 2));
    assert!(size > BASE_DATAGRAM && mtu.current() == BASE_DATAGRAM);
}
