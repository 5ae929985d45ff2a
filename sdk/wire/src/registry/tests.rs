//! Vectors, round trips and mutations for registry frames.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::address::NodeId;

fn vector(name: &str) -> Value {
    let path = format!("{}/../../tests/vectors/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn challenges_are_those_of_the_vectors() {
    let (a, b) = (NodeId(1), NodeId(2));
    let ours = [
        challenge::resolve(a, b),
        challenge::report_trust(a, b),
        challenge::revoke_trust(a, b),
        challenge::set_visibility(a),
        challenge::set_hostname(a),
        challenge::set_tags(a),
        challenge::set_task_exec(a),
        challenge::heartbeat(a),
        challenge::poll_handshakes(a),
        challenge::deregister(a),
        challenge::punch(a, b),
        challenge::rotate_key(a),
        challenge::request_handshake(a, b),
        challenge::respond_handshake(a, b),
    ];
    let vectors = vector("signatures.json");
    let theirs: Vec<_> = vectors["registry_challenges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["challenge"].as_str().unwrap())
        .collect();
    assert_eq!(ours.as_slice(), theirs);
    assert_eq!(challenge::register(7, ":4000"), "register:7::4000");
}

#[test]
fn published_requests_read_as_stated() {
    let steps = vector("registry_requests.json");
    for step in steps["steps"].as_array().unwrap() {
        if step.get("connection_closed").is_some() {
            let body = match &step["request_text"] {
                Value::String(text) => text.clone(),
                _ => step["request"].to_string(),
            };
            assert!(Fields::parse(body.as_bytes()).is_err(), "{body}");
            continue;
        }
        let request = &step["request"];
        let body = request.to_string();
        let fields = Fields::parse(body.as_bytes()).unwrap();
        assert_eq!(fields.kind, request["type"].as_str().unwrap_or(""));
        let id = request["node_id"].as_u64().unwrap_or(0);
        assert_eq!(u64::from(fields.node_id), id, "{body}");
        assert_eq!(fields.signature, request["signature"].as_str().unwrap_or(""));
    }
}

#[test]
fn live_replies_parse_and_write_back_the_same() {
    fn again<T: Reply + serde::Serialize>(json: &str) -> bool {
        let Ok(reply) = parse_reply::<T>(json.as_bytes()) else { return false };
        let ours: Value = serde_json::to_value(&reply).unwrap();
        let theirs: Value = serde_json::from_str(json).unwrap();
        assert_eq!(ours, theirs);
        true
    }
    let mut seen = 0;
    for frame in vector("registry_live.json")["frames"].as_array().unwrap() {
        let json = frame["json"].as_str().unwrap();
        let mut out = Vec::new();
        append_frame(&mut out, &serde_json::from_str::<Value>(json).unwrap()).unwrap();
        if frame["direction"] != "response" || json.contains("\"error\"") {
            continue;
        }
        seen += 1;
        assert!(
            again::<Registered>(json)
                || again::<VisibilitySet>(json)
                || again::<HostnameSet>(json)
                || again::<ResolvedHostname>(json)
                || again::<TagsSet>(json)
                || again::<TaskExecSet>(json)
                || again::<Resolved>(json)
                || again::<Lookup>(json)
                || again::<TrustReported>(json)
                || again::<TrustRevoked>(json)
                || again::<Heartbeat>(json)
                || again::<Handshakes>(json)
                || again::<HandshakeAnswered>(json)
                || again::<HandshakeDelivered>(json)
                || again::<KeyRotated>(json)
                || again::<Deregistered>(json),
            "no reply type reads {json}"
        );
    }
    assert!(seen > 30, "only {seen} replies in the capture");
}

#[test]
fn refusals_are_told_from_replies() {
    let plain = br#"{"error":"request failed","type":"error"}"#;
    match parse_reply::<Heartbeat>(plain) {
        Err(ReplyError::Refused(e)) => assert_eq!((e.text(), &e.code), ("request failed", &None)),
        other => panic!("{other:?}"),
    }
    let ours = ErrorReply {
        error: "request failed".into(),
        code: Some("not_found".into()),
        message: Some("no node 7".into()),
        hint: None,
    };
    let json = serde_json::to_vec(&ours).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&json).unwrap()["type"], "error");
    match parse_reply::<Lookup>(&json) {
        Err(e @ ReplyError::Refused(_)) => assert_eq!(e.to_string(), "registry: no node 7"),
        other => panic!("{other:?}"),
    }
    let other_kind = br#"{"type":"lookup_ok"}"#;
    assert!(matches!(parse_reply::<Heartbeat>(other_kind), Err(ReplyError::Kind { .. })));
}

#[test]
fn lenient_reading() {
    let read = |json: Value| {
        let body = json.to_string();
        let f = Fields::parse(body.as_bytes()).unwrap();
        (f.node_id, f.public, f.hostname.into_owned(), f.delta, f.network_id)
    };
    let none = (0, false, String::new(), None, 0);
    for odd in [json!("2"), json!(-1), json!(4_294_967_296_u64), json!([1]), json!({"a": 1})] {
        let json = json!({"node_id": odd, "public": "true", "hostname": 5, "network_id": 65_536});
        assert_eq!(read(json), none);
    }
    assert_eq!(Fields::parse(b"null").unwrap(), Fields::default());
    assert_eq!(read(json!({"node_id": 3.9, "delta": -7.9})).0, 3);
    assert_eq!(read(json!({"node_id": 3.9, "delta": -7.9})).3, Some(-7));
    let f = Fields::parse(br#"{"node_id":1,"node_id":2,"tags":["a",5,["b"],"\u0063"]}"#).unwrap();
    assert_eq!((f.node_id, f.tags), (2, vec!["a".into(), "c".into()]));
    for bad in ["", "5", "\"x\"", "[]", "{}x", "{", "{\"a\":}", "true"] {
        assert!(Fields::parse(bad.as_bytes()).is_err(), "{bad}");
    }
    let many = json!({ "tags": vec!["t"; 1000], "node_id": 4 }).to_string();
    let f = Fields::parse(many.as_bytes()).unwrap();
    assert_eq!((f.tags.len(), f.node_id), (MAX_TEXTS, 4));
}

#[test]
fn requests_carry_the_published_keys() {
    let register = Request::Register {
        listen_addr: "10.0.0.1:4000",
        public_key: PublicKey([7; 32]),
        owner: "",
        hostname: "",
        timestamp: None,
        proof: None,
    };
    let mut out = Vec::new();
    register.append_to(&mut out).unwrap();
    Request::BeaconList {}.append_to(&mut out).unwrap();
    let mut buffer = FrameBuffer::new();
    buffer.push(&out);
    let first: Value = serde_json::from_slice(buffer.next_body().unwrap().unwrap()).unwrap();
    let key = PublicKey([7; 32]).to_string();
    assert_eq!(
        first,
        json!({"type": "register", "listen_addr": "10.0.0.1:4000", "public_key": key})
    );
    let second: Value = serde_json::from_slice(buffer.next_body().unwrap().unwrap()).unwrap();
    assert_eq!(second, json!({"type": "beacon_list"}));
    assert!(buffer.next_body().unwrap().is_none() && !buffer.is_partial());
}

#[test]
fn too_long_frames_are_refused_on_both_sides() {
    let mut out = vec![9];
    let text = "x".repeat(MAX_BODY_LEN);
    assert_eq!(append_frame(&mut out, &text), Err(FrameError::TooLong(MAX_BODY_LEN + 2)));
    assert_eq!(out, [9]);
    let mut buffer = FrameBuffer::new();
    buffer.push(&[0, 0x10, 0, 1]);
    assert_eq!(buffer.next_body(), Err(FrameError::TooLong(MAX_BODY_LEN + 1)));
    assert!(PublicKey::from_base64("AAAA").is_none());
    assert!(Signature::from_base64(&"!".repeat(88)).is_none());
}

proptest! {
    #[test]
    fn frames_survive_any_split(
        bodies in prop::collection::vec(".{0,40}", 1..8),
        cuts in prop::collection::vec(1usize..20, 1..40),
    ) {
        let mut wire = Vec::new();
        for body in &bodies {
            append_frame(&mut wire, body).unwrap();
        }
        let (mut buffer, mut got, mut rest) = (FrameBuffer::new(), Vec::new(), wire.as_slice());
        for cut in cuts.iter().cycle() {
            let (now, later) = rest.split_at(rest.len().min(*cut));
            buffer.push(now);
            rest = later;
            while let Some(body) = buffer.next_body().unwrap() {
                got.push(serde_json::from_slice::<String>(body).unwrap());
            }
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(got, bodies);
    }

    #[test]
    fn decoders_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), json in "[\\[\\]{}\":,a-z0-9.eE+-]{0,60}") {
        let mut buffer = FrameBuffer::new();
        buffer.push(&bytes);
        while let Ok(Some(_)) = buffer.next_body() {}
        for body in [&bytes[..], json.as_bytes()] {
            let _ = Fields::parse(body);
            let _ = parse_reply::<Lookup>(body);
        }
    }

    #[test]
    fn keys_round_trip(key: [u8; 32], half: [u8; 32]) {
        let key = PublicKey(key);
        prop_assert_eq!(PublicKey::from_base64(&key.to_string()), Some(key));
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&half);
        let signature = Signature(bytes);
        prop_assert_eq!(Signature::from_base64(&signature.to_string()), Some(signature));
        let json = serde_json::to_string(&signature).unwrap();
        prop_assert_eq!(serde_json::from_str::<Signature>(&json).unwrap(), signature);
    }
}

#[test]
fn a_wrong_value_is_named_by_its_key() {
    for (body, message) in [
        (
            r#"{"type":"network_leave","network":true}"#,
            "network: expected a network's number or name",
        ),
        (
            r#"{"type":"token_create","network":1,"uses":"x","tags":[]}"#,
            "uses: invalid type: string \"x\", expected u32",
        ),
        (
            r#"{"type":"network_create","name":"x","join":{"combine":"most"}}"#,
            "join: unknown variant `most`, expected `any` or `all`",
        ),
        (r#"{"type":"network_create","name":"x"}"#, "missing field `join`"),
        (r#"{"type":"invitation_decline","no":1}"#, "unknown field `no`"),
        (r#"{"type":"node_revoke","node_id":-1}"#, "node_id: invalid value: integer `-1`"),
    ] {
        let error = super::Envelope::parse(body.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with(message), "{body}: {error}");
    }
}
