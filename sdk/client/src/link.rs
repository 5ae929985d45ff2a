//! The socket as everything above it shares it: whole messages go out in
//! order, straight from the caller's task while the kernel takes them.
//!
//! What the kernel does not take of a message that has begun is kept in one
//! backlog, and no other data is accepted until it is gone; so the backlog is
//! at most one message of data plus control messages, whose number is bounded
//! by the streams that are open (one close, one shutdown, at most two credits
//! and two messages about a lane each) and the requests outstanding. Kicks of
//! lanes come when the daemon asks for them; one that asks and does not read
//! ends the link.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, Wake, Waker, ready};

use pilot_wire::ipc::Command;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::connect::Grants;
use crate::datagram::Subscribers;
use crate::error::{Error, ErrorKind};
use crate::listener::Incoming;
use crate::lock;
use crate::request::Requests;

/// Capacity the backlog keeps when it is empty.
const KEPT_BACKLOG: usize = 128 * 1024;

/// With so much waiting to go out, a kick more means that the daemon only asks
/// for kicks and does not read them.
const MAX_BEFORE_KICK: usize = 4 << 20;

/// Everything about one socket but its read side, which the reader owns.
pub(crate) struct Link {
    socket: OwnedWriteHalf,
    out: Mutex<Backlog>,
    waiters: Arc<Waiters>,
    /// Wakes `waiters` when the socket becomes writable.
    writable: Waker,
    flush_wanted: Notify,
    dead: OnceLock<Error>,
    pub(crate) grants: Grants,
    pub(crate) requests: Requests,
    /// Who takes the connections to each bound port.
    pub(crate) ports: Mutex<HashMap<u16, Incoming>>,
    pub(crate) subscribers: Subscribers,
}

/// Bytes that must go out before anything else.
#[derive(Default)]
struct Backlog {
    bytes: Vec<u8>,
    /// How many of `bytes` are gone.
    sent: usize,
    /// Bytes that have ever left through the backlog.
    flushed: u64,
    /// The last client handle is gone: flush what is here, then end the
    /// reader. Until then it reads on, or a daemon that waits for this client
    /// to read would never take the rest.
    closing: Option<AbortHandle>,
}

impl Backlog {
    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// What `flushed` will be when everything here is gone.
    fn mark(&self) -> u64 {
        self.flushed + (self.bytes.len() - self.sent) as u64
    }
}

/// Tasks that wait for the socket. Bounded by the tasks that write.
#[derive(Default)]
struct Waiters(Mutex<Vec<Waker>>);

impl Waiters {
    fn add(&self, waker: &Waker) {
        let mut list = lock(&self.0);
        if !list.iter().any(|w| w.will_wake(waker)) {
            list.push(waker.clone());
        }
    }
}

impl Wake for Waiters {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let list = std::mem::take(&mut *lock(&self.0));
        list.into_iter().for_each(Waker::wake);
    }
}

impl Link {
    pub(crate) fn new(socket: OwnedWriteHalf, grants: Grants) -> Self {
        let waiters = Arc::new(Waiters::default());
        Self {
            socket,
            out: Mutex::default(),
            writable: Waker::from(Arc::clone(&waiters)),
            waiters,
            flush_wanted: Notify::new(),
            dead: OnceLock::new(),
            requests: Requests::new(&grants),
            grants,
            ports: Mutex::default(),
            subscribers: Subscribers::default(),
        }
    }

    /// Why the link is over, if it is.
    pub(crate) fn error(&self) -> Option<Error> {
        self.dead.get().cloned()
    }

    /// Ends the link for everybody. The first reason stays.
    pub(crate) fn fail(&self, error: Error) {
        // Losing the race only means that another reason came first.
        let _ = self.dead.set(error);
        self.waiters.wake_by_ref();
        self.flush_wanted.notify_one();
    }

    fn alive(&self) -> Result<(), Error> {
        self.error().map_or(Ok(()), Err)
    }

    /// Sends one whole message, given in slices of `total` bytes, when
    /// everything before it is gone. Ready means accepted, and gives the mark
    /// for [`Self::poll_flushed`].
    pub(crate) fn poll_message(
        &self,
        cx: &mut Context<'_>,
        message: &[IoSlice<'_>],
        total: usize,
    ) -> Poll<Result<u64, Error>> {
        loop {
            self.alive()?;
            let mut out = lock(&self.out);
            if self.flush(&mut out)? {
                match self.socket.try_write_vectored(message) {
                    Ok(0) => return Poll::Ready(Err(self.broken(io::ErrorKind::WriteZero.into()))),
                    Ok(n) if n >= total => return Poll::Ready(Ok(out.mark())),
                    Ok(n) => {
                        keep_rest(&mut out.bytes, message, n);
                        self.flush_wanted.notify_one();
                        return Poll::Ready(Ok(out.mark()));
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Err(e) => return Poll::Ready(Err(self.broken(e))),
                }
            }
            drop(out);
            ready!(self.poll_writable(cx))?;
        }
    }

    /// Queues a control message whatever the backlog is, and sends what the
    /// kernel takes. Fails silently on a dead link, which everybody is told of.
    pub(crate) fn control(&self, command: &Command<'_>) -> u64 {
        let mut out = lock(&self.out);
        if self.dead.get().is_some() {
            return out.flushed;
        }
        command.encode(&mut out.bytes);
        if !matches!(self.flush(&mut out), Ok(true)) {
            self.flush_wanted.notify_one();
        }
        out.mark()
    }

    /// Tells the daemon that something has moved in a lane.
    pub(crate) fn kick(&self, connection: u32) {
        if lock(&self.out).bytes.len() > MAX_BEFORE_KICK {
            let text = "the daemon asks to be woken and does not read its socket";
            return self.fail(Error::protocol(text.to_owned()));
        }
        self.control(&Command::LaneKick { connection });
    }

    /// Whether everything up to `mark` has left this process.
    pub(crate) fn poll_flushed(&self, cx: &mut Context<'_>, mark: u64) -> Poll<Result<(), Error>> {
        loop {
            let mut out = lock(&self.out);
            if out.flushed >= mark {
                return Poll::Ready(Ok(()));
            }
            self.alive()?;
            self.flush(&mut out)?;
            let done = out.flushed >= mark;
            drop(out);
            if done {
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_writable(cx))?;
        }
    }

    /// Writes backlog until it is empty (true) or the kernel takes no more.
    fn flush(&self, out: &mut Backlog) -> Result<bool, Error> {
        while out.sent < out.bytes.len() {
            match self.socket.try_write(&out.bytes[out.sent..]) {
                Ok(0) => return Err(self.broken(io::ErrorKind::WriteZero.into())),
                Ok(n) => {
                    out.sent += n;
                    out.flushed += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) => return Err(self.broken(e)),
            }
        }
        if !out.is_empty() {
            out.bytes.clear();
            out.bytes.shrink_to(KEPT_BACKLOG);
            out.sent = 0;
        }
        Ok(true)
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.waiters.add(cx.waker());
        let mut shared = Context::from_waker(&self.writable);
        let ready = self.socket.as_ref().poll_write_ready(&mut shared);
        // Failing wakes the waiters; one added after that must look itself.
        self.alive()?;
        ready.map_err(|e| self.broken(e))
    }

    fn broken(&self, source: io::Error) -> Error {
        self.fail(Error::new(ErrorKind::Disconnected, format!("daemon disconnected: {source}")));
        self.error().unwrap_or_else(|| Error::new(ErrorKind::Disconnected, "daemon disconnected"))
    }

    /// Sends what the kernel would not take at once, until the last handle is
    /// gone and nothing is left, or the link fails.
    pub(crate) async fn flush_backlog(self: Arc<Self>) {
        loop {
            self.flush_wanted.notified().await;
            let mark = lock(&self.out).mark();
            let flushed = std::future::poll_fn(|cx| self.poll_flushed(cx, mark)).await;
            let mut out = lock(&self.out);
            let dead = flushed.is_err() || self.dead.get().is_some();
            if dead || (out.closing.is_some() && out.is_empty()) {
                if let Some(reader) = out.closing.take() {
                    reader.abort();
                }
                return;
            }
            if !out.is_empty() {
                self.flush_wanted.notify_one();
            }
        }
    }
}

/// Appends what is left of `message` after its first `skip` bytes.
fn keep_rest(out: &mut Vec<u8>, message: &[IoSlice<'_>], mut skip: usize) {
    for slice in message {
        let rest = slice.get(skip..).unwrap_or_default();
        skip = skip.saturating_sub(slice.len());
        out.extend_from_slice(rest);
    }
}

/// Held by every client, stream, listener and subscription; the socket closes
/// with the last.
pub(crate) struct Guard {
    pub(crate) link: Arc<Link>,
    pub(crate) reader: AbortHandle,
}

impl Drop for Guard {
    fn drop(&mut self) {
        lock(&self.link.out).closing = Some(self.reader.clone());
        if self.link.error().is_some() {
            // Nobody flushes any more.
            self.reader.abort();
        }
        self.link.flush_wanted.notify_one();
    }
}
