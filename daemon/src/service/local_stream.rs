//! A stream as an in-process service sees it: bounded queues shared with the
//! loop, which moves their contents to and from the core.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes};
use pilot_core::StreamId;
use pilot_wire::SocketAddress;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::node::ready::Notifier;

/// Bytes queued towards the service; beyond it the loop leaves data in the
/// core, whose receive window then closes towards the peer.
const INCOMING_BOUND: usize = 512 << 10;
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
    ending: Ending,
    outgoing: VecDeque<Bytes>,
    outgoing_len: usize,
    /// No more will be written.
    finished: bool,
    /// The service dropped its end.
    dropped: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// What the loop and a [`LocalStream`] share.
pub(crate) struct StreamShared {
    state: Mutex<State>,
    notifier: Arc<Notifier>,
}

/// What the loop is to do next with a stream's writing side.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outgoing {
    /// Write these bytes.
    Data(Bytes),
    /// Nothing now.
    Nothing,
    /// Everything is written, and no more will come.
    Finished,
    /// Everything is written, and the service is gone.
    Dropped,
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
        let state = self.lock();
        if state.dropped { usize::MAX } else { INCOMING_BOUND.saturating_sub(state.incoming_len) }
    }

    /// Hands received bytes to the service; a service that is gone loses them.
    pub(crate) fn deliver(&self, data: Bytes) {
        let mut state = self.lock();
        if state.dropped || data.is_empty() {
            return;
        }
        state.incoming_len += data.len();
        state.incoming.push_back(data);
        let waker = state.reader.take();
        drop(state);
        wake(waker);
    }

    /// The peer will send no more.
    pub(crate) fn end(&self) {
        self.finish_reading(Ending::End);
    }

    /// The stream broke. What was delivered can still be read; then comes the
    /// error.
    pub(crate) fn broken(&self, reason: String) {
        self.finish_reading(Ending::Broken(reason));
    }

    /// The stream is over in both directions: what was delivered can still be
    /// read, and a write fails instead of waiting for ever.
    pub(crate) fn over(&self) {
        self.lock().finished = true;
        self.end();
    }

    fn finish_reading(&self, ending: Ending) {
        let mut state = self.lock();
        if matches!(state.ending, Ending::Open) || matches!(ending, Ending::Broken(_)) {
            state.ending = ending;
        }
        let (reader, writer) = (state.reader.take(), state.writer.take());
        drop(state);
        wake(reader);
        wake(writer);
    }

    /// The next bytes to write, at most `max`.
    pub(crate) fn next_outgoing(&self, max: usize) -> Outgoing {
        let mut state = self.lock();
        let Some(front) = state.outgoing.front_mut() else {
            return match (state.dropped, state.finished) {
                (true, _) => Outgoing::Dropped,
                (false, true) => Outgoing::Finished,
                (false, false) => Outgoing::Nothing,
            };
        };
        if max == 0 {
            return Outgoing::Nothing;
        }
        let data = if front.len() <= max {
            state.outgoing.pop_front().unwrap_or_default()
        } else {
            front.split_to(max)
        };
        state.outgoing_len -= data.len();
        let waker = if state.outgoing_len < OUTGOING_BOUND { state.writer.take() } else { None };
        drop(state);
        wake(waker);
        Outgoing::Data(data)
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
        Self { shared, id, local_port, remote }
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
        let mut state = self.shared.lock();
        let Some(front) = state.incoming.front_mut() else {
            return match &state.ending {
                Ending::End => Poll::Ready(Ok(None)),
                Ending::Broken(reason) => Poll::Ready(Err(broken(reason))),
                Ending::Open => {
                    state.reader = Some(cx.waker().clone());
                    Poll::Pending
                }
            };
        };
        let data = if front.len() <= max {
            state.incoming.pop_front().unwrap_or_default()
        } else {
            front.split_to(max)
        };
        let before = state.incoming_len;
        state.incoming_len -= data.len();
        let reopened = before >= INCOMING_BOUND / 2 && state.incoming_len < INCOMING_BOUND / 2;
        drop(state);
        if reopened {
            self.shared.notifier.notify();
        }
        Poll::Ready(Ok(Some(data)))
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
            state.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(room))
    }

    fn enqueue(&mut self, data: Bytes) {
        let mut state = self.shared.lock();
        state.outgoing_len += data.len();
        state.outgoing.push_back(data);
        drop(state);
        self.shared.notifier.notify();
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
        self.shared.lock().finished = true;
        self.shared.notifier.notify();
        Poll::Ready(Ok(()))
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
        shared.deliver(Bytes::from_static(b"last"));
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
}
