//! Members as others see them, and how much of a list goes into one answer. Who
//! may see it is not decided here.
//!
//! Bound: a list takes [`ROOM`] bytes of an answer at the most, as a frame has a
//! limit; what does not fit is on the next page where there are pages, else it
//! is left out and logged. Nobody comes near with tags and names of usual
//! length.

use std::io;

use pilot_wire::registry::network::MemberView;
use serde::Serialize;

use crate::state::{Member, Network, State};

/// Bytes of one answer that a list may take.
const ROOM: usize = 1_000_000;

/// A member for others.
pub(super) fn member(state: &State, network: &Network, member: &Member) -> MemberView {
    let node = state.node(member.node).ok();
    MemberView {
        node_id: member.node,
        address: network.address(member.node),
        hostname: node.map(|n| n.record.hostname.clone()).filter(|name| !name.is_empty()),
        registered: node.is_some(),
        joined: member.joined,
        expires: member.expires,
        tags: member.tags.clone(),
        external_identity: member.external_identity.clone(),
        rule: member.rule.clone(),
    }
}

/// Those from the front that fit into one answer, at most `limit`, and whether
/// there are more.
pub(super) fn page<T: Serialize>(
    items: impl IntoIterator<Item = T>,
    limit: usize,
) -> (Vec<T>, bool) {
    page_within(items, limit, ROOM)
}

/// The same within `room` bytes.
pub(super) fn page_within<T: Serialize>(
    items: impl IntoIterator<Item = T>,
    limit: usize,
    room: usize,
) -> (Vec<T>, bool) {
    let mut page = Vec::new();
    let mut size = 0;
    for item in items {
        // With the comma after it. The first one fits whatever it is: a frame
        // has more room than any single view takes.
        size += json_len(&item) + 1;
        if page.len() >= limit || (size > room && !page.is_empty()) {
            return (page, true);
        }
        page.push(item);
    }
    (page, false)
}

/// All that fit into one answer that has no next page.
pub(super) fn all_that_fit<T: Serialize>(what: &str, items: impl IntoIterator<Item = T>) -> Vec<T> {
    let (page, more) = page(items, usize::MAX);
    if more {
        tracing::warn!(shown = page.len(), "a list of {what} is longer than one answer can be");
    }
    page
}

/// Length of `value` as JSON, in bytes.
pub(super) fn json_len(value: &impl Serialize) -> usize {
    struct Count(usize);
    impl io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    match serde_json::to_writer(&mut count, value) {
        Ok(()) => count.0,
        // What is no JSON fits nowhere.
        Err(_) => usize::MAX / 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_end_by_count_and_by_size() {
        assert_eq!(page(1..=3, 2), (vec![1, 2], true));
        assert_eq!(page(1..=2, 2), (vec![1, 2], false));
        assert_eq!(page(0..0, 0), (vec![], false));
        let long = "x".repeat(ROOM / 3);
        let (some, more) = page(vec![&long; 4], 10);
        assert_eq!((some.len(), more), (2, true));
        let huge = "x".repeat(ROOM + 1);
        assert_eq!(page(vec![&huge, &huge], 10).0.len(), 1);
        assert_eq!(json_len(&"ab\n"), 6);
    }
}
