//! Time limits for futures that run on any executor: one thread that wakes them.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::lock;
use crate::instance::BoxFuture;

/// The thread's handle; it ends when this is dropped.
pub(super) struct Deadlines {
    state: Arc<(Mutex<Waiting>, Condvar)>,
}

#[derive(Default)]
struct Waiting {
    next: u64,
    wakers: BTreeMap<(Instant, u64), Waker>,
    ended: bool,
}

impl Deadlines {
    pub(super) fn start() -> io::Result<Self> {
        let state = Arc::new((Mutex::new(Waiting::default()), Condvar::new()));
        let shared = Arc::clone(&state);
        std::thread::Builder::new().name("plugin-limits".to_owned()).spawn(move || run(&shared))?;
        Ok(Self { state })
    }

    /// What `future` gives, or nothing when it takes longer than `limit`.
    pub(super) fn within<T: Send + 'static>(
        &self,
        limit: Duration,
        future: BoxFuture<T>,
    ) -> impl Future<Output = Option<T>> + Send + use<T> {
        Within { future: Some(future), timer: self.timer(limit) }
    }

    /// Waits.
    pub(super) fn sleep(&self, time: Duration) -> impl Future<Output = ()> + Send + use<> {
        let timer = self.timer(time);
        async move {
            Within::<()> { future: None, timer }.await;
        }
    }

    fn timer(&self, limit: Duration) -> Timer {
        let now = Instant::now();
        let at = now.checked_add(limit).unwrap_or(now);
        let mut waiting = lock(&self.state.0);
        waiting.next += 1;
        Timer { key: (at, waiting.next), state: Arc::clone(&self.state) }
    }
}

impl Drop for Deadlines {
    fn drop(&mut self) {
        lock(&self.state.0).ended = true;
        self.state.1.notify_all();
    }
}

struct Timer {
    key: (Instant, u64),
    state: Arc<(Mutex<Waiting>, Condvar)>,
}

impl Timer {
    fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        if Instant::now() >= self.key.0 {
            return Poll::Ready(());
        }
        let mut waiting = lock(&self.state.0);
        let first = waiting.wakers.first_key_value().is_none_or(|(key, _)| self.key < *key);
        waiting.wakers.insert(self.key, cx.waker().clone());
        drop(waiting);
        if first {
            self.state.1.notify_all();
        }
        Poll::Pending
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        lock(&self.state.0).wakers.remove(&self.key);
    }
}

struct Within<T> {
    future: Option<BoxFuture<T>>,
    timer: Timer,
}

impl<T> Future for Within<T> {
    type Output = Option<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        if let Some(future) = &mut self.future
            && let Poll::Ready(value) = future.as_mut().poll(cx)
        {
            return Poll::Ready(Some(value));
        }
        self.timer.poll(cx).map(|()| None)
    }
}

fn run(state: &(Mutex<Waiting>, Condvar)) {
    let mut waiting = lock(&state.0);
    while !waiting.ended {
        let now = Instant::now();
        let due: Vec<Waker> = {
            let later = waiting.wakers.split_off(&(now, u64::MAX));
            std::mem::replace(&mut waiting.wakers, later).into_values().collect()
        };
        if !due.is_empty() {
            drop(waiting);
            due.into_iter().for_each(Waker::wake);
            waiting = lock(&state.0);
            continue;
        }
        let wait = waiting
            .wakers
            .first_key_value()
            .map_or(Duration::from_secs(3600), |(key, _)| key.0.saturating_duration_since(now));
        waiting = match state.1.wait_timeout(waiting, wait) {
            Ok((waiting, _)) => waiting,
            Err(poisoned) => poisoned.into_inner().0,
        };
    }
}
