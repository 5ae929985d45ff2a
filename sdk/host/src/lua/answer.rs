//! What a rule or a sink returned, as a verdict or a delivery. What is neither
//! is an error that says what would be right.

use std::time::Duration;

use mlua::{MultiValue, Table, Value};
use pilot_plugin::{Delivery, Verdict};

/// The verdict that `validate` returned.
pub(super) fn verdict(returned: &MultiValue) -> Result<Verdict, String> {
    match returned.front() {
        Some(Value::Boolean(true)) => Ok(Verdict::allow()),
        Some(Value::Boolean(false)) => {
            let reason = match returned.get(1) {
                None | Some(Value::Nil) => "refused by the rule".to_owned(),
                Some(Value::String(reason)) => reason.to_string_lossy(),
                Some(other) => return Err(wrong_reason(other)),
            };
            Ok(Verdict::deny(reason))
        }
        Some(Value::Table(table)) => verdict_of(table),
        other => Err(format!(
            "returned {}: a verdict is true, or false and a reason, or a table with `allow`",
            described(other)
        )),
    }
}

fn verdict_of(table: &Table) -> Result<Verdict, String> {
    refuse_unknown(
        table,
        &["allow", "reason", "tags", "expires_at_ms", "external_identity", "uses"],
    )?;
    match get(table, "allow") {
        Value::Boolean(true) => {}
        Value::Boolean(false) => {
            return Ok(Verdict::deny(
                text(table, "reason")?.unwrap_or_else(|| "refused by the rule".into()),
            ));
        }
        _ => return Err("returned a table without `allow = true` or `allow = false`".into()),
    }
    let tags = match get(table, "tags") {
        Value::Nil => Vec::new(),
        Value::Table(list) => list
            .sequence_values::<Value>()
            .map(|tag| match tag {
                Ok(Value::String(tag)) => Ok(tag.to_string_lossy()),
                _ => Err("returned `tags` that is no list of texts".to_owned()),
            })
            .collect::<Result<_, _>>()?,
        _ => return Err("returned `tags` that is no list of texts".into()),
    };
    let expires_at_ms = match number(table, "expires_at_ms")? {
        None => None,
        // Positive, and a time in milliseconds is far below 2^53.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked")]
        Some(ms) if (0.0..9e15).contains(&ms) => Some(ms as u64),
        Some(_) => return Err("returned `expires_at_ms` that is no time after 1970".into()),
    };
    let external_identity = text(table, "external_identity")?;
    let uses = text(table, "uses")?;
    Ok(Verdict::Allow { tags, expires_at_ms, external_identity, uses })
}

/// The delivery that `deliver` returned.
pub(super) fn delivery(returned: &MultiValue) -> Result<Delivery, String> {
    let table = match returned.front() {
        Some(Value::Boolean(true)) => return Ok(Delivery::Ack),
        Some(Value::Table(table)) => table,
        other => {
            return Err(format!(
                "returned {}: a delivery is true, or a table with `retry_after` or `reject`",
                described(other)
            ));
        }
    };
    refuse_unknown(table, &["retry_after", "reject", "accepted", "reason"])?;
    let reason = text(table, "reason")?;
    let accepted = count(table, "accepted")?.unwrap_or(0);
    match (get(table, "retry_after"), get(table, "reject")) {
        (Value::Nil, Value::Nil) | (Value::Nil, Value::Boolean(false)) => {
            Err("returned a table with neither `retry_after` nor `reject`".into())
        }
        (_, Value::Nil | Value::Boolean(false)) => {
            let after_ms = match get(table, "retry_after") {
                // Whenever the host thinks fit.
                Value::Boolean(true) => None,
                _ => {
                    let seconds = number(table, "retry_after")?.unwrap_or(-1.0);
                    let after = Duration::try_from_secs_f64(seconds)
                        .map_err(|_| "returned `retry_after` that is no number of seconds")?;
                    u64::try_from(after.as_millis()).ok()
                }
            };
            let reason = reason.unwrap_or_else(|| "the script wants to try again".into());
            Ok(Delivery::Retry { accepted, after_ms, reason })
        }
        (Value::Nil, reject) => {
            let rejected = match reject {
                Value::Boolean(_) => 0,
                _ => count(table, "reject")?.unwrap_or(0),
            };
            let reason = reason.unwrap_or_else(|| "rejected by the script".into());
            Ok(Delivery::Reject { accepted, rejected, reason })
        }
        _ => Err("returned both `retry_after` and `reject`; one of them it is".into()),
    }
}

fn get(table: &Table, key: &str) -> Value {
    table.raw_get(key).unwrap_or(Value::Nil)
}

fn text(table: &Table, key: &str) -> Result<Option<String>, String> {
    match get(table, key) {
        Value::Nil => Ok(None),
        Value::String(text) => Ok(Some(text.to_string_lossy())),
        other => Err(format!("returned `{key}` that is no text but a {}", other.type_name())),
    }
}

fn number(table: &Table, key: &str) -> Result<Option<f64>, String> {
    match get(table, key) {
        Value::Nil => Ok(None),
        #[expect(clippy::cast_precision_loss, reason = "Lua has no other numbers")]
        Value::Integer(n) => Ok(Some(n as f64)),
        Value::Number(n) => Ok(Some(n)),
        other => Err(format!("returned `{key}` that is no number but a {}", other.type_name())),
    }
}

fn count(table: &Table, key: &str) -> Result<Option<usize>, String> {
    match get(table, key) {
        Value::Nil => Ok(None),
        Value::Integer(n) if n >= 0 => Ok(usize::try_from(n).ok()),
        _ => Err(format!("returned `{key}` that is no number of events")),
    }
}

fn refuse_unknown(table: &Table, known: &[&str]) -> Result<(), String> {
    for pair in table.pairs::<Value, Value>() {
        let Ok((key, _)) = pair else { continue };
        let key = match &key {
            Value::String(key) => key.to_string_lossy(),
            other => format!("({})", other.type_name()),
        };
        if !known.contains(&key.as_str()) {
            return Err(format!(
                "returned a table with the unknown key `{key}`; it may have {}",
                known.join(", ")
            ));
        }
    }
    Ok(())
}

fn wrong_reason(value: &Value) -> String {
    format!("returned false and a {} as reason; a reason is a text", value.type_name())
}

fn described(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Nil) => "nothing".into(),
        Some(other) => format!("a {}", other.type_name()),
    }
}
