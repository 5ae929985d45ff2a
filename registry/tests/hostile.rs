//! Bad frames, slow and too many clients: each costs its connection at most.

mod client;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use client::{Client, Identity, PATIENCE, Program, config, eventually, with_registry};
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

/// Resident memory of a process, in bytes.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[cfg(target_os = "linux")]
#[test]
fn many_idle_connections_cost_little_each() {
    // As many as both processes may have files for, which the registry says.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    let count = limit.maximum.unwrap_or(u64::MAX).saturating_sub(600).min(20_000);
    let args = ["-addr", "127.0.0.1:0", "-register-rate", "0"];
    let program = Program::start(env!("CARGO_BIN_EXE_pilot-registry"), &args);
    let addr = program.addr("addr");
    check_serves(addr, 1);
    let before = resident(program.child.id());
    let lookup = json!({"type": "lookup", "node_id": 1});
    let mut idle: Vec<_> = (0..count)
        .map(|n| {
            let mut client = Client::connect(addr);
            // Some have spoken, some have not, and some are in the middle of it.
            match n % 4 {
                0 => assert_eq!(client.ask(lookup.clone())["type"], "lookup_ok"),
                1 => client.stream.write_all(&[0, 0, 1]).unwrap(),
                2 => client.stream.write_all(&[0, 0, 0, 200, b'{']).unwrap(),
                _ => {}
            }
            client
        })
        .collect();
    // The last of them is accepted, and all are served still.
    check_serves(addr, 2);
    for client in idle.iter_mut().step_by(4 * 97) {
        assert_eq!(client.ask(lookup.clone())["type"], "lookup_ok");
    }
    let each = resident(program.child.id()).saturating_sub(before) / count;
    println!("{count} idle connections, {each} bytes each");
    assert!(each < 8 * 1024, "{each} bytes for an idle connection");
    drop(idle);
    check_serves(addr, 3);
    assert!(program.terminate());
}

#[cfg(target_os = "linux")]
#[test]
fn files_that_the_system_does_not_allow_bound_connections() {
    let mut child = std::process::Command::new("sh")
        .args(["-c", "ulimit -n 300 && exec \"$@\"", "sh"])
        .arg(env!("CARGO_BIN_EXE_pilot-registry"))
        .args(["-addr", "127.0.0.1:0", "-register-rate", "0", "-log-level", "warn"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let ready = client::ready_line(&mut child);
    let program = Program { child, ready };
    let addr = program.addr("addr");
    let mut first = Client::connect(addr);
    let key = Identity::new(1);
    let id = first.register(&key);
    // Far more than there are files for: the surplus is closed, nobody waits.
    let mut others: Vec<_> = (0..400).map(|_| Client::connect(addr)).collect();
    assert_eq!(others.last_mut().unwrap().receive(), None);
    assert_eq!(first.ask(key.signed("heartbeat", id, json!({})))["type"], "heartbeat_ok");
    drop(others);
    eventually("there is room again", || {
        let mut client = Client::connect(addr);
        let mut frame = Vec::new();
        append_frame(&mut frame, &json!({"type": "lookup", "node_id": id})).unwrap();
        client.stream.write_all(&frame).is_ok() && client.receive().is_some()
    });
    assert!(program.terminate());
}

#[test]
fn requests_beyond_the_published_ones_can_be_broken_in_any_way() {
    with_registry(config(), |addr| {
        check_serves(addr, 1);
        let requests = [
            json!({"type": "session_open", "node_id": 1, "epoch": "e", "since": 9, "peers": [1],
                   "signature": Identity::new(1).sign("x")}),
            json!({"type": "session_watch", "add": [1, 2], "remove": [3]}),
            json!({"type": "network_create", "name": "n", "join": {"rules": [{"rule": "open"}]}}),
            json!({"type": "network_join", "network": 1, "proofs": {"token": "t"}}),
            json!({"type": "invite", "network": "n", "to": {"node": 2}, "expires": 9}),
            json!({"type": "audit_query", "limit": 5}),
        ];
        let mut rng = StdRng::seed_from_u64(0x5E55);
        for round in 0..600 {
            let mut client = Client::connect(addr);
            client.send_raw(br#"{"type":"session_challenge"}"#);
            let mut body = requests[round % requests.len()].to_string().into_bytes();
            // The type stays mostly whole, so that what it has is reached.
            let mut rest = body.split_off(if round % 5 == 0 { 1 } else { 12 });
            mutate(&mut rest, &mut rng);
            body.append(&mut rest);
            client.send_raw(&body);
            assert_eq!(client.receive().unwrap()["type"], "session_challenge_ok");
            // An answer, or the end for what is no object.
            if let Some(answer) = client.receive() {
                assert!(answer["type"].is_string(), "{answer}");
            }
        }
        check_serves(addr, 2);
    });
}
