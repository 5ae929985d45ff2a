//! Both ends of a lane whose other side writes anything anywhere in the shared
//! page. Whatever it does: no panic, no byte beyond what was asked for, and
//! after a fault nothing was moved.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use pilot_lane::{Consumer, Direction, Memory, Producer};
use pilot_wire::ipc::lane::{CAPACITY, Index, filled, parts};

/// Bytes of one step: what to do, then a number.
const STEP: usize = 5;

/// Steps that fill, drain and lie.
pub(super) fn corpus() -> Vec<Vec<u8>> {
    let step = |code: u8, value: u32| {
        let mut bytes = vec![code];
        bytes.extend(value.to_be_bytes());
        bytes
    };
    vec![
        [step(0, 700), step(4, 700), step(1, 100), step(5, 90)].concat(),
        [step(0, CAPACITY), step(2, 0), step(8, CAPACITY + 1), step(0, 1)].concat(),
        [step(9, CAPACITY), step(1, CAPACITY), step(9, u32::MAX), step(1, 9)].concat(),
        [step(10, 1), step(11, u32::MAX), step(0, 5), step(3, 0), step(6, 0), step(7, 0)].concat(),
    ]
}

/// One lane, two ends of ours in it, and a liar.
pub(super) fn rings(input: &[u8]) {
    let Ok((memory, file)) = Memory::create() else { return };
    let memory = Arc::new(memory);
    let mut producer = Producer::new(Arc::clone(&memory), Direction::Down);
    let mut consumer = Consumer::new(memory, Direction::Up);
    for step in input.chunks_exact(STEP).take(64) {
        let Some((&code, number)) = step.split_first() else { return };
        let number = number.try_into().map_or(0, u32::from_be_bytes);
        let len = (number % (2 * CAPACITY)) as usize;
        match code % 13 {
            0 => {
                let room = producer.room();
                let written = producer.write(&vec![code; len]);
                assert_eq!(written, room.map(|room| room.min(len)));
            }
            1 => {
                let there = consumer.available();
                let taken = consumer.take(len).map(|bytes| bytes.len());
                assert_eq!(taken, there.map(|there| there.min(len)));
            }
            2 => assert_eq!(producer.wait().is_err(), producer.room().is_err()),
            3 => assert!(!producer.must_kick() || !producer.must_kick()),
            4 => {
                let mut buffer = vec![0; len];
                let there = consumer.available();
                assert_eq!(consumer.read(&mut buffer), there.map(|there| there.min(len)));
            }
            5 => assert_eq!(consumer.sleep().is_err(), consumer.available().is_err()),
            6 => assert!(!consumer.must_kick() || !consumer.must_kick()),
            7 => pure(number, len as u32),
            8 => lie(&file, Direction::Down, Index::Tail, number),
            9 => lie(&file, Direction::Up, Index::Head, number),
            10 => lie(&file, Direction::Down, Index::Sleeps, number),
            11 => lie(&file, Direction::Up, Index::Waits, number),
            // Our own indices, which nobody may believe in the page.
            _ => {
                lie(&file, Direction::Down, Index::Head, number);
                lie(&file, Direction::Up, Index::Tail, number);
            }
        }
    }
}

fn pure(index: u32, len: u32) {
    let (offset, first, second) = parts(index, len);
    let capacity = CAPACITY as usize;
    assert!(offset + first <= capacity && second <= capacity && first + second <= capacity);
    assert_eq!(filled(index.wrapping_add(len), index).is_ok(), len <= CAPACITY);
}

fn lie(file: &OwnedFd, direction: Direction, index: Index, value: u32) {
    // It cannot fail on a file of our own, and if it did, nothing was lied.
    let _ = rustix::io::pwrite(file, &value.to_ne_bytes(), direction.index(index) as u64);
}
