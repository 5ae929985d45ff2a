//! What an instance keeps beside the author's own type: its futures, streams,
//! timers and questions to the host.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use slab::Slab;

use super::blocking::Pool;
use super::raw::Raw;
use super::stream::Handle;
use super::task::{Panicked, Tasks};
use crate::abi;

pub(super) struct Shared {
    pub(super) raw: Raw,
    pub(super) tasks: Tasks,
    pub(super) pool: Pool,
    /// By the number that comes back as `user`, less one.
    pub(super) streams: RefCell<Slab<Rc<Handle>>>,
    /// Streams dropped in the running poll; closed at its end unless the
    /// future failed.
    dropped: RefCell<Vec<u64>>,
    /// What waits for [`abi::PilotPlugin::wake`] or
    /// [`abi::PilotPlugin::answer`].
    waiting: RefCell<HashMap<u64, Waiting>>,
    next_token: Cell<u64>,
}

/// Marks the numbers of dials.
const DIAL: u64 = 1 << 63;

#[derive(Default)]
struct Waiting {
    waker: Option<Waker>,
    /// Status and body, once it is here.
    answer: Option<(i32, Vec<u8>)>,
}

impl Shared {
    pub(super) fn new(raw: Raw) -> Rc<Self> {
        Rc::new(Self {
            raw,
            tasks: Tasks::new(raw),
            pool: Pool::default(),
            streams: RefCell::default(),
            dropped: RefCell::default(),
            waiting: RefCell::default(),
            // 0 means that futures are ready.
            next_token: Cell::new(1),
        })
    }

    /// Polls futures that are ready.
    pub(super) fn run(&self) -> Result<(), Panicked> {
        self.tasks.run(|| self.settle())
    }

    /// A stream was dropped by the author.
    pub(super) fn dropped(&self, stream: u64) {
        self.dropped.borrow_mut().push(stream);
    }

    /// Resets a stream that was dropped by a future that failed.
    pub(super) fn fail(&self, stream: u64, reason: &str) {
        self.dropped.borrow_mut().retain(|s| *s != stream);
        self.raw.reset(stream, reason);
    }

    /// Closes what was dropped.
    pub(super) fn settle(&self) {
        for stream in self.dropped.borrow_mut().drain(..) {
            self.raw.close(stream);
        }
    }

    /// A number for a timer or question.
    pub(super) fn token(&self) -> u64 {
        let token = self.next_token.get();
        self.next_token.set(token + 1);
        self.waiting.borrow_mut().insert(token, Waiting::default());
        token
    }

    /// A number for a dial, whose answer is a stream.
    pub(super) fn dial_token(&self) -> u64 {
        let token = self.next_token.get() | DIAL;
        self.next_token.set((token & !DIAL) + 1);
        self.waiting.borrow_mut().insert(token, Waiting::default());
        token
    }

    /// Nobody waits for `token` any more.
    pub(super) fn forget(&self, token: u64) {
        let known = self.waiting.borrow_mut().remove(&token);
        // It came in the same moment as nobody wanted it any more.
        if let Some((status, body)) = known.and_then(|known| known.answer) {
            self.close_dialled(token, status, &body);
        }
    }

    /// Closes the stream in an answer that nobody takes.
    fn close_dialled(&self, token: u64, status: i32, body: &[u8]) {
        let stream = std::str::from_utf8(body).ok().and_then(|text| text.parse().ok());
        if let Some(stream) = stream.filter(|_| token & DIAL != 0 && status == abi::OK) {
            self.raw.close(stream);
        }
    }

    /// Waits for the answer to `token`.
    pub(super) fn poll_answer(&self, token: u64, cx: &mut Context<'_>) -> Poll<(i32, Vec<u8>)> {
        let mut waiting = self.waiting.borrow_mut();
        let Some(entry) = waiting.get_mut(&token) else {
            return Poll::Ready((abi::INVALID, Vec::new()));
        };
        match entry.answer.take() {
            Some(answer) => {
                waiting.remove(&token);
                Poll::Ready(answer)
            }
            None => {
                entry.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// The answer to `token` has come; to one that nobody waits for any more it
    /// is dropped, and a stream in it closed.
    pub(super) fn answered(&self, token: u64, status: i32, body: &[u8]) {
        let waker = match self.waiting.borrow_mut().get_mut(&token) {
            Some(entry) => {
                entry.answer = Some((status, body.to_vec()));
                entry.waker.take()
            }
            None => {
                self.close_dialled(token, status, body);
                None
            }
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}
