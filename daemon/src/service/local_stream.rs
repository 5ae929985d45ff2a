//! A stream as a service or plugin sees it, on whatever thread: bounded queues
//! shared with the loop, which moves their contents to and from the core.
//!
//! Each side takes the lock once for all that is there, and wakes the other
//! only when that one waits: a wake-up of another thread costs more than the
//! rest together.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes};
use pilot_core::StreamId;
use pilot_host::HostStream;
use pilot_wire::SocketAddress;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::node::ready::Notifier;

/// Bytes queued towards the service; beyond it the loop leaves data in the
/// core, whose receive window then closes towards the peer. As much again may
/// be what the service has taken at once and works on.
const INCOMING_BOUND: usize = 256 << 10;
/// Bytes queued towards the core; beyond it a write waits.
const OUTGOING_BOUND: usize = 512 << 10;

/// How the reading side stands.
#[derive(Clone, Debug, Default)]
enum Ending {
    #[default]
    Open,
    End,
    Broken(String),
}

#[derive(Default)]
struct State {
    incoming: VecDeque<Bytes>,
    incoming_len: usize,
    /// The loop left data in the core and is to be told when there is room.
    stalled: bool,
    ending: Ending,
    outgoing: VecDeque<Bytes>,
    outgoing_len: usize,
    /// No more will be written.
    finished: bool,
    /// The service broke the stream, and why.
    reset: Option<String>,
    /// The service dropped its end.
    dropped: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl State {
    /// Bytes that may be delivered now; when there are none the loop is told
    /// once there are.
    fn room(&mut self) -> usize {
        if self.dropped || self.reset.is_some() {
            return usize::MAX;
        }
        let room = INCOMING_BOUND.saturating_sub(self.incoming_len);
        self.stalled = room == 0;
        room
    }

    fn end(&mut self, ending: Ending) {
        if matches!(self.ending, Ending::Open) || matches!(ending, Ending::Broken(_)) {
            self.ending = ending;
        }
    }
}

/// What the loop and a [`LocalStream`] share.
pub(crate) struct StreamShared {
    state: Mutex<State>,
    notifier: Arc<Notifier>,
}

/// How a stream's writing side stands after the loop took what there was.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outgoing {
    /// More may come.
    Open,
    /// Everything was taken, and no more will come.
    Finished,
    /// Everything was taken, and the service is gone.
    Dropped,
    /// The service broke the stream.
    Reset(String),
}

impl StreamShared {
    pub(crate) fn new(notifier: Arc<Notifier>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), notifier })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called when the stream was taken off the ready list.
    pub(crate) fn taken(&self) {
        self.notifier.taken();
    }

    /// Bytes that may be delivered now.
    pub(crate) fn room(&self) -> usize {
        self.lock().room()
    }

    /// Hands received bytes to the service, and the end behind them if `end`;
    /// a service that is gone loses them. Returns how many may follow.
    pub(crate) fn deliver(&self, pieces: &mut Vec<Bytes>, end: bool) -> usize {
        let mut state = self.lock();
        if state.dropped || state.reset.is_some() {
            pieces.clear();
        }
        let mut waker = None;
        if !pieces.is_empty() || end {
            state.incoming_len += pieces.iter().map(Bytes::len).sum::<usize>();
            state.incoming.extend(pieces.drain(..));
            waker = state.reader.take();
        }
        if end {
            state.end(Ending::End);
        }
        let room = state.room();
        drop(state);
        wake(waker);
        room
    }

    /// The stream broke. What was delivered can still be read; then comes the
    /// error.
    pub(crate) fn broken(&self, reason: String) {
        self.finish_reading(Ending::Broken(reason), false);
    }

    /// The stream is over in both directions: what was delivered can still be
    /// read, and a write fails instead of waiting for ever.
    pub(crate) fn over(&self) {
        self.finish_reading(Ending::End, true);
    }

    fn finish_reading(&self, ending: Ending, over: bool) {
        let mut state = self.lock();
        state.finished |= over;
        state.end(ending);
        let (reader, writer) = (state.reader.take(), state.writer.take());
        drop(state);
        wake(reader);
        wake(writer);
    }

    /// Moves the next bytes to write, at most `max`, to `into`.
    pub(crate) fn take_outgoing(&self, max: usize, into: &mut Vec<Bytes>) -> Outgoing {
        let mut state = self.lock();
        if let Some(reason) = &state.reset {
            return Outgoing::Reset(reason.clone());
        }
        let mut left = max;
        while left > 0
            && let Some(front) = state.outgoing.front_mut()
        {
            let data = if front.len() <= left {
                state.outgoing.pop_front().unwrap_or_default()
            } else {
                front.split_to(left)
            };
            left -= data.len();
            into.push(data);
        }
        state.outgoing_len -= max - left;
        let waker = if state.outgoing_len < OUTGOING_BOUND { state.writer.take() } else { None };
        let standing = match (state.outgoing.is_empty(), state.dropped, state.finished) {
            (false, ..) | (true, false, false) => Outgoing::Open,
            (true, true, _) => Outgoing::Dropped,
            (true, false, true) => Outgoing::Finished,
        };
        drop(state);
        wake(waker);
        standing
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// A stream in the hands of a service. Reads give what has arrived; writes go
/// out without being gathered. Dropping it closes the stream after what was
/// written.
pub struct LocalStream {
    shared: Arc<StreamShared>,
    /// Taken from the queue at once, and not yet read.
    taken: VecDeque<Bytes>,
    id: StreamId,
    local_port: u16,
    remote: SocketAddress,
}

impl LocalStream {
    pub(crate) fn new(
        shared: Arc<StreamShared>,
        id: StreamId,
        local_port: u16,
        remote: SocketAddress,
    ) -> Self {
        Self { shared, taken: VecDeque::new(), id, local_port, remote }
    }

    /// The peer's address and port; the tunnel has proven the node.
    pub fn remote(&self) -> SocketAddress {
        self.remote
    }

    /// The port the stream came in on; 0 for a dialled stream.
    pub fn local_port(&self) -> u16 {
        self.local_port
    }

    /// The stream's number, as in `info`.
    pub fn id(&self) -> u32 {
        self.id.0
    }

    /// The next bytes as they arrived, without a copy; `None` at the end.
    ///
    /// # Errors
    /// When the stream broke.
    pub async fn read_bytes(&mut self) -> io::Result<Option<Bytes>> {
        std::future::poll_fn(|cx| self.poll_bytes(cx, usize::MAX)).await
    }

    /// Writes `data` without a copy; waits while the queue to the core is full.
    ///
    /// # Errors
    /// When the stream broke or was shut down.
    pub async fn write_bytes(&mut self, data: Bytes) -> io::Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        std::future::poll_fn(|cx| self.poll_room(cx).map_ok(drop)).await?;
        self.enqueue(data);
        Ok(())
    }

    fn poll_bytes(&mut self, cx: &mut Context<'_>, max: usize) -> Poll<io::Result<Option<Bytes>>> {
        if self.taken.is_empty() {
            let mut state = self.shared.lock();
            if state.incoming.is_empty() {
                return match &state.ending {
                    Ending::End => Poll::Ready(Ok(None)),
                    Ending::Broken(reason) => Poll::Ready(Err(broken(reason))),
                    Ending::Open => {
                        register(&mut state.reader, cx);
                        Poll::Pending
                    }
                };
            }
            std::mem::swap(&mut state.incoming, &mut self.taken);
            state.incoming_len = 0;
            let stalled = std::mem::take(&mut state.stalled);
            drop(state);
            if stalled {
                self.shared.notifier.notify();
            }
        }
        Poll::Ready(Ok(match self.taken.front_mut() {
            Some(front) if front.len() > max => Some(front.split_to(max)),
            _ => self.taken.pop_front(),
        }))
    }

    /// Waits for room in the outgoing queue; gives how much there is.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut state = self.shared.lock();
        if let Ending::Broken(reason) = &state.ending {
            return Poll::Ready(Err(broken(reason)));
        }
        if state.finished {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = OUTGOING_BOUND.saturating_sub(state.outgoing_len);
        if room == 0 {
            register(&mut state.writer, cx);
            return Poll::Pending;
        }
        Poll::Ready(Ok(room))
    }

    fn enqueue(&mut self, data: Bytes) {
        if data.is_empty() {
            return;
        }
        let mut state = self.shared.lock();
        if state.finished || state.reset.is_some() || matches!(state.ending, Ending::Broken(_)) {
            return;
        }
        // While something waits there, the loop has been told, or the core
        // will tell it when it has room.
        let first = state.outgoing.is_empty();
        state.outgoing_len += data.len();
        state.outgoing.push_back(data);
        drop(state);
        if first {
            self.shared.notifier.notify();
        }
    }

    fn finish(&self) {
        self.shared.lock().finished = true;
        self.shared.notifier.notify();
    }
}

/// Has the task of `cx` woken by who takes `waker`.
fn register(waker: &mut Option<Waker>, cx: &Context<'_>) {
    match waker {
        Some(known) => known.clone_from(cx.waker()),
        none => *none = Some(cx.waker().clone()),
    }
}

fn broken(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, reason.to_owned())
}

impl AsyncRead for LocalStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if let Some(data) = ready!(self.poll_bytes(cx, buf.remaining()))? {
            buf.put_slice(data.chunk());
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for LocalStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let room = ready!(self.poll_room(cx))?;
        let n = room.min(buf.len());
        self.enqueue(Bytes::copy_from_slice(&buf[..n]));
        Poll::Ready(Ok(n))
    }

    /// Nothing is held back: what was written is on its way.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Half-close: the peer reads the end after everything written.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finish();
        Poll::Ready(Ok(()))
    }
}

impl HostStream for LocalStream {
    fn remote(&self) -> SocketAddress {
        self.remote
    }

    fn local_port(&self) -> u16 {
        self.local_port
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        self.poll_bytes(cx, usize::MAX)
    }

    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        LocalStream::poll_room(self, cx)
    }

    fn write(&mut self, data: Bytes) {
        self.enqueue(data);
    }

    fn shutdown(&mut self) {
        self.finish();
    }

    fn reset(&mut self, reason: &str) {
        let mut state = self.shared.lock();
        state.reset = Some(reason.to_owned());
        state.outgoing.clear();
        state.outgoing_len = 0;
        state.incoming.clear();
        state.incoming_len = 0;
        state.ending = Ending::Broken(reason.to_owned());
        drop(state);
        self.taken.clear();
        self.shared.notifier.notify();
    }
}

impl Drop for LocalStream {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.dropped = true;
        state.incoming.clear();
        state.incoming_len = 0;
        drop(state);
        self.shared.notifier.notify();
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::node::ready::Token;

    #[tokio::test]
    async fn a_writer_does_not_wait_for_a_stream_that_is_over() {
        let shared = StreamShared::new(Notifier::new(Arc::default(), Token::Local(1)));
        let remote = SocketAddress::default();
        let mut stream = LocalStream::new(Arc::clone(&shared), StreamId(1), 7, remote);
        shared.deliver(&mut vec![Bytes::from_static(b"last")], false);
        let writing = async {
            let written = stream.write_all(&vec![0; OUTGOING_BOUND + 1]).await;
            assert_eq!(written.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        };
        let ending = async { shared.over() };
        let both = async { tokio::join!(writing, ending) };
        tokio::time::timeout(std::time::Duration::from_secs(10), both).await.unwrap();
        assert_eq!(stream.read_bytes().await.unwrap().unwrap(), "last");
        assert_eq!(stream.read_bytes().await.unwrap(), None);
    }

    struct Count(std::sync::atomic::AtomicUsize);

    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }

    fn stream(list: &Arc<crate::node::ready::ReadyList>) -> (Arc<StreamShared>, LocalStream) {
        let shared = StreamShared::new(Notifier::new(Arc::clone(list), Token::Local(1)));
        let remote = SocketAddress::default();
        let stream = LocalStream::new(Arc::clone(&shared), StreamId(1), 7, remote);
        (shared, stream)
    }

    fn tokens(list: &crate::node::ready::ReadyList) -> usize {
        let mut tokens = Vec::new();
        list.take(&mut tokens);
        tokens.len()
    }

    #[test]
    fn a_batch_wakes_each_side_once() {
        let list = Arc::default();
        let (shared, mut stream) = stream(&list);
        let count = Arc::new(Count(0.into()));
        let waker = Waker::from(Arc::clone(&count));
        let mut cx = Context::from_waker(&waker);
        let woken = || count.0.load(std::sync::atomic::Ordering::Relaxed);
        assert!(HostStream::poll_read(&mut stream, &mut cx).is_pending());
        let piece = |n: u8| Bytes::copy_from_slice(&[n; 10]);
        shared.deliver(&mut (0..5).map(piece).collect(), false);
        shared.deliver(&mut (5..9).map(piece).collect(), true);
        assert_eq!(woken(), 1);
        for n in 0..9 {
            let Poll::Ready(Ok(Some(data))) = HostStream::poll_read(&mut stream, &mut cx) else {
                panic!()
            };
            assert_eq!(data, piece(n));
            assert!(LocalStream::poll_room(&mut stream, &mut cx).is_ready());
            HostStream::write(&mut stream, data);
        }
        assert!(matches!(HostStream::poll_read(&mut stream, &mut cx), Poll::Ready(Ok(None))));
        assert_eq!((tokens(&list), woken()), (1, 1));
        let mut out = Vec::new();
        assert_eq!(shared.take_outgoing(35, &mut out), Outgoing::Open);
        assert_eq!(out.iter().map(Bytes::len).collect::<Vec<_>>(), [10, 10, 10, 5]);
        shared.taken();
        HostStream::write(&mut stream, piece(9));
        assert_eq!(tokens(&list), 0, "the loop comes back by itself for what it left");
        assert_eq!(shared.take_outgoing(usize::MAX, &mut out), Outgoing::Open);
        HostStream::write(&mut stream, piece(10));
        assert_eq!(tokens(&list), 1);
        HostStream::shutdown(&mut stream);
        assert_eq!(shared.take_outgoing(usize::MAX, &mut out), Outgoing::Finished);
        drop(stream);
        assert_eq!(shared.take_outgoing(usize::MAX, &mut out), Outgoing::Dropped);
        assert_eq!(out.iter().map(Bytes::len).sum::<usize>(), 110);
    }

    #[test]
    fn a_full_queue_stalls_the_loop_until_it_is_taken() {
        let list = Arc::default();
        let (shared, mut stream) = stream(&list);
        let mut cx = Context::from_waker(Waker::noop());
        assert_eq!(shared.room(), INCOMING_BOUND);
        assert_eq!(shared.deliver(&mut vec![vec![1; INCOMING_BOUND].into()], false), 0);
        assert_eq!(tokens(&list), 0);
        assert!(HostStream::poll_read(&mut stream, &mut cx).is_ready());
        assert_eq!(tokens(&list), 1, "there is room again");
        assert_eq!(shared.room(), INCOMING_BOUND);
    }

    #[test]
    fn a_reset_drops_what_was_not_sent() {
        let list = Arc::default();
        let (shared, mut stream) = stream(&list);
        HostStream::write(&mut stream, Bytes::from_static(b"lost"));
        stream.reset("it broke the rules");
        let mut out = Vec::new();
        let reset = Outgoing::Reset("it broke the rules".to_owned());
        assert_eq!(shared.take_outgoing(100, &mut out), reset);
        HostStream::write(&mut stream, Bytes::from_static(b"ignored"));
        drop(stream);
        assert_eq!(shared.take_outgoing(100, &mut out), reset, "dropping it changes nothing");
        assert!(out.is_empty());
        assert_eq!(shared.deliver(&mut vec![Bytes::from_static(b"x")], false), usize::MAX);
    }
}
