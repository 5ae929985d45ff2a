//! Both ends of lanes: bytes in order, sleepers woken, liars caught.
#![cfg(target_os = "linux")]

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use pilot_lane::{Consumer, Direction, Memory, Producer};
use pilot_wire::ipc::lane::{CAPACITY, Index, file_len};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

fn pair() -> (Arc<Memory>, Arc<Memory>, OwnedFd) {
    let (ours, file) = Memory::create().unwrap();
    let theirs = Memory::open(&file).unwrap();
    (Arc::new(ours), Arc::new(theirs), file)
}

/// Writes an index like a side that keeps to no rules.
fn lie(file: &OwnedFd, direction: Direction, index: Index, value: u32) {
    rustix::io::pwrite(file, &value.to_ne_bytes(), direction.index(index) as u64).unwrap();
}

fn produce(mut ring: Producer, kick: &Sender<()>, kicked: &Receiver<()>, bytes: &[u8], seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut sent = 0;
    while sent < bytes.len() {
        let end = bytes.len().min(sent + rng.random_range(1..200_000));
        let n = ring.write(&bytes[sent..end]).unwrap();
        sent += n;
        if n > 0 && ring.must_kick() {
            kick.send(()).unwrap();
        }
        if n == 0 && ring.wait().unwrap() {
            // A wake-up that is lost would leave both waiting for ever.
            kicked.recv_timeout(std::time::Duration::from_secs(60)).unwrap();
        }
    }
}

fn consume(mut ring: Consumer, kick: &Sender<()>, kicked: &Receiver<()>, len: usize) -> Vec<u8> {
    let mut got = Vec::new();
    let mut buffer = vec![0; 100_000];
    let mut turn = 0;
    while got.len() < len {
        turn += 1;
        let before = got.len();
        if turn % 2 == 0 {
            got.extend(ring.take(70_000).unwrap());
        } else {
            let n = ring.read(&mut buffer).unwrap();
            got.extend_from_slice(&buffer[..n]);
        }
        if got.len() > before && ring.must_kick() {
            // Gone when it has sent everything.
            let _ = kick.send(());
        }
        if got.len() == before && ring.sleep().unwrap() {
            kicked.recv_timeout(std::time::Duration::from_secs(60)).unwrap();
        }
    }
    got
}

#[test]
fn bytes_cross_in_order_and_every_sleeper_is_woken() {
    for direction in [Direction::Up, Direction::Down] {
        let (ours, theirs, _file) = pair();
        let bytes: Vec<u8> = (0..24u32 << 18).flat_map(|i| i.to_be_bytes()[1..].to_vec()).collect();
        let expected = bytes.clone();
        let (kick_consumer, consumer_kicked) = channel();
        let (kick_producer, producer_kicked) = channel();
        let producer = Producer::new(ours, direction);
        let writer = std::thread::spawn(move || {
            produce(producer, &kick_consumer, &producer_kicked, &bytes, 7);
        });
        let consumer = Consumer::new(theirs, direction);
        let got = consume(consumer, &kick_producer, &consumer_kicked, expected.len());
        writer.join().unwrap();
        assert!(got == expected, "the bytes differ");
    }
}

#[test]
fn the_directions_are_apart() {
    let (ours, theirs, _file) = pair();
    let mut up = Producer::new(Arc::clone(&theirs), Direction::Up);
    let mut down = Producer::new(Arc::clone(&ours), Direction::Down);
    let (full_up, full_down) = (vec![1; CAPACITY as usize], vec![2; CAPACITY as usize]);
    assert_eq!(up.write(&full_up), Ok(CAPACITY as usize));
    assert_eq!(down.write(&full_down), Ok(CAPACITY as usize));
    assert_eq!(up.write(b"more"), Ok(0));
    assert_eq!(Consumer::new(ours, Direction::Up).take(usize::MAX).unwrap(), full_up);
    assert_eq!(Consumer::new(theirs, Direction::Down).take(usize::MAX).unwrap(), full_down);
}

#[test]
fn indices_that_cannot_be_are_faults() {
    let (ours, _theirs, file) = pair();
    let mut consumer = Consumer::new(Arc::clone(&ours), Direction::Up);
    for value in [CAPACITY + 1, u32::MAX, 1 << 31] {
        lie(&file, Direction::Up, Index::Head, value);
        assert!(consumer.available().is_err());
        assert!(consumer.read(&mut [0; 10]).is_err());
        assert!(consumer.take(10).is_err());
        assert!(consumer.sleep().is_err());
        // Nothing to panic about either.
        consumer.must_kick();
    }
    let mut producer = Producer::new(ours, Direction::Down);
    for value in [1, CAPACITY, u32::MAX / 2] {
        lie(&file, Direction::Down, Index::Tail, value);
        assert!(producer.room().is_err());
        assert!(producer.write(b"x").is_err());
        assert!(producer.wait().is_err());
        producer.must_kick();
    }
}

#[test]
fn an_index_can_wrap() {
    let (ours, theirs, _file) = pair();
    let mut producer = Producer::new(ours, Direction::Up);
    let mut consumer = Consumer::new(theirs, Direction::Up);
    let block = vec![3; CAPACITY as usize];
    // A little more than 2^32 bytes.
    for round in 0..(u32::MAX / CAPACITY + 3) {
        assert_eq!(producer.write(&block), Ok(block.len()), "round {round}");
        assert_eq!(consumer.take(usize::MAX).map(|b| b.len()), Ok(block.len()), "round {round}");
    }
}

#[test]
fn the_size_cannot_be_changed_afterwards() {
    let (_ours, _theirs, file) = pair();
    assert!(rustix::fs::ftruncate(&file, 0).is_err());
    assert!(rustix::fs::ftruncate(&file, file_len() as u64 * 2).is_err());
    let seals = rustix::fs::SealFlags::WRITE;
    assert!(rustix::fs::fcntl_add_seals(&file, seals).is_err());
}

#[test]
fn files_that_are_no_lanes_are_refused() {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let open = |len: u64, seals: SealFlags| {
        let file = memfd_create("other", flags).unwrap();
        ftruncate(&file, len).unwrap();
        fcntl_add_seals(&file, seals).unwrap();
        Memory::open(&file).err().map(|e| e.to_string())
    };
    assert_eq!(open(file_len() as u64, SealFlags::SHRINK), None);
    assert!(open(file_len() as u64, SealFlags::GROW).is_some_and(|e| e.contains("not sealed")));
    assert!(open(100, SealFlags::SHRINK).is_some_and(|e| e.contains("100 bytes")));
    let (pipe, _write) = rustix::pipe::pipe().unwrap();
    assert!(Memory::open(&pipe).is_err());
}
