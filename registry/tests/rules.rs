//! What this registry demands beyond the published one, over real connections.

mod client;

use std::time::Duration;

use client::{Client, Identity, config, eventually, with_registry};
use pilot_registry::Config;
use pilot_wire::registry::challenge;
use serde_json::{Value, json};

fn unix_now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

fn with_proof(key: &Identity, at: u64) -> Value {
    let mut request = key.register();
    request["timestamp"] = at.into();
    request["proof"] = key.sign(&challenge::register(at, ":4000")).into();
    request
}

#[test]
fn refusals_carry_a_code_and_a_reason() {
    with_registry(config(), |addr| {
        let mut client = Client::connect(addr);
        let reply = client.ask(json!({"type": "lookup", "node_id": 7}));
        assert_eq!(reply["error"], "request failed");
        assert_eq!(reply["type"], "error");
        assert_eq!(reply["code"], "unknown_node");
        assert_eq!(reply["message"], "node 7 is not registered");
        assert_eq!(client.ask(json!({"type": "no such"}))["code"], "unknown_type");
    });
}

#[test]
fn a_known_owner_gives_nothing_away() {
    with_registry(config(), |addr| {
        let mut client = Client::connect(addr);
        let mut owned = |seed| {
            let mut request = Identity::new(seed).register();
            request["owner"] = "alice@example.org".into();
            client.ask(request)["node_id"].as_u64()
        };
        assert_eq!((owned(1), owned(2), owned(1)), (Some(1), Some(2), Some(1)));
    });
}

#[test]
fn proof_once_proof_always() {
    with_registry(config(), |addr| {
        let mut client = Client::connect(addr);
        let key = Identity::new(1);
        assert_eq!(client.register(&key), 1);
        let now = unix_now();
        let mut forged = with_proof(&Identity::new(2), now);
        forged["public_key"] = key.public().into();
        assert_eq!(client.ask(forged)["code"], "bad_proof");
        assert_eq!(client.ask(with_proof(&key, now))["node_id"], 1);
        assert_eq!(client.ask(key.register())["code"], "proof_required");
        assert_eq!(client.ask(with_proof(&key, now - 301))["code"], "proof_required");
        assert_eq!(client.ask(with_proof(&key, now + 600))["code"], "proof_required");
        let mut moved = with_proof(&key, now);
        moved["listen_addr"] = ":5000".into();
        assert_eq!(client.ask(moved)["code"], "bad_proof");
        assert_eq!(client.ask(with_proof(&key, now))["node_id"], 1);
    });
}

#[test]
fn addresses_open_with_mutual_trust_only() {
    with_registry(config(), |addr| {
        let mut client = Client::connect(addr);
        let (a, b) = (Identity::new(1), Identity::new(2));
        let (ia, ib) = (client.register(&a), client.register(&b));
        let punch = json!({"type": "punch", "requester_id": ia, "node_a": ia, "node_b": ib,
                           "signature": a.sign(&format!("punch:{ia}:{ib}"))});
        let report = |k: &Identity, i, p| k.about("report_trust", "report_trust", i, p, json!({}));
        assert_eq!(client.ask(report(&a, ia, ib))["type"], "report_trust_ok");
        assert_eq!(client.ask(a.resolve(ia, ib))["code"], "private");
        assert_eq!(client.ask(punch.clone())["code"], "private");
        assert_eq!(client.ask(report(&b, ib, ia))["type"], "report_trust_ok");
        assert_eq!(client.ask(a.resolve(ia, ib))["real_addr"], "127.0.0.1:4000");
        assert_eq!(client.ask(b.resolve(ib, ia))["real_addr"], "127.0.0.1:4000");
        assert_eq!(client.ask(punch)["node_b_addr"], "127.0.0.1:4000");
        let revoke = b.about("revoke_trust", "revoke_trust", ib, ia, json!({}));
        assert_eq!(client.ask(revoke)["type"], "revoke_trust_ok");
        assert_eq!(client.ask(a.resolve(ia, ib))["code"], "private");
    });
}

#[test]
fn a_relayed_handshake_opens_both_ways() {
    with_registry(config(), |addr| {
        let mut client = Client::connect(addr);
        let (a, b) = (Identity::new(1), Identity::new(2));
        let (ia, ib) = (client.register(&a), client.register(&b));
        let long = "é".repeat(2000);
        let ask = json!({"type": "request_handshake", "from_node_id": ia, "to_node_id": ib,
                         "justification": long,
                         "signature": a.sign(&format!("handshake:{ia}:{ib}"))});
        assert_eq!(client.ask(ask)["status"], "delivered");
        let got = client.ask(b.signed("poll_handshakes", ib, json!({})));
        assert_eq!(got["requests"][0]["from_node_id"], ia);
        assert_eq!(got["requests"][0]["justification"], "é".repeat(512));
        let accept = b.about("respond_handshake", "respond", ib, ia, json!({"accept": true}));
        assert_eq!(client.ask(accept)["accept"], true);
        let got = client.ask(a.signed("poll_handshakes", ia, json!({})));
        assert_eq!(got["responses"][0]["accept"], true);
        assert_eq!(client.ask(a.resolve(ia, ib))["node_id"], ib);
        assert_eq!(client.ask(b.resolve(ib, ia))["node_id"], ia);
    });
}

#[test]
fn pipelined_requests_see_what_came_before() {
    with_registry(config(), |addr| {
        let mut client = Client::connect(addr);
        let key = Identity::new(1);
        let set = |name: &str| key.signed("set_hostname", 1, json!({ "hostname": name }));
        let replies = client.ask_all(&[
            json!({"type": "lookup", "node_id": 1}),
            key.register(),
            Identity::new(2).register(),
            json!({"type": "lookup", "node_id": 1}),
            set("one"),
            set("Bad"),
            set("two"),
            json!({"type": "resolve_hostname", "hostname": "two"}),
            json!({"type": "resolve_hostname", "hostname": "one"}),
            key.signed("deregister", 1, json!({})),
            set("three"),
            key.register(),
            key.signed("heartbeat", 1, json!({})),
        ]);
        let seen: Vec<_> =
            replies.iter().map(|r| r["code"].as_str().or(r["type"].as_str()).unwrap()).collect();
        assert_eq!(
            seen,
            [
                "unknown_node",
                "register_ok",
                "register_ok",
                "lookup_ok",
                "set_hostname_ok",
                "bad_hostname",
                "set_hostname_ok",
                "resolve_hostname_ok",
                "unknown_hostname",
                "deregister_ok",
                "unknown_node",
                "register_ok",
                "heartbeat_ok",
            ]
        );
    });
}

#[test]
fn silent_nodes_are_removed_and_keep_their_id() {
    let config = Config {
        node_ttl: Duration::from_secs(1),
        reap_interval: Duration::from_millis(50),
        ..config()
    };
    with_registry(config, |addr| {
        let mut client = Client::connect(addr);
        let (quiet, loud) = (Identity::new(1), Identity::new(2));
        assert_eq!((client.register(&quiet), client.register(&loud)), (1, 2));
        eventually("the silent node is removed", || {
            let beat = client.ask(loud.signed("heartbeat", 2, json!({})));
            assert_eq!(beat["type"], "heartbeat_ok");
            client.ask(json!({"type": "lookup", "node_id": 1}))["code"] == "unknown_node"
        });
        assert_eq!(client.register(&quiet), 1);
    });
}

#[test]
fn unknown_keys_are_limited_per_source() {
    let config = Config { register_rate: 3, ..config() };
    with_registry(config, |addr| {
        let mut client = Client::connect(addr);
        let codes: Vec<_> =
            (1..=5).map(|n| client.ask(Identity::new(n).register())["code"].clone()).collect();
        assert_eq!(codes[..3], [Value::Null, Value::Null, Value::Null]);
        assert_eq!(codes[3..], ["rate_limited", "rate_limited"]);
        assert_eq!(client.register(&Identity::new(2)), 2);
    });
}
