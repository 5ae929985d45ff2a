//! Datagrams: unordered, unreliable messages to a port.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use pilot_wire::SocketAddress;
use tokio::sync::mpsc;

use crate::error::Error;
use crate::link::Guard;
use crate::lock;

/// Datagrams a subscription holds; further ones are dropped and counted.
const QUEUE: usize = 1024;

/// One received datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Who sent it, and from which port.
    pub source: SocketAddress,
    /// The own port it was sent to.
    pub destination_port: u16,
    /// Its payload.
    pub data: Bytes,
}

/// The datagrams that arrive while this exists, for every port. At most 1024
/// wait; what comes beyond is dropped, as datagrams may be.
pub struct Datagrams {
    queue: mpsc::Receiver<Datagram>,
    dropped: Arc<AtomicU64>,
    guard: Arc<Guard>,
}

impl Datagrams {
    pub(crate) fn subscribe(guard: Arc<Guard>) -> Self {
        let (sender, queue) = mpsc::channel(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let mut list = lock(&guard.link.subscribers.list);
        if guard.link.error().is_none() {
            list.push(Subscriber { queue: sender, dropped: Arc::clone(&dropped) });
        }
        drop(list);
        Self { queue, dropped, guard }
    }

    /// The next datagram.
    ///
    /// # Errors
    /// When the daemon has gone.
    pub async fn recv(&mut self) -> Result<Datagram, Error> {
        std::future::poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// The next datagram, for use inside another future.
    ///
    /// # Errors
    /// When the daemon has gone.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Datagram, Error>> {
        self.queue.poll_recv(cx).map(|datagram| {
            datagram.ok_or_else(|| self.guard.link.error().unwrap_or_else(crate::conn::closed))
        })
    }

    /// How many were dropped because this queue was full.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

struct Subscriber {
    queue: mpsc::Sender<Datagram>,
    dropped: Arc<AtomicU64>,
}

/// Everybody who wants datagrams. Bounded by the [`Datagrams`] that exist,
/// plus dropped ones until the next datagram.
#[derive(Default)]
pub(crate) struct Subscribers {
    list: Mutex<Vec<Subscriber>>,
    /// What became of an earlier datagram, for the next one sent.
    error: Mutex<Option<Error>>,
}

impl Subscribers {
    pub(crate) fn publish(&self, datagram: impl FnOnce() -> Datagram) {
        let mut list = lock(&self.list);
        list.retain(|s| !s.queue.is_closed());
        if list.is_empty() {
            return;
        }
        let datagram = datagram();
        for subscriber in list.iter() {
            if subscriber.queue.try_send(datagram.clone()).is_err() {
                subscriber.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    pub(crate) fn clear(&self) {
        lock(&self.list).clear();
    }

    pub(crate) fn failed(&self, error: Error) {
        *lock(&self.error) = Some(error);
    }

    pub(crate) fn take_error(&self) -> Option<Error> {
        lock(&self.error).take()
    }
}
