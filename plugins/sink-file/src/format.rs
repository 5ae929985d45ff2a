//! Events to bytes: the one place that knows the form of a line.

/// Appends one event, the JSON of it, as a whole line.
pub(crate) fn encode(event: &str, into: &mut Vec<u8>) {
    into.extend_from_slice(event.as_bytes());
    into.push(b'\n');
}
