//! Who is subscribed to what, and what waits for whom. Knows nothing of
//! streams: events go in as bytes, and come out as bytes for one subscriber.
//!
//! One event is kept once, however many wait for it. A subscriber that is slow
//! loses its oldest events and nobody else's.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::task::Waker;

use pilot_plugin::wire::service::event_stream::{Dropped, Event, Options, Subscription};

use crate::frames::Frame;

/// Names a subscriber.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Id(u64);

/// Bounds of what waits for one subscriber.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) bytes: usize,
    pub(crate) events: usize,
}

#[derive(Debug)]
struct Subscriber {
    subscription: Subscription,
    queue: VecDeque<Rc<[u8]>>,
    /// In the queue.
    bytes: usize,
    /// Left out since the last notice.
    dropped: u64,
    /// To be called when something waits.
    waker: Option<Waker>,
    /// It was called and has not come for its events yet.
    called: bool,
}

/// All subscribers.
#[derive(Debug)]
pub(crate) struct Broker {
    bounds: Bounds,
    next: u64,
    subscribers: HashMap<Id, Subscriber>,
    /// Subscribers whose topic is no pattern, by topic; `*` is one of these.
    exact: HashMap<Vec<u8>, Vec<Id>>,
    /// Subscribers to be tried on every event.
    patterns: Vec<Id>,
}

/// What became of a publication.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Published {
    /// Subscribers it waits for.
    pub(crate) to: usize,
    /// Older events that had to make room, over all subscribers.
    pub(crate) dropped: u64,
    /// A subscriber that is about to come for its events has much to fetch:
    /// whoever goes on publishing now makes it lose events that it would take.
    pub(crate) crowded: bool,
}

impl Broker {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            next: 0,
            subscribers: HashMap::new(),
            exact: HashMap::new(),
            patterns: Vec::new(),
        }
    }

    /// Takes the first event of a connection.
    pub(crate) fn subscribe(&mut self, first: &Event) -> Id {
        let id = Id(self.next);
        self.next += 1;
        let subscription = Subscription::new(first);
        if subscription.is_pattern() {
            self.patterns.push(id);
        } else {
            self.exact.entry(first.topic.clone()).or_default().push(id);
        }
        let options = subscription.options();
        let mut subscriber = Subscriber {
            subscription,
            queue: VecDeque::new(),
            bytes: 0,
            dropped: 0,
            waker: None,
            called: false,
        };
        if let Some(hello) = options.and_then(|options| frame(&Options::to_event(options))) {
            subscriber.push(hello, self.bounds);
        }
        self.subscribers.insert(id, subscriber);
        id
    }

    /// A connection is over. What waits for it is dropped.
    pub(crate) fn unsubscribe(&mut self, id: Id) {
        let Some(gone) = self.subscribers.remove(&id) else { return };
        if gone.subscription.is_pattern() {
            self.patterns.retain(|other| *other != id);
        } else if let Some(ids) = self.exact.get_mut(gone.subscription.topic()) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.exact.remove(gone.subscription.topic());
            }
        }
    }

    /// Gives an event to everybody subscribed to it but its publisher.
    pub(crate) fn publish(&mut self, from: Id, event: Frame<'_>) -> Published {
        let mut shared: Option<Rc<[u8]>> = None;
        let mut published = Published::default();
        let exact = self.exact.get(event.topic).into_iter().flatten();
        let all = (event.topic != b"*").then(|| self.exact.get(&b"*"[..])).flatten();
        for id in exact.chain(all.into_iter().flatten()).chain(&self.patterns) {
            let Some(to) = self.subscribers.get_mut(id).filter(|_| *id != from) else { continue };
            if !to.subscription.matches(event.topic) {
                continue;
            }
            let event = Rc::clone(shared.get_or_insert_with(|| event.bytes.into()));
            published.dropped += to.push(event, self.bounds);
            published.to += 1;
            published.crowded |= to.called && to.is_half_full(self.bounds);
        }
        published
    }

    /// Takes what waits for a subscriber: into `out`, up to `room` bytes and at
    /// least one event, or as one shared event when that alone is as long.
    /// Nothing waits: `waker` is called when that changes.
    pub(crate) fn take(&mut self, id: Id, room: usize, waker: &Waker) -> Option<Batch> {
        let subscriber = self.subscribers.get_mut(&id)?;
        subscriber.called = false;
        let mut out = Vec::new();
        if subscriber.dropped > 0 {
            let count = std::mem::take(&mut subscriber.dropped);
            let wants = subscriber.subscription.options().is_some_and(|options| options.dropped);
            if let Some(notice) = wants.then(|| frame(&Dropped { count }.to_event())).flatten() {
                out.extend_from_slice(&notice);
            }
        }
        while let Some(event) = subscriber.queue.front() {
            if !out.is_empty() && out.len() + event.len() > room {
                break;
            }
            let Some(event) = subscriber.queue.pop_front() else { break };
            subscriber.bytes -= event.len();
            if out.is_empty() && event.len() >= room {
                return Some(Batch::One(event));
            }
            if out.capacity() == 0 {
                out.reserve_exact(room.min(subscriber.bytes + event.len()));
            }
            out.extend_from_slice(&event);
        }
        if out.is_empty() {
            subscriber.waker = Some(waker.clone());
            return None;
        }
        Some(Batch::Many(out))
    }

    /// Calls everybody who waits for events.
    pub(crate) fn call_all(&mut self) {
        for subscriber in self.subscribers.values_mut() {
            if let Some(waker) = subscriber.waker.take() {
                waker.wake();
            }
        }
    }

    /// Subscribers now.
    pub(crate) fn len(&self) -> usize {
        self.subscribers.len()
    }
}

/// Events for one subscriber.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Batch {
    /// Copies, one behind the other.
    Many(Vec<u8>),
    /// A long one.
    One(Rc<[u8]>),
}

impl Subscriber {
    /// Gives how many older events were dropped for it.
    fn push(&mut self, event: Rc<[u8]>, bounds: Bounds) -> u64 {
        let mut dropped = 0;
        // Room for one there always is.
        while self.queue.len() >= bounds.events || self.bytes + event.len() > bounds.bytes {
            let Some(oldest) = self.queue.pop_front() else { break };
            self.bytes -= oldest.len();
            dropped += 1;
        }
        self.dropped = self.dropped.saturating_add(dropped);
        self.bytes += event.len();
        self.queue.push_back(event);
        if let Some(waker) = self.waker.take() {
            self.called = true;
            waker.wake();
        }
        dropped
    }

    fn is_half_full(&self, bounds: Bounds) -> bool {
        self.queue.len() * 2 >= bounds.events || self.bytes >= bounds.bytes / 2
    }
}

/// An event of our own; its lengths are within the limits.
fn frame(event: &Event) -> Option<Rc<[u8]>> {
    event.encode().ok().map(Into::into)
}
