//! Where everybody leaves things for the journal's thread: events, orders,
//! answers of sinks. Taking never holds up giving for long.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pilot_wire::NodeId;

use super::JournalError;
use super::courier::{Deliver, Outcome};
use super::settings::SinkSettings;
use super::status::Published;
use crate::events::{Happening, Timestamp};

/// An event, as it was emitted.
pub(super) struct Emitted {
    pub event: Happening,
    pub node: NodeId,
    pub at: Timestamp,
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
    /// Most events that wait.
    room: usize,
    node: AtomicU32,
    emitted: AtomicU64,
    lost: AtomicU64,
    pub(super) published: Mutex<Published>,
}

impl Inbox {
    pub(super) fn new(room: usize) -> Self {
        Self {
            waiting: Mutex::default(),
            bell: Condvar::new(),
            room,
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
        let mut waiting = self.lock();
        if waiting.closed || waiting.events.len() >= self.room {
            waiting.lost += 1;
            self.lost.fetch_add(1, Ordering::Release);
        } else {
            // Under the lock, so that times grow with the numbers.
            waiting.events.push(Emitted { event, node, at: Timestamp::now() });
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
