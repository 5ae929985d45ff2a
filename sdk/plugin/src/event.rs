//! Event sinks: what is delivered and how a sink answers.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Something that happened on a node (protocol page "Services", section 10;
/// `docs/EVENTS.md`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Name, as in `conn.established`.
    pub event: String,
    /// Number of the node, 0 while it has none.
    pub node_id: u64,
    /// When, RFC 3339 in UTC with nanoseconds.
    pub timestamp: String,
    /// Grows by one with every event of the node, also over restarts: a number
    /// that is missing is an event that was lost.
    pub event_id: u64,
    /// What it is about; absent for events without data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Map<String, Value>>,
}

/// Events for a sink, oldest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The sink's name in the manifest.
    pub sink: String,
    /// One JSON object of an [`Event`] a line.
    pub lines: String,
}

impl Batch {
    /// The events as they are, one JSON object each.
    pub fn json(&self) -> impl Iterator<Item = &str> {
        self.lines.lines().filter(|line| !line.is_empty())
    }

    /// The events, parsed. What does not parse is left out; a host of this
    /// version sends no such thing.
    pub fn events(&self) -> impl Iterator<Item = Event> + '_ {
        self.json().filter_map(|line| serde_json::from_str(line).ok())
    }

    /// Number of events.
    pub fn len(&self) -> usize {
        self.json().count()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.json().next().is_none()
    }
}

/// How a sink took a batch. `accepted` counts the events at its beginning that
/// need not come again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "delivery", rename_all = "lowercase")]
pub enum Delivery {
    /// All events have arrived.
    Ack,
    /// Those after the accepted ones did not arrive: again later.
    Retry {
        /// Events that did arrive.
        #[serde(default)]
        accepted: usize,
        /// Not before; the host backs off by itself when it is not set.
        #[serde(default)]
        after_ms: Option<u64>,
        /// For the operator.
        reason: String,
    },
    /// The receiver will never take the next `rejected` events after the
    /// accepted ones: they go to the dead-letter file, the rest comes again.
    Reject {
        /// Events that did arrive.
        #[serde(default)]
        accepted: usize,
        /// Events refused, after those; 0 means all the rest.
        #[serde(default)]
        rejected: usize,
        /// For the operator.
        reason: String,
    },
}

impl Delivery {
    /// Nothing has arrived: again after a while.
    pub fn retry(reason: impl Into<String>) -> Self {
        Self::Retry { accepted: 0, after_ms: None, reason: reason.into() }
    }

    /// Nothing has arrived: again not before `after`.
    pub fn retry_after(after: Duration, reason: impl Into<String>) -> Self {
        let after_ms = u64::try_from(after.as_millis()).ok();
        Self::Retry { accepted: 0, after_ms, reason: reason.into() }
    }

    /// The receiver will never take this batch.
    pub fn reject(reason: impl Into<String>) -> Self {
        Self::Reject { accepted: 0, rejected: 0, reason: reason.into() }
    }
}
