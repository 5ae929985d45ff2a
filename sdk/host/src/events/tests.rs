//! The types against what was recorded, and the documents against the types.

use std::path::{Path, PathBuf};

use pilot_plugin::Event;
use pilot_wire::NodeId;
use serde_json::{Map, Value, json};

use super::*;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn line(stamp: &Stamp, event: &Happening) -> String {
    let mut out = Vec::new();
    Json.write(stamp, event, &mut out);
    String::from_utf8(out).expect("UTF-8")
}

fn recorded() -> Vec<(String, String)> {
    let vectors: Value =
        serde_json::from_str(include_str!("../../../../tests/vectors/webhooks_live.json"))
            .expect("vectors");
    let mut all = Vec::new();
    for (name, bodies) in vectors["events"].as_object().expect("events") {
        for body in bodies.as_array().expect("bodies") {
            all.push((name.clone(), body.as_str().expect("text").to_owned()));
        }
    }
    assert!(all.len() > 30, "{}", all.len());
    all
}

/// Every recorded body, parsed into its type and written again, is the same
/// bytes, but for the `event_id` and the digits of the timestamp.
#[test]
fn recorded_bodies_are_written_again() {
    for (name, body) in recorded() {
        let value: Value = serde_json::from_str(&body).expect("JSON");
        let data = value.get("data").map(|data| data.as_object().expect("object").clone());
        let event = Happening::parse(&name, data.clone()).expect("fits its type");
        assert!(!matches!(event, Happening::Other { .. }), "{name} has no type");
        assert_eq!((event.name(), event.data()), (name.as_str(), data));

        let node_id = NodeId(value["node_id"].as_u64().expect("number") as u32);
        let stamp = Stamp { node_id, timestamp: Timestamp(1), event_id: 7 };
        let stamped = stamp.timestamp.to_string();
        let written = line(&stamp, &event)
            .replace(",\"event_id\":7", "")
            .replace(&stamped, value["timestamp"].as_str().expect("text"));
        assert_eq!(written, body);
    }
}

#[test]
fn every_published_event_has_its_documented_keys() {
    // The table of the protocol page, section 10.
    let published: &[(&str, &[&str])] = &[
        ("node.registered", &["address", "endpoint"]),
        ("node.reregistered", &["address"]),
        ("node.deregistered", &[]),
        ("tunnel.peer_added", &["endpoint", "peer_node_id"]),
        ("tunnel.established", &["authenticated", "peer_node_id", "rekeyed", "relay"]),
        ("tunnel.relay_activated", &["peer_node_id"]),
        ("conn.syn_received", &["conn_id", "dst_port", "src_addr", "src_port"]),
        ("conn.established", &["conn_id", "dst_port", "src_addr", "src_port"]),
        ("conn.fin", &["conn_id", "local_port", "remote_addr", "remote_port"]),
        ("conn.rst", &["conn_id", "local_port", "remote_addr", "remote_port"]),
        ("conn.idle_timeout", &["conn_id", "local_port", "remote_addr", "remote_port"]),
        ("data.datagram", &["dst_port", "size", "src_addr", "src_port"]),
        ("security.syn_rate_limited", &["src_addr", "src_port"]),
        ("security.nonce_replay", &["counter", "peer_node_id"]),
        ("handshake.received", &["justification", "peer_node_id"]),
        ("handshake.pending", &["justification", "peer_node_id"]),
        ("handshake.approved", &["peer_node_id"]),
        ("handshake.rejected", &["peer_node_id", "reason"]),
        ("handshake.auto_approved", &["peer_node_id", "reason"]),
        ("trust.revoked", &["peer_node_id"]),
        ("trust.revoked_by_peer", &["peer_node_id"]),
        ("message.received", &["from", "size", "type"]),
        ("file.received", &["filename", "path", "size"]),
        ("pubsub.subscribed", &["remote", "topic"]),
        ("pubsub.unsubscribed", &["remote", "topic"]),
        ("pubsub.published", &["from", "size", "topic"]),
    ];
    let schema = schema();
    for (name, keys) in published {
        let kind = kind(&schema, name);
        let required: Vec<_> = kind["properties"]["data"]["required"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        assert_eq!(&required, keys, "{name}");
    }
}

fn kind<'a>(schema: &'a Value, name: &str) -> &'a Value {
    let mut found = schema["oneOf"]
        .as_array()
        .expect("kinds")
        .iter()
        .filter(|kind| kind["properties"]["event"]["const"] == name);
    let kind = found.next().unwrap_or_else(|| panic!("{name} is not in the schema"));
    assert!(found.next().is_none(), "{name} is in the schema twice");
    kind
}

/// Keys are serialised in the order of their declaration: it has to be sorted,
/// as published.
#[test]
fn names_and_keys_are_well_formed_sorted_and_described() {
    let schema = schema();
    assert_eq!(schema["oneOf"].as_array().expect("kinds").len(), Happening::NAMES.len() + 1);
    for name in Happening::NAMES {
        assert!(well_formed(name), "{name}");
        let kind = kind(&schema, name);
        assert!(kind["description"].as_str().is_some_and(|d| !d.is_empty()), "{name}");
        let properties = kind["properties"]["data"]["properties"].as_object();
        for (key, field) in properties.into_iter().flatten() {
            let text = field["description"].as_str();
            assert!(text.is_some_and(|d| !d.is_empty()), "{name}: {key}");
        }
    }
}

#[test]
fn declared_fields_are_in_the_order_of_the_alphabet() {
    let source = include_str!("kinds.rs");
    let table = source.split("happenings! {").nth(1).expect("the table");
    let table = table.split("\n}\n").next().expect("its end");
    let (mut last, mut fields) = (String::new(), 0);
    for row in table.lines() {
        if row.ends_with('{') {
            last.clear();
        } else if let Some((field, _)) =
            row.strip_prefix("        ").and_then(|row| row.split_once(": "))
            && !field.starts_with(['/', '#'])
        {
            let field = field.trim_start_matches("r#").to_owned();
            assert!(last < field, "{last} stands before {field}");
            (last, fields) = (field, fields + 1);
        }
    }
    assert!(fields > 100, "only {fields} fields were seen");
}

#[test]
fn what_is_written_fits_the_schema() {
    let validator = jsonschema::validator_for(&schema()).expect("a schema");
    let stamp = Stamp { node_id: NodeId(3), timestamp: Timestamp::now(), event_id: 12 };
    let samples = recorded().into_iter().map(|(name, body)| {
        let value: Value = serde_json::from_str(&body).expect("JSON");
        Happening::parse(&name, value["data"].as_object().cloned()).expect("fits")
    });
    let ours = [
        Happening::PluginSwitchedOff {
            generation: 9,
            name: "echo".into(),
            reason: "it said \"no\"\n".into(),
        },
        Happening::PluginOverBudget {
            generation: 2,
            name: "spin".into(),
            reason: "0.99 of a core, 0.9 are allowed".into(),
        },
        Happening::EventsDropped {
            count: 3,
            first_event_id: Some(4),
            last_event_id: Some(6),
            reason: "queue-bytes".into(),
            sink: Some("siem".into()),
        },
        Happening::parse("orders.received", Some(object(json!({"n": [1, {"a": null}]}))))
            .expect("an event"),
        Happening::parse("orders.closed", None).expect("an event"),
    ];
    for event in samples.chain(ours) {
        let written = line(&stamp, &event);
        let value: Value = serde_json::from_str(&written).expect("JSON");
        let errors: Vec<_> = validator.iter_errors(&value).map(|e| e.to_string()).collect();
        assert!(errors.is_empty(), "{written}: {errors:?}");
        let parsed: Event = serde_json::from_str(&written).expect("an event");
        assert_eq!((parsed.event.as_str(), parsed.event_id), (event.name(), 12));
        assert_eq!(parsed.data, event.data());
        assert_eq!(serde_json::to_string(&parsed).expect("JSON"), written, "order of the keys");
    }
    let wrong = json!({"event": "conn.fin", "node_id": 1, "timestamp": "2026-11-20T12:00:00Z",
                       "event_id": 1, "data": {"conn_id": "one"}});
    assert!(!validator.is_valid(&wrong));
}

fn object(value: Value) -> Map<String, Value> {
    value.as_object().expect("an object").clone()
}

#[test]
fn plugins_emit_their_own_and_documented_events_only() {
    let message = object(json!({"from": "0:0000.0000.0001", "size": 5, "type": "TEXT"}));
    let event = Happening::of_plugin("message.received", message.clone()).expect("documented");
    assert!(matches!(event, Happening::MessageReceived { size: 5, .. }), "{event:?}");

    let mut more = message;
    more.insert("color".into(), json!("red"));
    let event = Happening::of_plugin("message.received", more.clone()).expect("documented");
    assert_eq!(event.data(), Some(more), "no key is lost");

    let wrong = Happening::of_plugin("message.received", object(json!({"size": "five"})));
    let text = wrong.expect_err("does not fit").to_string();
    assert!(text.contains("message.received") && text.contains("five"), "{text}");

    for name in ["tunnel.lost", "sink.failing", "security.anything"] {
        let refused = Happening::of_plugin(name, Map::new());
        assert!(matches!(refused, Err(EventError::Reserved { .. })), "{name}: {refused:?}");
    }
    for name in ["", "one", "a..b", ".a", "A.b", "a.b\"", "a.b c", &"a.".repeat(60)] {
        assert!(matches!(Happening::parse(name, None), Err(EventError::Name(_))), "{name}");
    }
}

#[test]
fn timestamps_are_rfc_3339() {
    for (nanos, text) in [
        (0, "1970-01-01T00:00:00.000000000Z"),
        (951_782_400_000_000_001, "2000-02-29T00:00:00.000000001Z"),
        (1_709_251_199_999_999_999, "2024-02-29T23:59:59.999999999Z"),
        (1_763_640_095_477_960_205, "2025-11-20T12:01:35.477960205Z"),
        (4_102_444_800_000_000_000, "2100-01-01T00:00:00.000000000Z"),
        (4_107_542_400_000_000_000, "2100-03-01T00:00:00.000000000Z"),
    ] {
        assert_eq!(Timestamp(nanos).to_string(), text);
    }
}

/// `PILOT_BLESS=1` writes both documents.
#[test]
fn the_documents_say_what_the_types_say() {
    let file = repository().join("docs/schema/events.json");
    let text = serde_json::to_string_pretty(&schema()).expect("JSON") + "\n";
    same(&file, &text);

    let file = repository().join("docs/EVENTS.md");
    let document = std::fs::read_to_string(&file).expect("docs/EVENTS.md");
    let (begin, end) = ("<!-- reference: made from the types -->\n", "<!-- end -->\n");
    let (before, rest) = document.split_once(begin).expect("where the reference begins");
    let (_, after) = rest.split_once(end).expect("where it ends");
    same(&file, &format!("{before}{begin}{}{end}{after}", reference()));
}

#[test]
fn the_examples_in_the_document_fit_the_schema() {
    let document = std::fs::read_to_string(repository().join("docs/EVENTS.md")).expect("document");
    let validator = jsonschema::validator_for(&schema()).expect("a schema");
    let mut seen = 0;
    for block in document.split("```json\n").skip(1) {
        for line in block.split("```").next().expect("its end").lines() {
            let value: Value = serde_json::from_str(line).expect(line);
            assert!(validator.is_valid(&value), "{line}");
            let event: Event = serde_json::from_str(line).expect(line);
            assert_eq!(serde_json::to_string(&event).expect("JSON"), line);
            seen += 1;
        }
    }
    assert!(seen >= 4, "{seen}");
    for part in RESERVED {
        assert!(document.contains(&format!("`{part}`")), "{part} is not in the document");
    }
    // Defaults in the table of settings.
    let settings = crate::journal::SinkSettings::default();
    for key in serde_json::to_value(settings).expect("JSON").as_object().expect("keys").keys() {
        assert!(document.contains(&format!("`{key}`")), "{key} is not in the document");
    }
}

fn same(file: &Path, text: &str) {
    if std::env::var_os("PILOT_BLESS").is_some() {
        std::fs::write(file, text).expect("written");
    }
    let found = std::fs::read_to_string(file).unwrap_or_default();
    assert!(
        found == text,
        "{} differs from the types; PILOT_BLESS=1 cargo test -p pilot-host events writes it",
        file.display()
    );
}
