//! Reassembly against the published vectors where a receiver by byte agrees,
//! and against a model that holds every byte.

use proptest::prelude::*;
use serde_json::Value;

use super::*;

const T: Time = Time::ZERO;

fn read_all(side: &mut RecvSide) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(data) = side.read(1000) {
        out.extend_from_slice(&data);
    }
    out
}

/// The published receiver ignores overlapping segments and keeps overtaken
/// ones for ever; those two cases are its faults, and differ here.
#[test]
fn agrees_with_the_published_receiver() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/sack.json");
    let text = std::fs::read_to_string(file).expect("the vectors are there");
    let vectors: Value = serde_json::from_str(&text).expect("JSON");
    let mut compared = 0;
    for case in vectors["receive"].as_array().expect("a list") {
        let name = case["name"].as_str().expect("a name");
        if name.starts_with("resegmented") || name.starts_with("buffered segment overtaken") {
            continue;
        }
        let number = |v: &Value| u32::try_from(v.as_u64().expect("a number")).expect("32 bits");
        let start = number(&case["expected_seq"]);
        let mut side = RecvSide::new(1 << 20, 1 << 20);
        for segment in case["segments"].as_array().expect("a list") {
            let len = number(&segment["len"]) as usize;
            let ahead = number(&segment["seq"]).wrapping_sub(start);
            side.insert(u64::from(ahead), &vec![1; len], false, T);
            let seq = |offset: u64| start.wrapping_add(offset as u32);
            assert_eq!(seq(side.next()), number(&segment["cumulative_ack"]), "{name}");
            let blocks = side.lowest_blocks(4, seq);
            let expected = segment["sack_blocks"].as_array();
            let expected: Vec<_> = expected
                .into_iter()
                .flatten()
                .map(|b| Block { left: number(&b["left"]), right: number(&b["right"]) })
                .collect();
            assert_eq!(blocks.as_slice(), expected, "{name}");
            compared += 1;
        }
    }
    assert!(compared >= 15, "{compared} steps");
}

/// Byte `i` of every test stream.
fn byte(i: u64) -> u8 {
    (i.wrapping_mul(31) ^ i >> 8) as u8
}

fn segment(offset: u64, len: usize) -> Vec<u8> {
    (offset..offset + len as u64).map(byte).collect()
}

#[derive(Clone, Debug)]
enum Op {
    Insert { offset: u64, len: usize },
    Read { max: usize },
    Advertise,
    End,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0u64..6000, 1usize..800).prop_map(|(offset, len)| Op::Insert { offset, len }),
        2 => (1usize..3000).prop_map(|max| Op::Read { max }),
        1 => Just(Op::Advertise),
        1 => Just(Op::End),
    ]
}

const END: u64 = 5000;
const LIMIT: usize = 2500;

proptest! {
    /// Whatever arrives in whatever order, what is read is the stream from its
    /// start, all of it that is in order, and never more than the limit is
    /// held.
    #[test]
    fn delivers_every_byte_once_and_in_order(ops in proptest::collection::vec(op(), 1..150)) {
        let mut side = RecvSide::new(LIMIT, LIMIT);
        let mut held = vec![false; 8000];
        let mut read = 0u64;
        for op in ops {
            match op {
                Op::Insert { offset, len } => {
                    let before = side.next();
                    let edge = side.edge.max(read + LIMIT as u64);
                    let taken = side.insert(offset, &segment(offset, len), false, T);
                    prop_assert_eq!(side.next() - before, taken as u64);
                    let stop = (offset + len as u64).min(edge).min(side.end().unwrap_or(u64::MAX));
                    for i in offset..stop {
                        held[i as usize] = true;
                    }
                }
                Op::Read { max } => {
                    if let Some(data) = side.read(max) {
                        prop_assert!(!data.is_empty() && data.len() <= max);
                        prop_assert_eq!(&data[..], &segment(read, data.len())[..]);
                        read += data.len() as u64;
                    }
                }
                Op::Advertise => {
                    let promised = side.next() + u64::from(side.advertise()) * WINDOW_UNIT;
                    prop_assert!(promised <= side.edge);
                }
                Op::End => side.set_end(END),
            }
            let in_order = held.iter().position(|h| !h).unwrap_or(held.len()) as u64;
            prop_assert_eq!(side.next(), in_order);
            let waiting = usize::try_from(side.next() - read).expect("small");
            prop_assert!(waiting <= LIMIT);
            prop_assert_eq!(side.free(), LIMIT - waiting);
            prop_assert_eq!(side.finished(), side.end().is_some_and(|e| in_order >= e));
            // What is reported out of order is held, and lies beyond the rest.
            let mut last = side.next();
            for b in side.lowest_blocks(32, |o| o as u32).as_slice() {
                prop_assert!(u64::from(b.left) > last && b.left < b.right);
                prop_assert!((b.left..b.right).all(|i| held[i as usize]));
                last = u64::from(b.right);
            }
        }
    }

    /// Every byte sent often enough arrives, however it is cut.
    #[test]
    fn completes_when_everything_was_sent(
        mut cuts in proptest::collection::vec((0u64..2000, 1usize..500), 1..60),
        order in any::<u64>(),
    ) {
        let mut side = RecvSide::new(1 << 20, 1 << 20);
        cuts.extend((0..20).map(|i| (i * 100, 100)));
        let len = cuts.len();
        for i in 0..len {
            cuts.swap(i, (order.rotate_left(i as u32) as usize) % len);
        }
        for (offset, len) in &cuts {
            side.insert(*offset, &segment(*offset, *len), false, T);
        }
        let all = read_all(&mut side);
        prop_assert!(all.len() >= 2000);
        prop_assert_eq!(&all[..], &segment(0, all.len())[..]);
        prop_assert_eq!(side.next(), all.len() as u64);
    }
}

#[test]
fn an_end_beyond_the_window_is_not_believed() {
    let mut side = RecvSide::new(LIMIT, LIMIT);
    side.set_end_within(1 << 30);
    assert_eq!(side.end(), None);
    side.insert(0, &segment(0, 100), false, T);
    side.set_end_within(100);
    assert!(side.finished());
    side.set_end_within(50);
    assert_eq!(side.end(), Some(100), "the first one counts");
}

#[test]
fn the_second_segment_or_the_delay_brings_an_acknowledgement() {
    let mut side = RecvSide::new(LIMIT, LIMIT);
    side.insert(0, &segment(0, 100), false, T);
    assert!(!side.ack_due(T));
    assert_eq!(side.ack_deadline(), Some(T + MAX_ACK_DELAY));
    assert!(side.ack_due(T + MAX_ACK_DELAY));
    side.insert(100, &segment(100, 100), false, T);
    assert!(side.ack_due(T));
    side.ack_sent();
    assert!(!side.ack_due(T + MAX_ACK_DELAY));
    // A repeated segment says that an acknowledgement was lost.
    side.insert(0, &segment(0, 100), false, T);
    assert!(side.ack_due(T));
}

/// A published peer takes a window of zero for none, so a full buffer still
/// takes one segment a second, up to a bound.
#[test]
fn a_full_buffer_takes_a_trickle_of_a_published_peer() {
    let mut side = RecvSide::new(LIMIT, LIMIT);
    let mut now = T;
    let mut offset = 0;
    for _ in 0..10_000 {
        offset += side.insert(offset, &segment(offset, 1000), true, now) as u64;
        now = now + Duration::from_millis(100);
    }
    let bound = LIMIT as u64 + OVERFLOW_LIMIT as u64 + 1000;
    assert!(offset > LIMIT as u64 + 100_000 && offset <= bound, "{offset}");
    assert_eq!(read_all(&mut side), segment(0, index(offset)));
}
