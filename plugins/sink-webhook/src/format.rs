//! Events to bytes: the one place that knows the form of a body.

use bytes::Bytes;
use hyper::header::HeaderValue;
use pilot_plugin::json;
use pilot_plugin::serde::Deserialize;

use crate::config::{BatchFormat, Mode};

/// Form of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// One event as a JSON object.
    Single,
    /// Events as a JSON array.
    JsonArray,
    /// One JSON object a line.
    Ndjson,
}

impl Format {
    pub(crate) fn new(mode: Mode, batch: BatchFormat) -> Self {
        match (mode, batch) {
            (Mode::Single, _) => Self::Single,
            (Mode::Batch, BatchFormat::JsonArray) => Self::JsonArray,
            (Mode::Batch, BatchFormat::Ndjson) => Self::Ndjson,
        }
    }

    /// Events that fit one body.
    pub(crate) fn events(self) -> usize {
        if self == Self::Single { 1 } else { usize::MAX }
    }

    pub(crate) fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Single | Self::JsonArray => "application/json",
            Self::Ndjson => "application/x-ndjson",
        })
    }

    /// The body for `events`, each the JSON of one event, at most
    /// [`Format::events`].
    pub(crate) fn encode(self, events: &[&str]) -> Bytes {
        let size = events.iter().map(|event| event.len() + 1).sum::<usize>() + 1;
        let mut body = String::with_capacity(size);
        if self == Self::JsonArray {
            body.push('[');
        }
        for (n, event) in events.iter().enumerate() {
            if self == Self::JsonArray && n > 0 {
                body.push(',');
            }
            body.push_str(event);
            if self == Self::Ndjson {
                body.push('\n');
            }
        }
        if self == Self::JsonArray {
            body.push(']');
        }
        Bytes::from(body)
    }
}

/// The value of `webhook-id`: the same whenever the same events are posted
/// again, so that a receiver can tell a repetition. `evt_NODE_EVENT`, with the
/// last event's number behind it when there are several.
pub(crate) fn id(events: &[&str]) -> String {
    let (first, last) = (number(events.first()), number(events.last()));
    let node = first.node_id;
    match events.len() {
        0 | 1 => format!("evt_{node}_{}", first.event_id),
        _ => format!("evt_{node}_{}_{}", first.event_id, last.event_id),
    }
}

#[derive(Default, Deserialize)]
#[serde(crate = "pilot_plugin::serde", default)]
struct Number {
    node_id: u64,
    event_id: u64,
}

fn number(event: Option<&&str>) -> Number {
    event.and_then(|event| json::from_str(event).ok()).unwrap_or_default()
}
