//! A stream in the child: a [`HostStream`] whose other end is a socket to the
//! parent. Both directions are bounded by credit.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use pilot_wire::SocketAddress;
use tokio::sync::mpsc::UnboundedSender;

use super::frames::{Frame, Kind, PIECE, WINDOW};
use crate::stream::HostStream;

/// What the plugin's thread and the socket share of one stream.
pub(super) struct Pipe {
    id: u64,
    /// Bounded by the credit of all streams.
    out: UnboundedSender<Frame>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    incoming: VecDeque<Bytes>,
    ended: bool,
    broken: Option<String>,
    /// Bytes that may be sent; below 0 after a piece larger than that.
    credit: i64,
    /// Written by the plugin and beyond the credit: one write at most.
    unsent: Bytes,
    /// The plugin will write no more, or has let go; told behind `unsent`.
    last: Option<Kind>,
    /// Bytes read and not yet given back as credit.
    consumed: usize,
    shut: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Pipe {
    pub(super) fn new(id: u64, out: UnboundedSender<Frame>) -> Arc<Self> {
        let state = State { credit: WINDOW as i64, ..State::default() };
        Arc::new(Self { id, out, state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, kind: Kind, body: impl Into<Bytes>) {
        // Without a socket the process is about to end.
        let _ = self.out.send(Frame::new(kind, self.id, body));
    }

    /// Whether something has still to be sent.
    pub(super) fn has_unsent(&self) -> bool {
        !self.lock().unsent.is_empty()
    }

    /// Sends as far as the credit goes. Under the lock, so that pieces keep
    /// their order.
    fn flush(&self, state: &mut State) {
        while !state.unsent.is_empty() && state.credit > 0 {
            let piece = state.unsent.split_to(state.unsent.len().min(PIECE));
            state.credit -= cost(piece.len()) as i64;
            self.send(Kind::Data, piece);
        }
        if state.unsent.is_empty()
            && let Some(last) = state.last.take()
        {
            self.send(last, Bytes::new());
        }
    }

    /// Tells the end behind what was written.
    fn last(&self, kind: Kind) {
        let mut state = self.lock();
        state.last = Some(kind);
        self.flush(&mut state);
    }

    /// What the parent says about this stream.
    pub(super) fn take(&self, frame: Frame) {
        let mut state = self.lock();
        match frame.kind {
            Kind::Data => state.incoming.push_back(frame.body),
            Kind::End => state.ended = true,
            Kind::Reset => {
                state.broken = Some(String::from_utf8_lossy(&frame.body).into_owned());
                state.unsent.clear();
                self.flush(&mut state);
            }
            Kind::Credit => {
                state.credit += credit(&frame.body) as i64;
                self.flush(&mut state);
            }
            _ => {}
        }
        let wakers = [state.reader.take(), state.writer.take()];
        drop(state);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }
}

/// What a piece of data takes of the credit: its bytes, and something for the
/// frame, so that many small ones are bounded as well.
pub(super) const fn cost(len: usize) -> usize {
    len + 64
}

/// The number of bytes in the body of a credit frame.
pub(super) fn credit(body: &[u8]) -> usize {
    let bytes = body.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
    bytes as usize
}

/// The body of a credit frame.
pub(super) fn credit_body(bytes: usize) -> Bytes {
    Bytes::copy_from_slice(&u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes())
}

/// The plugin's end.
pub(super) struct ChildStream {
    pub(super) pipe: Arc<Pipe>,
    pub(super) remote: SocketAddress,
    pub(super) port: u16,
    /// Reset here: there is nothing to close.
    pub(super) gone: bool,
}

impl HostStream for ChildStream {
    fn remote(&self) -> SocketAddress {
        self.remote
    }

    fn local_port(&self) -> u16 {
        self.port
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        let mut state = self.pipe.lock();
        if let Some(data) = state.incoming.pop_front() {
            state.consumed += cost(data.len());
            let back = if state.consumed >= WINDOW / 2 || state.incoming.is_empty() {
                std::mem::take(&mut state.consumed)
            } else {
                0
            };
            drop(state);
            if back > 0 {
                self.pipe.send(Kind::Credit, credit_body(back));
            }
            return Poll::Ready(Ok(Some(data)));
        }
        if let Some(reason) = &state.broken {
            return Poll::Ready(Err(reset(reason)));
        }
        if state.ended {
            return Poll::Ready(Ok(None));
        }
        state.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut state = self.pipe.lock();
        if let Some(reason) = &state.broken {
            return Poll::Ready(Err(reset(reason)));
        }
        if state.shut {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        match usize::try_from(state.credit) {
            Ok(room) if room > 0 && state.unsent.is_empty() => Poll::Ready(Ok(room)),
            _ => {
                state.writer = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn write(&mut self, data: Bytes) {
        let mut state = self.pipe.lock();
        // Room was asked for, so that nothing waits before it.
        state.unsent = data;
        self.pipe.flush(&mut state);
    }

    fn shutdown(&mut self) {
        self.pipe.lock().shut = true;
        self.pipe.last(Kind::End);
    }

    fn reset(&mut self, reason: &str) {
        self.gone = true;
        let mut state = self.pipe.lock();
        state.broken = Some(reason.to_owned());
        state.unsent.clear();
        state.last = None;
        drop(state);
        self.pipe.send(Kind::Reset, reason.to_owned());
    }
}

impl Drop for ChildStream {
    fn drop(&mut self) {
        if !self.gone {
            self.pipe.last(Kind::Close);
        }
    }
}

fn reset(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, reason.to_owned())
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;

    #[test]
    fn one_large_write_waits_for_credit_and_ends_before_the_close() {
        let (out, mut queue) = unbounded_channel();
        let pipe = Pipe::new(2, out);
        let remote = SocketAddress::default();
        let mut stream = ChildStream { pipe: Arc::clone(&pipe), remote, port: 7, gone: false };
        let mut cx = Context::from_waker(Waker::noop());
        assert!(matches!(stream.poll_room(&mut cx), Poll::Ready(Ok(WINDOW))));
        stream.write(vec![1; 3 * WINDOW].into());
        assert!(stream.poll_room(&mut cx).is_pending() && pipe.has_unsent());
        stream.shutdown();
        drop(stream);
        let (mut sent, mut closed) = (0, false);
        let mut rounds = 0;
        while !closed {
            let mut got = 0;
            while let Ok(frame) = queue.try_recv() {
                match frame.kind {
                    Kind::Data => got += cost(frame.body.len()),
                    kind => closed = kind == Kind::Close,
                }
                sent += frame.body.len();
            }
            assert!(got <= WINDOW + cost(PIECE));
            pipe.take(Frame::new(Kind::Credit, 2, credit_body(got)));
            rounds += 1;
        }
        assert!(sent == 3 * WINDOW && rounds >= 3 && !pipe.has_unsent());
    }
}
