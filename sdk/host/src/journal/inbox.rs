//! Where everybody leaves things for the journal's thread: events, orders,
//! answers of sinks. Taking never holds up giving for long.

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pilot_wire::NodeId;
use serde_json::Value;

use super::courier::{Deliver, Outcome};
use super::settings::SinkSettings;
use super::status::Published;
use super::{JournalError, LINE_MAX};
use crate::events::{Happening, Timestamp};

/// An event, as it was emitted.
pub(super) struct Emitted {
    pub event: Happening,
    pub node: NodeId,
    pub at: Timestamp,
    /// It was longer than a line may be, and only its name is left.
    pub too_long: bool,
}

/// Told when what came before is on disk, or cannot be.
pub(super) type Reply<T> = Box<dyn FnOnce(Result<T, JournalError>) + Send>;

/// What the journal's thread is asked to do, after the events before it.
pub(super) enum Order {
    Flush(Reply<()>),
    Attach { name: String, settings: Box<SinkSettings>, deliver: Deliver, reply: Reply<u64> },
    Replace { slot: u64, settings: Box<SinkSettings>, deliver: Deliver, reply: Reply<()> },
    Detach { slot: u64 },
    Forget { name: String, reply: Reply<()> },
}

#[derive(Default)]
struct Waiting {
    events: Vec<Emitted>,
    /// Bytes that they take.
    bytes: usize,
    /// Events that found no room, after those that did.
    lost: u64,
    orders: Vec<Order>,
    outcomes: Vec<Outcome>,
    closing: Option<Duration>,
    /// Nobody takes any more.
    closed: bool,
    asleep: bool,
}

/// What was taken.
#[derive(Default)]
pub(super) struct Taken {
    pub lost: u64,
    pub orders: Vec<Order>,
    pub outcomes: Vec<Outcome>,
    pub closing: Option<Duration>,
}

/// What is wanted from the inbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// Everything.
    All,
    /// Not events: there is no place for them now.
    Orders,
    /// Only what sinks answered: events and orders keep their order.
    Outcomes,
}

pub(super) struct Inbox {
    waiting: Mutex<Waiting>,
    bell: Condvar,
    /// Most events that wait, and most bytes of them.
    room: usize,
    room_bytes: usize,
    node: AtomicU32,
    emitted: AtomicU64,
    lost: AtomicU64,
    pub(super) published: Mutex<Published>,
}

impl Inbox {
    pub(super) fn new(room: usize, room_bytes: usize) -> Self {
        Self {
            waiting: Mutex::default(),
            bell: Condvar::new(),
            room,
            room_bytes,
            node: AtomicU32::new(0),
            emitted: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            published: Mutex::default(),
        }
    }

    pub(super) fn set_node(&self, node: NodeId) {
        self.node.store(node.0, Ordering::Relaxed);
    }

    pub(super) fn node(&self) -> NodeId {
        NodeId(self.node.load(Ordering::Relaxed))
    }

    /// Events emitted, and events that found no room.
    pub(super) fn counts(&self) -> (u64, u64) {
        // In this order, so that none is among the lost alone.
        let lost = self.lost.load(Ordering::Acquire);
        (self.emitted.load(Ordering::Relaxed), lost)
    }

    pub(super) fn emit(&self, event: Happening) {
        let node = self.node();
        self.emitted.fetch_add(1, Ordering::Relaxed);
        let (event, bytes, too_long) = match weight(&event) {
            Some(bytes) => (event, bytes, false),
            // What it held is freed here, not when the disk has time for it.
            None => (only_name(&event), size_of::<Emitted>(), true),
        };
        let mut waiting = self.lock();
        let is_full = waiting.events.len() >= self.room
            || waiting.bytes.saturating_add(bytes) > self.room_bytes;
        // Once some are lost nothing comes before their gap.
        if waiting.closed || is_full || waiting.lost > 0 {
            waiting.lost += 1;
            self.lost.fetch_add(1, Ordering::Release);
        } else {
            // Under the lock, so that times grow with the numbers.
            waiting.bytes += bytes;
            waiting.events.push(Emitted { event, node, at: Timestamp::now(), too_long });
        }
        self.ring(waiting);
    }

    /// Leaves an order. After the end it is dropped, and its reply with it.
    pub(super) fn order(&self, order: Order) {
        let mut waiting = self.lock();
        if !waiting.closed {
            waiting.orders.push(order);
            self.ring(waiting);
        }
    }

    pub(super) fn outcome(&self, outcome: Outcome) {
        let mut waiting = self.lock();
        if !waiting.closed {
            waiting.outcomes.push(outcome);
            self.ring(waiting);
        }
    }

    /// Asks the thread to end, and to wait so long for sinks that have a batch.
    pub(super) fn close(&self, wait: Duration) {
        let mut waiting = self.lock();
        waiting.closing = Some(wait);
        self.ring(waiting);
    }

    /// Nobody takes any more: what waits is dropped, and replies with it.
    pub(super) fn closed(&self) {
        let mut waiting = self.lock();
        let lost = waiting.events.len() as u64;
        self.lost.fetch_add(lost, Ordering::Relaxed);
        let dropped = std::mem::take(&mut *waiting);
        waiting.closed = true;
        drop(waiting);
        drop(dropped);
    }

    /// Takes what is wanted, into `events` (which is empty) what was emitted.
    /// Waits for something until `until`, without end when there is none.
    pub(super) fn take(
        &self,
        want: Want,
        until: Option<Instant>,
        events: &mut Vec<Emitted>,
    ) -> Taken {
        let mut waiting = self.lock();
        loop {
            let orders = want != Want::Outcomes && !waiting.orders.is_empty();
            let emitted = want == Want::All && (!waiting.events.is_empty() || waiting.lost > 0);
            if emitted || orders || !waiting.outcomes.is_empty() || waiting.closing.is_some() {
                break;
            }
            let now = Instant::now();
            waiting.asleep = true;
            waiting = match until {
                Some(until) if until <= now => break,
                Some(until) => {
                    let result = self.bell.wait_timeout(waiting, until - now);
                    result.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.bell.wait(waiting).unwrap_or_else(PoisonError::into_inner),
            };
        }
        waiting.asleep = false;
        let mut taken = Taken {
            outcomes: std::mem::take(&mut waiting.outcomes),
            closing: waiting.closing.take(),
            ..Taken::default()
        };
        if want != Want::Outcomes {
            taken.orders = std::mem::take(&mut waiting.orders);
        }
        if want == Want::All {
            std::mem::swap(&mut waiting.events, events);
            waiting.bytes = 0;
            taken.lost = std::mem::take(&mut waiting.lost);
        }
        taken
    }

    /// Events that wait.
    pub(super) fn len(&self) -> usize {
        self.lock().events.len()
    }

    fn ring(&self, mut waiting: MutexGuard<'_, Waiting>) {
        if std::mem::take(&mut waiting.asleep) {
            drop(waiting);
            self.bell.notify_one();
        }
    }

    /// What is inside is whole after every step, so a panic of another holder
    /// leaves nothing half done.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes of memory that an event takes, about; none when its line would be
/// longer than [`LINE_MAX`].
fn weight(event: &Happening) -> Option<usize> {
    let mut line = Line { length: 0 };
    let (written, values) = match event {
        Happening::Other { data: Some(data), .. } => {
            let written = serde_json::to_writer(&mut line, data);
            (written, data.values().map(values).sum())
        }
        Happening::Other { data: None, .. } => (Ok(()), 0),
        typed => (serde_json::to_writer(&mut line, typed), 0),
    };
    written.ok()?;
    // A value in a map stands beside its key.
    Some(size_of::<Emitted>() + line.length + values * 2 * size_of::<Value>())
}

fn only_name(event: &Happening) -> Happening {
    Happening::Other { name: event.name().to_owned(), data: None }
}

fn values(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(values).sum(),
        Value::Object(map) => map.values().map(values).sum(),
        _ => 0,
    }
}

/// Counts what is written to it, up to the longest line.
struct Line {
    length: usize,
}

impl io::Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.length += bytes.len();
        if self.length > LINE_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(text: &str) -> Happening {
        Happening::parse("orders.received", json!({ "text": text }).as_object().cloned())
            .expect("an event")
    }

    #[test]
    fn bytes_are_bounded_and_what_does_not_fit_is_counted() {
        let inbox = Inbox::new(1000, 100_000);
        (0..20).for_each(|_| inbox.emit(event(&"x".repeat(10_000))));
        let mut events = Vec::new();
        let taken = inbox.take(Want::All, None, &mut events);
        assert_eq!(events.len() as u64 + taken.lost, 20);
        assert_eq!(events.len(), 9);
        // There is room again.
        events.clear();
        inbox.emit(event("x"));
        let taken = inbox.take(Want::All, None, &mut events);
        assert_eq!((events.len(), taken.lost), (1, 0));
    }

    #[test]
    fn many_small_values_weigh_what_they_take() {
        let data = json!({ "list": vec![json!([]); 10_000] }).as_object().cloned();
        let event = Happening::parse("orders.received", data).expect("an event");
        assert!(weight(&event).expect("short") >= 10_000 * size_of::<Value>());
    }

    #[test]
    fn of_what_is_too_long_only_the_name_waits() {
        let inbox = Inbox::new(1000, 100_000);
        inbox.emit(event(&"x".repeat(LINE_MAX)));
        let mut events = Vec::new();
        inbox.take(Want::All, None, &mut events);
        assert!(events[0].too_long);
        assert_eq!(events[0].event.name(), "orders.received");
        assert_eq!(events[0].event.data(), None);
    }
}
