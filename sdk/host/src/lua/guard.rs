//! The limit of processor time. A callback may compute for a while; what waits
//! in between (a read, a request) starts the time anew. Past the limit every
//! call and every turn of a loop raises, until the callback is over, so that
//! catching the error once does not help.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use mlua::thread::ThreadStatus;
use mlua::{Error, Lua, Thread, VmState};
use tokio::task::AbortHandle;

use super::gauge::{self, Callback, Gauge};
use super::live::lock;

/// Calls and loop turns between two looks at the clock. One of them can take
/// 0.3 s (a search through a string as large as the memory), so not more.
const CALLS: u32 = 16;
/// Operations on streams that do not wait, before others get their turn.
const OPERATIONS: u32 = 64;
/// Time after which the next such operation lets others have their turn.
const TURN: u64 = 5_000_000;
/// Nanoseconds after which the processor time is noted again.
const NOTE: u64 = 20_000_000;

/// Watches one machine. All of it happens on the machine's thread.
#[derive(Debug)]
pub(super) struct Guard {
    gauge: Arc<Gauge>,
    /// Nanoseconds that a callback may take.
    limit: AtomicU64,
    calls: AtomicU32,
    operations: AtomicU32,
    /// When this turn began.
    began: AtomicU64,
    /// When to look at the processor time next.
    look: AtomicU64,
    /// Processor time at the first look in this turn; 0 before.
    cpu: AtomicU64,
    /// When the processor time was noted last.
    noted: AtomicU64,
    /// Bytes that the machine takes.
    memory: AtomicU64,
    expired: AtomicBool,
    /// Nothing new is given to this machine.
    worn: AtomicBool,
    /// Nothing runs in this machine any more.
    dead: AtomicBool,
    /// What the script began by `spawn`.
    spawned: Mutex<Vec<AbortHandle>>,
}

impl Guard {
    pub(super) fn new(gauge: Arc<Gauge>) -> Arc<Self> {
        Arc::new(Self {
            gauge,
            limit: AtomicU64::new(u64::MAX),
            calls: AtomicU32::new(0),
            operations: AtomicU32::new(0),
            began: AtomicU64::new(0),
            look: AtomicU64::new(u64::MAX),
            cpu: AtomicU64::new(0),
            noted: AtomicU64::new(0),
            memory: AtomicU64::new(0),
            expired: AtomicBool::new(false),
            worn: AtomicBool::new(false),
            dead: AtomicBool::new(false),
            spawned: Mutex::default(),
        })
    }

    /// Watches `lua` from now on.
    pub(super) fn watch(self: &Arc<Self>, lua: &Lua) {
        let guard = Arc::clone(self);
        lua.set_interrupt(move |lua| guard.tick(lua).map(|()| VmState::Continue));
    }

    pub(super) fn set_limit(&self, limit: Duration) {
        let nanos = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        self.limit.store(nanos, Ordering::Relaxed);
    }

    /// Raises when the time is over. For what must not swallow that.
    pub(super) fn check(&self, lua: &Lua) -> mlua::Result<()> {
        if self.expired.load(Ordering::Relaxed) || self.gauge.halted() {
            return Err(self.error(lua));
        }
        Ok(())
    }

    /// The callback that runs now.
    pub(super) fn callback(&self) -> Option<Callback> {
        self.gauge.callback()
    }

    pub(super) fn is_worn(&self) -> bool {
        self.worn.load(Ordering::Relaxed)
    }

    /// Gives nothing new to this machine.
    pub(super) fn wear(&self) {
        self.worn.store(true, Ordering::Relaxed);
    }

    /// Ends all that runs in this machine, each when it would go on.
    pub(super) fn kill(&self) {
        self.dead.store(true, Ordering::Relaxed);
        for task in lock(&self.spawned).drain(..) {
            task.abort();
        }
    }

    /// Has `task` end when the machine does. Refuses when there are `most`.
    pub(super) fn own(&self, most: usize, task: impl FnOnce() -> AbortHandle) -> bool {
        let mut spawned = lock(&self.spawned);
        if spawned.len() >= most {
            spawned.retain(|task| !task.is_finished());
        }
        if spawned.len() >= most {
            return false;
        }
        spawned.push(task());
        true
    }

    /// Lets others have a turn when it is time; every operation that may not
    /// wait calls this.
    pub(super) async fn breathe(&self) {
        let operations = self.operations.fetch_add(1, Ordering::Relaxed);
        if operations < OPERATIONS
            && gauge::now().saturating_sub(self.began.load(Ordering::Relaxed)) < TURN
        {
            return;
        }
        let mut waited = false;
        std::future::poll_fn(|cx| {
            if std::mem::replace(&mut waited, true) {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    fn enter(&self, callback: Callback) {
        let now = gauge::now();
        self.gauge.enter(callback, now);
        self.calls.store(0, Ordering::Relaxed);
        self.operations.store(0, Ordering::Relaxed);
        self.began.store(now, Ordering::Relaxed);
        self.look.store(now.saturating_add(self.limit.load(Ordering::Relaxed)), Ordering::Relaxed);
        self.cpu.store(0, Ordering::Relaxed);
        self.expired.store(false, Ordering::Relaxed);
        self.note_cpu(now);
    }

    fn note_cpu(&self, now: u64) {
        if now.saturating_sub(self.noted.load(Ordering::Relaxed)) > NOTE {
            self.noted.store(now, Ordering::Relaxed);
            self.gauge.note_cpu();
        }
    }

    /// Says whether the time was over.
    fn leave(&self, lua: &Lua) -> bool {
        self.gauge.leave();
        self.note_memory(lua.used_memory() as u64);
        let expired = self.expired.load(Ordering::Relaxed);
        if expired {
            self.wear();
        }
        expired
    }

    fn note_memory(&self, now: u64) {
        let before = self.memory.swap(now, Ordering::Relaxed);
        self.gauge.note_memory(before, now);
    }

    fn tick(&self, lua: &Lua) -> mlua::Result<()> {
        self.check(lua)?;
        let calls = self.calls.load(Ordering::Relaxed).wrapping_add(1);
        self.calls.store(calls, Ordering::Relaxed);
        if !calls.is_multiple_of(CALLS) {
            return Ok(());
        }
        if calls == CALLS {
            self.cpu.store(self.gauge.note_cpu(), Ordering::Relaxed);
        }
        let now = gauge::now();
        self.note_cpu(now);
        if now < self.look.load(Ordering::Relaxed) {
            return Ok(());
        }
        // The time on the wall is over; others may have had the processor.
        let limit = self.limit.load(Ordering::Relaxed);
        let used = self.gauge.note_cpu().saturating_sub(self.cpu.load(Ordering::Relaxed));
        if used < limit {
            self.look.store(now.saturating_add(limit - used), Ordering::Relaxed);
            return Ok(());
        }
        self.expired.store(true, Ordering::Relaxed);
        Err(self.error(lua))
    }

    /// With the place where the script is; the machine itself leaves out the
    /// function that is interrupted.
    fn error(&self, lua: &Lua) -> Error {
        let text = if self.gauge.halted() {
            "the script is being stopped".to_owned()
        } else {
            let limit = Duration::from_nanos(self.limit.load(Ordering::Relaxed));
            format!("stopped after {} ms of processor time without waiting", limit.as_millis())
        };
        match lua.traceback(Some(&text), 0) {
            Ok(trace) => Error::runtime(trace.to_string_lossy()),
            Err(_) => Error::runtime(text),
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.note_memory(0);
    }
}

/// Runs `call` under the guard, as one turn.
pub(super) fn turn<T>(
    lua: &Lua,
    guard: &Guard,
    callback: Callback,
    call: impl FnOnce() -> mlua::Result<T>,
) -> mlua::Result<T> {
    guard.enter(callback);
    let result = call();
    let expired = guard.leave(lua);
    if expired && result.is_ok() { Err(guard.error(lua)) } else { result }
}

/// A coroutine under the guard: each time it goes on is one turn.
pub(super) struct Guarded<F> {
    pub(super) lua: Lua,
    pub(super) guard: Arc<Guard>,
    pub(super) callback: Callback,
    pub(super) thread: Thread,
    pub(super) inner: F,
}

impl<T, F: Stream<Item = mlua::Result<T>> + Unpin> Future for Guarded<F> {
    type Output = mlua::Result<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if this.guard.dead.load(Ordering::Relaxed) {
            return Poll::Ready(Err(Error::runtime(
                "the machine it ran in was replaced after another callback used it up",
            )));
        }
        this.guard.enter(this.callback);
        let poll = loop {
            match Pin::new(&mut this.inner).poll_next(cx) {
                // It yielded to nobody, which is no waiting: it goes on in the same
                // turn, and its time with it.
                Poll::Ready(Some(Ok(_))) if this.thread.status() == ThreadStatus::Resumable => {}
                Poll::Ready(Some(result)) => break Poll::Ready(result),
                Poll::Ready(None) => break Poll::Ready(Err(Error::CoroutineUnresumable)),
                Poll::Pending => break Poll::Pending,
            }
        };
        let expired = this.guard.leave(&this.lua);
        match poll {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ if expired => Poll::Ready(Err(this.guard.error(&this.lua))),
            poll => poll,
        }
    }
}
