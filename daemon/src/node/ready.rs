//! Which clients and in-process streams have something to do: one waker per
//! token, so that a turn costs what is ready and not what exists.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};

/// What became ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Token {
    /// A client of the driver socket, by its number.
    Client(u64),
    /// A stream of an in-process service, by its stream handle.
    Local(u32),
}

#[derive(Default)]
struct Inner {
    /// Bounded by the clients and streams there are: a token is in it once.
    tokens: Vec<Token>,
    loop_waker: Option<Waker>,
}

/// Ready tokens and the waker of the loop that takes them.
#[derive(Default)]
pub(crate) struct ReadyList {
    inner: Mutex<Inner>,
}

impl ReadyList {
    /// Moves all ready tokens to `into`.
    pub(crate) fn take(&self, into: &mut Vec<Token>) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        into.append(&mut inner.tokens);
    }

    /// Has `waker` woken at the next push; returns whether tokens are there
    /// already.
    pub(crate) fn register(&self, waker: &Waker) -> bool {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut inner.loop_waker {
            Some(known) => known.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
        !inner.tokens.is_empty()
    }

    fn push(&self, token: Token) {
        let waker = {
            let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            inner.tokens.push(token);
            inner.loop_waker.clone()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Puts its token on the list when woken, once until it is taken off.
pub(crate) struct Notifier {
    list: Arc<ReadyList>,
    token: Token,
    queued: AtomicBool,
}

impl Notifier {
    pub(crate) fn new(list: Arc<ReadyList>, token: Token) -> Arc<Self> {
        Arc::new(Self { list, token, queued: AtomicBool::new(false) })
    }

    /// Puts the token on the list.
    pub(crate) fn notify(&self) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.list.push(self.token);
        }
    }

    /// To be called when the token was taken off, before its work is done.
    pub(crate) fn taken(&self) {
        self.queued.store(false, Ordering::Release);
    }
}

impl Wake for Notifier {
    fn wake(self: Arc<Self>) {
        self.notify();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.notify();
    }
}
