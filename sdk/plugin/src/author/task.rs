//! The executor of an instance: futures are polled on the instance's thread,
//! at the end of every callback. Wakers may be used on any thread.

use std::any::Any;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Wake, Waker};

use slab::Slab;

use super::raw::Raw;

/// Polls in one callback; what is left is done in the next, so that the host
/// can tell a busy plugin from a hung one.
const POLLS: usize = 512;

/// Token of [`Raw::wake`] for "futures are ready".
pub(super) const RUN: u64 = 0;

type Job = Pin<Box<dyn Future<Output = ()>>>;

/// A future panicked; what it said is with the hook.
pub(super) struct Panicked(pub(super) Box<dyn Any + Send>);

pub(super) struct Tasks {
    /// A job is absent while it is polled.
    jobs: RefCell<Slab<(Option<Job>, Arc<TaskWaker>)>>,
    queue: Arc<Queue>,
}

struct Queue {
    /// Bounded by the jobs there are: each is in it once.
    ready: Mutex<VecDeque<usize>>,
    /// Names the instance's thread.
    thread: usize,
    raw: Raw,
}

struct TaskWaker {
    id: usize,
    queued: AtomicBool,
    queue: Arc<Queue>,
}

impl Tasks {
    /// For the current thread.
    pub(super) fn new(raw: Raw) -> Self {
        let queue = Queue { ready: Mutex::default(), thread: thread_mark(), raw };
        Self { jobs: RefCell::default(), queue: Arc::new(queue) }
    }

    /// Takes a future; it is polled at the end of the running callback.
    pub(super) fn spawn(&self, job: impl Future<Output = ()> + 'static) {
        let mut jobs = self.jobs.borrow_mut();
        let entry = jobs.vacant_entry();
        let waker = Arc::new(TaskWaker {
            id: entry.key(),
            queued: AtomicBool::new(false),
            queue: Arc::clone(&self.queue),
        });
        entry.insert((Some(Box::pin(job)), Arc::clone(&waker)));
        drop(jobs);
        waker.wake();
    }

    /// Polls what is ready, and calls `settle` after every poll.
    ///
    /// # Errors
    /// When a future panicked; it is gone, and the others go on later.
    pub(super) fn run(&self, settle: impl Fn()) -> Result<(), Panicked> {
        for _ in 0..POLLS {
            let Some(id) = self.queue.pop() else { return Ok(()) };
            let Some((mut job, waker)) = self.take(id) else { continue };
            waker.queued.store(false, Ordering::Release);
            let handle = Waker::from(waker);
            let polled = catch_unwind(AssertUnwindSafe(|| {
                let poll = job.as_mut().poll(&mut Context::from_waker(&handle));
                if poll.is_ready() {
                    // Here, where a destructor that panics is caught as well.
                    drop(job);
                    return None;
                }
                Some(job)
            }));
            let finished = match polled {
                Ok(Some(job)) => {
                    if let Some((slot, _)) = self.jobs.borrow_mut().get_mut(id) {
                        *slot = Some(job);
                    }
                    None
                }
                Ok(None) => Some(Ok(())),
                Err(panic) => Some(Err(Panicked(panic))),
            };
            if let Some(finished) = finished {
                let gone = self.jobs.borrow_mut().try_remove(id);
                drop(gone);
                settle();
                if let Err(panicked) = finished {
                    // The others are not to wait for the next event.
                    self.again();
                    return Err(panicked);
                }
            } else {
                settle();
            }
        }
        self.again();
        Ok(())
    }

    /// Drops all futures.
    pub(super) fn clear(&self) {
        loop {
            // One by one, as one destructor that panics must not meet another;
            // and not while borrowed, as what is dropped may spawn.
            let next = {
                let mut jobs = self.jobs.borrow_mut();
                let key = jobs.iter().next().map(|(key, _)| key);
                key.map(|key| jobs.remove(key))
            };
            let Some((job, _)) = next else { return };
            caught(|| drop(job));
        }
    }

    /// Has what is ready polled in the next callback.
    pub(super) fn again(&self) {
        if !self.queue.is_empty() {
            self.queue.raw.wake(RUN);
        }
    }

    fn take(&self, id: usize) -> Option<(Job, Arc<TaskWaker>)> {
        let mut jobs = self.jobs.borrow_mut();
        let (job, waker) = jobs.get_mut(id)?;
        Some((job.take()?, Arc::clone(waker)))
    }
}

impl Queue {
    fn pop(&self) -> Option<usize> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    fn is_empty(&self) -> bool {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    fn push(&self, id: usize) {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).push_back(id);
        if thread_mark() != self.thread {
            self.raw.wake(RUN);
        }
    }
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.queue.push(self.id);
        }
    }
}

/// What `f` gives, unless it panics. The panic ends here, also when what it
/// carries panics as it is dropped.
pub(super) fn caught<T>(f: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(value) => Some(value),
        Err(payload) => {
            discard(payload);
            None
        }
    }
}

/// Drops what a panic carries.
pub(super) fn discard(payload: Box<dyn Any + Send>) {
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        // Not again: that would go on for ever.
        std::mem::forget(second);
    }
}

/// A number that the current thread has for itself while it lives.
fn thread_mark() -> usize {
    thread_local!(static MARK: u8 = const { 0 });
    MARK.with(|mark| std::ptr::from_ref(mark).addr())
}
