//! What the journal's thread does when it is asked, and when a sink answers.

use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::super::courier::{Deliver, Outcome};
use super::super::inbox::Order;
use super::super::outlet::{Entry, Gap, Notice, Settled, Verdict};
use super::super::settings::SinkSettings;
use super::super::store::{FILE, StoredSink};
use super::super::{JournalError, SINKS_MAX, dead_letter};
use super::Keeper;
use super::slot::{Slot, release};
use crate::events::{Happening, Timestamp};

impl Keeper {
    /// Makes the sinks that were on disk, without anybody who delivers yet.
    pub(super) fn restore(&mut self, sinks: Vec<StoredSink>) -> Result<(), JournalError> {
        for sink in sinks {
            let settings = serde_json::from_str(&sink.settings).unwrap_or_else(|error| {
                // Written by us and checked before: only a later version's.
                warn!(sink = sink.name, "its stored settings are not understood: {error}");
                SinkSettings::default()
            });
            self.slots_made += 1;
            let slot = Slot::new(self.slots_made, sink.name, settings, sink.cursor);
            self.slots.push(slot);
            self.requeue(self.slots.len() - 1, sink.gaps)?;
        }
        Ok(())
    }

    /// Answers orders; everything that came before them is on disk.
    pub(super) fn carry_out_orders(&mut self) {
        for order in std::mem::take(&mut self.orders) {
            match order {
                Order::Flush(reply) => reply(Ok(())),
                Order::Attach { name, settings, deliver, reply } => {
                    let result = self.attach(name, *settings, deliver);
                    self.publish();
                    reply(result);
                }
                Order::Replace { slot, settings, deliver, reply } => {
                    let index = self.slots.iter().position(|known| known.number == slot);
                    reply(match index {
                        Some(index) => self.change(index, *settings, deliver),
                        None => Err(JournalError::Closed),
                    });
                }
                Order::Detach { slot } => self.detach(slot),
                Order::Forget { name, reply } => {
                    let result = self.forget(&name);
                    self.publish();
                    reply(result);
                }
            }
        }
        // Gaps and cursors of new sinks, and rows that nobody wants now.
        self.commit();
    }

    /// Answers orders while the disk fails; only detaching needs none.
    pub(super) fn refuse_orders(&mut self, error: &JournalError) {
        for order in std::mem::take(&mut self.orders) {
            match order {
                Order::Flush(reply)
                | Order::Forget { reply, .. }
                | Order::Replace { reply, .. } => {
                    reply(Err(error.clone()));
                }
                Order::Attach { reply, .. } => reply(Err(error.clone())),
                Order::Detach { slot } => self.detach(slot),
            }
        }
    }

    fn attach(
        &mut self,
        name: String,
        settings: SinkSettings,
        deliver: Deliver,
    ) -> Result<u64, JournalError> {
        if let Some(index) = self.slots.iter().position(|slot| slot.name == name) {
            if self.slots[index].deliver.is_some() {
                return Err(JournalError::Attached(name));
            }
            self.change(index, settings, deliver)?;
            return Ok(self.slots[index].number);
        }
        if self.slots.len() >= SINKS_MAX {
            return Err(JournalError::TooMany(name));
        }
        self.slots_made += 1;
        let mut slot = Slot::new(self.slots_made, name, settings, self.next - 1);
        slot.deliver = Some(deliver);
        self.put(&slot)?;
        if let Some(reason) = &self.damage {
            // It may have been known to the journal that was lost: its stream
            // begins with a gap, under a number of its own.
            let (id, at) = (self.next, Timestamp::now().0);
            self.next += 1;
            let gap = Gap { first: id, last: id, count: 0, at, reason: reason.clone() };
            let entry = Entry::Gap(Box::new(gap));
            slot.outlet.push(entry, Instant::now(), at, &mut Vec::new());
            slot.dirty = true;
        }
        let number = slot.number;
        self.slots.push(slot);
        Ok(number)
    }

    /// Other settings and another function for a sink.
    fn change(
        &mut self,
        index: usize,
        settings: SinkSettings,
        deliver: Deliver,
    ) -> Result<(), JournalError> {
        let slot = &mut self.slots[index];
        let before = slot.outlet.settings().clone();
        let filtered = before.events != settings.events;
        if before != settings {
            let (now, mut dropped) = (Timestamp::now().0, Vec::new());
            let mut changed = Slot::new(0, slot.name.clone(), settings.clone(), 0);
            changed.number = slot.number;
            self.put(&changed)?;
            let slot = &mut self.slots[index];
            slot.outlet.replace(settings, now, &mut dropped);
            slot.note_dropped(dropped.len());
            release(&self.slots, &dropped, &mut self.changes.unwanted);
            if filtered {
                let slot = &self.slots[index];
                let held = slot.outlet.in_flight();
                let skip = slot.outlet.front(held).last().map_or(0, Entry::id);
                let gaps = slot.outlet.gaps().filter(|gap| gap.last > skip).cloned().collect();
                self.requeue(index, gaps)?;
            }
        } else {
            slot.outlet.replace(settings, 0, &mut Vec::new());
        }
        self.slots[index].deliver = Some(deliver);
        Ok(())
    }

    /// Fills a sink's queue from the database.
    fn requeue(&mut self, index: usize, gaps: Vec<Gap>) -> Result<(), JournalError> {
        let Some(store) = &self.store else { return Err(self.disk("it is being replaced")) };
        let slot = &mut self.slots[index];
        let settings = slot.outlet.settings().clone();
        let stored =
            store.waiting(slot.outlet.cursor(), |name| settings.wants(name)).map_err(|error| {
                JournalError::Disk { file: self.folder.join(FILE), reason: error.to_string() }
            })?;
        let mut gone = Vec::new();
        slot.outlet.requeue(gaps, stored, Instant::now(), &mut gone);
        for id in gone {
            release(&self.slots, &[id], &mut self.changes.unwanted);
        }
        Ok(())
    }

    fn detach(&mut self, number: u64) {
        if let Some(slot) = self.slots.iter_mut().find(|slot| slot.number == number) {
            slot.deliver = None;
        }
    }

    fn forget(&mut self, name: &str) -> Result<(), JournalError> {
        let Some(index) = self.slots.iter().position(|slot| slot.name == name) else {
            return Ok(());
        };
        let Some(store) = &mut self.store else { return Err(self.disk("it is being replaced")) };
        store.remove_sink(name).map_err(|error| self.disk(&error.to_string()))?;
        let slot = self.slots.remove(index);
        let all: Vec<u64> = slot.outlet.all_ids();
        for id in all {
            release(&self.slots, &[id], &mut self.changes.unwanted);
        }
        Ok(())
    }

    fn put(&mut self, slot: &Slot) -> Result<(), JournalError> {
        let Some(store) = &mut self.store else { return Err(self.disk("it is being replaced")) };
        store
            .put_sink(&slot.name, slot.outlet.cursor(), &slot.settings_text())
            .map_err(|error| self.disk(&error.to_string()))
    }

    fn disk(&self, reason: &str) -> JournalError {
        JournalError::Disk { file: self.folder.join(FILE), reason: reason.to_owned() }
    }

    /// A sink answered, or did not in time.
    pub(super) fn outcome(&mut self, outcome: Outcome) {
        let Some(index) = self.slots.iter().position(|slot| slot.number == outcome.slot) else {
            return;
        };
        let slot = &self.slots[index];
        if slot.outlet.in_flight() == 0 {
            return;
        }
        let mut verdict = slot.outlet.judge(outcome.result);
        let at = Timestamp::now();
        if verdict.rejected > 0
            && let Err(reason) = self.bury(index, &verdict, at)
        {
            verdict = self.slots[index].outlet.hold(verdict.accepted, reason);
        }
        let slot = &mut self.slots[index];
        let reason = verdict.reason.clone();
        if let Some(reason) = &reason {
            slot.last_error = Some((reason.clone(), at));
        }
        let now = Instant::now();
        let Settled { accepted, rejected, notice } = slot.outlet.settle(verdict, now);
        slot.dirty |= !accepted.is_empty() || !rejected.is_empty();
        let ids = |entries: &[Entry]| -> Vec<u64> {
            let events = entries.iter().filter(|entry| matches!(entry, Entry::Event { .. }));
            events.map(Entry::id).collect()
        };
        let (taken, refused) = (ids(&accepted), ids(&rejected));
        slot.delivered += taken.len() as u64;
        slot.rejected += refused.len() as u64;
        // Its own troubles must not feed a sink with news of its troubles.
        let is_news = !slot.only_own;
        if let (Some(first), Some(last)) = (rejected.first(), rejected.last()) {
            let reason = reason.unwrap_or_default();
            warn!(sink = slot.name, count = rejected.len(), "events were refused: {reason}");
            if is_news {
                self.own.push(Happening::SinkRejected {
                    count: rejected.len() as u64,
                    event_id: first.id(),
                    last_event_id: last.id(),
                    reason,
                    sink: slot.name.clone(),
                });
            }
        }
        if let Some(notice) = notice {
            let happening = told(notice, slot, now, at);
            if is_news {
                self.own.push(happening);
            }
        }
        release(&self.slots, &taken, &mut self.changes.unwanted);
        release(&self.slots, &refused, &mut self.changes.unwanted);
    }

    /// Writes what is rejected to the sink's dead letters, when it has any. The
    /// error says why it has to wait.
    fn bury(&self, index: usize, verdict: &Verdict, at: Timestamp) -> Result<(), String> {
        let slot = &self.slots[index];
        let settings = slot.outlet.settings();
        let Some(path) = &settings.dead_letter else { return Ok(()) };
        let unread = |reason: &str| format!("rejected events cannot be read: {reason}");
        let Some(store) = &self.store else { return Err(unread("the journal is damaged")) };
        let entries = slot.outlet.front(verdict.accepted + verdict.rejected);
        let entries: Vec<&Entry> = entries.skip(verdict.accepted).collect();
        let page = slot
            .page_of(store, &entries, self.inbox.node())
            .map_err(|error| unread(&error.to_string()))?;
        let reason = verdict.reason.as_deref().unwrap_or_default();
        dead_letter::write(
            path,
            settings.dead_letter_bytes.0,
            &slot.name,
            (&at.to_string(), reason),
            page.lines.lines(),
        )
        .map_err(|error| {
            format!("dead letters cannot be written to {}: {error} ({reason})", path.display())
        })
    }
}

/// A notice in the log, and as an event.
fn told(notice: Notice, slot: &Slot, now: Instant, at: Timestamp) -> Happening {
    let ago = |since: Instant| -> String {
        let elapsed: Duration = now.saturating_duration_since(since);
        let nanos = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        Timestamp(at.0.saturating_sub(nanos)).to_string()
    };
    let (sink, waiting) = (slot.name.clone(), slot.outlet.events() as u64);
    match notice {
        Notice::Failing { reason, since } => {
            warn!(sink, waiting, "the sink fails, its events are kept: {reason}");
            Happening::SinkFailing { reason, since: ago(since), sink, waiting }
        }
        Notice::Recovered { attempts, since } => {
            info!(sink, waiting, "the sink takes events again");
            Happening::SinkRecovered { attempts, since: ago(since), sink, waiting }
        }
    }
}
