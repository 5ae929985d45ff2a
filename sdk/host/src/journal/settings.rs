//! What an operator sets for a sink, and which events it wants.

use std::borrow::Cow;
use std::path::PathBuf;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::events::Happening;

/// How events are queued for a sink and delivered to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct SinkSettings {
    /// Which events: names, with `*` for any text (`conn.*`), and `!` before
    /// those to leave out (`!conn.fin`). An event is wanted when a name without
    /// `!` fits, or none is given, and no name with `!` fits. `events.dropped`
    /// always comes.
    pub events: Vec<String>,
    /// Most events that are given at once.
    pub batch: usize,
    /// Most bytes that are given at once; a larger event is given alone.
    pub batch_bytes: Size,
    /// How long to gather events for a batch that is not full.
    pub linger: Span,
    /// Most bytes that wait for the sink on disk. Beyond it the oldest are
    /// dropped, and an `events.dropped` event stands in their place.
    pub queue_bytes: Size,
    /// Longest pause after the first failure; it doubles with each, and a
    /// random part of it is waited.
    pub retry_min: Span,
    /// Longest pause after any failure.
    pub retry_max: Span,
    /// Attempts after which a batch is given up and goes to the dead letters;
    /// 0 is never.
    pub max_attempts: u32,
    /// File that takes events that the receiver refuses for good or that were
    /// given up, one JSON object a line. Without one they are lost; either way
    /// `sink.rejected` says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<PathBuf>,
    /// Size of the dead-letter file at which it is renamed to `FILE.1`, in place
    /// of an earlier one.
    pub dead_letter_bytes: Size,
    /// How long a sink may take for a batch; then it is tried again.
    pub deliver_timeout: Span,
}

impl Default for SinkSettings {
    fn default() -> Self {
        Self {
            events: Vec::new(),
            batch: 500,
            batch_bytes: Size(1 << 20),
            linger: Span(Duration::from_millis(50)),
            queue_bytes: Size(64 << 20),
            retry_min: Span(Duration::from_millis(500)),
            retry_max: Span(Duration::from_secs(300)),
            max_attempts: 0,
            dead_letter: None,
            dead_letter_bytes: Size(64 << 20),
            deliver_timeout: Span(Duration::from_secs(60)),
        }
    }
}

/// Most events in a batch that can be set.
pub const BATCH_MAX: usize = 100_000;

/// Most names in the filter of a sink.
pub const FILTER_MAX: usize = 256;

/// A setting that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {reason}")]
pub struct SettingsError {
    /// The key.
    pub key: &'static str,
    /// What is wrong with its value.
    pub reason: String,
}

impl SinkSettings {
    /// Checks what the types cannot.
    ///
    /// # Errors
    /// Names the first key whose value cannot be.
    pub fn check(&self) -> Result<(), SettingsError> {
        let wrong = |key, reason: String| Err(SettingsError { key, reason });
        if self.batch == 0 || self.batch > BATCH_MAX {
            return wrong("batch", format!("from 1 to {BATCH_MAX} events, not {}", self.batch));
        }
        if self.batch_bytes.0 == 0 {
            return wrong("batch-bytes", "at least one byte".to_owned());
        }
        // A batch under way is not dropped: a queue that is smaller than one would
        // drop all that comes meanwhile.
        if self.queue_bytes < self.batch_bytes {
            let most = self.batch_bytes.0;
            return wrong("queue-bytes", format!("not less than batch-bytes, which is {most}"));
        }
        if self.deliver_timeout.0.is_zero() {
            return wrong("deliver-timeout", "longer than no time".to_owned());
        }
        if self.retry_min.0 > self.retry_max.0 {
            return wrong("retry-min", "not more than retry-max".to_owned());
        }
        if self.events.len() > FILTER_MAX {
            return wrong("events", format!("at most {FILTER_MAX} names"));
        }
        for glob in &self.events {
            let text = glob.strip_prefix('!').unwrap_or(glob);
            let known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._*".contains(&b);
            if text.is_empty() || !text.bytes().all(known) {
                return wrong("events", format!("{glob:?} is no name: a-z, 0-9, _, dots and *"));
            }
            let fits = |name: &&str| matches(text, name);
            if !text.contains('*')
                && crate::events::RESERVED.iter().any(|part| text.split('.').next() == Some(part))
                && !Happening::NAMES.iter().any(fits)
            {
                return wrong("events", format!("there is no event {glob:?} (docs/EVENTS.md)"));
            }
        }
        Ok(())
    }

    /// Whether the sink wants events of this name.
    pub fn wants(&self, name: &str) -> bool {
        if self.events.is_empty() || name == DROPPED {
            return true;
        }
        let (mut any, mut named) = (true, false);
        for glob in &self.events {
            match glob.strip_prefix('!') {
                Some(glob) if matches(glob, name) => return false,
                Some(_) => {}
                None => {
                    any = false;
                    named |= matches(glob, name);
                }
            }
        }
        any || named
    }
}

/// The event that no filter holds back.
const DROPPED: &str = "events.dropped";

/// Whether `name` has the form of `glob`, in which `*` is any text.
fn matches(glob: &str, name: &str) -> bool {
    let mut parts = glob.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// Bytes: a number, or text with K, M, G or T of 1024.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// A duration: text in `ms`, `s`, `m` or `h`, or a number of seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Number(u64),
    Text(String),
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = match Written::deserialize(d).map_err(|_| de::Error::custom(SIZE_FORM))? {
            Written::Number(bytes) => return Ok(Self(bytes)),
            Written::Text(text) => text,
        };
        unit(&text, &[("K", 1 << 10), ("M", 1 << 20), ("G", 1 << 30), ("T", 1 << 40), ("", 1)])
            .map(Self)
            .ok_or_else(|| de::Error::custom(format_args!("{text:?} is no size: {SIZE_FORM}")))
    }
}

const SIZE_FORM: &str = "bytes, or a number with K, M, G or T, as in 64M";
const SPAN_FORM: &str = "a number with ms, s, m or h, as in 250ms, or a number of seconds";

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = match Written::deserialize(d).map_err(|_| de::Error::custom(SPAN_FORM))? {
            Written::Number(seconds) => return Ok(Self(Duration::from_secs(seconds))),
            Written::Text(text) => text,
        };
        unit(&text, &[("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("", 1000)])
            .map(|ms| Self(Duration::from_millis(ms)))
            .ok_or_else(|| de::Error::custom(format_args!("{text:?} is no time: {SPAN_FORM}")))
    }
}

fn unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let (_, scale) = units.iter().find(|(unit, _)| *unit == suffix)?;
    number.parse::<u64>().ok()?.checked_mul(*scale)
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u64(self.0)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&format_args!("{}ms", self.0.as_millis()))
    }
}

impl JsonSchema for Size {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["integer", "string"], "minimum": 0, "pattern": "^[0-9]+[KMGT]?$" })
    }
}

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Span".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["integer", "string"], "minimum": 0, "pattern": "^[0-9]+(ms|s|m|h)?$",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wants(events: &[&str], name: &str) -> bool {
        let events = events.iter().map(|glob| (*glob).to_owned()).collect();
        let settings = SinkSettings { events, ..SinkSettings::default() };
        settings.check().expect("can be");
        settings.wants(name)
    }

    #[test]
    fn filters() {
        assert!(wants(&[], "conn.fin"));
        assert!(wants(&["conn.*"], "conn.fin"));
        assert!(!wants(&["conn.*"], "node.registered"));
        assert!(!wants(&["conn.*", "!conn.fin"], "conn.fin"));
        assert!(wants(&["!conn.fin"], "conn.rst"));
        assert!(!wants(&["!conn.*"], "conn.rst"));
        assert!(wants(&["*.re*d"], "node.registered"));
        assert!(wants(&["conn.fin"], "conn.fin"));
        assert!(!wants(&["conn.fin"], "conn.fin_more"));
        assert!(!wants(&["a.*.a"], "a.a"), "the parts must not overlap");
        assert!(wants(&["trust.*"], "events.dropped"), "gaps are always shown");
        assert!(wants(&["*"], "x.y"));
    }

    #[test]
    fn what_cannot_be_is_named() {
        let read = |text: &str| serde_json::from_str::<SinkSettings>(text);
        let settings = read(
            r#"{"queue-bytes": "64M", "linger": "250ms", "retry-max": 600, "events": ["conn.*"]}"#,
        )
        .expect("settings");
        assert_eq!(settings.queue_bytes, Size(64 << 20));
        assert_eq!(settings.linger.0, Duration::from_millis(250));
        assert_eq!(settings.retry_max.0, Duration::from_secs(600));
        let again = serde_json::to_string(&settings).expect("JSON");
        assert_eq!(read(&again).expect("the same"), settings);

        assert!(read(r#"{"queue": 1}"#).unwrap_err().to_string().contains("queue-bytes"));
        assert!(read(r#"{"linger": "soon"}"#).unwrap_err().to_string().contains("\"soon\""));
        assert!(read(r#"{"queue-bytes": -1}"#).unwrap_err().to_string().contains("64M"));
        for (text, key) in [
            (r#"{"batch": 0}"#, "batch"),
            (r#"{"events": ["Conn"]}"#, "events"),
            (r#"{"events": ["conn.fim"]}"#, "events"),
            (r#"{"retry-min": "1h"}"#, "retry-min"),
            (r#"{"deliver-timeout": 0}"#, "deliver-timeout"),
            (r#"{"queue-bytes": "64K"}"#, "queue-bytes"),
        ] {
            let error = read(text).expect("parses").check().expect_err(text);
            assert_eq!(error.key, key);
        }
    }

    #[test]
    fn the_schema_takes_the_defaults() {
        let schema = schemars::schema_for!(SinkSettings).to_value();
        let validator = jsonschema::validator_for(&schema).expect("a schema");
        let value = serde_json::to_value(SinkSettings::default()).expect("JSON");
        assert!(validator.is_valid(&value), "{schema}");
        assert!(!validator.is_valid(&serde_json::json!({ "linger": "soon" })));
    }
}
