//! A sink as the journal's thread knows it.

use std::time::Instant;

use pilot_wire::NodeId;
use serde_json::Value;

use super::super::courier::Deliver;
use super::super::outlet::{Entry, Gap, Outlet};
use super::super::settings::SinkSettings;
use super::super::status::{SinkState, SinkStatus};
use super::super::store::{Store, name_of};
use crate::events::{Format, Happening, Json, Stamp, Timestamp};

pub(super) struct Slot {
    /// Never the same for two, so that a late answer finds nobody else.
    pub number: u64,
    pub name: String,
    pub outlet: Outlet,
    pub deliver: Option<Deliver>,
    /// Cursor or gaps are not on disk as they are.
    pub dirty: bool,
    /// The batch under way is about nothing but this sink's own troubles.
    pub only_own: bool,
    pub delivered: u64,
    pub dropped: u64,
    pub rejected: u64,
    pub last_error: Option<(String, Timestamp)>,
}

/// Entries as lines.
#[derive(Default)]
pub(super) struct Page {
    pub lines: String,
    /// Events that should be in the database and are not.
    pub missing: Vec<u64>,
    pub only_own: bool,
}

impl Slot {
    pub(super) fn new(number: u64, name: String, settings: SinkSettings, cursor: u64) -> Self {
        Self {
            number,
            name,
            outlet: Outlet::new(settings, cursor, rand::random()),
            deliver: None,
            dirty: false,
            only_own: false,
            delivered: 0,
            dropped: 0,
            rejected: 0,
            last_error: None,
        }
    }

    /// What the database keeps of it.
    pub(super) fn row(&self) -> (&str, u64, Vec<&Gap>) {
        (&self.name, self.outlet.cursor(), self.outlet.gaps().collect())
    }

    pub(super) fn settings_text(&self) -> String {
        // Numbers and texts: it always serialises.
        serde_json::to_string(self.outlet.settings()).unwrap_or_default()
    }

    /// Events became part of a gap.
    pub(super) fn note_dropped(&mut self, count: usize) {
        self.dropped += count as u64;
        self.dirty |= count > 0;
    }

    /// The first `count` entries as lines.
    pub(super) fn page(&self, store: &Store, count: usize, node: NodeId) -> rusqlite::Result<Page> {
        self.page_of(store, &self.outlet.front(count).collect::<Vec<_>>(), node)
    }

    pub(super) fn page_of(
        &self,
        store: &Store,
        entries: &[&Entry],
        node: NodeId,
    ) -> rusqlite::Result<Page> {
        let mut page = Page { only_own: true, ..Page::default() };
        let ids = || entries.iter().filter(|e| matches!(e, Entry::Event { .. })).map(|e| e.id());
        let (first, last) = (ids().next().unwrap_or(1), ids().next_back().unwrap_or(0));
        // A filter can leave few of many: then each is looked up.
        if last.saturating_sub(first) > 4 * entries.len() as u64 + 64 {
            for entry in entries {
                match entry {
                    Entry::Gap(gap) => self.add_gap(&mut page, gap, node),
                    Entry::Event { id, .. } => match store.read_one(*id)? {
                        Some(line) => self.add(&mut page, &line),
                        None => page.missing.push(*id),
                    },
                }
            }
            return Ok(page);
        }
        let mut rest = entries.iter().peekable();
        store.read(first, last, |id, _, line| {
            while let Some(entry) = rest.next_if(|entry| entry.id() <= id) {
                match entry {
                    Entry::Gap(gap) => self.add_gap(&mut page, gap, node),
                    Entry::Event { id: found, .. } if *found == id => self.add(&mut page, line),
                    Entry::Event { id: found, .. } => page.missing.push(*found),
                }
            }
        })?;
        for entry in rest {
            match entry {
                Entry::Gap(gap) => self.add_gap(&mut page, gap, node),
                Entry::Event { id, .. } => page.missing.push(*id),
            }
        }
        Ok(page)
    }

    fn add(&self, page: &mut Page, line: &str) {
        page.lines.push_str(line);
        page.lines.push('\n');
        page.only_own = page.only_own && self.is_own(line);
    }

    fn add_gap(&self, page: &mut Page, gap: &Gap, node: NodeId) {
        let known = |id| (gap.count > 0).then_some(id);
        let event = Happening::EventsDropped {
            count: gap.count,
            first_event_id: known(gap.first),
            last_event_id: known(gap.last),
            reason: gap.reason.clone(),
            sink: Some(self.name.clone()),
        };
        let timestamp = Timestamp(gap.at);
        let mut line = Vec::new();
        Json.write(&Stamp { node_id: node, timestamp, event_id: gap.last }, &event, &mut line);
        page.lines.push_str(&String::from_utf8_lossy(&line));
        page.lines.push('\n');
        page.only_own = false;
    }

    /// Whether an event is about this sink's failures: they must not make more
    /// of their kind.
    fn is_own(&self, line: &str) -> bool {
        name_of(line).starts_with("sink.")
            && serde_json::from_str::<Value>(line)
                .is_ok_and(|event| event["data"]["sink"] == self.name.as_str())
    }

    pub(super) fn status(&self) -> SinkStatus {
        let outlet = &self.outlet;
        let state = if outlet.in_flight() > 0 {
            SinkState::Delivering
        } else if self.deliver.is_none() {
            SinkState::Detached
        } else if outlet.front(1).next().is_none() {
            SinkState::Idle
        } else if outlet.retry_at().is_some_and(|at| at > Instant::now()) {
            SinkState::BackingOff
        } else {
            SinkState::Gathering
        };
        SinkStatus {
            sink: self.name.clone(),
            state,
            failing: outlet.is_failing(),
            waiting: outlet.events() as u64,
            waiting_bytes: outlet.bytes(),
            last_error: self.last_error.as_ref().map(|(text, _)| text.clone()),
            last_error_at: self.last_error.as_ref().map(|(_, at)| at.to_string()),
            attempts: u64::from(outlet.attempts()),
            delivered: self.delivered,
            dropped: self.dropped,
            rejected: self.rejected,
            slot: self.number,
            oldest_at: outlet.front(1).next().map(Entry::at),
            retry_at: outlet.retry_at(),
            ..SinkStatus::default()
        }
    }
}

/// Marks those of `ids` (sorted) that no sink wants any more.
pub(super) fn release(slots: &[Slot], ids: &[u64], unwanted: &mut Vec<(u64, u64)>) {
    let (Some(first), Some(last)) = (ids.first(), ids.last()) else { return };
    if !slots.iter().any(|slot| slot.outlet.has_any(*first, *last)) {
        extend(unwanted, *first, *last);
        return;
    }
    for id in ids {
        if !slots.iter().any(|slot| slot.outlet.has(*id)) {
            extend(unwanted, *id, *id);
        }
    }
}

fn extend(ranges: &mut Vec<(u64, u64)>, first: u64, last: u64) {
    match ranges.last_mut() {
        Some(range) if range.1 + 1 == first => range.1 = last,
        _ => ranges.push((first, last)),
    }
}
