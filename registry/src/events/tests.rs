//! What commands mean as events, how refusals are bounded, and that nothing is
//! made for nobody.

use std::sync::mpsc;

use pilot_plugin::Delivery;
use pilot_wire::registry::PublicKey;
use pilot_wire::{Address, NodeId};
use serde_json::json;

use super::*;
use crate::state::{Command, Op, Register, Signer, State};

/// Applies commands to a state and gives their events, as name and data.
#[derive(Default)]
struct World(State);

impl World {
    fn apply(&mut self, op: Op) -> Vec<(String, Value)> {
        let command = Command::own(1000, op);
        let before = Before::look(&self.0, &command);
        let outcome = self.0.apply(&command);
        let mut events = Vec::new();
        before.tell(&self.0, &command, &outcome, &mut events);
        let told = |e: &Happening| (e.name().to_owned(), Value::from(e.data().unwrap_or_default()));
        events.iter().map(told).collect()
    }

    fn register(&mut self, key: u8, port: u16) -> Vec<(String, Value)> {
        self.apply(Op::Register(Register {
            key: PublicKey([key; 32]),
            endpoint: SocketAddr::from(([192, 0, 2, 1], port)),
            owner: String::new(),
            hostname: String::new(),
            proven: false,
            takeover: false,
        }))
    }
}

fn by(node: u8) -> Signer {
    Signer { node: NodeId(u32::from(node)), key: PublicKey([node; 32]) }
}

fn one(name: &str, data: Value) -> Vec<(String, Value)> {
    vec![(name.to_owned(), data)]
}

fn address(node: u32) -> String {
    Address::backbone(NodeId(node)).to_string()
}

#[test]
fn nodes_come_and_go() {
    let mut world = World::default();
    let new = json!({"address": address(1), "endpoint": "192.0.2.1:4000"});
    assert_eq!(world.register(1, 4000), one("node.registered", new));
    // A restart, and a change of endpoint.
    let again = || one("node.reregistered", json!({"address": address(1)}));
    assert_eq!(world.register(1, 4001), again());
    let left = |reason| one("node.deregistered", json!({"address": address(1), "reason": reason}));
    let registered_by = world.0.node(NodeId(1)).unwrap().record.registered_by;
    // One who registered again meanwhile, or was never there, does not go.
    let stale = vec![(NodeId(1), registered_by - 1), (NodeId(9), 1)];
    assert_eq!(world.apply(Op::Reap { silent: stale }), []);
    let silent = vec![(NodeId(1), registered_by)];
    assert_eq!(world.apply(Op::Reap { silent }), left("silent"));
    assert_eq!(world.register(1, 4001), again());
    assert_eq!(world.apply(Op::Deregister { by: by(1) }), left("asked"));
    // Refused: it is not there.
    assert_eq!(world.apply(Op::Deregister { by: by(1) }), []);
    assert_eq!(world.register(2, 4002)[0].0, "node.registered");
}

#[test]
fn trust_and_keys_are_told_when_they_are_news() {
    let mut world = World::default();
    world.register(1, 1);
    world.register(2, 2);
    let justification = || "we met".to_owned();
    let ask = Op::RequestHandshake { by: by(1), to: NodeId(2), justification: justification() };
    let asked = json!({"from_node_id": 1, "justification": "we met", "to_node_id": 2});
    assert_eq!(world.apply(ask.clone()), one("registry.handshake_requested", asked));
    assert_eq!(world.apply(ask), [], "it waits already");
    let report = |from, to| Op::ReportTrust { by: by(from), peer: NodeId(to) };
    // Asking is stating.
    assert_eq!(world.apply(report(1, 2)), []);
    let mutual = json!({"from_node_id": 2, "mutual": true, "to_node_id": 1});
    assert_eq!(world.apply(report(2, 1)), one("registry.trust_reported", mutual));
    assert_eq!(world.apply(report(2, 1)), []);
    let revoke = Op::RevokeTrust { by: by(2), peer: NodeId(1) };
    let revoked = json!({"from_node_id": 2, "to_node_id": 1});
    assert_eq!(world.apply(revoke.clone()), one("registry.trust_revoked", revoked));
    assert_eq!(world.apply(revoke), [], "there is nothing to revoke");
    let alone = json!({"from_node_id": 1, "mutual": false, "to_node_id": 2});
    assert_eq!(world.apply(report(1, 2)), one("registry.trust_reported", alone));
    let answer = Op::RespondHandshake { by: by(2), peer: NodeId(1), accept: false };
    let answered = json!({"accepted": false, "from_node_id": 2, "to_node_id": 1});
    assert_eq!(world.apply(answer), one("registry.handshake_answered", answered));
    let new_key = PublicKey([9; 32]);
    let rotated = json!({"address": address(1), "public_key": new_key.to_string()});
    let rotate = Op::RotateKey { by: by(1), new_key };
    assert_eq!(world.apply(rotate.clone()), one("registry.key_rotated", rotated));
    assert_eq!(world.apply(rotate), [], "the old key signs nothing any more");
    // Daily business.
    assert_eq!(world.apply(Op::SetVisibility { by: by(2), public: true }), []);
    assert_eq!(world.apply(Op::TakeHandshakes { by: by(2) }), []);
}

#[test]
fn refusals_are_bounded_and_counted_and_nothing_is_made_for_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let events = Events::open(&dir.path().join("events")).unwrap();
    let source: SocketAddr = "192.0.2.1:5".parse().unwrap();
    assert!(!events.wanted());
    events.emit(|| panic!("made for nobody"));
    let begin = Instant::now();
    events.refused_at("bad_key", source, "not counted", begin);

    let (heard, hears) = mpsc::channel();
    let deliver: Deliver = Arc::new(move |batch| {
        for event in batch.events() {
            // The test may have ended.
            let _ = heard.send((event.node_id, event.event, json!(event.data)));
        }
        Box::pin(async { Ok(Delivery::Ack) })
    });
    let sinks = events.sinks().unwrap();
    let wrong = sinks.attach("s", &json!({"bacth": 5}), Arc::clone(&deliver)).err().unwrap();
    assert!(wrong.contains("bacth") && !events.wanted(), "{wrong}");
    let sink = sinks.attach("s", &Value::Null, deliver).unwrap();
    for n in 0..25 {
        events.refused_at("rate_limited", source, n, begin);
    }
    events.refused_at("bad_key", source, "another code", begin);
    events.refused_at("rate_limited", source, "later", begin + Duration::from_secs(1));
    let mut told = Vec::new();
    while told.len() < 12 {
        let (node, name, data) = hears.recv_timeout(Duration::from_secs(30)).unwrap();
        assert_eq!((node, name.as_str()), (0, "registry.refused"));
        assert_eq!(data["source"], "192.0.2.1:5");
        told.push((data["code"].clone(), data["count"].clone(), data["reason"].clone()));
    }
    let one = |n: usize| (json!("rate_limited"), json!(1), json!(n.to_string()));
    assert_eq!(told[..10], (0..10).map(one).collect::<Vec<_>>());
    assert_eq!(told[10], (json!("bad_key"), json!(1), json!("another code")));
    assert_eq!(told[11], (json!("rate_limited"), json!(16), json!("later")));
    drop((sink, sinks, events));
    // The sink may come back, so events are kept for it.
    assert!(Events::open(&dir.path().join("events")).unwrap().wanted());
}
