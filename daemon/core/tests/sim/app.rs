//! Applications on both nodes: one dials, both write hashed data, both read to
//! the end.

use std::time::Duration;

use bytes::Bytes;
use pilot_core::{CloseReason, Event, Read, StreamId, Time};
use pilot_wire::Address;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

use crate::world::World;

const PORT: u16 = 1000;

/// What two applications send each other.
#[derive(Clone, Debug)]
pub(crate) struct Transfer {
    pub(crate) bytes: [usize; 2],
    pub(crate) seed: u64,
    /// Largest single write and read.
    pub(crate) piece: usize,
    /// Reads are skipped with this probability per step.
    pub(crate) lazy: f64,
    pub(crate) no_delay: bool,
}

impl Transfer {
    pub(crate) fn random(rng: &mut StdRng) -> Self {
        let size = |rng: &mut StdRng| match rng.random_range(0..4) {
            0 => rng.random_range(0..100),
            1 => rng.random_range(0..10_000),
            _ => rng.random_range(0..120_000),
        };
        Self {
            bytes: [size(rng), size(rng)],
            seed: rng.random(),
            piece: [100, 5_000, 100_000][rng.random_range(0..3)],
            lazy: [0.0, 0.5, 0.9][rng.random_range(0..3)],
            no_delay: rng.random_bool(0.5),
        }
    }

    fn data(&self, from: usize) -> Vec<u8> {
        let mut data = vec![0; self.bytes[from]];
        StdRng::seed_from_u64(self.seed + from as u64).fill_bytes(&mut data);
        data
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Every byte arrived, both ends were told, and the streams are gone.
    Complete,
    /// The stream ended early, and both ends know.
    Broken,
}

struct Side {
    stream: Option<StreamId>,
    to_send: Vec<u8>,
    sent: usize,
    shut: bool,
    expected: Vec<u8>,
    received: usize,
    ended: bool,
    closed: Option<CloseReason>,
    abandoned: bool,
    /// The stream before this one, with what was written to it and whether it
    /// was shut: SYNs may overtake each other.
    earlier: Option<(StreamId, usize, bool)>,
}

impl Side {
    fn done(&self) -> bool {
        self.closed.is_some()
    }
}

/// Runs one transfer to its end. `meddle` is called after every step.
pub(crate) fn run_transfer(
    world: &mut World,
    transfer: &Transfer,
    meddle: &mut dyn FnMut(&mut World),
) -> Outcome {
    let data = [transfer.data(0), transfer.data(1)];
    let mut sides = [0, 1].map(|i| Side {
        stream: None,
        to_send: data[i].clone(),
        sent: 0,
        shut: false,
        expected: data[1 - i].clone(),
        received: 0,
        ended: false,
        closed: None,
        abandoned: false,
        earlier: None,
    });
    let _ = world.nodes[1].core.listen(PORT);
    let target = Address::backbone(world.nodes[1].id).port(PORT);
    let limit = world.now + Duration::from_secs(100_000);
    let restarts = [0, 1].map(|i| world.nodes[i].restarts);
    let mut dials = 0;
    let mut idle = 0;
    loop {
        if sides[0].stream.is_none() && !sides[0].done() {
            dials += 1;
            assert!(dials < 20, "the peer cannot be dialled");
            let _ = world.nodes[1].core.listen(PORT);
            let stream = world.nodes[0].core.dial(target, world.now).expect("dial starts");
            world.nodes[0].core.set_no_delay(stream, transfer.no_delay);
            sides[0].stream = Some(stream);
        }
        world.settle();
        for (i, side) in sides.iter_mut().enumerate() {
            pump(world, i, side, transfer);
        }
        for side in &mut sides {
            // The handle went with the last byte read.
            let whole = side.received == side.expected.len();
            side.ended |= side.closed == Some(CloseReason::Finished) && whole;
        }
        let complete = sides.iter().all(|s| s.ended && s.shut && s.done());
        if complete && world.nodes.iter().all(|n| n.core.open_streams() == 0) {
            let finished = sides.iter().all(|s| s.closed == Some(CloseReason::Finished));
            return if finished { Outcome::Complete } else { Outcome::Broken };
        }
        let gone = |i: usize| world.nodes[i].core.open_streams() == 0;
        let broken = sides.iter().any(|s| s.done() || s.abandoned);
        if broken && gone(0) && gone(1) && !complete {
            return Outcome::Broken;
        }
        if world.step() {
            idle = 0;
        } else {
            // Only a reader that was lazy can make something happen.
            idle += 1;
            assert!(idle < 200, "stalled: nothing will ever happen again");
        }
        meddle(world);
        for (side, (node, before)) in sides.iter_mut().zip(world.nodes.iter().zip(restarts)) {
            if node.restarts != before && !side.done() {
                // Its handle died with it.
                side.closed = Some(CloseReason::Aborted);
                side.stream = None;
            }
        }
        assert!(
            world.now < limit,
            "stalled at {:?}: {:?} {:?}",
            world.now,
            world.nodes[0].core.streams(),
            world.nodes[1].core.streams()
        );
    }
}

fn pump(world: &mut World, i: usize, side: &mut Side, transfer: &Transfer) {
    for event in std::mem::take(&mut world.nodes[i].events) {
        match event {
            Event::Incoming { stream, .. } => {
                // A dial that was given up and repeated: the newest counts,
                // unless data has flowed on the older one.
                if side.received == 0 && !side.done() {
                    side.earlier = side.stream.map(|s| (s, side.sent, side.shut));
                    side.stream = Some(stream);
                    side.sent = 0;
                    side.shut = false;
                    side.ended = false;
                    side.abandoned = false;
                }
                world.nodes[i].core.set_no_delay(stream, transfer.no_delay);
            }
            Event::DialFailed { .. } if side.stream.is_some() => {
                side.stream = None;
                side.sent = 0;
                side.shut = false;
            }
            // The dialler gave this one up before it heard of it: it dials again.
            Event::Closed { stream, reason: CloseReason::Reset }
                if i == 1 && Some(stream) == side.stream && side.received == 0 =>
            {
                let alive = core_streams(world, i);
                let earlier = side.earlier.take().filter(|(s, ..)| alive.contains(s));
                side.abandoned = earlier.is_none();
                side.stream = earlier.map(|(stream, ..)| stream);
                (side.sent, side.shut) = earlier.map_or((0, false), |(_, sent, shut)| (sent, shut));
            }
            Event::Closed { stream, reason } if Some(stream) == side.stream => {
                side.closed = Some(reason);
            }
            _ => {}
        }
    }
    let Some(stream) = side.stream else { return };
    let core = &mut world.nodes[i].core;
    while side.sent < side.to_send.len() {
        let room = core.writable(stream).min(transfer.piece).min(side.to_send.len() - side.sent);
        let piece = Bytes::copy_from_slice(&side.to_send[side.sent..side.sent + room]);
        if room == 0 || core.write(stream, piece, world.now).is_err() {
            break;
        }
        side.sent += room;
    }
    if side.sent == side.to_send.len() && !side.shut {
        side.shut = true;
        core.shutdown(stream, world.now);
    }
    if world.rng.random_bool(transfer.lazy) {
        return;
    }
    while !side.ended {
        match core.read(stream, transfer.piece) {
            Read::Data(data) => {
                let expected = &side.expected[side.received..];
                assert!(expected.starts_with(&data), "wrong bytes at {}", side.received);
                side.received += data.len();
            }
            Read::Blocked => break,
            Read::End => {
                side.ended = side.received == side.expected.len();
                // A short end is only told by a handle that is gone.
                let alive = core.streams().iter().any(|s| s.id == stream);
                let short = !side.ended && side.closed.is_none_or(|r| r == CloseReason::Finished);
                assert!(!(short && alive), "the stream ended early at {}", side.received);
                break;
            }
        }
    }
}

fn core_streams(world: &World, i: usize) -> Vec<StreamId> {
    world.nodes[i].core.streams().iter().map(|s| s.id).collect()
}

/// Opens one stream from node 0 to node 1.
pub(crate) fn connect(world: &mut World, port: u16) -> Option<(StreamId, StreamId)> {
    connect_pair(world, 0, port)
}

/// Opens one stream from node `left` to its peer.
pub(crate) fn connect_pair(
    world: &mut World,
    left: usize,
    port: u16,
) -> Option<(StreamId, StreamId)> {
    let right = left + 1;
    world.nodes[right].core.listen(port).ok()?;
    let target = Address::backbone(world.nodes[right].id).port(port);
    let a = world.nodes[left].core.dial(target, world.now).ok()?;
    let limit = world.now + Duration::from_secs(60);
    let b = run_until(world, limit, |w| {
        w.nodes[right].events.iter().find_map(|e| match e {
            Event::Incoming { stream, .. } => Some(*stream),
            _ => None,
        })
    })?;
    run_until(world, limit, |w| {
        w.nodes[left].events.contains(&Event::Connected { stream: a }).then_some(())
    })?;
    Some((a, b))
}

pub(crate) fn closed(world: &World, i: usize, stream: StreamId) -> Option<CloseReason> {
    world.nodes[i].events.iter().find_map(|e| match e {
        Event::Closed { stream: s, reason } if *s == stream => Some(*reason),
        _ => None,
    })
}

/// Steps until `wanted` gives something or `limit` is reached.
pub(crate) fn run_until<T>(
    world: &mut World,
    limit: Time,
    wanted: impl Fn(&World) -> Option<T>,
) -> Option<T> {
    while world.now < limit {
        world.settle();
        if let Some(found) = wanted(world) {
            return Some(found);
        }
        if !world.step() {
            return None;
        }
    }
    None
}
