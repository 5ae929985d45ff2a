//! A few threads for what blocks. They end with the instance.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::{cell::RefCell, io, thread};

/// Threads of one instance at most; work beyond that waits.
const THREADS: usize = 4;

type Work = Box<dyn FnOnce() + Send>;
type Queue = (Sender<Work>, Arc<Mutex<Receiver<Work>>>);

/// Threads are made as they are needed.
#[derive(Default)]
pub(super) struct Pool {
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    queue: Option<Queue>,
    threads: usize,
    /// Counts what is waiting or running.
    pending: Arc<()>,
}

impl Pool {
    /// Has `work` done on a thread.
    pub(super) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<Done<T>> {
        let mut state = self.state.borrow_mut();
        let slot = Arc::new(Mutex::new(Slot { result: None, waker: None }));
        let done = Done { slot: Arc::clone(&slot) };
        let pending = Arc::clone(&state.pending);
        let busy = Arc::strong_count(&pending) - 1;
        let job: Work = Box::new(move || {
            let result = catch_unwind(AssertUnwindSafe(work));
            drop(pending);
            let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
            slot.result = Some(result);
            let waker = slot.waker.take();
            drop(slot);
            if let Some(waker) = waker {
                waker.wake();
            }
        });
        let (sender, receiver) = state.queue.get_or_insert_with(|| {
            let (sender, receiver) = channel();
            (sender, Arc::new(Mutex::new(receiver)))
        });
        let (sender, receiver) = (sender.clone(), Arc::clone(receiver));
        if busy > state.threads && state.threads < THREADS || state.threads == 0 {
            thread::Builder::new().name("plugin-blocking".to_owned()).spawn(move || {
                loop {
                    let next = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(work) = next else { return };
                    work();
                }
            })?;
            state.threads += 1;
        }
        // The receiver lives as long as the pool.
        sender.send(job).map_err(|_| io::Error::other("the threads have ended"))?;
        Ok(done)
    }
}

struct Slot<T> {
    result: Option<Result<T, Box<dyn Any + Send>>>,
    waker: Option<Waker>,
}

/// The result of work on a thread; a panic there goes on here.
pub(super) struct Done<T> {
    slot: Arc<Mutex<Slot<T>>>,
}

impl<T> Future for Done<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        match slot.result.take() {
            Some(Ok(value)) => Poll::Ready(value),
            Some(Err(panic)) => {
                drop(slot);
                std::panic::resume_unwind(panic)
            }
            None => {
                slot.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}
