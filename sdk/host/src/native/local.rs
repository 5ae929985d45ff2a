//! What only an instance's own thread touches. The host's table finds it by a
//! thread-local, so that a call on another thread finds nothing.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context as TaskContext, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use pilot_plugin::abi::PilotContext;
use slab::Slab;

use super::library::User;
use super::messages::Message;
use super::shared::Shared;
use super::streams;
use crate::instance::BoxFuture;
use crate::stream::BoxStream;

/// Questions of the plugin to the platform under way; one more is refused.
const MAX_PENDING: usize = 1024;
/// Timers set at once; one more is refused.
const MAX_TIMERS: usize = 65_536;
/// Log lines a second; more are counted and left out.
const MAX_LINES: u32 = 200;

thread_local!(static CURRENT: RefCell<Option<Rc<Local>>> = const { RefCell::new(None) });

/// The instance whose thread this is, if it is `context`'s.
pub(super) fn current(context: *const PilotContext) -> Option<Rc<Local>> {
    // While the thread ends there is none.
    let local = CURRENT.try_with(|current| current.borrow().clone()).ok()??;
    std::ptr::eq(local.context, context).then_some(local)
}

/// Makes `local` that of the current thread, or none.
pub(super) fn set_current(local: Option<Rc<Local>>) {
    CURRENT.with(|current| *current.borrow_mut() = local);
}

/// What a question of the plugin to the platform ends with.
pub(super) enum Outcome {
    /// For [`pilot_plugin::abi::PilotPlugin::answer`].
    Answer { status: i32, body: String },
    /// A stream that was dialled.
    Stream(BoxStream),
}

/// A stream as the instance's thread knows it.
pub(super) struct Entry {
    id: u64,
    pub(super) cell: Arc<streams::Cell>,
    pub(super) user: User,
}

pub(super) struct Local {
    pub(super) shared: Arc<Shared>,
    context: *const PilotContext,
    /// By the upper half of their number.
    streams: RefCell<Vec<Option<Entry>>>,
    timers: RefCell<Timers>,
    pending: RefCell<Slab<(u64, BoxFuture<Outcome>, Waker)>>,
    events: Rate,
    lines: Rate,
    /// The last error that the plugin logged: what a panic said.
    pub(super) last_line: RefCell<String>,
    pub(super) metrics: RefCell<HashMap<String, f64>>,
}

#[derive(Default)]
struct Timers {
    by_token: HashMap<u64, Instant>,
    by_time: BTreeMap<(Instant, u64), ()>,
}

impl Local {
    pub(super) fn new(shared: Arc<Shared>, context: *const PilotContext) -> Rc<Self> {
        let events = Rate::new(shared.context.limits.events);
        Rc::new(Self {
            shared,
            context,
            streams: RefCell::default(),
            timers: RefCell::default(),
            pending: RefCell::default(),
            events,
            lines: Rate::new(MAX_LINES),
            last_line: RefCell::default(),
            metrics: RefCell::default(),
        })
    }

    /// Takes a stream; gives its number.
    pub(super) fn add_stream(&self, stream: BoxStream) -> u64 {
        let shared = &self.shared;
        let mut table = shared.table.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (id, cell) = table.insert(stream, shared);
        shared.counters.streams.store(table.len(), Ordering::Relaxed);
        drop(table);
        let index = index(id);
        let mut streams = self.streams.borrow_mut();
        if streams.len() <= index {
            streams.resize_with(index + 1, || None);
        }
        streams[index] = Some(Entry { id, cell, user: User::NONE });
        id
    }

    /// A stream's cell and the plugin's pointer for it.
    pub(super) fn stream(&self, id: u64) -> Option<(Arc<streams::Cell>, User)> {
        let streams = self.streams.borrow();
        let entry = streams.get(index(id))?.as_ref().filter(|entry| entry.id == id)?;
        Some((Arc::clone(&entry.cell), entry.user))
    }

    /// Does something with an open stream; `None` when there is none.
    pub(super) fn with_stream<T>(
        &self,
        id: u64,
        f: impl FnOnce(&mut BoxStream, &streams::Cell) -> T,
    ) -> Option<T> {
        let streams = self.streams.borrow();
        let entry = streams.get(index(id))?.as_ref().filter(|entry| entry.id == id)?;
        let mut stream = entry.cell.lock();
        stream.as_mut().map(|stream| f(stream, &entry.cell))
    }

    /// Sets the plugin's pointer for a stream, and has it told of the stream.
    pub(super) fn attach(&self, id: u64, user: User) -> bool {
        let mut streams = self.streams.borrow_mut();
        let entry = streams.get_mut(index(id)).and_then(Option::as_mut);
        let Some(entry) = entry.filter(|entry| entry.id == id) else { return false };
        entry.user = user;
        entry.cell.first();
        true
    }

    /// Takes a stream out: its number is not valid any more.
    pub(super) fn remove_stream(&self, id: u64) -> Option<(BoxStream, User)> {
        let mut streams = self.streams.borrow_mut();
        let slot = streams.get_mut(index(id))?;
        let entry = slot.take_if(|entry| entry.id == id)?;
        drop(streams);
        let mut table = self.shared.table.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        table.remove(id);
        self.shared.counters.streams.store(table.len(), Ordering::Relaxed);
        drop(table);
        let stream = entry.cell.lock().take()?;
        Some((stream, entry.user))
    }

    /// Numbers of all streams.
    pub(super) fn stream_ids(&self) -> Vec<u64> {
        self.streams.borrow().iter().flatten().map(|entry| entry.id).collect()
    }

    /// Sets or moves a timer, or takes it back.
    pub(super) fn set_timer(&self, token: u64, after: Option<Duration>) -> bool {
        let mut timers = self.timers.borrow_mut();
        let timers = &mut *timers;
        if let Some(at) = timers.by_token.remove(&token) {
            timers.by_time.remove(&(at, token));
        }
        let Some(after) = after else { return true };
        if timers.by_token.len() >= MAX_TIMERS {
            return false;
        }
        // Beyond what a clock can tell it never comes.
        if let Some(at) = Instant::now().checked_add(after) {
            timers.by_token.insert(token, at);
            timers.by_time.insert((at, token), ());
        }
        true
    }

    /// A timer that is due.
    pub(super) fn due_timer(&self, now: Instant) -> Option<u64> {
        let mut timers = self.timers.borrow_mut();
        let (&(at, token), ()) = timers.by_time.first_key_value()?;
        if at > now {
            return None;
        }
        timers.by_time.remove(&(at, token));
        timers.by_token.remove(&token);
        Some(token)
    }

    /// When the next timer is due.
    pub(super) fn next_timer(&self) -> Option<Instant> {
        self.timers.borrow().by_time.first_key_value().map(|((at, _), ())| *at)
    }

    /// Waits for the platform on behalf of the plugin's `token`. `false` when
    /// too many wait.
    pub(super) fn pend(&self, token: u64, future: BoxFuture<Outcome>) -> bool {
        let mut pending = self.pending.borrow_mut();
        if pending.len() >= MAX_PENDING {
            return false;
        }
        let entry = pending.vacant_entry();
        let key = entry.key();
        let waker = Waker::from(Arc::new(PollAgain { key, shared: Arc::clone(&self.shared) }));
        entry.insert((token, future, waker));
        drop(pending);
        self.shared.queue.push(Message::Poll(key));
        true
    }

    /// Polls what waits under `key`.
    pub(super) fn poll_pending(&self, key: usize) -> Option<(u64, Outcome)> {
        let mut pending = self.pending.borrow_mut();
        let (token, future, waker) = pending.get_mut(key)?;
        let Poll::Ready(outcome) = future.as_mut().poll(&mut TaskContext::from_waker(waker)) else {
            return None;
        };
        let token = *token;
        drop(pending.remove(key));
        Some((token, outcome))
    }

    /// Whether another event may be emitted now.
    pub(super) fn may_emit(&self) -> bool {
        self.events.take()
    }

    /// Whether another line may be logged now.
    pub(super) fn may_log(&self) -> bool {
        self.lines.take()
    }
}

fn index(id: u64) -> usize {
    usize::try_from(id >> 32).unwrap_or(usize::MAX)
}

struct PollAgain {
    key: usize,
    shared: Arc<Shared>,
}

impl Wake for PollAgain {
    fn wake(self: Arc<Self>) {
        self.shared.queue.push(Message::Poll(self.key));
    }
}

/// So many a second, and as many at once.
struct Rate {
    per_second: u32,
    window: Cell<Option<Instant>>,
    used: Cell<u32>,
}

impl Rate {
    fn new(per_second: u32) -> Self {
        Self { per_second, window: Cell::new(None), used: Cell::new(0) }
    }

    fn take(&self) -> bool {
        let now = Instant::now();
        let fresh = self.window.get().is_none_or(|w| now - w >= Duration::from_secs(1));
        if fresh {
            self.window.set(Some(now));
            self.used.set(0);
        }
        self.used.set(self.used.get().saturating_add(1));
        self.used.get() <= self.per_second
    }
}
