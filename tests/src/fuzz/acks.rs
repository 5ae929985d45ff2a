//! A stream of the core with data under way, and a peer that acknowledges it in
//! any way: ranges, double receipts, windows, late or never, sound or not.

use std::time::Duration;

use bytes::Bytes;
use pilot_core::{CongestionControl, StreamInfo};
use pilot_wire::Address;
use pilot_wire::options::Options;
use pilot_wire::packet::{Flags, Header, Packet, Protocol};
use pilot_wire::sack::{Block, Blocks};
use pilot_wire::tunnel::Frame;

use super::core::{CORE, PEER, World, authenticated, endpoint};
use crate::peer::crypto::Session;

/// What the core has to send.
const LEN: u32 = 100_000;
/// Bytes of one thing that the peer does.
const STEP: usize = 4;
/// At most this many, each followed by at most half a second: below what makes
/// a stream give up.
const STEPS: usize = 64;
const TICK: Duration = Duration::from_millis(2);
/// Then the peer acknowledges everything that comes, and this often is enough.
const ROUNDS: usize = 3000;
const ROUND: Duration = Duration::from_millis(100);
/// First sequence number of the peer: its numbers wrap early.
const FIRST: u32 = u32::MAX - 1;

/// The peer's end of the stream.
struct Peer {
    world: World,
    shared: [u8; 32],
    sealing: Session,
    /// Sequence number of the core's first byte.
    base: u32,
    /// Bytes acknowledged, and the most that the core has sent.
    una: u32,
    sent: u32,
    window: u16,
}

impl Peer {
    fn new(kind: CongestionControl) -> Self {
        let (world, shared, sealing) = authenticated();
        let mut peer = Self { world, shared, sealing, base: 0, una: 0, sent: 0, window: 64 };
        let mut options = Vec::new();
        let offer = Options {
            compact: false,
            max_segment: Some(u16::MAX),
            stream_ack: true,
            half_close: true,
            byte_window: true,
        };
        offer.encode(&mut options);
        peer.send(Flags::SYN, Protocol::Stream, FIRST, 0, &options);
        peer.look();
        peer.world.wait(TICK);
        peer.acknowledge(0, &[]);
        let stream = *peer.world.streams.first().expect("the stream is open");
        peer.world.core.set_congestion(stream, kind);
        let (data, now) = (Bytes::from(vec![5; LEN as usize]), peer.world.now);
        peer.world.core.write(stream, data, now).expect("there is room");
        peer.world.drain();
        peer.look();
        peer
    }

    fn send(&mut self, flags: Flags, protocol: Protocol, seq: u32, ack: u32, payload: &[u8]) {
        let header = Header {
            flags,
            protocol,
            source: Address::backbone(PEER).port(3000),
            destination: Address::backbone(CORE).port(1001),
            seq,
            ack,
            window: self.window,
        };
        let frame = self.sealing.seal(PEER, &header.to_packet(payload));
        self.world.datagram(endpoint(1), &frame);
    }

    /// Acknowledges what is before `ack` and reports `ranges`, in offsets.
    fn acknowledge(&mut self, ack: u32, ranges: &[(u32, u32)]) {
        let mut blocks = Blocks::default();
        for (left, right) in ranges {
            let number = |offset: &u32| self.base.wrapping_add(*offset);
            blocks.push(Block { left: number(left), right: number(right) });
        }
        let mut payload = Vec::new();
        blocks.encode(&mut payload);
        let (seq, ack) = (FIRST.wrapping_add(1), self.base.wrapping_add(ack));
        self.send(Flags::ACK, Protocol::StreamAck, seq, ack, &payload);
        self.look();
    }

    /// Looks at what the core has sent.
    fn look(&mut self) {
        for frame in std::mem::take(&mut self.world.sent) {
            let Ok(Frame::Sealed { nonce, .. }) = Frame::parse(&frame) else { continue };
            // A session of its own: the window against replay is not what is
            // tried here.
            let mut opening = Session::new(self.shared, [0; 32], [0; 4]);
            let Ok(bytes) = opening.open(nonce, &frame) else { continue };
            let packet = Packet::decode(&bytes).expect("the core seals sound packets");
            let header = packet.header;
            if header.flags.contains(Flags::SYN | Flags::ACK) {
                self.base = header.seq.wrapping_add(1);
            } else if header.protocol == Protocol::Stream && !packet.payload.is_empty() {
                let end = header.seq.wrapping_sub(self.base) as usize + packet.payload.len();
                assert!(end <= LEN as usize, "the core sends what was not written");
                self.sent = self.sent.max(u32::try_from(end).unwrap_or(LEN));
            }
        }
    }

    fn info(&self) -> StreamInfo {
        let info = self.world.core.streams().into_iter().next().expect("the stream lives on");
        let out = (self.sent - self.una) as usize;
        assert!(info.in_flight <= out, "{} of {out} bytes in flight", info.in_flight);
        assert!(info.cong_win > 0, "a window of nothing");
        info
    }

    fn step(&mut self, [kind, a, b, c]: [u8; STEP]) {
        let [x, y, z] = [a, b, c].map(u32::from);
        let (una, sent) = (self.una, self.sent);
        match kind % 8 {
            0 => {
                self.una = (una + x * 64).min(sent);
                self.acknowledge(self.una, &[]);
            }
            1 => {
                self.una = (una + (sent - una) * x / 255).min(sent);
                self.acknowledge(self.una, &[]);
            }
            2 => {
                let ranges = |n: u32| (una + (n + 1) * x * 64, una + (n + 1) * x * 64 + y * 32);
                let all: Vec<_> = (0..=z % 8).map(ranges).collect();
                self.acknowledge(una, &all);
            }
            3 => {
                let hole = una + (sent - una) * x / 255;
                self.acknowledge(una, &[(hole, sent)]);
            }
            4 => {
                let left = una.saturating_sub(x * 64);
                self.acknowledge(una, &[(left, (left + y * 32).min(una))]);
            }
            5 => {
                // The first lies inside the second: received twice.
                let left = una + x * 64;
                self.acknowledge(una, &[(left, left + y * 32), (left, sent.max(left))]);
            }
            6 => {
                let wild = |n: u32| n.wrapping_mul(0x0101_0101);
                // Not beyond what was sent: that would be a sound one.
                let ack = una.wrapping_sub(wild(x));
                self.acknowledge(ack, &[(wild(y), wild(z)), (wild(z), wild(x))]);
                self.una = una.max(if ack <= sent { ack } else { 0 });
            }
            _ => self.window = u16::from(a),
        }
        self.world.wait(TICK * u32::from(c));
        self.look();
    }
}

pub(super) fn acknowledgements(input: &[u8]) {
    play(input);
}

/// Plays what the input says, and then a peer that acknowledges everything:
/// whatever went before, the data gets through.
pub(super) fn play(input: &[u8]) -> StreamInfo {
    use CongestionControl::{Bbr, Cubic, NewReno};
    let (first, steps) = input.split_first().unwrap_or((&0, &[]));
    let mut peer = Peer::new([Cubic, NewReno, Bbr][usize::from(first % 3)]);
    for step in steps.as_chunks::<STEP>().0.iter().take(STEPS) {
        peer.step(*step);
        peer.info();
    }
    peer.window = 64;
    for _ in 0..ROUNDS {
        peer.una = peer.sent;
        peer.acknowledge(peer.una, &[]);
        if peer.una == LEN {
            return peer.info();
        }
        peer.world.wait(ROUND);
        peer.look();
    }
    panic!("stalled after {} of {LEN} bytes: {:?}", peer.una, peer.info());
}

/// Ordinary sequences, for each controller.
pub(super) fn corpus() -> Vec<Vec<u8>> {
    // Acknowledged in pieces; a hole that is filled; a hole, its repair and the
    // news that both came; everything late; a closed window that opens.
    let sequences: [&[[u8; STEP]]; 5] = [
        &[[0, 20, 0, 10], [1, 128, 0, 10], [1, 255, 0, 10], [1, 255, 0, 10]],
        &[[3, 64, 0, 10], [3, 32, 0, 20], [1, 255, 0, 10], [2, 20, 40, 10]],
        &[[3, 64, 0, 10], [3, 30, 0, 10], [1, 255, 0, 5], [4, 255, 255, 5], [4, 40, 40, 5]],
        &[[0, 0, 0, 255], [0, 0, 0, 255], [1, 255, 0, 0], [1, 255, 0, 10]],
        &[[7, 0, 0, 0], [1, 255, 0, 200], [7, 9, 0, 0], [5, 4, 20, 10], [6, 1, 2, 3]],
    ];
    let mut all = Vec::new();
    for kind in 0..3 {
        for sequence in sequences {
            let mut input = vec![kind];
            input.extend(sequence.iter().flatten());
            all.push(input);
        }
    }
    all
}
