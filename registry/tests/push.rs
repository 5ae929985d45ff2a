//! Many sessions at once: all are told, none is forgotten, and opening them
//! leaves room for everybody else.

mod client;

use std::net::SocketAddr;

use client::session::{Session, opening};
use client::view::View;
use client::{Client, Identity, Program, config, with_registry};
use pilot_wire::NodeId;
use pilot_wire::registry::append_frame;
use pilot_wire::registry::session::Push;
use serde_json::{Value, json};

/// Registers nodes with keys from `first` on; all requests before all answers.
fn register(addr: SocketAddr, first: u32, count: u32) -> Vec<(Identity, u64)> {
    let keys: Vec<_> = (first..first + count).map(Identity::new).collect();
    let mut client = Client::connect(addr);
    let mut nodes = Vec::new();
    for keys in keys.chunks(500) {
        let requests: Vec<_> = keys.iter().map(Identity::register).collect();
        let answers = client.ask_all(&requests);
        nodes.extend(answers.iter().map(|answer| answer["node_id"].as_u64().unwrap()));
    }
    keys.into_iter().zip(nodes).collect()
}

fn id(node: u64) -> NodeId {
    NodeId(u32::try_from(node).unwrap())
}

#[test]
fn a_thousand_sessions_are_all_told() {
    with_registry(config(), |addr| {
        let nodes = register(addr, 1, 1001);
        let (hub_key, hub) = &nodes[0];
        let mut client = Client::connect(addr);
        // Everybody trusts one node, and watches it.
        for nodes in nodes[1..].chunks(250) {
            let requests: Vec<Value> = nodes
                .iter()
                .flat_map(|(key, node)| {
                    [
                        key.about("report_trust", "report_trust", *node, *hub, json!({})),
                        hub_key.about("report_trust", "report_trust", *hub, *node, json!({})),
                    ]
                })
                .collect();
            let answers = client.ask_all(&requests);
            assert!(answers.iter().all(|a| a["type"] == "report_trust_ok"));
        }
        let mut sessions: Vec<_> = nodes[1..]
            .iter()
            .map(|(key, node)| {
                let session = Session::open(addr, key, *node, &[*hub]);
                assert!(session.view.trust.contains(&id(*hub)));
                assert!(session.view.peers[&id(*hub)].endpoint.is_some());
                session
            })
            .collect();
        // It ends trust with all of them, and then it is gone.
        let mut requests = Vec::new();
        for (_, node) in &nodes[1..] {
            let revoke = hub_key.about("revoke_trust", "revoke_trust", *hub, *node, json!({}));
            requests.push(revoke);
        }
        let answers = client.ask_all(&requests);
        assert!(answers.iter().all(|a| a["type"] == "revoke_trust_ok"));
        for session in &mut sessions {
            session.until("revoking comes", |v| {
                v.revoked_by.contains(&id(*hub))
                    && v.trust.is_empty()
                    && v.peers[&id(*hub)].endpoint.is_none()
            });
        }
        let gone = client.ask(hub_key.signed("deregister", *hub, json!({})));
        assert_eq!(gone["type"], "deregister_ok");
        for session in &mut sessions {
            session.until("the peer is gone", |v| !v.peers[&id(*hub)].registered);
        }
    });
}

/// More than files allow, less the rest of the process, cannot be tried.
fn bounded(wanted: u64) -> u32 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let files = limit.maximum.unwrap_or(u64::MAX);
    let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    u32::try_from(wanted.min(files.saturating_sub(600))).unwrap()
}

#[test]
fn a_storm_of_sessions_leaves_room_for_everybody_else() {
    let count = bounded(10_000);
    let args = ["-addr", "127.0.0.1:0", "-register-rate", "0"];
    let program = Program::start(env!("CARGO_BIN_EXE_pilot-registry"), &args);
    let addr = program.addr("addr");
    let nodes = register(addr, 1, count);
    let mut storm: Vec<_> = nodes.iter().map(|_| Client::connect(addr)).collect();
    let send = |client: &mut Client, request: Value| {
        client.send_raw(request.to_string().as_bytes());
    };
    for client in &mut storm {
        send(client, json!({"type": "session_challenge"}));
    }
    let requests: Vec<_> = storm
        .iter_mut()
        .zip(&nodes)
        .map(|(client, (key, node))| {
            let challenged = client.receive().unwrap();
            let mut request = opening(key, *node, challenged["nonce"].as_str().unwrap());
            request["peers"] = json!([1, 2, 3]);
            let mut frame = Vec::new();
            append_frame(&mut frame, &request).unwrap();
            frame
        })
        .collect();
    // All at once, while another asks; it is answered before they all are.
    let mut other = Client::connect(addr);
    let storming = std::thread::spawn(move || {
        use std::io::Write as _;
        for (client, frame) in storm.iter_mut().zip(&requests) {
            client.stream.write_all(frame).unwrap();
        }
        storm
    });
    let mut answered = 0;
    while !storming.is_finished() || answered == 0 {
        let found = other.ask(json!({"type": "lookup", "node_id": nodes[0].1}));
        assert_eq!(found["type"], "lookup_ok");
        answered += 1;
    }
    let mut storm = storming.join().unwrap();
    let mut views: Vec<_> = storm
        .iter_mut()
        .map(|client| {
            let opened = client.receive().unwrap();
            assert_eq!(opened["type"], "session_open_ok", "{opened}");
            let mut view = View::default();
            let push: Push = serde_json::from_value(client.receive().unwrap()).unwrap();
            view.apply(push);
            assert_eq!((view.syncs, view.peers.len()), (1, 3));
            view
        })
        .collect();
    println!("{count} sessions opened, {answered} lookups answered meanwhile");
    // All of them are served.
    let (key, node) = &nodes[2];
    let named = other.ask(key.signed("set_hostname", *node, json!({"hostname": "three"})));
    assert_eq!(named["type"], "set_hostname_ok");
    for (client, view) in storm.iter_mut().zip(&mut views) {
        while view.peers[&id(*node)].hostname.is_none() {
            view.apply(serde_json::from_value(client.receive().unwrap()).unwrap());
        }
    }
    drop(storm);
    assert!(program.terminate());
}
