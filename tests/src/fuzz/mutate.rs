//! One to eight changes of a known message: flipped, replaced, inserted,
//! deleted, repeated, spliced and cut bytes, and length fields that lie.

use crate::harness::Pattern;

/// Longest input.
const MAX_INPUT: usize = 70_000;
/// Values at which lengths and numbers tend to go wrong.
const EDGES: [u32; 16] =
    [0, 1, 2, 3, 4, 5, 16, 33, 34, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x10_0000, 0x10_0001, 0xFFFF_FFFF];

pub(super) fn mutate(random: &mut Pattern, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = corpus[random.below(corpus.len())].clone();
    for _ in 0..=random.below(8) {
        change(random, corpus, &mut bytes);
    }
    bytes.truncate(MAX_INPUT);
    bytes
}

fn change(random: &mut Pattern, corpus: &[Vec<u8>], bytes: &mut Vec<u8>) {
    let at = random.below(bytes.len() + 1);
    let inside = at < bytes.len();
    match random.below(10) {
        0 | 1 if inside => bytes[at] ^= 1 << random.below(8),
        2 if inside => bytes[at] = byte(random),
        3 => {
            let most = 1 << random.below(8);
            let len = random.below(most);
            let new = random.bytes(len);
            bytes.splice(at..at, new);
        }
        4 if inside => {
            let end = at + random.below((bytes.len() - at).min(64) + 1);
            bytes.drain(at..end);
        }
        5 if inside => {
            let end = at + random.below((bytes.len() - at).min(256) + 1);
            let again = bytes[at..end].to_vec();
            bytes.splice(at..at, again);
        }
        6 => {
            let other = &corpus[random.below(corpus.len())];
            bytes.truncate(at);
            bytes.extend_from_slice(&other[random.below(other.len() + 1)..]);
        }
        7 => bytes.truncate(at),
        _ => length_field(random, bytes, at),
    }
}

/// Overwrites a big-endian number of one, two, four or eight bytes with an
/// edge, with the length of what follows, or with something next to either.
fn length_field(random: &mut Pattern, bytes: &mut [u8], at: usize) {
    let width = 1 << random.below(4);
    let Some(field) = bytes.len().checked_sub(width).map(|last| at.min(last)) else { return };
    let value = match random.below(3) {
        0 => u64::from(EDGES[random.below(EDGES.len())]),
        1 => (bytes.len() - field - width) as u64,
        _ => u64::MAX >> random.below(64),
    };
    let value = match random.below(4) {
        0 => value.wrapping_add(1),
        1 => value.wrapping_sub(1),
        _ => value,
    };
    bytes[field..field + width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
}

fn byte(random: &mut Pattern) -> u8 {
    random.bytes(1)[0]
}
