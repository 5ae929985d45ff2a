//! Bad frames, slow and too many clients: each costs its connection at most.

mod client;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use client::{Client, Identity, PATIENCE, config, eventually, with_registry};
use pilot_registry::Config;
use pilot_wire::registry::append_frame;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};

fn check_serves(addr: SocketAddr, seed: u32) {
    let mut client = Client::connect(addr);
    let key = Identity::new(seed);
    let id = client.register(&key);
    let reply = client.ask(key.signed("heartbeat", id, json!({})));
    assert_eq!(reply["type"], "heartbeat_ok");
    assert_eq!(client.ask(json!({"type": "lookup", "node_id": id}))["public_key"], key.public());
}

fn seeds() -> Vec<Vec<u8>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/registry_requests.json");
    let vectors: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let steps = vectors["steps"].as_array().unwrap();
    steps
        .iter()
        .map(|step| {
            let mut frame = Vec::new();
            append_frame(&mut frame, &step["request"]).unwrap();
            frame
        })
        .collect()
}

fn mutate(frame: &mut Vec<u8>, rng: &mut StdRng) {
    for _ in 0..rng.random_range(1..5) {
        let at = rng.random_range(0..frame.len());
        match rng.random_range(0..5) {
            0 => frame[at] = rng.random(),
            1 => frame[at] ^= 1 << rng.random_range(0..8),
            2 => frame.insert(at, *b"{}[]\",:0e\\".get(rng.random_range(0..10)).unwrap()),
            3 if frame.len() > 1 => drop(frame.remove(at)),
            _ => frame.truncate(at.max(1)),
        }
    }
}

#[test]
fn thousands_of_mutations_do_no_harm() {
    with_registry(config(), |addr| {
        check_serves(addr, 1);
        let seeds = seeds();
        let mut rng = StdRng::seed_from_u64(0x9E61);
        for round in 0..600 {
            let mut stream = TcpStream::connect(addr).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            // Ten per connection, mostly with a length that still fits, so that
            // many bodies are reached. The far end may close at any of them.
            let mut sent = Vec::new();
            for _ in 0..10 {
                let mut frame = seeds[rng.random_range(0..seeds.len())].clone();
                mutate(&mut frame, &mut rng);
                if frame.len() > 4 && round % 3 != 0 {
                    let len = u32::try_from(frame.len() - 4).unwrap();
                    frame[..4].copy_from_slice(&len.to_be_bytes());
                }
                sent.extend(frame);
            }
            let _ = stream.write_all(&sent);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut answers = Vec::new();
            match stream.read_to_end(&mut answers) {
                Ok(_) => {}
                Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset, "{round}"),
            }
        }
        check_serves(addr, 2);
    });
}

#[test]
fn too_long_frames_close_the_connection() {
    with_registry(config(), |addr| {
        let mut client = Client::connect(addr);
        client.stream.write_all(&[0, 0x10, 0, 1]).unwrap();
        assert_eq!(client.receive(), None);
        let mut client = Client::connect(addr);
        let padded = format!("{{\"type\":\"{}\"}}", "x".repeat(1_048_576 - 11));
        assert_eq!(padded.len(), 1_048_576);
        client.send_raw(padded.as_bytes());
        let reply = client.receive().unwrap();
        assert_eq!(reply["code"], "unknown_type");
        check_serves(addr, 1);
    });
}

#[test]
fn idle_and_trickling_connections_are_closed() {
    let config = Config { idle: Duration::from_millis(300), ..config() };
    with_registry(config, |addr| {
        assert_eq!(Client::connect(addr).receive(), None);
        let mut trickle = Client::connect(addr);
        let mut frame = Vec::new();
        append_frame(&mut frame, &"x".repeat(100_000)).unwrap();
        // Half a request keeps nothing open, however often a byte arrives.
        let mut bytes = frame.iter();
        eventually("the trickling connection is closed", || {
            trickle.stream.write_all(&[*bytes.next().unwrap()]).is_err()
        });
    });
}

#[test]
fn connections_are_bounded() {
    let config = Config { max_connections: 2, ..config() };
    with_registry(config, |addr| {
        let mut held: Vec<_> = (1..=2)
            .map(|n| {
                let mut client = Client::connect(addr);
                client.register(&Identity::new(n));
                client
            })
            .collect();
        assert_eq!(Client::connect(addr).receive(), None);
        held.pop();
        eventually("a place is free again", || {
            let mut client = Client::connect(addr);
            let request = json!({"type": "list_networks"}).to_string();
            let mut frame = u32::try_from(request.len()).unwrap().to_be_bytes().to_vec();
            frame.extend(request.as_bytes());
            client.stream.write_all(&frame).is_ok() && client.receive().is_some()
        });
    });
}
