//! What other threads tell an instance's thread, and the queue it comes in.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::Instant;

use bytes::Bytes;
use pilot_plugin::{Batch, JoinRequest};
use pilot_wire::SocketAddress;

use crate::stream::BoxStream;

pub(super) enum Message {
    Open(BoxStream),
    Datagram {
        from: SocketAddress,
        port: u16,
        data: Bytes,
    },
    /// A stream may be readable or writable; which is with the stream.
    Ready(u64),
    /// The plugin asked to be woken.
    Wake(u64),
    /// A future of the platform can go on.
    Poll(usize),
    Validate {
        question: u64,
        request: Box<JoinRequest>,
    },
    Deliver {
        question: u64,
        batch: Batch,
    },
    Drain {
        deadline: Instant,
    },
    /// The instance is not wanted any more: end now.
    Stop,
}

/// Tokens that wait to be woken, beyond which a wake-up is lost: a plugin of
/// the SDK uses one token.
const MAX_WAKES: usize = 65_536;

/// Messages in order. What is given from outside is bounded by the limit of
/// the instance; wake-ups and ready streams are in it once each.
#[derive(Default)]
pub(super) struct Queue {
    inner: Mutex<Inner>,
    /// Whose thread empties it.
    thread: OnceLock<Thread>,
}

#[derive(Default)]
struct Inner {
    messages: VecDeque<Message>,
    wakes: HashSet<u64>,
    /// The thread sleeps and wants to be woken.
    asleep: bool,
    closed: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The current thread empties the queue from now on.
    pub(super) fn adopt(&self) {
        // Set once, by the one thread there is.
        let _ = self.thread.set(std::thread::current());
    }

    pub(super) fn len(&self) -> usize {
        self.lock().messages.len()
    }

    /// Adds a message; gives it back when `limit` messages wait, or nobody
    /// takes any.
    pub(super) fn push_limited(&self, message: Message, limit: usize) -> Result<(), Message> {
        let inner = self.lock();
        if inner.closed || inner.messages.len() >= limit {
            return Err(message);
        }
        self.add(inner, message);
        Ok(())
    }

    /// Adds a message that is bounded by something else.
    pub(super) fn push(&self, message: Message) {
        let inner = self.lock();
        if !inner.closed {
            self.add(inner, message);
        }
    }

    /// Adds a wake-up unless the token has one already.
    pub(super) fn wake(&self, token: u64) {
        let mut inner = self.lock();
        if inner.closed || inner.wakes.len() >= MAX_WAKES || !inner.wakes.insert(token) {
            return;
        }
        self.add(inner, Message::Wake(token));
    }

    /// The token is about to be woken.
    pub(super) fn woken(&self, token: u64) {
        self.lock().wakes.remove(&token);
    }

    fn add(&self, mut inner: MutexGuard<'_, Inner>, message: Message) {
        inner.messages.push_back(message);
        let wake = std::mem::take(&mut inner.asleep);
        drop(inner);
        if wake && let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// The next message. What is behind it stays here, where it can be refused
    /// when the thread does not come back.
    pub(super) fn pop(&self) -> Option<Message> {
        self.lock().messages.pop_front()
    }

    /// Sleeps until there is a message, or until `at`.
    pub(super) fn wait(&self, at: Option<Instant>) {
        {
            let mut inner = self.lock();
            if !inner.messages.is_empty() || inner.closed {
                return;
            }
            inner.asleep = true;
        }
        match at {
            Some(at) => std::thread::park_timeout(at.saturating_duration_since(Instant::now())),
            None => std::thread::park(),
        }
        self.lock().asleep = false;
    }

    /// Nothing is taken any more; gives what is left.
    pub(super) fn close(&self) -> VecDeque<Message> {
        let mut inner = self.lock();
        inner.closed = true;
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
        std::mem::take(&mut inner.messages)
    }
}
