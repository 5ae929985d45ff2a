//! Thousands of mutated frames and packets: no panic, and honest streams never
//! carry a wrong byte.

use std::time::Duration;

use pilot_core::{Config, Event, Input, Permission, Refusal};
use pilot_wire::packet::{Flags, Protocol};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

use crate::net::{Net, address, beacon};
use crate::villain::{Hold, Villain, socket};

const EVIL: u32 = 66;
const MUTATIONS: usize = 20_000;

fn mutate(rng: &mut StdRng, frame: &mut Vec<u8>) {
    for _ in 0..rng.random_range(1..4) {
        let len = frame.len();
        match rng.random_range(0..7) {
            0 if len > 0 => frame[rng.random_range(0..len)] ^= 1 << rng.random_range(0..8),
            1 => frame.truncate(rng.random_range(0..=len)),
            2 => frame.extend((0..rng.random_range(1..40)).map(|_| rng.random::<u8>())),
            // Header fields more often than the rest.
            3 if len > 20 => frame[rng.random_range(4..20)] = rng.random(),
            4 if len > 8 => {
                let at = rng.random_range(0..len - 4);
                rng.fill_bytes(&mut frame[at..at + 4]);
            }
            5 if len > 0 => frame[0] = rng.random_range(0..0x12),
            _ if len > 4 => {
                let magics = [b"PILS", b"PILA", b"PILT", b"PILK", b"PILP", b"\xC1\0\0\x09"];
                frame[..4].copy_from_slice(magics[rng.random_range(0..6)]);
            }
            _ => {}
        }
    }
}

/// From outside: everything that was ever sent, mutated, from many addresses.
#[test]
fn mutated_frames_change_nothing() {
    let mut rng = StdRng::seed_from_u64(20);
    let config = Config { rekey_frames: 300, ..Config::default() };
    let mut net = Net::new(2, &config);
    for node in 0..2 {
        net.handle(node, Input::Beacon(Some(beacon())));
    }
    let pair = net.connect(1, 0, 1000);
    let mut sent = 0;
    while sent < MUTATIONS {
        net.converse(&pair, 60_000, |net| {
            for _ in 0..30 {
                let recorded = net.log[rng.random_range(0..net.log.len())].clone();
                let mut frame = recorded.data;
                mutate(&mut rng, &mut frame);
                let from = match rng.random_range(0..4) {
                    0 => recorded.from,
                    1 => beacon(),
                    2 => recorded.to,
                    _ => address(EVIL),
                };
                net.inject(rng.random_range(0..2), from, &frame);
                sent += 1;
            }
        });
        net.log.drain(..net.log.len().saturating_sub(500));
    }
    let refused: u64 = Refusal::ALL.iter().map(|rule| net.refused(0, *rule)).sum();
    assert!(refused > MUTATIONS as u64 / 4, "{refused} refused");
    assert_eq!(net.path(0, 2).map(|p| p.0), Some(address(2)));
    assert_eq!(net.nodes[0].core.open_streams(), 1);
}

/// From a trusted peer: well-sealed packets with any content, on streams in
/// every state, while an honest peer is served.
#[test]
fn any_packet_of_a_trusted_peer_is_survived() {
    let mut rng = StdRng::seed_from_u64(21);
    let config = Config {
        syn_rate: 100_000,
        syn_rate_per_node: 100_000,
        receive_buffer: 256 << 10,
        ..Config::default()
    };
    let mut net = Net::new(2, &config);
    let pair = net.connect(1, 0, 1000);
    let mut villain = Villain::registered(&mut net, 3);
    net.permit(0, 3, Permission::Trusted);
    villain.meet(&mut net, 0);
    for port in [7, 444] {
        net.nodes[0].core.listen(port).expect("free");
    }
    let mut sent = 0;
    let mut holds: Vec<Hold> = Vec::new();
    while sent < MUTATIONS {
        net.converse(&pair, 30_000, |net| {
            if holds.len() < 8 {
                let source = 10_000 + (sent % 40_000) as u16;
                let port = [7, 444, 1000][rng.random_range(0..3)];
                holds.push(villain.open(net, 0, source, port, rng.random()));
            } else if rng.random_bool(0.1) {
                holds.swap_remove(rng.random_range(0..8));
            }
            for _ in 0..40 {
                random_packet(&mut rng, net, &mut villain, &holds);
                sent += 1;
            }
            misuse(&mut rng, net);
            villain.mail(net);
        });
        net.pass(Duration::from_millis(rng.random_range(0..3000)));
        net.nodes[0].events.retain(|e| matches!(e, Event::Incoming { .. }));
        net.log.clear();
    }
    net.converse(&pair, 30_000, |_| {});
}

fn random_packet(rng: &mut StdRng, net: &mut Net, villain: &mut Villain, holds: &[Hold]) {
    let mut header = holds[rng.random_range(0..holds.len())].header;
    let near = |rng: &mut StdRng| match rng.random_range(0..4) {
        0 => 0,
        1 => rng.random_range(0..20u32).wrapping_sub(10),
        2 => rng.random_range(0..400_000u32).wrapping_sub(200_000),
        _ => rng.random(),
    };
    header.seq = header.seq.wrapping_add(near(rng));
    header.ack = header.ack.wrapping_add(near(rng));
    header.window = rng.random();
    header.flags = Flags::from_bits(match rng.random_range(0..3) {
        0 => rng.random(),
        // Not a reset most of the time, or no stream would live long.
        1 => rng.random::<u8>() & 0b0111,
        _ => Flags::ACK.bits(),
    });
    header.protocol = match rng.random_range(0..6) {
        0 => Protocol::StreamAck,
        1 => Protocol::from_number(rng.random_range(0..8)),
        _ => Protocol::Stream,
    };
    if rng.random_bool(0.02) {
        header.destination = socket(1, rng.random());
    }
    let mut payload = vec![0; [0, 1, 13, 37, 1000][rng.random_range(0..5)]];
    rng.fill_bytes(&mut payload);
    if payload.len() >= 13 && rng.random_bool(0.5) {
        payload[..5].copy_from_slice(b"SACK\x01");
        payload[5..9].copy_from_slice(&header.ack.wrapping_add(near(rng)).to_be_bytes());
        payload[9..13].copy_from_slice(&header.ack.wrapping_add(near(rng)).to_be_bytes());
    }
    villain.send(net, 0, &header, &payload);
}

/// The application on the victim uses what the villain opened.
fn misuse(rng: &mut StdRng, net: &mut Net) {
    let now = net.now;
    let honest = net.nodes[0].core.streams().iter().map(|s| s.id).min();
    for stream in net.nodes[0].core.streams() {
        if Some(stream.id) == honest {
            continue;
        }
        let core = &mut net.nodes[0].core;
        match rng.random_range(0..30) {
            0 => core.close(stream.id, now),
            1 => core.shutdown(stream.id, now),
            2 => core.reset(stream.id),
            3..10 => drop(core.read(stream.id, 1000)),
            10..20 => {
                let data = vec![7; rng.random_range(1..20_000)];
                // Closed meanwhile, or half-closed: both are fine here.
                let _ = core.write(stream.id, data.into(), now);
            }
            _ => {}
        }
    }
    net.drain(0);
}
