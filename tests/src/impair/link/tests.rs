//! What a link does, in virtual time.

use super::*;

const MS: Duration = Duration::from_millis(1);
/// Payload of a full packet.
const FULL: usize = 1500 - HEADERS;

fn drain(link: &mut Link<u64>, until: Duration) -> Vec<(Duration, u64)> {
    std::iter::from_fn(|| link.poll(until)).collect()
}

/// Offers full packets at `interval`; those that come out.
fn offered(link: &mut Link<u64>, interval: Duration, count: u32) -> Vec<(Duration, u64)> {
    let mut out = Vec::new();
    for n in 0..count {
        out.extend(drain(link, interval * n));
        let _ = link.offer(interval * n, FULL, n.into());
    }
    out.extend(drain(link, Duration::MAX));
    out
}

#[test]
fn a_bottleneck_lets_its_rate_through_and_no_more() {
    let profile = Profile { rate: Some(100_000_000), delay: 10 * MS, ..Profile::default() };
    let mut link = Link::new(profile, 1);
    // Twice the rate for ten seconds.
    let out = offered(&mut link, Duration::from_micros(60), 166_667);
    let span = (out.last().unwrap().0 - out[0].0).as_secs_f64();
    let rate = (out.len() - 1) as f64 * 1500.0 * 8.0 / span;
    assert!((rate / 100e6 - 1.0).abs() < 1e-6, "{rate}");
    // Ten seconds of packets, and at the end a queue of 20 ms.
    assert!((83_400..83_600).contains(&out.len()), "{}", out.len());
}

#[test]
fn an_idle_path_adds_transmission_and_delay() {
    let profile = Profile { rate: Some(12_000_000), delay: 50 * MS, ..Profile::default() };
    let mut link = Link::new(profile, 1);
    assert_eq!(link.offer(Duration::ZERO, FULL, 0), Ok(51 * MS));
    assert_eq!(link.offer(10 * MS, FULL, 1), Ok(61 * MS));
    // Headers count: 28 of 1500 bytes.
    assert_eq!(link.offer(20 * MS, 1500 / 2 - HEADERS, 2), Ok(70 * MS + MS / 2));
    assert_eq!(link.next_due(), Some(51 * MS));
    assert_eq!(link.poll(51 * MS - Duration::from_nanos(1)), None);
    assert_eq!(link.poll(51 * MS), Some((51 * MS, 0)));
    assert_eq!(link.poll(51 * MS), None);
}

#[test]
fn a_full_queue_drops_the_newest() {
    // A packet takes 1 ms; room for three.
    let profile =
        Profile { rate: Some(12_000_000), queue: Queue::Bytes(4500), ..Profile::default() };
    let mut link = Link::new(profile, 1);
    let fates: Vec<_> = (0..5).map(|n| link.offer(Duration::ZERO, FULL, n)).collect();
    let full = Err(Dropped::QueueFull);
    assert_eq!(fates, [Ok(MS), Ok(2 * MS), Ok(3 * MS), full, full]);
    assert_eq!(link.backlog(Duration::ZERO), 4500);
    // A smaller one finds room once that much has left.
    assert_eq!(link.offer(MS / 2, 750 - HEADERS, 5), Ok(3 * MS + MS / 2));
    assert_eq!(link.offer(MS, FULL, 6), full);
    assert_eq!(link.counters().queue_full, 3);
    assert_eq!(link.counters().longest_queue, 4500);
}

#[test]
fn a_queue_smaller_than_a_packet_still_lets_an_idle_link_send() {
    let profile = Profile { rate: Some(12_000_000), queue: Queue::Bytes(0), ..Profile::default() };
    let mut link = Link::new(profile, 1);
    assert_eq!(link.offer(Duration::ZERO, FULL, 0), Ok(MS));
    assert_eq!(link.offer(Duration::ZERO, FULL, 1), Err(Dropped::QueueFull));
    assert_eq!(link.offer(MS, FULL, 2), Ok(2 * MS));
}

#[test]
fn one_bdp_is_rate_times_round_trip() {
    let profile = Profile::path(100_000_000, Duration::from_millis(20), 0.0);
    assert_eq!((profile.delay, profile.queue_bytes()), (10 * MS, 250_000));
    let half = Profile { queue: Queue::Bdp(0.5), ..profile };
    assert_eq!(half.queue_bytes(), 125_000);
    let none = Profile { delay: Duration::ZERO, ..profile };
    assert_eq!(none.queue_bytes(), 3000);
}

#[test]
fn loss_hits_its_share_and_uses_the_bottleneck() {
    let profile = Profile { rate: Some(12_000_000), loss: 0.03, ..Profile::default() };
    let mut link = Link::new(profile, 7);
    let out = offered(&mut link, MS, 100_000);
    let lost = link.counters().lost as f64 / 100_000.0;
    assert!((0.028..0.032).contains(&lost), "{lost}");
    assert_eq!(out.len() as u64 + link.counters().lost, 100_000);
    // Every one leaves where its turn was, lost ones before it or not.
    assert!(out.iter().all(|(at, n)| *at == MS * u32::try_from(*n + 1).unwrap()));
}

#[test]
fn packets_beyond_the_mtu_vanish() {
    let mut link = Link::new(Profile::default(), 1);
    assert!(link.offer(Duration::ZERO, FULL, 0).is_ok());
    assert_eq!(link.offer(Duration::ZERO, FULL + 1, 1), Err(Dropped::TooLarge));
    link.set_profile(Profile { mtu: 1280, ..Profile::default() });
    assert_eq!(link.offer(Duration::ZERO, FULL, 2), Err(Dropped::TooLarge));
    assert!(link.offer(Duration::ZERO, 1252, 3).is_ok());
    assert_eq!(link.counters().too_large, 2);
    assert_eq!(drain(&mut link, Duration::MAX).len(), 2);
}

#[test]
fn jitter_spreads_and_keeps_order() {
    let profile = Profile { delay: 50 * MS, jitter: 5 * MS, ..Profile::default() };
    let mut link = Link::new(profile, 3);
    let out = offered(&mut link, 20 * MS, 10_000);
    assert!(out.iter().enumerate().all(|(i, (_, n))| i as u64 == *n));
    let delays = out.iter().map(|(at, n)| *at - 20 * MS * u32::try_from(*n).unwrap());
    let (low, high) = (delays.clone().min().unwrap(), delays.clone().max().unwrap());
    assert!(low >= 45 * MS && low < 46 * MS, "{low:?}");
    assert!(high <= 55 * MS && high > 54 * MS, "{high:?}");
    let mean = delays.sum::<Duration>() / 10_000;
    assert!(mean > 49 * MS && mean < 51 * MS, "{mean:?}");
    // Closer together than the jitter they may not overtake.
    let mut link = Link::new(profile, 3);
    let out = offered(&mut link, MS / 10, 10_000);
    assert!(out.iter().enumerate().all(|(i, (_, n))| i as u64 == *n));
}

#[test]
fn reordered_datagrams_are_overtaken() {
    let profile = Profile { delay: 40 * MS, reorder: 0.02, ..Profile::default() };
    let mut link = Link::new(profile, 5);
    let out = offered(&mut link, MS, 10_000);
    let late = link.counters().reordered;
    assert!((150..250).contains(&late), "{late}");
    assert_eq!(out.len(), 10_000);
    let by = |(at, n): &(Duration, u64)| *at - MS * u32::try_from(*n).unwrap();
    assert_eq!(out.iter().filter(|o| by(o) == 50 * MS).count() as u64, late);
    assert!(out.iter().all(|o| by(o) == 50 * MS || by(o) == 40 * MS));
    assert!(out.windows(2).any(|w| w[0].1 > w[1].1));
}

#[test]
fn duplicates_come_out_twice() {
    let mut link = Link::new(Profile { duplicate: 0.01, ..Profile::default() }, 5);
    let out = offered(&mut link, MS, 10_000);
    let copies = link.counters().duplicated;
    assert!((60..140).contains(&copies), "{copies}");
    assert_eq!(out.len() as u64, 10_000 + copies);
    assert_eq!(link.counters().delivered, 10_000 + copies);
}

#[test]
fn the_same_seed_gives_the_same_outcome_and_another_another() {
    let profile = Profile {
        jitter: MS,
        loss: 0.1,
        reorder: 0.1,
        duplicate: 0.1,
        ..Profile::path(10_000_000, 20 * MS, 0.1)
    };
    let run = |seed| offered(&mut Link::new(profile, seed), MS, 2000);
    assert_eq!(run(9), run(9));
    assert_ne!(run(9), run(10));
    // Another share for one chance leaves what the other hits alone.
    let lost = |reorder| {
        let mut link = Link::new(Profile { reorder, ..profile }, 9);
        (0..2000u64)
            .filter(|n| {
                let at = 2 * MS * u32::try_from(*n).unwrap();
                link.offer(at, FULL, *n) == Err(Dropped::Lost)
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(lost(0.0), lost(0.5));
}

#[test]
fn what_a_link_holds_is_bounded() {
    let profile = Profile { delay: Duration::from_secs(60), ..Profile::default() };
    let mut link = Link::new(profile, 1);
    for n in 0..200_000 {
        let _ = link.offer(Duration::ZERO, FULL, n);
    }
    let counters = link.counters();
    assert!(counters.queue_full > 100_000, "{counters:?}");
    assert!(link.held_bytes <= HELD_BYTES);
    let mut link = Link::new(profile, 1);
    for n in 0..200_000 {
        let _ = link.offer(Duration::ZERO, 0, n);
    }
    assert!(link.held.len() <= HELD_DATAGRAMS);
    assert_eq!(drain(&mut link, Duration::MAX).len(), HELD_DATAGRAMS - 1);
    assert_eq!(link.held_bytes, 0);
}

#[test]
fn time_does_not_run_backwards() {
    let mut link = Link::new(Profile { delay: MS, ..Profile::default() }, 1);
    assert_eq!(link.offer(10 * MS, FULL, 0), Ok(11 * MS));
    assert_eq!(link.offer(9 * MS, FULL, 1), Ok(11 * MS));
    assert_eq!(drain(&mut link, Duration::MAX), [(11 * MS, 0), (11 * MS, 1)]);
}
