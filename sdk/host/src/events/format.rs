//! How an event becomes bytes. JSON is the only format; others (CEF, syslog,
//! OpenTelemetry) would stand beside it behind the same trait.

use std::io::Write;

use pilot_wire::NodeId;
use serde::Serialize;

use super::{Happening, Timestamp};

/// What the journal adds to an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The node it happened on; 0 while it has no number.
    pub node_id: NodeId,
    /// When it was emitted.
    pub timestamp: Timestamp,
    /// Its number.
    pub event_id: u64,
}

/// A form of events.
pub trait Format: Send + Sync {
    /// Appends one event to `out`.
    fn write(&self, stamp: &Stamp, event: &Happening, out: &mut Vec<u8>);
}

/// The published envelope with an `event_id`: one JSON object, no newline.
#[derive(Clone, Copy, Debug, Default)]
pub struct Json;

impl Format for Json {
    fn write(&self, stamp: &Stamp, event: &Happening, out: &mut Vec<u8>) {
        let Stamp { node_id, timestamp, event_id } = stamp;
        // Names have no character that JSON escapes, and a Vec takes everything.
        let _ = write!(
            out,
            "{{\"event\":\"{}\",\"node_id\":{node_id},\"timestamp\":\"{timestamp}\",\
             \"event_id\":{event_id}",
            event.name()
        );
        match event {
            Happening::Other { data: Some(data), .. } => {
                out.extend_from_slice(b",\"data\":");
                append(data, out);
                out.push(b'}');
            }
            Happening::Other { data: None, .. } => out.push(b'}'),
            // `{"event":NAME,"data":{..}}` or `{"event":NAME}`: what stands after
            // the name is what stands after the envelope's own fields.
            typed => {
                let start = out.len();
                append(typed, out);
                let name = "{\"event\":\"\"".len() + typed.name().len();
                out.drain(start..start + name);
            }
        }
    }
}

fn append(value: &impl Serialize, out: &mut Vec<u8>) {
    // Fields are numbers, texts, lists and maps with text keys: serialising them
    // into memory does not fail.
    let written = serde_json::to_writer(&mut *out, value);
    debug_assert!(written.is_ok(), "{written:?}");
}
