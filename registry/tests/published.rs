//! The published conversation, request by request, through a live registry.

mod client;

use std::collections::{HashMap, VecDeque};

use client::{Client, config, with_registry};
use pilot_registry::Config;
use serde_json::Value;

/// Steps whose published answer shows a fault that is closed here: the note of
/// the step, and the item of the list of known weaknesses.
const STRICTER: [(&str, u8); 2] = [
    ("resolve allowed after one sided report", 27),
    ("punch gives both private addresses to a participant", 28),
];

fn vector(name: &str) -> Value {
    let path = format!("{}/../tests/vectors/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Times differ from run to run; everything else must be equal.
fn without_times(mut value: Value) -> Value {
    match &mut value {
        Value::Object(map) => {
            for (key, value) in map.iter_mut() {
                *value = if matches!(key.as_str(), "time" | "timestamp") {
                    assert!(value.as_u64().is_some_and(|t| t > 1_700_000_000), "{value}");
                    0.into()
                } else {
                    without_times(value.take())
                };
            }
        }
        Value::Array(items) => {
            items.iter_mut().for_each(|v| *v = without_times(v.take()));
        }
        _ => {}
    }
    value
}

fn check(note: &str, reply: &Value, expected: &Value) {
    let refused = STRICTER.iter().any(|(n, _)| *n == note);
    if refused || expected["type"] == "error" {
        let error = if refused { &"request failed".into() } else { &expected["error"] };
        assert_eq!((&reply["error"], &reply["type"]), (error, &"error".into()), "{note}");
        if refused {
            assert_eq!(reply["code"], "private", "{note}");
        }
        return;
    }
    assert_eq!(without_times(reply.clone()), without_times(expected.clone()), "{note}");
}

#[test]
fn every_published_request() {
    // Owner takeover (weakness 25) is off by default; the capture has it on.
    let config = Config { register_rate: 10, owner_recovery: true, ..config() };
    with_registry(config, |addr| {
        let vectors = vector("registry_requests.json");
        let steps = vectors["steps"].as_array().unwrap();
        let mut client = Client::connect(addr);
        for step in steps {
            let note = step["note"].as_str().unwrap();
            let body = match &step["request_text"] {
                Value::String(text) => text.clone(),
                _ => step["request"].to_string(),
            };
            client.send_raw(body.as_bytes());
            if step["response"].is_null() {
                assert_eq!(client.receive(), None, "{note}: expected the connection to close");
            } else {
                check(note, &client.receive().expect(note), &step["response"]);
            }
            if step["connection_closed"] == true || note.contains("connection then closed") {
                client = Client::connect(addr);
            }
        }
        assert!(steps.len() > 80);
    });
}

#[test]
fn two_published_daemons() {
    with_registry(config(), |addr| {
        // Requests in order of time; the n-th answer of a daemon belongs to its
        // n-th request, though the capture shows two of them the other way round.
        let capture = vector("registry_live.json");
        let frames = capture["frames"].as_array().unwrap();
        let of =
            |direction: &'static str| frames.iter().filter(move |f| f["direction"] == direction);
        let mut answers: HashMap<&str, VecDeque<&str>> = HashMap::new();
        for frame in of("response") {
            let daemon = answers.entry(frame["daemon"].as_str().unwrap()).or_default();
            daemon.push_back(frame["json"].as_str().unwrap());
        }
        let mut clients = HashMap::new();
        let mut expected_ok = 0;
        for frame in of("request") {
            let daemon = frame["daemon"].as_str().unwrap();
            let client = clients.entry(daemon).or_insert_with(|| Client::connect(addr));
            let request = frame["json"].as_str().unwrap();
            client.send_raw(request.as_bytes());
            let answer = answers.get_mut(daemon).unwrap().pop_front().unwrap();
            let expected: Value = serde_json::from_str(answer).unwrap();
            check(request, &client.receive().unwrap(), &expected);
            expected_ok += u32::from(expected["type"] != "error");
        }
        assert!(expected_ok > 30);
    });
}
