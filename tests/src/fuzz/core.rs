//! The whole core behind the wire: what comes from anybody, and what comes
//! from an authenticated peer, which gets much further.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use ed25519_dalek::SigningKey;
use pilot_core::{Config, Core, Event, Input, Output, Permission, Read, StreamId, Time};
use pilot_wire::NodeId;
use pilot_wire::packet::{Flags, HEADER_LEN, Packet, Protocol};
use pilot_wire::tunnel::Frame;

use crate::peer::crypto::{ProcessKey, Session};

pub(super) const CORE: NodeId = NodeId(2);
pub(super) const PEER: NodeId = NodeId(1);
const STREAM_LIMIT: usize = 16;
/// More outputs than one input can cause.
const MAX_OUTPUTS: usize = 20_000;
const STEP: Duration = Duration::from_millis(30);

pub(super) fn endpoint(last: u8) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, last], 4000))
}

/// A core with an application that echoes, and one authenticated peer.
pub(super) struct World {
    pub(super) core: Core,
    pub(super) now: Time,
    buffer: Vec<u8>,
    /// Datagrams that the core has sent and nobody has looked at.
    pub(super) sent: Vec<Vec<u8>>,
    answered: Vec<NodeId>,
    /// Streams that the peer has opened.
    pub(super) streams: Vec<StreamId>,
    reached: Reached,
}

/// How far the packets of a session came.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reached {
    /// Streams opened.
    pub(super) incoming: u32,
    /// Bytes that the application got.
    pub(super) read: usize,
    /// Streams ended.
    pub(super) closed: u32,
    /// Datagrams delivered.
    pub(super) datagrams: u32,
}

impl World {
    fn new() -> Self {
        let config = Config { max_streams: STREAM_LIMIT, ..Config::default() };
        let core = Core::new(config, SigningKey::from_bytes(&[2; 32]), [7; 32]);
        let (now, buffer) = (Time::from_nanos(1), Vec::new());
        let mut world = Self {
            core,
            now,
            buffer,
            sent: Vec::new(),
            answered: Vec::new(),
            streams: Vec::new(),
            reached: Reached::default(),
        };
        world.core.handle(Input::LocalNode(CORE), now);
        world.core.handle(Input::Beacon(Some(endpoint(9))), now);
        let permission = Permission::Trusted;
        world.core.handle(Input::Permission { node: PEER, permission }, now);
        for port in [7, 444, 1001] {
            world.core.listen(port).expect("the port is free");
        }
        world.drain();
        world
    }

    pub(super) fn datagram(&mut self, from: SocketAddr, datagram: &[u8]) {
        let mut data = datagram.to_vec();
        self.core.handle(Input::Datagram { from, data: &mut data }, self.now);
        self.drain();
    }

    pub(super) fn wait(&mut self, time: Duration) {
        self.now = Time::from_nanos(self.now.as_nanos() + time.as_nanos() as u64);
        self.core.handle(Input::Timeout, self.now);
        self.drain();
    }

    pub(super) fn drain(&mut self) {
        let mut buffer = std::mem::take(&mut self.buffer);
        for _ in 0..MAX_OUTPUTS {
            match self.core.poll_output(self.now, &mut buffer) {
                Output::Transmit(transmit) => {
                    assert!(transmit.len <= buffer.len() && transmit.segment > 0);
                    self.sent.extend(
                        buffer[..transmit.len].chunks(transmit.segment).map(<[u8]>::to_vec),
                    );
                }
                Output::Event(event) => self.event(event),
                Output::Wait(deadline) => {
                    assert!(deadline.is_none_or(|at| at > self.now), "a deadline in the past");
                    assert!(self.core.open_streams() <= STREAM_LIMIT);
                    self.buffer = buffer;
                    return;
                }
            }
        }
        panic!("the core never stops having something to do");
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::NeedKey { node } => {
                self.answered.push(node);
                let key = (node == PEER).then(|| identity().verifying_key().to_bytes());
                self.core.handle(Input::IdentityKey { node, key }, self.now);
            }
            Event::NeedEndpoint { node } => {
                let endpoint = (node == PEER).then(|| endpoint(1));
                self.core.handle(Input::Endpoint { node, endpoint }, self.now);
            }
            Event::Readable { stream } => loop {
                match self.core.read(stream, 65_536) {
                    Read::Data(data) => {
                        self.reached.read += data.len();
                        let room = self.core.writable(stream);
                        let fits = data.slice(..data.len().min(room));
                        let _ = self.core.write(stream, fits, self.now);
                    }
                    Read::Blocked => break,
                    Read::End => {
                        self.core.close(stream, self.now);
                        break;
                    }
                }
            },
            Event::Incoming { stream, .. } => {
                self.streams.push(stream);
                self.reached.incoming += 1;
            }
            Event::Closed { .. } => self.reached.closed += 1,
            Event::Datagram { .. } => self.reached.datagrams += 1,
            _ => {}
        }
    }
}

fn identity() -> SigningKey {
    SigningKey::from_bytes(&[1; 32])
}

/// Splits an input into pieces behind a length of two bytes; the last piece
/// may be short.
fn pieces(mut input: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (len, rest) = input.split_first_chunk()?;
        let len = usize::from(u16::from_be_bytes(*len)).min(rest.len());
        let (piece, rest) = rest.split_at(len);
        input = rest;
        Some(piece)
    })
    .take(64)
}

/// Datagrams from a stranger, the beacon and a known peer in turn.
pub(super) fn datagrams(input: &[u8]) {
    let mut world = World::new();
    for (at, piece) in pieces(input).enumerate() {
        let from = [endpoint(1), endpoint(9), endpoint(77)][at % 3];
        world.datagram(from, piece);
        world.wait(STEP);
    }
    world.wait(Duration::from_secs(60));
    // Nobody has shown the identity that the registry knows.
    assert_eq!(world.core.open_streams(), 0);
}

/// Packets from a peer that has proven who it is. Acknowledgement numbers are
/// moved to what the core sends, and checksums made right, so that streams
/// open and live on.
pub(super) fn session(input: &[u8]) {
    play(input);
}

/// A world whose peer has proven who it is, the key of their session, and what
/// seals for it.
pub(super) fn authenticated() -> (World, [u8; 32], Session) {
    let mut world = World::new();
    let key = ProcessKey::from_bytes([3; 32]);
    world.datagram(endpoint(1), &key.auth_frame(PEER, &identity()));
    assert_eq!(world.answered, [PEER], "the core asks for the peer's key");
    let answer = world.sent.drain(..).find_map(|frame| match Frame::parse(&frame) {
        Ok(Frame::AuthKey(auth)) => Some(auth.key),
        _ => None,
    });
    let core_key = answer.expect("the core answers a key exchange");
    let shared = key.session_key(&core_key).expect("not all zero");
    (world, shared, Session::new(shared, core_key, [1; 4]))
}

pub(super) fn play(input: &[u8]) -> Reached {
    let (mut world, shared, mut sealing) = authenticated();
    let mut initial = HashMap::new();
    for piece in pieces(input) {
        if let Some(packet) = follow(piece, &initial) {
            let frame = sealing.seal(PEER, &packet);
            world.datagram(endpoint(1), &frame);
        }
        world.wait(STEP);
        for frame in std::mem::take(&mut world.sent) {
            note_syn_ack(&frame, shared, &mut initial);
        }
    }
    world.wait(Duration::from_secs(200));
    world.reached
}

/// The packet with its acknowledgement counted from the core's SYN-ACK, its
/// length true and its checksum right. `None` for less than a header.
fn follow(piece: &[u8], initial: &HashMap<u16, u32>) -> Option<Vec<u8>> {
    let mut packet = piece.to_vec();
    let header = packet.first_chunk_mut::<HEADER_LEN>()?;
    let payload = u16::try_from(piece.len() - HEADER_LEN).ok()?;
    let port = u16::from_be_bytes([header[16], header[17]]);
    let acks = Flags::from_bits(header[0]).contains(Flags::ACK);
    if let Some(isn) = initial.get(&port).filter(|_| acks) {
        let ack = u32::from_be_bytes([header[24], header[25], header[26], header[27]]);
        header[24..28].copy_from_slice(&ack.wrapping_add(*isn).to_be_bytes());
    }
    header[2..4].copy_from_slice(&payload.to_be_bytes());
    super::targets::packet_checksum(&mut packet);
    Some(packet)
}

fn note_syn_ack(frame: &[u8], key: [u8; 32], initial: &mut HashMap<u16, u32>) {
    let Ok(Frame::Sealed { nonce, .. }) = Frame::parse(frame) else { return };
    let Ok(bytes) = Session::new(key, [0; 32], [0; 4]).open(nonce, frame) else { return };
    let packet = Packet::decode(&bytes).expect("the core seals sound packets");
    assert_eq!(packet.header.source.address.node, CORE);
    assert_eq!(packet.header.destination.address.node, PEER);
    let opens = packet.header.flags.contains(Flags::SYN | Flags::ACK);
    if packet.header.protocol == Protocol::Stream && opens {
        initial.insert(packet.header.destination.port, packet.header.seq);
    }
}
