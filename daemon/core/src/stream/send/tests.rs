//! The scoreboard against random acknowledgements.

use proptest::prelude::*;

use super::*;

fn byte(i: u64) -> u8 {
    (i.wrapping_mul(131) ^ i >> 7) as u8
}

fn stretch(from: u64, len: usize) -> Vec<u8> {
    (from..from + len as u64).map(byte).collect()
}

/// What must hold at any moment.
fn check(side: &SendSide) {
    let mut sums = [0; 3];
    let mut at = side.una;
    for segment in &side.segments {
        assert_eq!(segment.start, at, "segments are contiguous");
        assert!(segment.len > 0);
        at = segment.end();
        sums[match segment.fate {
            Fate::InFlight => 0,
            Fate::Sacked => 1,
            Fate::Lost => 2,
        }] += segment.len as usize;
    }
    assert_eq!(at, side.next, "they cover what was sent");
    assert_eq!(sums, [side.in_flight, side.sacked, side.lost]);
    let sacked = side.segments.iter().filter(|s| s.fate == Fate::Sacked).count();
    assert_eq!(sacked, side.sacked_segments);
    let mut times: Vec<_> = side.by_time.iter().copied().collect();
    assert!(times.is_sorted_by_key(|t| t.0), "in the order of sending");
    times.sort_unstable();
    for s in side.segments.iter().filter(|s| s.fate == Fate::InFlight) {
        assert!(times.binary_search(&(s.sent, s.start)).is_ok(), "every transmission is known");
    }
    assert!(side.una <= side.next && side.next <= side.end);
    // Everything not acknowledged can be sent, again or for the first time.
    let mut out = vec![0; side.buffered()];
    side.copy(side.una, &mut out);
    assert_eq!(out, stretch(side.una, out.len()));
}

#[derive(Clone, Debug)]
enum Op {
    Write(usize),
    Send(usize),
    Resend,
    ResendTail,
    /// Parts of 256 between acknowledged and sent.
    Ack(u8),
    Sack(u8, u8),
    Detect,
    LoseAll,
    Unlose,
    LoseFirst,
    Recut(usize),
    Pass(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (1usize..9000).prop_map(Op::Write),
        8 => (1usize..2000).prop_map(Op::Send),
        4 => Just(Op::Resend),
        1 => Just(Op::ResendTail),
        4 => any::<u8>().prop_map(Op::Ack),
        4 => (any::<u8>(), any::<u8>()).prop_map(|(a, b)| Op::Sack(a.min(b), a.max(b))),
        2 => Just(Op::Detect),
        1 => Just(Op::LoseAll),
        1 => Just(Op::Unlose),
        1 => Just(Op::LoseFirst),
        1 => (100usize..2000).prop_map(Op::Recut),
        3 => (1u64..50).prop_map(Op::Pass),
    ]
}

proptest! {
    #[test]
    fn the_totals_are_those_of_the_segments(ops in proptest::collection::vec(op(), 1..200)) {
        let mut side = SendSide::default();
        let mut rtt = Rtt::default();
        let mut now = Time::ZERO;
        for op in ops {
            let part = |p: u8| side.una + (side.next - side.una) * u64::from(p) / 255;
            match op {
                Op::Write(len) => side.write(Bytes::from(stretch(side.end, len))),
                Op::Send(max) => {
                    let len = index(side.end - side.next).min(max);
                    if len > 0 {
                        side.sent(Span { offset: side.next, len, again: false, small: false }, now);
                    }
                }
                Op::Resend => {
                    if let Some(span) = side.next_lost() {
                        prop_assert!(span.again);
                        let lost = side.lost;
                        side.sent(span, now);
                        prop_assert_eq!(side.lost, lost - span.len);
                    } else {
                        prop_assert_eq!(side.lost, 0);
                    }
                }
                Op::ResendTail => {
                    if let Some(span) = side.last_in_flight() {
                        side.sent(span, now);
                    }
                }
                Op::Ack(p) => {
                    let ack = part(p);
                    let freed = index(ack - side.una);
                    let acked = side.acknowledge(ack, rtt.min(), now);
                    prop_assert_eq!(acked.freed, freed);
                    if let Some(sample) = acked.rtt {
                        rtt.sample(sample);
                    }
                }
                Op::Sack(l, r) => {
                    let range = (part(l), part(r));
                    let before = side.sacked;
                    let mut acked = Acked::default();
                    side.sack(range, rtt.min(), now, &mut acked);
                    prop_assert_eq!(side.sacked, before + acked.delivered);
                    let inside = |s: &&Segment| s.start >= range.0 && s.end() <= range.1;
                    let mut covered = side.segments.iter().filter(inside);
                    prop_assert!(covered.all(|s| s.fate == Fate::Sacked));
                }
                Op::Detect => {
                    let before = side.lost;
                    let newly = side.detect_losses(&rtt, false, now);
                    prop_assert_eq!(side.lost, before + newly);
                }
                Op::LoseAll => {
                    let in_flight = side.in_flight;
                    prop_assert_eq!(side.lose_all(), in_flight);
                }
                Op::Unlose => {
                    let (in_flight, lost) = (side.in_flight, side.lost);
                    side.unlose();
                    prop_assert_eq!((side.in_flight, side.lost), (in_flight + lost, 0));
                }
                Op::LoseFirst => {
                    let lost = side.lost;
                    let newly = side.lose_first();
                    prop_assert_eq!(side.lost, lost + newly);
                }
                Op::Recut(max) => {
                    side.recut(max);
                    prop_assert!(side.segments.iter().all(|s| s.len as usize <= max));
                }
                Op::Pass(ms) => now = now + Duration::from_millis(ms),
            }
            check(&side);
        }
        // Everything that was written can be brought to its end.
        while side.next < side.end {
            let len = index(side.end - side.next).min(1000);
            side.sent(Span { offset: side.next, len, again: false, small: false }, now);
        }
        let _ = side.acknowledge(side.end, None, now);
        check(&side);
        prop_assert!(side.all_acked());
        prop_assert_eq!((side.segments(), side.in_flight(), side.buffered()), (0, 0, 0));
    }
}

/// RACK: a segment sent well before one that arrived is lost; one sent just
/// before it may only be late.
#[test]
fn a_segment_is_lost_once_a_later_one_arrived_long_enough_ago() {
    let ms = Duration::from_millis;
    let mut side = SendSide::default();
    let mut rtt = Rtt::default();
    rtt.sample(ms(40));
    side.write(Bytes::from(stretch(0, 3000)));
    for n in 0..3 {
        side.sent(
            Span { offset: n * 1000, len: 1000, again: false, small: false },
            Time::ZERO + ms(n),
        );
    }
    let mut acked = Acked::default();
    let now = Time::ZERO + ms(42);
    side.sack((2000, 3000), rtt.min(), now, &mut acked);
    assert_eq!(acked.rtt, Some(ms(40)));
    assert_eq!(side.detect_losses(&rtt, false, now), 0, "within the reordering window");
    let deadline = side.reordering_deadline().expect("to be looked at again");
    assert_eq!(deadline, Time::ZERO + ms(50), "a quarter of the least round trip later");
    assert_eq!(side.detect_losses(&rtt, false, deadline), 1000);
    assert_eq!(side.detect_losses(&rtt, false, deadline + ms(1)), 1000);
    assert_eq!(side.next_lost(), Some(Span { offset: 0, len: 1000, again: true, small: false }));
}

/// A sample from a repeated segment would be ambiguous (Karn's algorithm).
#[test]
fn a_repeated_segment_gives_no_sample() {
    let mut side = SendSide::default();
    side.write(Bytes::from(stretch(0, 1000)));
    side.sent(Span { offset: 0, len: 1000, again: false, small: false }, Time::ZERO);
    side.lose_all();
    let later = Time::ZERO + Duration::from_secs(1);
    let again = side.next_lost().expect("lost");
    side.sent(again, later);
    let acked = side.acknowledge(1000, None, later + Duration::from_millis(5));
    assert_eq!(acked.rtt, None);
    assert_eq!(acked.delivered, 1000);
}
