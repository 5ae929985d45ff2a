//! One sink's queue and its course of deliveries, as a state machine: no disk,
//! no clock, no threads. Whoever drives it keeps the events themselves.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use pilot_plugin::Delivery;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::settings::SinkSettings;
use crate::instance::Failure;

/// Failures in a row from which on a sink is said to be failing.
pub(super) const FAILING_AFTER: u32 = 3;

/// Longest pause that a sink can ask for.
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(3600);

/// Bytes that a gap counts for in a batch.
const GAP_BYTES: u64 = 512;

/// Longest reason of a gap, in bytes; what is longer is cut.
const REASON_MAX: usize = 500;

/// What waits, in the order of the numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// An event.
    Event {
        /// Its number.
        id: u64,
        /// When it was emitted, nanoseconds since 1970.
        at: u64,
        /// Length of its line.
        bytes: u32,
    },
    /// Events that the sink does not get, in the place of the last of them.
    Gap(Box<Gap>),
}

/// Events that were dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Gap {
    pub first: u64,
    pub last: u64,
    /// How many of the numbers were for this sink; 0 when nobody knows.
    pub count: u64,
    /// When the last was dropped, nanoseconds since 1970.
    pub at: u64,
    pub reason: String,
}

impl Entry {
    /// The number it is delivered under.
    pub(super) fn id(&self) -> u64 {
        match self {
            Self::Event { id, .. } => *id,
            Self::Gap(gap) => gap.last,
        }
    }

    /// When it came to be, nanoseconds since 1970.
    pub(super) fn at(&self) -> u64 {
        match self {
            Self::Event { at, .. } => *at,
            Self::Gap(gap) => gap.at,
        }
    }
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Give the sink this many entries, then [`Outlet::start`].
    Deliver(usize),
    /// Ask again at this time.
    At(Instant),
    /// Ask again after a change.
    Idle,
}

/// What a sink's answer means for the batch that it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Entries at the beginning that arrived.
    pub accepted: usize,
    /// Entries after those that go to the dead letters.
    pub rejected: usize,
    /// Why entries were rejected, or why the rest comes again.
    pub reason: Option<String>,
    attempt: Attempt,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Attempt {
    /// The receiver answered.
    Good,
    /// It did not; again after a pause.
    Failed { pause: Option<Duration> },
}

/// What left the queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Settled {
    pub accepted: Vec<Entry>,
    pub rejected: Vec<Entry>,
    pub notice: Option<Notice>,
}

/// What an operator is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Notice {
    /// Several attempts failed in a row.
    Failing { reason: String, since: Instant },
    /// It works again.
    Recovered { attempts: u64, since: Instant },
}

/// The state of one sink.
pub(super) struct Outlet {
    settings: SinkSettings,
    entries: VecDeque<Entry>,
    /// Events among the entries, and their bytes.
    events: usize,
    bytes: u64,
    /// Entries at the front that the sink has.
    in_flight: usize,
    /// Number of the last entry that left at the front.
    cursor: u64,
    /// Failed attempts of the batch at the front.
    attempts: u32,
    /// Failed attempts since it was well, and since when.
    trouble: Option<(u64, Instant)>,
    failing: bool,
    retry_at: Option<Instant>,
    /// A batch comes again as it was, so that a receiver can know it.
    again: Option<usize>,
    gather_from: Option<Instant>,
    random: StdRng,
}

impl Outlet {
    /// An outlet whose sink has everything up to `cursor`.
    pub(super) fn new(settings: SinkSettings, cursor: u64, seed: u64) -> Self {
        Self {
            settings,
            entries: VecDeque::new(),
            events: 0,
            bytes: 0,
            in_flight: 0,
            cursor,
            attempts: 0,
            trouble: None,
            failing: false,
            retry_at: None,
            again: None,
            gather_from: None,
            random: StdRng::seed_from_u64(seed),
        }
    }

    /// Adds an event or gap behind all others. Numbers of events that have to
    /// go for it are added to `dropped`. `at` is the time of day.
    pub(super) fn push(&mut self, entry: Entry, now: Instant, at: u64, dropped: &mut Vec<u64>) {
        if let Entry::Event { bytes, .. } = entry {
            self.events += 1;
            self.bytes += u64::from(bytes);
        }
        self.entries.push_back(entry);
        self.gather_from.get_or_insert(now);
        self.shrink(at, dropped);
    }

    /// Drops the oldest that the sink does not have, until the rest fits.
    fn shrink(&mut self, at: u64, dropped: &mut Vec<u64>) {
        while self.bytes > self.settings.queue_bytes.0 {
            // At the boundary there is at most one gap before the next event.
            let from = self.in_flight;
            let is_event = |entry: &Entry| matches!(entry, Entry::Event { .. });
            let Some(offset) = self.entries.range(from..).position(is_event) else { break };
            let reason = format!("queue-bytes ({}) was reached", self.settings.queue_bytes.0);
            self.drop_at(from + offset, at, &reason, dropped);
        }
    }

    /// Loses events that cannot be given any more.
    pub(super) fn lose(&mut self, ids: &[u64], at: u64, reason: &str, dropped: &mut Vec<u64>) {
        for id in ids {
            if let Ok(index) = self.entries.binary_search_by_key(id, Entry::id)
                && index >= self.in_flight
                && matches!(self.entries[index], Entry::Event { .. })
            {
                self.drop_at(index, at, reason, dropped);
            }
        }
    }

    /// Numbers of all events up to `last` that the sink does not have.
    pub(super) fn ids(&self, last: u64) -> Vec<u64> {
        self.entries
            .range(self.in_flight..)
            .filter(|entry| matches!(entry, Entry::Event { .. }))
            .map(Entry::id)
            .take_while(|id| *id <= last)
            .collect()
    }

    /// Numbers of all events, those that the sink has included.
    pub(super) fn all_ids(&self) -> Vec<u64> {
        let is_event = |entry: &&Entry| matches!(entry, Entry::Event { .. });
        self.entries.iter().filter(is_event).map(Entry::id).collect()
    }

    /// Makes the event at `index` part of a gap there.
    fn drop_at(&mut self, index: usize, at: u64, reason: &str, dropped: &mut Vec<u64>) {
        let Entry::Event { id, bytes, .. } = self.entries[index] else { return };
        self.events -= 1;
        self.bytes -= u64::from(bytes);
        dropped.push(id);
        let gap = Gap { first: id, last: id, count: 1, at, reason: reason.to_owned() };
        self.entries[index] = Entry::Gap(Box::new(gap));
        // One gap with its neighbours, but for what the sink has already.
        self.merge(index);
        if index > self.in_flight {
            self.merge(index - 1);
        }
        if index == 0 {
            self.again = None;
        }
    }

    /// Joins the entries at `index` and after it, when both are gaps.
    fn merge(&mut self, index: usize) {
        if !matches!(self.entries.get(index + 1), Some(Entry::Gap(_)))
            || !matches!(self.entries[index], Entry::Gap(_))
        {
            return;
        }
        let Some(Entry::Gap(next)) = self.entries.remove(index + 1) else { return };
        if let Entry::Gap(gap) = &mut self.entries[index] {
            // 0 is "nobody knows", and stays so.
            gap.count = if gap.count == 0 || next.count == 0 { 0 } else { gap.count + next.count };
            gap.last = next.last;
            gap.at = gap.at.max(next.at);
            if !gap.reason.contains(&next.reason) && gap.reason.len() < REASON_MAX {
                gap.reason = format!("{}; {}", gap.reason, next.reason);
            }
        }
    }

    /// What to do at `now`. Events beyond `durable` are not on disk yet.
    pub(super) fn poll(&self, now: Instant, durable: u64) -> Next {
        if self.in_flight > 0 {
            return Next::Idle;
        }
        let (ready, full) = self.plan(durable);
        if ready == 0 {
            return Next::Idle;
        }
        if let Some(at) = self.retry_at
            && now < at
        {
            return Next::At(at);
        }
        let gathered = self.gather_from.map(|from| from + self.settings.linger.0);
        match gathered {
            Some(at) if !full && self.again.is_none() && now < at => Next::At(at),
            _ => Next::Deliver(ready),
        }
    }

    /// How many entries make the next batch, and whether no more would fit.
    fn plan(&self, durable: u64) -> (usize, bool) {
        let most = self.again.unwrap_or(self.settings.batch);
        let mut bytes = 0u64;
        for (index, entry) in self.entries.iter().enumerate() {
            bytes += match entry {
                Entry::Event { bytes, .. } => u64::from(*bytes),
                Entry::Gap(_) => GAP_BYTES,
            };
            if index >= most || index > 0 && bytes > self.settings.batch_bytes.0 {
                return (index, true);
            }
            if entry.id() > durable {
                return (index, false);
            }
        }
        (self.entries.len(), self.entries.len() >= most)
    }

    /// The first `count` entries.
    pub(super) fn front(&self, count: usize) -> impl Iterator<Item = &Entry> {
        self.entries.iter().take(count)
    }

    /// The sink has the first `count` entries now.
    pub(super) fn start(&mut self, count: usize, now: Instant) {
        self.in_flight = count.min(self.entries.len());
        self.retry_at = None;
        self.gather_from = (self.entries.len() > self.in_flight).then_some(now);
    }

    /// What the sink's answer means. Nothing changes before [`Outlet::settle`].
    pub(super) fn judge(&self, outcome: Result<Delivery, Failure>) -> Verdict {
        let all = self.in_flight;
        let failed = |accepted: usize, pause: Option<u64>, reason: String| {
            let attempts = if accepted > 0 { 1 } else { self.attempts.saturating_add(1) };
            let give_up = self.settings.max_attempts > 0 && attempts >= self.settings.max_attempts;
            let pause = pause.map(|ms| Duration::from_millis(ms).min(PAUSE_MAX));
            let (rejected, reason) = if give_up {
                (all - accepted, format!("given up after {attempts} attempts: {reason}"))
            } else {
                (0, reason)
            };
            let attempt = Attempt::Failed { pause };
            Verdict { accepted, rejected, reason: Some(reason), attempt }
        };
        match outcome {
            Ok(Delivery::Ack) => {
                Verdict { accepted: all, rejected: 0, reason: None, attempt: Attempt::Good }
            }
            Ok(Delivery::Retry { accepted, after_ms, reason }) => {
                failed(accepted.min(all), after_ms, reason)
            }
            Ok(Delivery::Reject { accepted, rejected, reason }) => {
                let accepted = accepted.min(all);
                let rest = all - accepted;
                let rejected = if rejected == 0 { rest } else { rejected.min(rest) };
                let reason = Some(reason);
                Verdict { accepted, rejected, reason, attempt: Attempt::Good }
            }
            Err(failure) => failed(0, None, failure.to_string()),
        }
    }

    /// The rest of the batch comes again for a reason of the host's own, as when
    /// its dead letters cannot be written.
    pub(super) fn hold(&self, accepted: usize, reason: String) -> Verdict {
        let attempt = Attempt::Failed { pause: None };
        Verdict { accepted, rejected: 0, reason: Some(reason), attempt }
    }

    /// Carries out a verdict on the batch under way.
    pub(super) fn settle(&mut self, verdict: Verdict, now: Instant) -> Settled {
        let left = self.in_flight - verdict.accepted - verdict.rejected;
        self.in_flight = 0;
        let mut settled = Settled {
            accepted: self.take(verdict.accepted),
            rejected: self.take(verdict.rejected),
            notice: None,
        };
        match verdict.attempt {
            Attempt::Good => {
                if let Some((attempts, since)) = self.trouble.take()
                    && self.failing
                {
                    settled.notice = Some(Notice::Recovered { attempts, since });
                }
                self.failing = false;
                self.attempts = 0;
                // What was not looked at comes at once, with what follows it.
                self.again = None;
                self.gather_from = (!self.entries.is_empty()).then_some(now);
                if left > 0 {
                    self.again = Some(left);
                }
            }
            Attempt::Failed { pause } => {
                let moved = verdict.accepted + verdict.rejected > 0;
                self.attempts = if moved { 1 } else { self.attempts.saturating_add(1) };
                self.again = (left > 0).then_some(left);
                let (count, since) = self.trouble.get_or_insert((0, now));
                *count += 1;
                let (count, since) = (*count, *since);
                if count >= u64::from(FAILING_AFTER) && !self.failing {
                    self.failing = true;
                    let reason = verdict.reason.unwrap_or_default();
                    settled.notice = Some(Notice::Failing { reason, since });
                }
                let pause = pause.unwrap_or_else(|| self.pause());
                self.retry_at = Some(now + pause);
            }
        }
        settled
    }

    /// Full jitter: any time up to a bound that doubles with every attempt.
    fn pause(&mut self) -> Duration {
        let doublings = self.attempts.saturating_sub(1).min(31);
        let bound = self.settings.retry_min.0.saturating_mul(1 << doublings);
        let bound = bound.min(self.settings.retry_max.0);
        let nanos = u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.random.random_range(0..=nanos))
    }

    fn take(&mut self, count: usize) -> Vec<Entry> {
        let taken: Vec<Entry> = self.entries.drain(..count).collect();
        for entry in &taken {
            self.cursor = entry.id();
            if let Entry::Event { bytes, .. } = entry {
                self.events -= 1;
                self.bytes -= u64::from(*bytes);
            }
        }
        taken
    }

    /// Other settings from now on. The next attempt is due at once: what was
    /// wrong may be what was changed.
    pub(super) fn replace(&mut self, settings: SinkSettings, at: u64, dropped: &mut Vec<u64>) {
        self.settings = settings;
        self.retry_at = None;
        self.again = None;
        self.shrink(at, dropped);
    }

    /// Lets what the sink does not have be `gaps` and `stored` (both sorted), as
    /// far as the gaps leave it. Numbers of events that waited and do not any
    /// more are added to `gone`.
    pub(super) fn requeue(
        &mut self,
        gaps: Vec<Gap>,
        stored: impl IntoIterator<Item = Entry>,
        now: Instant,
        gone: &mut Vec<u64>,
    ) {
        let had = self.ids(u64::MAX);
        let after = match self.in_flight {
            0 => self.cursor,
            count => self.entries[count - 1].id(),
        };
        self.entries.truncate(self.in_flight);
        let mut gaps = gaps.into_iter().filter(|gap| gap.last > after).peekable();
        for entry in stored {
            let id = entry.id();
            while let Some(gap) = gaps.next_if(|gap| gap.last < id) {
                self.entries.push_back(Entry::Gap(Box::new(gap)));
            }
            if id > after && gaps.peek().is_none_or(|gap| gap.first > id) {
                self.entries.push_back(entry);
            }
        }
        self.entries.extend(gaps.map(|gap| Entry::Gap(Box::new(gap))));
        (self.events, self.bytes) =
            self.entries.iter().fold((0, 0), |(events, all), entry| match entry {
                Entry::Event { bytes, .. } => (events + 1, all + u64::from(*bytes)),
                Entry::Gap(_) => (events, all),
            });
        self.gather_from = (self.entries.len() > self.in_flight).then_some(now);
        gone.extend(had.into_iter().filter(|id| !self.has(*id)));
    }

    /// Whether an event of this number waits here.
    pub(super) fn has(&self, id: u64) -> bool {
        self.entries
            .binary_search_by_key(&id, Entry::id)
            .is_ok_and(|index| matches!(self.entries[index], Entry::Event { .. }))
    }

    /// Whether any event from `first` to `last` waits here.
    pub(super) fn has_any(&self, first: u64, last: u64) -> bool {
        let from = self.entries.partition_point(|entry| entry.id() < first);
        self.entries
            .range(from..)
            .take_while(|entry| entry.id() <= last)
            .any(|entry| matches!(entry, Entry::Event { .. }))
    }

    pub(super) fn gaps(&self) -> impl Iterator<Item = &Gap> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Gap(gap) => Some(&**gap),
            Entry::Event { .. } => None,
        })
    }

    pub(super) fn settings(&self) -> &SinkSettings {
        &self.settings
    }

    /// Number of the last entry that left at the front.
    pub(super) fn cursor(&self) -> u64 {
        self.cursor
    }

    pub(super) fn events(&self) -> usize {
        self.events
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub(super) fn attempts(&self) -> u32 {
        self.attempts
    }

    pub(super) fn is_failing(&self) -> bool {
        self.failing
    }

    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }
}

#[cfg(test)]
mod tests;
