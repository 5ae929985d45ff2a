//! Acknowledged means durable: the real binary is killed in the middle of
//! pipelined writes, again and again, and every acknowledged one is still there.

mod client;

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use client::{Client, Identity, PATIENCE, Program, eventually};
use pilot_wire::registry::{FrameBuffer, append_frame};
use serde_json::{Value, json};

const KILLS: u32 = 10;
const CONNECTIONS: u32 = 6;
const PIPELINE: usize = 16;

/// Key and hostname of each acknowledged node, by ID.
type Acknowledged = BTreeMap<u64, (String, String)>;

fn start(store: &str) -> Program {
    let binary = env!("CARGO_BIN_EXE_pilot-registry");
    Program::start(binary, &["-addr", "127.0.0.1:0", "-store", store, "--register-rate=0"])
}

/// Registers nodes with names, 16 requests at a time, until the far end dies;
/// returns what was acknowledged.
fn write_until_killed(addr: SocketAddr, lane: u32, count: &AtomicUsize) -> Acknowledged {
    let mut acknowledged = Acknowledged::new();
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut input = FrameBuffer::new();
    for batch in 0u32.. {
        let mut out = Vec::new();
        for n in 0..PIPELINE as u32 {
            let serial = (lane << 20) + (batch << 4) + n;
            let mut request = Identity::new(serial).register();
            request["hostname"] = format!("n{serial}").into();
            append_frame(&mut out, &request).unwrap();
        }
        if stream.write_all(&out).is_err() {
            return acknowledged;
        }
        for _ in 0..PIPELINE {
            let Some(reply) = next_reply(&mut stream, &mut input) else { return acknowledged };
            assert_eq!(reply["type"], "register_ok", "{reply}");
            let text = |key: &str| reply[key].as_str().unwrap().to_owned();
            let node = (text("public_key"), text("hostname"));
            let given = acknowledged.insert(reply["node_id"].as_u64().unwrap(), node);
            assert_eq!(given, None, "an ID was given twice");
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
    acknowledged
}

/// The next whole answer; `None` once the far end is dead.
fn next_reply(stream: &mut TcpStream, input: &mut FrameBuffer) -> Option<Value> {
    let mut chunk = [0; 16 * 1024];
    loop {
        if let Some(body) = input.next_body().unwrap() {
            return Some(serde_json::from_slice(body).unwrap());
        }
        match stream.read(&mut chunk) {
            Ok(n @ 1..) => input.push(&chunk[..n]),
            _ => return None,
        }
    }
}

fn verify(addr: SocketAddr, acknowledged: &Acknowledged) {
    let mut client = Client::connect(addr);
    let nodes: Vec<_> = acknowledged.iter().collect();
    for nodes in nodes.chunks(256) {
        let requests: Vec<_> =
            nodes.iter().map(|(id, _)| json!({"type": "lookup", "node_id": id})).collect();
        for ((id, (key, hostname)), reply) in nodes.iter().zip(client.ask_all(&requests)) {
            assert_eq!(reply["public_key"], key.as_str(), "node {id} was lost: {reply}");
            assert_eq!(reply["hostname"], hostname.as_str(), "name of node {id} was lost");
        }
    }
}

#[test]
fn kill_9_loses_no_acknowledged_write() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("registry.db").to_str().unwrap().to_owned();
    let mut acknowledged = Acknowledged::new();
    for kill in 0..KILLS {
        let registry = start(&store);
        let addr = registry.addr("addr");
        verify(addr, &acknowledged);
        let count = AtomicUsize::new(0);
        let before = acknowledged.len();
        thread::scope(|scope| {
            let lanes: Vec<_> = (0..CONNECTIONS)
                .map(|lane| {
                    let count = &count;
                    let lane = 1 + kill * CONNECTIONS + lane;
                    scope.spawn(move || write_until_killed(addr, lane, count))
                })
                .collect();
            // Different each time, so that the kill meets different moments.
            let enough = 50 + 37 * kill as usize;
            eventually("enough writes are acknowledged", || {
                count.load(Ordering::Relaxed) >= enough
            });
            registry.kill();
            for lane in lanes {
                acknowledged.extend(lane.join().unwrap());
            }
        });
        assert_eq!(acknowledged.len(), before + count.into_inner(), "an ID was given twice");
    }
    let registry = start(&store);
    verify(registry.addr("addr"), &acknowledged);
    assert!(registry.terminate());
}

#[test]
fn everything_survives_an_orderly_end() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("registry.db").to_str().unwrap().to_owned();
    let (a, b) = (Identity::new(1), Identity::new(2));
    let registry = start(&store);
    let mut client = Client::connect(registry.addr("addr"));
    assert_eq!((client.register(&a), client.register(&b)), (1, 2));
    for request in [
        a.signed("set_hostname", 1, json!({"hostname": "alice"})),
        a.signed("set_tags", 1, json!({"tags": ["gpu", "web"]})),
        a.signed("set_task_exec", 1, json!({"enabled": true})),
        a.signed("set_visibility", 1, json!({"public": true})),
        a.about("report_trust", "report_trust", 1, 2, json!({})),
        b.about("report_trust", "report_trust", 2, 1, json!({})),
        b.about("respond_handshake", "respond", 2, 1, json!({"accept": true})),
        json!({"type": "set_polo_score", "node_id": 1, "polo_score": -3}),
    ] {
        let reply = client.ask(request);
        assert!(reply.get("error").is_none(), "{reply}");
    }
    let lookup = json!({"type": "lookup", "node_id": 1});
    let before = client.ask(lookup.clone());
    assert!(registry.terminate());

    let registry = start(&store);
    let mut client = Client::connect(registry.addr("addr"));
    assert_eq!(client.ask(lookup), before);
    assert_eq!(before["tags"], json!(["gpu", "web"]));
    assert_eq!(client.ask(a.resolve(1, 2))["real_addr"], "127.0.0.1:4000");
    let waiting = client.ask(a.signed("poll_handshakes", 1, json!({})));
    assert_eq!(waiting["responses"][0]["from_node_id"], 2);
    assert_eq!(client.register(&Identity::new(3)), 3);
    assert!(registry.terminate());
}
