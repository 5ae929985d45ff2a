//! Reading and writing, without files.

use pilot_wire::registry::PublicKey;
use serde_json::{Value, json};

use super::*;
use crate::state::{Command, MAX_ANSWERS, MAX_REQUESTS, Op, State};

fn key(n: u8) -> String {
    PublicKey([n; 32]).to_string()
}

fn state_of(file: &Value) -> (State, Reading) {
    let reading = read(file.to_string().as_bytes()).unwrap();
    let mut state = State::default();
    let op = Op::Import(Box::new(reading.imported.clone()));
    state.apply(&Command::own(1, op)).unwrap();
    (state, reading)
}

fn written(state: &State) -> Value {
    let mut out = Vec::new();
    write(state, 1_795_000_000, &mut out).unwrap();
    serde_json::from_slice(&out).unwrap()
}

#[test]
fn an_empty_state_has_the_published_shape() {
    let empty = written(&State::default());
    let expected = json!({
        "next_node": 1, "next_net": 1, "nodes": {},
        "networks": {"0": {"id": 0, "name": "backbone", "join_rule": "open", "members": [],
                           "created": "2026-11-18T11:06:40Z"}},
    });
    assert_eq!(empty, expected);
    assert_eq!(state_of(&empty).0.len(), 0);
}

#[test]
fn networks_and_what_waits_go_both_ways() {
    let node = |id: u8| {
        json!({"id": id, "public_key": key(id), "real_addr": format!("10.0.0.{id}:1"),
               "networks": [0, 7], "last_seen": "2026-11-18T11:06:40Z"})
    };
    let file = json!({
        "next_node": 9, "next_net": 8,
        "nodes": {"1": node(1), "2": node(2)},
        "networks": {
            "0": {"id": 0, "name": "backbone", "join_rule": "open", "members": [1, 2],
                  "created": "2026-11-18T11:06:40Z"},
            "7": {"id": 7, "name": "lab", "join_rule": "token", "members": [1, 2],
                  "created": "2026-01-02T03:04:05Z", "token": "secret"},
        },
        "trust_pairs": ["2:1", "1:2", "1:1"],
        "pub_key_idx": {key(1): 1, key(2): 2, key(8): 8},
        "handshake_inbox": {"1": [{"from_node_id": 2, "justification": "x",
                                   "timestamp": "2026-01-02T03:04:05Z"}]},
        "handshake_responses": {"8": [{"from_node_id": 1, "accept": false,
                                       "timestamp": "2026-01-02T03:04:05Z"}]},
    });
    let (state, reading) = state_of(&file);
    assert_eq!(reading.notes.len(), 1, "{:?}", reading.notes);
    assert!(reading.notes[0].contains("lab") && reading.notes[0].contains("token"));
    let mut expected = file;
    expected["networks"]["7"].as_object_mut().unwrap().remove("token");
    expected["trust_pairs"] = json!(["1:2"]);
    assert_eq!(written(&state), expected);
}

#[test]
fn what_is_no_address_is_as_good_as_not_registered() {
    let file = json!({
        "next_node": 2,
        "nodes": {"1": {"id": 1, "public_key": key(1), "real_addr": ""},
                  "4": {"id": 4, "public_key": key(4), "real_addr": "example.org:1"}},
    });
    let (state, reading) = state_of(&file);
    assert_eq!(reading.absent.iter().map(|id| id.0).collect::<Vec<_>>(), [1, 4]);
    assert_eq!((state.len(), state.next_node().0), (0, 5), "a number is given once");
    assert_eq!(state.key(&PublicKey([4; 32])).unwrap().node.0, 4);
}

#[test]
fn bounds_cut_what_waits() {
    let request = |n: u32| json!({"from_node_id": n, "justification": "é".repeat(2000)});
    let answer = |n: u32| json!({"from_node_id": n, "accept": true});
    let file = json!({
        "next_node": 500,
        "handshake_inbox": {"3": (1..=150).map(request).collect::<Vec<_>>()},
        "handshake_responses": {"3": (1..=150).map(answer).collect::<Vec<_>>()},
    });
    let reading = read(file.to_string().as_bytes()).unwrap();
    let requests = &reading.imported.requests[0].1;
    assert_eq!((requests.len(), requests[0].from_node_id.0), (MAX_REQUESTS, 1));
    assert_eq!(requests[0].justification.len(), 1024);
    let answers = &reading.imported.answers[0].1;
    assert_eq!((answers.len(), answers[0].from_node_id.0), (MAX_ANSWERS, 51));
    assert_eq!(reading.notes.len(), 2);
}

#[test]
fn an_older_key_of_a_node_is_forgotten() {
    let file = json!({
        "next_node": 2,
        "nodes": {"1": {"id": 1, "public_key": key(1), "real_addr": "10.0.0.1:1"}},
        "pub_key_idx": {key(1): 1, key(9): 1},
    });
    let (state, reading) = state_of(&file);
    assert!(state.key(&PublicKey([9; 32])).is_none());
    assert!(reading.notes[0].contains(&key(9)));
}

#[test]
fn null_is_nothing() {
    let file = json!({
        "next_node": 2, "networks": null, "trust_pairs": null, "pub_key_idx": null,
        "handshake_inbox": null, "handshake_responses": null,
        "nodes": {"1": {"id": 1, "public_key": key(1), "real_addr": "127.0.0.1:1", "tags": null}},
    });
    assert_eq!(state_of(&file).0.len(), 1);
}

#[test]
fn two_keys_of_a_node_that_is_not_registered_are_refused() {
    let file = json!({
        "next_node": 3, "nodes": {}, "pub_key_idx": {(key(1)): 2, (key(2)): 2},
    });
    let text = read(file.to_string().as_bytes()).unwrap_err().to_string();
    assert!(text.contains(&key(1)) && text.contains(&key(2)), "{text}");
    assert!(text.contains("node 2 has the key"), "{text}");
}
