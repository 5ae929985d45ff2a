//! Sessions over real connections: how they begin, what they are told, how they
//! end and come back.

mod client;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use client::session::{Session, challenge, opening};
use client::view::View;
use client::{Client, Identity, config, with_registry};
use pilot_registry::Config;
use pilot_wire::NodeId;
use pilot_wire::registry::append_frame;
use serde_json::{Value, json};

fn id(node: u64) -> NodeId {
    NodeId(u32::try_from(node).unwrap())
}

/// A client, and `N` nodes that it registered.
fn nodes<const N: usize>(addr: SocketAddr) -> (Client, [(Identity, u64); N]) {
    let mut client = Client::connect(addr);
    let nodes = std::array::from_fn(|n| {
        let key = Identity::new(u32::try_from(n).unwrap());
        let id = client.register(&key);
        (key, id)
    });
    (client, nodes)
}

fn ok(client: &mut Client, request: Value) {
    let reply = client.ask(request);
    assert!(reply["type"].as_str().unwrap().ends_with("_ok"), "{reply}");
}

fn trust(client: &mut Client, key: &Identity, node: u64, peer: u64) {
    ok(client, key.about("report_trust", "report_trust", node, peer, json!({})));
}

fn revoke(client: &mut Client, key: &Identity, node: u64, peer: u64) {
    ok(client, key.about("revoke_trust", "revoke_trust", node, peer, json!({})));
}

#[test]
fn a_session_is_told_how_things_stand_and_what_changes() {
    with_registry(config(), |addr| {
        let (mut other, [(a_key, a), (b_key, b), (c_key, c)]) = nodes(addr);
        trust(&mut other, &a_key, a, b);
        let mut session = Session::open(addr, &a_key, a, &[b, 999]);
        assert!(!session.resumed());
        assert_eq!(session.opened["idle_secs"], 15);
        let view = &session.view;
        assert!(view.trust.is_empty() && view.memberships.is_empty());
        assert!(!view.peers[&NodeId(999)].registered);
        let peer = &view.peers[&id(b)];
        assert!(peer.registered && peer.endpoint.is_none());
        assert_eq!(peer.public_key.unwrap().to_string(), b_key.public());
        // Trust is told, and with it the endpoint may be seen.
        trust(&mut other, &b_key, b, a);
        session.until("trust comes", |v| v.trust.contains(&id(b)));
        session.until("the endpoint comes", |v| v.peers[&id(b)].endpoint.is_some());
        ok(&mut other, b_key.signed("set_hostname", b, json!({"hostname": "bee"})));
        session.until("the name comes", |v| v.peers[&id(b)].hostname.as_deref() == Some("bee"));
        revoke(&mut other, &b_key, b, a);
        session.until("revoking comes", |v| {
            v.trust.is_empty()
                && v.revoked_by.contains(&id(b))
                && v.peers[&id(b)].endpoint.is_none()
        });
        // Another peer is watched instead; what the session asks needs no signature.
        let watch = json!({"type": "session_watch", "add": [c], "remove": [b, 999]});
        assert_eq!(session.ask(&watch)["watched"], 1);
        session.until("the new peer comes", |v| v.peers.contains_key(&id(c)));
        let heartbeat = json!({"type": "heartbeat", "node_id": a});
        assert_eq!(session.ask(&heartbeat)["type"], "heartbeat_ok");
        let signature = c_key.sign(&format!("handshake:{c}:{a}"));
        ok(
            &mut other,
            json!({"type": "request_handshake", "from_node_id": c, "to_node_id": a,
                              "signature": signature}),
        );
        session.until("the handshake comes", |v| v.handshakes);
        let polled = session.ask(&json!({"type": "poll_handshakes", "node_id": a}));
        assert_eq!(polled["requests"][0]["from_node_id"], c);
        let accept = json!({"type": "respond_handshake", "node_id": a, "peer_id": c,
                            "accept": true});
        assert_eq!(session.ask(&accept)["type"], "respond_handshake_ok");
        session.until("accepting comes", |v| v.trust.contains(&id(c)));
        // Nobody else is spoken for.
        let heartbeat = json!({"type": "heartbeat", "node_id": b});
        assert_eq!(session.ask(&heartbeat)["code"], "bad_signature");
        ok(&mut other, c_key.signed("deregister", c, json!({})));
        session.until("the peer is gone", |v| !v.peers[&id(c)].registered);
        session.settle();
        assert!(session.view.ended.is_none() && session.view.syncs == 1);
    });
}

#[test]
fn only_the_fresh_challenge_of_the_connection_is_answered() {
    with_registry(config(), |addr| {
        let (mut other, [(a_key, a), (b_key, b)]) = nodes(addr);
        let refused = |client: &mut Client, key: &Identity, node, nonce: &str, code: &str| {
            assert_eq!(client.ask(opening(key, node, nonce))["code"], code);
        };
        let mut client = Client::connect(addr);
        refused(&mut client, &a_key, a, "", "no_challenge");
        // By another's key, and then the nonce is used up.
        let nonce = challenge(&mut client);
        refused(&mut client, &b_key, a, &nonce, "bad_signature");
        refused(&mut client, &a_key, a, &nonce, "no_challenge");
        // That of another connection.
        let foreign = challenge(&mut other);
        let nonce = challenge(&mut client);
        assert_ne!(foreign, nonce);
        refused(&mut client, &a_key, a, &foreign, "bad_signature");
        // An older one of this connection.
        let older = challenge(&mut client);
        let nonce = challenge(&mut client);
        refused(&mut client, &a_key, a, &older, "bad_signature");
        refused(&mut client, &a_key, a, &nonce, "no_challenge");
        let nonce = challenge(&mut client);
        refused(&mut client, &a_key, 77, &nonce, "unknown_node");
        // A good opening cannot be replayed either, on this connection or another.
        let nonce = challenge(&mut client);
        let good = opening(&a_key, a, &nonce);
        assert_eq!(client.ask(good.clone())["type"], "session_open_ok");
        assert_eq!(client.receive().unwrap()["news"]["kind"], "sync");
        assert_eq!(client.ask(good.clone())["code"], "no_challenge");
        challenge(&mut other);
        assert_eq!(other.ask(good)["code"], "bad_signature");
        // None of that was a session, or ended the one that is.
        assert_eq!(other.ask(json!({"type": "session_watch"}))["code"], "session_required");
        let heartbeat = json!({"type": "heartbeat", "node_id": a});
        assert_eq!(client.ask(heartbeat)["type"], "heartbeat_ok");
        let _ = b;
    });
}

#[test]
fn requests_of_sessions_are_read_strictly() {
    with_registry(config(), |addr| {
        let (mut client, [(key, a)]) = nodes(addr);
        let refused = |client: &mut Client, request: Value, named: &str| {
            let reply = client.ask(request);
            assert_eq!(reply["code"], "invalid", "{reply}");
            assert!(reply["message"].as_str().unwrap().starts_with(named), "{reply}");
        };
        refused(&mut client, json!({"type": "session_challenge", "nonsense": 1}), "nonsense:");
        refused(&mut client, json!({"type": "session_open", "node_id": a}), "signature:");
        refused(&mut client, json!({"type": "session_watch", "add": "all"}), "session_watch:");
        let peers: Vec<u64> = (0..2049).collect();
        let nonce = challenge(&mut client);
        let mut request = opening(&key, a, &nonce);
        request["peers"] = peers.clone().into();
        refused(&mut client, request, "peers:");
        let mut session = Session::open(addr, &key, a, &peers[..2048]);
        let more = session.ask(&json!({"type": "session_watch", "add": [5000]}));
        assert!(more["message"].as_str().unwrap().starts_with("add: "), "{more}");
        let changed = json!({"type": "session_watch", "add": [5000], "remove": [7]});
        assert_eq!(session.ask(&changed)["watched"], 2048);
        session.until("the added one comes", |v| v.peers.contains_key(&NodeId(5000)));
    });
}

#[test]
fn who_comes_back_is_told_what_it_missed_and_no_more() {
    with_registry(config(), |addr| {
        let (mut other, [(a_key, a), (b_key, b), (c_key, c), (d_key, d)]) = nodes(addr);
        for (key, node) in [(&b_key, b), (&c_key, c), (&d_key, d)] {
            trust(&mut other, &a_key, a, node);
            trust(&mut other, key, node, a);
        }
        let peers = [b, c, d];
        let mut session = Session::open(addr, &a_key, a, &peers);
        session.settle();
        let before = session.view.clone();
        drop(session);
        // Missed: trust that ends, a key, a name, and what was undone again.
        revoke(&mut other, &b_key, b, a);
        let new_key = Identity::new(77);
        let rotate = json!({"new_public_key": new_key.public(), "type": "rotate_key",
            "node_id": c, "signature": c_key.sign(&format!("rotate:{c}"))});
        ok(&mut other, rotate);
        revoke(&mut other, &d_key, d, a);
        trust(&mut other, &d_key, d, a);
        trust(&mut other, &a_key, a, d);
        // Between others: none of its business.
        trust(&mut other, &b_key, b, c);
        let mut session = Session::resume(addr, &a_key, a, before.clone(), &peers);
        assert!(session.resumed());
        session.settle();
        let view = &session.view;
        assert_eq!(view.syncs, before.syncs);
        assert_eq!(view.trust, BTreeSet::from([id(c), id(d)]));
        assert_eq!(view.revoked_by, BTreeSet::from([id(b)]));
        assert_eq!(view.peers[&id(c)].public_key.unwrap().to_string(), new_key.public());
        assert!(view.peers[&id(b)].endpoint.is_none());
        // Trust with two, and the three peers.
        assert_eq!(view.frames - before.frames, 5, "{view:?}");
        let view = view.clone();
        drop(session);
        // Who has missed nothing is told of its peers only.
        let mut session = Session::resume(addr, &a_key, a, view.clone(), &peers);
        session.settle();
        assert!(session.resumed() && session.view.frames == view.frames + 3);
        drop(session);
        let foreign = View { epoch: "another".to_owned(), ..view.clone() };
        let session = Session::resume(addr, &a_key, a, foreign, &peers);
        assert!(!session.resumed());
        assert_eq!((&session.view.trust, &session.view.peers), (&view.trust, &view.peers));
        drop(session);
        let ahead = View { since: view.since + 1000, ..view.clone() };
        let mut client = Client::connect(addr);
        let nonce = challenge(&mut client);
        let mut request = opening(&a_key, a, &nonce);
        (request["epoch"], request["since"]) = (ahead.epoch.into(), ahead.since.into());
        assert_eq!(client.ask(request)["resumed"], false);
    });
}

#[test]
fn a_restart_on_the_same_file_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let config = || Config { store: Some(dir.path().join("r.db")), ..config() };
    let mut view = View::default();
    with_registry(config(), |addr| {
        let (mut other, [(a_key, a), (b_key, b)]) = nodes(addr);
        trust(&mut other, &a_key, a, b);
        trust(&mut other, &b_key, b, a);
        let mut session = Session::open(addr, &a_key, a, &[b]);
        session.settle();
        // The number of the last command is heard with the last news.
        ok(&mut other, b_key.signed("set_hostname", b, json!({"hostname": "bee"})));
        session.until("the name comes", |v| v.peers[&id(b)].hostname.is_some());
        view = session.view.clone();
    });
    with_registry(config(), |addr| {
        let keys = [Identity::new(0), Identity::new(1)];
        let mut session = Session::resume(addr, &keys[0], 1, view.clone(), &[2]);
        assert!(session.resumed(), "{:?} {}", session.opened, view.since);
        session.settle();
        assert_eq!(session.view.frames, view.frames + 1);
        // What happens now is told as ever.
        revoke(&mut Client::connect(addr), &keys[1], 2, 1);
        session.until("revoking comes", |v| v.revoked_by.contains(&NodeId(2)));
        view = session.view.clone();
        drop(session);
        trust(&mut Client::connect(addr), &keys[1], 2, 1);
        let mut session = Session::resume(addr, &keys[0], 1, view.clone(), &[2]);
        session.settle();
        assert!(session.resumed() && session.view.revoked_by.is_empty());
    });
    with_registry(config(), |addr| {
        // What it missed before this start is not known change by change.
        let session = Session::resume(addr, &Identity::new(0), 1, view.clone(), &[2]);
        assert!(!session.resumed() && session.view.revoked_by.is_empty());
        assert_eq!(session.view.epoch, view.epoch);
    });
}

#[test]
fn a_session_ends_for_a_reason() {
    let mut stopped = None;
    with_registry(config(), |addr| {
        let (mut other, [(a_key, a), (b_key, b), (c_key, c)]) = nodes(addr);
        let first = Session::open(addr, &a_key, a, &[]);
        let mut second = Session::open(addr, &a_key, a, &[]);
        assert_eq!(first.end().0.as_deref(), Some("replaced"));
        second.settle();
        // Again on its own connection it is no other's.
        let nonce = challenge(&mut second.client);
        assert_eq!(second.ask(&opening(&a_key, a, &nonce))["type"], "session_open_ok");
        second.settle();
        let mut rotate = json!({"type": "rotate_key", "node_id": a,
            "new_public_key": Identity::new(50).public()});
        assert_eq!(second.ask(&rotate)["code"], "bad_signature");
        rotate["signature"] = a_key.sign(&format!("rotate:{a}")).into();
        assert_eq!(second.ask(&rotate)["type"], "rotate_key_ok");
        assert_eq!(second.end().0.as_deref(), Some("key_rotated"));
        let session = Session::open(addr, &b_key, b, &[]);
        ok(&mut other, b_key.signed("deregister", b, json!({})));
        assert_eq!(session.end().0.as_deref(), Some("deregistered"));
        stopped = Some(Session::open(addr, &c_key, c, &[]));
    });
    assert_eq!(stopped.unwrap().end().0.as_deref(), Some("stopping"));
}

#[test]
fn reaped_nodes_lose_their_session() {
    // Both a registration and an opening count as hearing of the node.
    let config = Config {
        node_ttl: Duration::from_secs(2),
        reap_interval: Duration::from_millis(100),
        ..config()
    };
    with_registry(config, |addr| {
        let (_, [(key, node)]) = nodes(addr);
        let session = Session::open(addr, &key, node, &[]);
        assert_eq!(session.end().0.as_deref(), Some("deregistered"));
    });
}

#[test]
fn a_silent_session_is_closed_and_a_speaking_one_is_not() {
    let config = Config { idle: Duration::from_secs(1), ..config() };
    with_registry(config, |addr| {
        let (_, [(a_key, a), (b_key, b)]) = nodes(addr);
        let silent = Session::open(addr, &a_key, a, &[]);
        assert_eq!(silent.opened["idle_secs"], 1);
        let mut speaking = Session::open(addr, &b_key, b, &[a]);
        let end = std::thread::spawn(move || silent.end().0);
        while !end.is_finished() {
            let heartbeat = json!({"type": "heartbeat", "node_id": b});
            assert_eq!(speaking.ask(&heartbeat)["type"], "heartbeat_ok");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(end.join().unwrap(), None);
        speaking.settle();
    });
}

#[test]
fn news_come_between_answers_that_keep_their_order() {
    with_registry(config(), |addr| {
        let (mut other, [(a_key, a), (b_key, b)]) = nodes(addr);
        let mut session = Session::open(addr, &a_key, a, &[b]);
        const REQUESTS: usize = 20_000;
        let mut out = Vec::new();
        for n in 0..REQUESTS {
            // Reads, writes and refusals; each answer tells which it is.
            let request = match n % 4 {
                0 => json!({"type": "set_tags", "node_id": a, "tags": [format!("t{n}")]}),
                1 => json!({"type": "lookup", "node_id": a}),
                2 => json!({"type": "resolve_hostname", "hostname": format!("no-{n}")}),
                _ => json!({"type": "heartbeat", "node_id": a}),
            };
            append_frame(&mut out, &request).unwrap();
        }
        let mut stream = session.client.stream.try_clone().unwrap();
        let writer = std::thread::spawn(move || stream.write_all(&out).unwrap());
        let changes = std::thread::spawn(move || {
            for n in 0..300 {
                let tags = json!({"tags": [format!("b{n}")]});
                ok(&mut other, b_key.signed("set_tags", b, tags));
            }
        });
        for n in 0..REQUESTS {
            let answer = session.answer();
            let tag = format!("t{}", n - n % 4);
            match n % 4 {
                0 => assert_eq!(answer["tags"][0], tag.as_str()),
                1 => assert_eq!(answer["tags"][0], tag.as_str()),
                2 => assert!(answer["message"].as_str().unwrap().contains(&format!("no-{n}\""))),
                _ => assert_eq!(answer["type"], "heartbeat_ok"),
            }
        }
        writer.join().unwrap();
        changes.join().unwrap();
        session.until("the last change comes", |v| v.peers[&id(b)].tags == ["b299"]);
        // Some of them came while there were answers to give.
        assert!(session.view.frames > 2, "{}", session.view.frames);
    });
}

#[test]
fn a_client_that_does_not_read_does_not_keep_its_session() {
    with_registry(config(), |addr| {
        let (_, [(key, node)]) = nodes(addr);
        let session = Session::open(addr, &key, node, &[]);
        let mut stream = session.client.stream.try_clone().unwrap();
        // Asks until nothing more is taken: answers and requests fill all there is.
        let mut requests = Vec::new();
        for _ in 0..1000 {
            append_frame(&mut requests, &json!({"type": "lookup", "node_id": node})).unwrap();
        }
        stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
        while stream.write_all(&requests).is_ok() {}
        // The registry is in the middle of a write and is not held by it.
        let mut next = Session::open(addr, &key, node, &[]);
        next.settle();
        let heartbeat = json!({"type": "heartbeat", "node_id": node});
        client::eventually("the first connection is cut", || {
            stream.write_all(&[0]).is_err_and(|e| {
                !matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
            })
        });
        assert_eq!(next.ask(&heartbeat)["type"], "heartbeat_ok");
    });
}
