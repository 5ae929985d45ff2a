//! What `docs/schema/events.json` and the table of `docs/EVENTS.md` are made
//! from: the types themselves.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::Happening;

/// JSON Schema (2020-12) of one event in its envelope: the documented ones by
/// name, and any other name with any data.
pub fn schema() -> Value {
    let mut derived = schemars::schema_for!(Happening).to_value();
    let mut kinds = match derived["oneOf"].take() {
        Value::Array(kinds) => kinds,
        _ => Vec::new(),
    };
    kinds.push(json!({
        "type": "object",
        "description": "An event of a plugin or script.",
        "properties": {
            "event": {
                "type": "string",
                "pattern": "^[a-z0-9_]+(\\.[a-z0-9_]+)+$",
                "not": { "enum": Happening::NAMES },
            },
            "data": { "type": "object" },
        },
        "required": ["event"],
    }));
    let mut schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Event",
        "description": "Something that happened on a node, as it is given to sinks.",
        "type": "object",
        "properties": {
            "event": { "type": "string", "description": "Name." },
            "node_id": {
                "type": "integer", "minimum": 0, "maximum": u32::MAX,
                "description": "Number of the node, 0 while it has none, and at a registry.",
            },
            "timestamp": {
                "type": "string", "format": "date-time",
                "description": "When it was emitted, RFC 3339 in UTC with nanoseconds.",
            },
            "event_id": {
                "type": "integer", "minimum": 1,
                "description": "Grows with every event of the node, also over restarts; \
                                never used twice.",
            },
            "data": { "type": "object", "description": "What it is about." },
        },
        "required": ["event", "node_id", "timestamp", "event_id"],
        "oneOf": kinds,
    });
    if let Some(definitions) = derived.get_mut("$defs") {
        schema["$defs"] = definitions.take();
    }
    schema
}

/// The reference in `docs/EVENTS.md`: a Markdown table, one row a key.
pub fn reference() -> String {
    let schema = schema();
    let mut text = String::from("| Event | Key | Type | Meaning |\n|---|---|---|---|\n");
    for kind in schema["oneOf"].as_array().into_iter().flatten() {
        let Some(name) = kind["properties"]["event"]["const"].as_str() else { continue };
        let _ = writeln!(text, "| **`{name}`** | | | {} |", prose(kind));
        let data = &kind["properties"]["data"];
        let required = data["required"].as_array().cloned().unwrap_or_default();
        for (key, field) in data["properties"].as_object().unwrap_or(&Map::new()) {
            let optional = if required.contains(&json!(key)) { "" } else { ", optional" };
            let kind = type_name(&schema, field);
            let _ = writeln!(text, "| | `{key}` | {kind}{optional} | {} |", prose(field));
        }
    }
    text
}

fn prose(schema: &Value) -> String {
    schema["description"].as_str().unwrap_or_default().replace('\n', " ")
}

fn type_name(root: &Value, field: &Value) -> String {
    if let Some(path) = field["$ref"].as_str() {
        let target = root.pointer(path.trim_start_matches('#')).unwrap_or(&Value::Null);
        let values: Vec<_> = target["oneOf"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|value| value["const"].as_str())
            .map(|value| format!("`{value}`"))
            .collect();
        return values.join(", ");
    }
    match &field["type"] {
        Value::String(name) if name == "array" => {
            format!("list of {}", type_name(root, &field["items"]))
        }
        Value::String(name) => name.clone(),
        // An optional field: the type beside `null`.
        Value::Array(names) => names
            .iter()
            .filter_map(Value::as_str)
            .find(|name| *name != "null")
            .unwrap_or("any")
            .into(),
        _ => "any".into(),
    }
}
