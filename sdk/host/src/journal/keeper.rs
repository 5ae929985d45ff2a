//! The journal's thread, which owns the database and the state of all sinks.
//! Each round takes what is in the inbox, numbers events, writes everything in
//! one transaction, and gives sinks what is on disk.

mod orders;
mod slot;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use pilot_wire::NodeId;
use tokio::sync::mpsc::UnboundedSender;
use tracing::{error, info, warn};

use super::courier::{self, Outcome, Parcel};
use super::inbox::{Emitted, Inbox, Order, Taken, Want};
use super::outlet::{Entry, Next};
use super::status::JournalStatus;
use super::store::{Changes, FILE, Found, ID_BLOCK, Store, is_damage};
use super::{JournalError, JournalLimits, LINE_MAX, QUEUE_BYTES, Recovered};
use crate::events::{Format, Happening, Json, Stamp, Timestamp};
use crate::instance::Failure;
use slot::{Slot, release};

/// Most events in one transaction, so that sinks' answers wait for a few
/// milliseconds only.
const CHUNK: usize = 1024;

/// Pauses between attempts to write to a disk that fails.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

pub(super) struct Keeper {
    inbox: Arc<Inbox>,
    folder: PathBuf,
    limits: JournalLimits,
    couriers: UnboundedSender<Parcel>,
    /// None between a damaged database and the next one.
    store: Option<Store>,
    slots: Vec<Slot>,
    slots_made: u64,
    /// The number of the next event, and what the database says it is.
    next: u64,
    next_on_disk: u64,
    /// Events up to this number are on disk.
    durable: u64,
    /// Taken, and numbered up to `numbered`.
    backlog: Vec<Emitted>,
    numbered: usize,
    /// Of what was emitted, how many have a number, and how many of these are
    /// on disk or for nobody.
    admitted: u64,
    settled: u64,
    /// Events that were lost after those of the backlog.
    lost: u64,
    /// Orders after those.
    orders: Vec<Order>,
    /// The journal's own events.
    own: Vec<Happening>,
    /// Numbered, not yet on disk.
    changes: Changes,
    stall: Option<Stall>,
    /// Sinks that are new in this run begin with a gap for this reason.
    damage: Option<String>,
    moved_aside: Option<PathBuf>,
    closing: Option<Instant>,
    scratch: Vec<u8>,
}

/// The disk does not take what it should.
struct Stall {
    error: JournalError,
    since: Timestamp,
    retry_at: Instant,
    pause: Duration,
}

impl Keeper {
    pub(super) fn open(
        folder: &Path,
        limits: JournalLimits,
        inbox: Arc<Inbox>,
    ) -> Result<(Self, Recovered), JournalError> {
        let (store, found) = Store::open(folder, limits.disk_bytes)?;
        let couriers = courier::start(inbox.clone()).map_err(|error| JournalError::Disk {
            file: folder.to_owned(),
            reason: format!("no thread for deliveries: {error}"),
        })?;
        let Found { next, sinks, moved_aside } = found;
        let recovered = Recovered {
            sinks: sinks.iter().map(|sink| sink.name.clone()).collect(),
            moved_aside: moved_aside.clone(),
        };
        let mut keeper = Self {
            inbox,
            folder: folder.to_owned(),
            limits,
            couriers,
            store: Some(store),
            slots: Vec::new(),
            slots_made: 0,
            next,
            next_on_disk: next,
            durable: next - 1,
            backlog: Vec::new(),
            numbered: 0,
            admitted: 0,
            settled: 0,
            lost: 0,
            orders: Vec::new(),
            own: Vec::new(),
            changes: Changes::default(),
            stall: None,
            damage: None,
            moved_aside: None,
            closing: None,
            scratch: Vec::new(),
        };
        if let Some((aside, reason)) = moved_aside {
            keeper.note_damage(aside, &reason);
        }
        keeper.restore(sinks)?;
        keeper.publish();
        Ok((keeper, recovered))
    }

    /// Runs until it is closed.
    pub(super) fn run(mut self) {
        // However this ends, nobody waits for an answer that does not come.
        struct Ended(Arc<Inbox>);
        impl Drop for Ended {
            fn drop(&mut self) {
                self.0.closed();
            }
        }
        let _ended = Ended(self.inbox.clone());
        while !self.is_done() {
            let due = self.dispatch();
            let (want, until) = self.wanted(due);
            let taken = self.take(want, until);
            self.round(taken);
        }
        self.finish();
    }

    /// Says exactly which number is next, for no number to be missing later.
    fn finish(&mut self) {
        let exact = Changes { next: self.next, ..Changes::default() };
        if let (Some(store), None) = (&mut self.store, &self.stall)
            && let Err(error) = store.commit(&exact, std::iter::empty())
        {
            warn!("the next event_id cannot be written: {error}");
        }
        if let Some(stall) = &self.stall {
            let events = self.changes.events.len() + self.backlog.len() - self.numbered;
            error!(events, "the journal ends and loses events: {}", stall.error);
        }
    }

    fn round(&mut self, taken: Taken) {
        self.lost += taken.lost;
        self.orders.extend(taken.orders);
        if let Some(wait) = taken.closing {
            self.closing = Some(Instant::now() + wait);
        }
        for outcome in taken.outcomes {
            self.outcome(outcome);
        }
        if self.may_write() {
            self.number();
            self.commit();
        }
        // Before anybody is answered: who asks next sees what the answer was about.
        self.publish();
        match &self.stall {
            Some(stall) => {
                let error = stall.error.clone();
                self.refuse_orders(&error);
            }
            None if self.is_caught_up() => self.carry_out_orders(),
            None => {}
        }
        self.publish();
    }

    /// What to take next, and how long to wait for it: nothing new while there is
    /// work left, no events while there is no place for them.
    fn wanted(&self, due: Option<Instant>) -> (Want, Option<Instant>) {
        let now = Instant::now();
        match &self.stall {
            Some(stall) => {
                (Want::Orders, Some(due.map_or(stall.retry_at, |due| due.min(stall.retry_at))))
            }
            None if !self.is_caught_up() => (Want::Outcomes, Some(now)),
            None => (Want::All, self.closing.or(due).map(|at| due.map_or(at, |due| due.min(at)))),
        }
    }

    fn take(&mut self, want: Want, until: Option<Instant>) -> Taken {
        if want == Want::All {
            self.backlog.clear();
            self.numbered = 0;
        }
        self.inbox.take(want, until, &mut self.backlog)
    }

    fn may_write(&self) -> bool {
        self.stall.as_ref().is_none_or(|stall| stall.retry_at <= Instant::now())
    }

    /// Whether all that was taken is numbered and on disk.
    fn is_caught_up(&self) -> bool {
        self.numbered == self.backlog.len()
            && self.lost == 0
            && self.own.is_empty()
            && self.changes.events.is_empty()
    }

    fn is_done(&self) -> bool {
        let Some(until) = self.closing else { return false };
        let over = Instant::now() >= until;
        let in_flight = self.slots.iter().any(|slot| slot.outlet.in_flight() > 0);
        // What a failing disk has not taken by then it will not take.
        over && self.stall.is_some()
            || self.is_caught_up() && self.inbox.len() == 0 && (over || !in_flight)
    }

    /// Gives numbers to some of what waits for one. After a failed transaction
    /// that one comes first.
    fn number(&mut self) {
        if !self.changes.events.is_empty() {
            return;
        }
        let node = self.inbox.node();
        for event in std::mem::take(&mut self.own) {
            self.admit(&event, node, Timestamp::now(), false);
        }
        let backlog = std::mem::take(&mut self.backlog);
        let to = backlog.len().min(self.numbered + CHUNK);
        for emitted in &backlog[self.numbered..to] {
            self.admit(&emitted.event, emitted.node, emitted.at, emitted.too_long);
        }
        self.admitted += (to - self.numbered) as u64;
        self.numbered = to;
        self.backlog = backlog;
        if self.numbered == self.backlog.len() && self.lost > 0 {
            // The lost ones have numbers too, which are missing in every stream.
            let count = std::mem::take(&mut self.lost);
            let first = self.next;
            self.next += count;
            warn!(count, "events came faster than they could be written and were lost");
            let dropped = Happening::EventsDropped {
                count,
                first_event_id: Some(first),
                last_event_id: Some(first + count - 1),
                reason: format!(
                    "{} events or {QUEUE_BYTES} bytes waited in memory",
                    self.limits.queue
                ),
                sink: None,
            };
            self.admit(&dropped, node, Timestamp::now(), false);
        }
    }

    /// Gives an event its number, and a place with all sinks that want it. Of
    /// one that was too long only the name is left.
    fn admit(&mut self, event: &Happening, node: NodeId, at: Timestamp, too_long: bool) {
        let event_id = self.next;
        self.next += 1;
        let name = event.name();
        if !self.slots.iter().any(|slot| slot.outlet.settings().wants(name)) {
            return;
        }
        let stamp = Stamp { node_id: node, timestamp: at, event_id };
        self.scratch.clear();
        Json.write(&stamp, event, &mut self.scratch);
        let too_long = too_long || self.scratch.len() > LINE_MAX;
        let replaced = too_long.then(|| Happening::EventsDropped {
            count: 1,
            first_event_id: Some(event_id),
            last_event_id: Some(event_id),
            reason: format!("a {name} is longer than {LINE_MAX} bytes"),
            sink: None,
        });
        if let Some(event) = &replaced {
            self.scratch.clear();
            Json.write(&stamp, event, &mut self.scratch);
        }
        let name = replaced.as_ref().map_or(name, Happening::name);
        // JSON is written as UTF-8.
        let Ok(line) = std::str::from_utf8(&self.scratch) else { return };
        self.changes.text.push_str(line);
        self.changes.events.push((event_id, at.0, self.changes.text.len()));
        let bytes = super::store::line_bytes(line);
        let now = Instant::now();
        let mut dropped = Vec::new();
        for slot in &mut self.slots {
            if !slot.outlet.settings().wants(name) {
                continue;
            }
            let before = dropped.len();
            let entry = Entry::Event { id: event_id, at: at.0, bytes };
            slot.outlet.push(entry, now, at.0, &mut dropped);
            slot.note_dropped(dropped.len() - before);
        }
        // Only now that all have it: what one sink drops, this event among it,
        // others may want.
        dropped.sort_unstable();
        dropped.dedup();
        release(&self.slots, &dropped, &mut self.changes.unwanted);
    }

    /// Writes all that has changed; what cannot be written stays for later.
    fn commit(&mut self) {
        if self.store.is_none() && !self.reopen() {
            return;
        }
        let Some(store) = &mut self.store else { return };
        let is_dirty = self.slots.iter().any(|slot| slot.dirty);
        let changes = &mut self.changes;
        // Without events a block is set aside, so that not every number is written.
        changes.next = if !changes.events.is_empty() {
            self.next
        } else if self.next > self.next_on_disk {
            self.next + ID_BLOCK
        } else {
            self.next_on_disk
        };
        let nothing = changes.events.is_empty() && changes.unwanted.is_empty() && !is_dirty;
        if nothing && changes.next == self.next_on_disk {
            self.settled = self.admitted;
            self.well();
            return;
        }
        let dirty = |slots: &'_ [Slot]| -> Vec<usize> {
            (0..slots.len()).filter(|index| slots[*index].dirty).collect()
        };
        let rows = dirty(&self.slots);
        let rows = || rows.iter().map(|index| self.slots[*index].row());
        let result = match store.commit(changes, rows()) {
            Err(error)
                if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
                    && !changes.events.is_empty() =>
            {
                // What sinks have taken makes room, though not enough for all.
                let durable = self.durable;
                let (text, events) = Default::default();
                let unwanted = changes.unwanted.clone();
                let unwanted = unwanted.into_iter().filter(|(_, last)| *last <= durable).collect();
                let settled = Changes { text, events, unwanted, next: self.next };
                let _ = store.commit(&settled, rows());
                Err(error)
            }
            other => other,
        };
        match result {
            Ok(()) => {
                self.next_on_disk = changes.next;
                self.durable = self.next - 1;
                self.settled = self.admitted;
                changes.text.clear();
                changes.events.clear();
                changes.unwanted.clear();
                for slot in &mut self.slots {
                    slot.dirty = false;
                }
                if let Err(error) = store.reserve(self.next) {
                    warn!("{}: next-id cannot be written: {error}", self.folder.display());
                }
                self.well();
            }
            Err(error) => self.fail(&error),
        }
    }

    /// The disk took what it was given.
    fn well(&mut self) {
        if let Some(stall) = self.stall.take() {
            info!(since = %stall.since, "{} takes events again", self.folder.display());
        }
    }

    /// A database operation failed.
    fn fail(&mut self, error: &rusqlite::Error) {
        if is_damage(error)
            && let Some(store) = self.store.take()
        {
            match store.set_aside() {
                Ok(aside) => self.note_damage(aside, &error.to_string()),
                Err(error) => error!("a damaged database cannot be moved: {error}"),
            }
        }
        self.stall(JournalError::Disk { file: self.folder.join(FILE), reason: error.to_string() });
    }

    fn stall(&mut self, error: JournalError) {
        let now = Instant::now();
        let stall = match self.stall.take() {
            Some(stall) => {
                let pause = (stall.pause * 2).min(PAUSE_MAX);
                Stall { error, since: stall.since, retry_at: now + pause, pause }
            }
            None => {
                error!("{error}; events wait in memory");
                let since = Timestamp::now();
                Stall { error, since, retry_at: now + PAUSE_MIN, pause: PAUSE_MIN }
            }
        };
        self.stall = Some(stall);
    }

    fn note_damage(&mut self, aside: PathBuf, reason: &str) {
        error!("the journal was damaged ({reason}) and is now {}", aside.display());
        self.damage = Some(format!(
            "the journal was damaged ({reason}) and was moved to {}",
            aside.display()
        ));
        self.moved_aside = Some(aside);
    }

    /// Opens the database again after it was damaged. What sinks were to be
    /// given from it is a gap now.
    fn reopen(&mut self) -> bool {
        let (store, found) = match Store::open(&self.folder, self.limits.disk_bytes) {
            Ok(opened) => opened,
            Err(error) => {
                self.stall(error);
                return false;
            }
        };
        self.store = Some(store);
        if let Some((aside, reason)) = found.moved_aside {
            self.note_damage(aside, &reason);
        }
        self.next = self.next.max(found.next);
        self.next_on_disk = 0;
        let reason = self.damage.clone().unwrap_or_default();
        let at = Timestamp::now().0;
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            if found.sinks.iter().any(|sink| sink.name == slot.name) {
                continue;
            }
            let (mut dropped, ids) = (Vec::new(), slot.outlet.ids(self.durable));
            slot.outlet.lose(&ids, at, &reason, &mut dropped);
            slot.note_dropped(dropped.len());
            let (name, cursor) = (slot.name.clone(), slot.outlet.cursor());
            let settings = slot.settings_text();
            let put = self.store.as_mut().map(|store| store.put_sink(&name, cursor, &settings));
            if let Some(Err(error)) = put {
                self.fail(&error);
                return false;
            }
        }
        true
    }

    /// Gives every sink that is due its next batch; says when the next is due.
    fn dispatch(&mut self) -> Option<Instant> {
        if self.closing.is_some() {
            return None;
        }
        let now = Instant::now();
        let mut due: Option<Instant> = None;
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            let Some(deliver) = slot.deliver.clone() else { continue };
            let count = match slot.outlet.poll(now, self.durable) {
                Next::Idle => continue,
                Next::At(at) => {
                    due = Some(due.map_or(at, |due| due.min(at)));
                    continue;
                }
                Next::Deliver(count) => count,
            };
            let Some(store) = &self.store else { continue };
            let page = match slot.page(store, count, self.inbox.node()) {
                Ok(page) => page,
                Err(error) => {
                    self.fail(&error);
                    continue;
                }
            };
            if !page.missing.is_empty() {
                let mut dropped = Vec::new();
                let reason = "it was not in the journal any more";
                slot.outlet.lose(&page.missing, Timestamp::now().0, reason, &mut dropped);
                slot.note_dropped(dropped.len());
                due = Some(now);
                continue;
            }
            slot.outlet.start(count, now);
            slot.only_own = page.only_own;
            let timeout = slot.outlet.settings().deliver_timeout.0;
            let batch = pilot_plugin::Batch { sink: slot.name.clone(), lines: page.lines };
            let parcel = Parcel { slot: slot.number, deliver, batch, timeout };
            if let Err(parcel) = self.couriers.send(parcel) {
                self.outcome(Outcome { slot: parcel.0.slot, result: Err(Failure::Ended) });
            }
        }
        due
    }

    fn publish(&self) {
        let (failing, failing_since) = match &self.stall {
            Some(stall) => (Some(stall.error.to_string()), Some(stall.since.to_string())),
            None => (None, None),
        };
        let mut sinks: Vec<_> = self.slots.iter().map(Slot::status).collect();
        sinks.sort_by(|a, b| a.sink.cmp(&b.sink));
        let status = JournalStatus {
            failing,
            failing_since,
            next_event_id: self.next,
            settled: self.settled,
            moved_aside: self.moved_aside.clone(),
            sinks,
            ..JournalStatus::default()
        };
        *self.inbox.published.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}
