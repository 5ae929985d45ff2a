//! What the reader and a stream share about one connection: received bytes
//! that wait for the application, and the credit to send.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes, BytesMut};
use pilot_lane::{Consumer, Direction, LaneFault, Memory, Producer};
use pilot_wire::SocketAddress;
use tokio::io::ReadBuf;

use crate::error::{Error, ErrorKind};
use crate::lock;

/// Up to this size received data is copied into a buffer of the stream, so
/// that a few bytes waiting do not pin a whole read buffer; larger data is
/// passed on as a slice of the read buffer. A stream therefore pins at most
/// `READ_BUFFER / SMALL` times its credit.
const SMALL: usize = 16 * 1024;
/// Size at which a buffer of small data is not extended further.
const SMALL_BUFFER: usize = 64 * 1024;
/// Most bytes of a chunk that is taken out of a lane.
const LANE_CHUNK: usize = 64 * 1024;

/// One connection.
pub(crate) struct Conn {
    pub(crate) id: u32,
    pub(crate) remote: SocketAddress,
    /// Bytes that may wait unread.
    window: usize,
    receive: Mutex<Receive>,
    send: Mutex<Send>,
}

#[derive(Default)]
struct Receive {
    queue: VecDeque<Chunk>,
    queued: usize,
    /// Bytes the application has read and the daemon has not been told of.
    consumed: usize,
    /// What follows the queue, if the daemon shares memory.
    lane: Option<Consumer>,
    /// What follows the queue and the lane.
    end: Option<Result<(), Error>>,
    waker: Option<Waker>,
    /// The reader, when it waits for this queue to drain.
    reader: Option<Waker>,
    /// A drained buffer for the next small data.
    spare: Option<BytesMut>,
    /// Nobody will read any more.
    abandoned: bool,
}

/// What the daemon is to be told after data was taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owed {
    Nothing,
    /// So many bytes more may be sent.
    Credit(u32),
    /// There is room in the lane again.
    Kick,
}

/// Data taken out, and what is owed for it.
pub(crate) struct Taken {
    pub(crate) data: Bytes,
    pub(crate) owed: Owed,
}

enum Chunk {
    Slice(Bytes),
    Small(BytesMut),
}

struct Send {
    credit: u64,
    lane: SendLane,
    waker: Option<Waker>,
    /// Why nothing can be sent any more.
    end: Option<Error>,
}

/// Where written bytes go.
enum SendLane {
    /// Into the socket.
    No,
    /// Into the lane, after the daemon has been told.
    Attached(Producer),
    /// Into the lane.
    Begun(Producer),
}

impl Conn {
    pub(crate) fn new(id: u32, remote: SocketAddress, window: usize, credit: u64) -> Self {
        Self {
            id,
            remote,
            window,
            receive: Mutex::default(),
            send: Mutex::new(Send { credit, lane: SendLane::No, waker: None, end: None }),
        }
    }

    // ---- the reader's side ----

    /// Whether `len` more bytes are within what the daemon was allowed.
    pub(crate) fn has_room(&self, len: usize) -> bool {
        let r = lock(&self.receive);
        r.abandoned || r.queued + r.consumed + len <= self.window
    }

    /// Whether data of this length is better passed on without copying.
    pub(crate) const fn wants_slice(len: usize) -> bool {
        len > SMALL
    }

    pub(crate) fn push_slice(&self, data: Bytes) {
        self.push(data.len(), |r| r.queue.push_back(Chunk::Slice(data)));
    }

    pub(crate) fn push_copy(&self, data: &[u8]) {
        self.push(data.len(), |r| {
            if let Some(Chunk::Small(last)) = r.queue.back_mut()
                && last.len() + data.len() <= SMALL_BUFFER
            {
                last.extend_from_slice(data);
                return;
            }
            let mut buffer = r.spare.take().unwrap_or_default();
            buffer.extend_from_slice(data);
            r.queue.push_back(Chunk::Small(buffer));
        });
    }

    fn push(&self, len: usize, add: impl FnOnce(&mut Receive)) {
        let mut r = lock(&self.receive);
        if r.abandoned || r.end.is_some() || len == 0 {
            return;
        }
        add(&mut r);
        r.queued += len;
        let waker = r.waker.take();
        drop(r);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Ready when less than half of the window waits, or nobody will read.
    pub(crate) fn poll_drained(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut r = lock(&self.receive);
        if r.abandoned || r.queued < self.window / 2 {
            return Poll::Ready(());
        }
        r.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Whether the reader must wait before it takes more for this stream.
    pub(crate) fn is_full(&self) -> bool {
        let r = lock(&self.receive);
        !r.abandoned && r.queued >= self.window
    }

    pub(crate) fn add_credit(&self, bytes: u32) {
        let mut s = lock(&self.send);
        s.credit = s.credit.saturating_add(u64::from(bytes));
        let waker = s.waker.take();
        drop(s);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The daemon shares memory: data comes through it from here on.
    pub(crate) fn attach(&self, memory: Memory) {
        let memory = Arc::new(memory);
        let mut r = lock(&self.receive);
        if !r.abandoned {
            r.lane = Some(Consumer::new(Arc::clone(&memory), Direction::Down));
        }
        drop(r);
        lock(&self.send).lane = SendLane::Attached(Producer::new(memory, Direction::Up));
        self.kicked();
    }

    /// Something has moved in the lane.
    pub(crate) fn kicked(&self) {
        let reader = lock(&self.receive).waker.take();
        let writer = lock(&self.send).waker.take();
        reader.into_iter().chain(writer).for_each(Waker::wake);
    }

    /// What follows the received data; the first word counts.
    pub(crate) fn end_receive(&self, end: Result<(), Error>) {
        let mut r = lock(&self.receive);
        r.end.get_or_insert(end);
        let waker = r.waker.take();
        drop(r);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(crate) fn end_send(&self, error: Error) {
        let mut s = lock(&self.send);
        s.end.get_or_insert(error);
        let waker = s.waker.take();
        drop(s);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Both directions failed.
    pub(crate) fn fail(&self, error: &Error) {
        self.end_receive(Err(error.clone()));
        self.end_send(error.clone());
    }

    // ---- the stream's side ----

    /// Moves received bytes into `buf`. Gives what is owed to the daemon for it;
    /// with an untouched `buf` the data has ended.
    pub(crate) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<Result<Owed, Error>> {
        let mut r = lock(&self.receive);
        if r.queued == 0 {
            let read = |lane: &mut Consumer| {
                let n = lane.read(buf.initialize_unfilled())?;
                buf.advance(n);
                Ok((n > 0 || buf.remaining() == 0).then_some(()))
            };
            return r
                .poll_lane(cx, read)
                .map_ok(|read| read.map_or(Owed::Nothing, |((), owed)| owed));
        }
        let before = buf.remaining();
        while buf.remaining() > 0 {
            let Some(chunk) = r.queue.front_mut() else { break };
            let empty = match chunk {
                Chunk::Slice(data) => take_into(data, buf),
                Chunk::Small(data) => take_into(data, buf),
            };
            if empty && let Some(Chunk::Small(mut spare)) = r.queue.pop_front() {
                spare.clear();
                r.spare = Some(spare);
            }
        }
        let read = before - buf.remaining();
        Poll::Ready(Ok(r.account(read, self.window)))
    }

    /// Takes received bytes without copying; `None` when the data has ended.
    pub(crate) fn poll_chunk(&self, cx: &mut Context<'_>) -> Poll<Result<Option<Taken>, Error>> {
        let mut r = lock(&self.receive);
        let data = match r.queue.pop_front() {
            Some(Chunk::Slice(data)) => data,
            Some(Chunk::Small(data)) => data.freeze(),
            None => {
                let take = |lane: &mut Consumer| {
                    let data = lane.take(LANE_CHUNK)?;
                    Ok((!data.is_empty()).then(|| Bytes::from(data)))
                };
                return r
                    .poll_lane(cx, take)
                    .map_ok(|taken| taken.map(|(data, owed)| Taken { data, owed }));
            }
        };
        let owed = r.account(data.len(), self.window);
        Poll::Ready(Ok(Some(Taken { data, owed })))
    }

    /// Writes into the lane; `None` when there is none. `begin` tells the daemon
    /// that bytes come that way from then on. Ready with the bytes written and
    /// whether the daemon is to be kicked.
    pub(crate) fn poll_lane_write(
        &self,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
        begin: impl FnOnce(),
    ) -> Option<Poll<Result<(usize, bool), Error>>> {
        let mut s = lock(&self.send);
        if matches!(s.lane, SendLane::No) {
            return None;
        }
        if let Some(error) = &s.end {
            return Some(Poll::Ready(Err(error.clone())));
        }
        s.lane = match std::mem::replace(&mut s.lane, SendLane::No) {
            SendLane::Attached(lane) => {
                begin();
                SendLane::Begun(lane)
            }
            other => other,
        };
        let SendLane::Begun(lane) = &mut s.lane else { return None };
        Some(match write_all(lane, data) {
            Ok(0) => {
                s.wait(cx);
                Poll::Pending
            }
            Ok(n) => Poll::Ready(Ok((n, lane.must_kick()))),
            Err(fault) => {
                let error = Error::protocol(format!("from the daemon: {fault}"));
                s.end = Some(error.clone());
                Poll::Ready(Err(error))
            }
        })
    }

    /// How many of `len` bytes may be sent now.
    pub(crate) fn poll_credit(
        &self,
        cx: &mut Context<'_>,
        len: usize,
    ) -> Poll<Result<usize, Error>> {
        let mut s = lock(&self.send);
        if let Some(error) = &s.end {
            return Poll::Ready(Err(error.clone()));
        }
        if s.credit == 0 {
            s.wait(cx);
            return Poll::Pending;
        }
        Poll::Ready(Ok(usize::try_from(s.credit).map_or(len, |credit| credit.min(len))))
    }

    /// Bytes within the credit have been sent.
    pub(crate) fn spend_credit(&self, len: usize) {
        let mut s = lock(&self.send);
        s.credit = s.credit.saturating_sub(len as u64);
    }

    /// Registers to be woken when sending ends; true if it has ended.
    pub(crate) fn watch_send(&self, cx: &mut Context<'_>) -> bool {
        let mut s = lock(&self.send);
        s.wait(cx);
        s.end.is_some()
    }

    /// The application will read no more.
    pub(crate) fn abandon(&self) {
        let mut r = lock(&self.receive);
        r.abandoned = true;
        r.queue.clear();
        r.spare = None;
        r.lane = None;
        r.queued = 0;
        let reader = r.reader.take();
        drop(r);
        if let Some(waker) = reader {
            waker.wake();
        }
    }
}

impl Receive {
    /// Takes something out of the lane with `take`; `None` is the end of data.
    fn poll_lane<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut take: impl FnMut(&mut Consumer) -> Result<Option<T>, LaneFault>,
    ) -> Poll<Result<Option<(T, Owed)>, Error>> {
        if let Some(lane) = &mut self.lane {
            let mut look = || {
                loop {
                    if let Some(taken) = take(lane)? {
                        let owed = if lane.must_kick() { Owed::Kick } else { Owed::Nothing };
                        return Ok(Some((taken, owed)));
                    }
                    // Everything was in the ring before the end was told.
                    if self.end.is_some() || lane.sleep()? {
                        return Ok(None);
                    }
                }
            };
            match look() {
                Ok(Some(taken)) => return Poll::Ready(Ok(Some(taken))),
                Ok(None) => {}
                Err(fault) => {
                    let fault: LaneFault = fault;
                    self.lane = None;
                    self.end = Some(Err(Error::protocol(format!("from the daemon: {fault}"))));
                }
            }
        }
        self.poll_end(cx).map_ok(|()| None)
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if let Some(end) = &self.end {
            return Poll::Ready(end.clone());
        }
        if !self.waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            self.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Counts `read` bytes as consumed and lets the reader go on. Credit is
    /// returned when half of the window has been consumed.
    fn account(&mut self, read: usize, window: usize) -> Owed {
        self.queued -= read;
        self.consumed += read;
        if self.queued < window / 2
            && let Some(reader) = self.reader.take()
        {
            reader.wake();
        }
        if self.consumed < window / 2 || self.end.is_some() || self.lane.is_some() {
            return Owed::Nothing;
        }
        let consumed = std::mem::take(&mut self.consumed);
        Owed::Credit(u32::try_from(consumed).unwrap_or(u32::MAX))
    }
}

impl Send {
    fn wait(&mut self, cx: &mut Context<'_>) {
        if !self.waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            self.waker = Some(cx.waker().clone());
        }
    }
}

/// Writes what fits; 0 when the daemon will kick once there is room.
fn write_all(lane: &mut Producer, data: &[IoSlice<'_>]) -> Result<usize, LaneFault> {
    loop {
        let mut written = 0;
        for slice in data {
            let n = lane.write(slice)?;
            written += n;
            if n < slice.len() {
                break;
            }
        }
        if written > 0 || lane.wait()? {
            return Ok(written);
        }
    }
}

/// Whether `data` is used up.
fn take_into(data: &mut impl Buf, buf: &mut ReadBuf<'_>) -> bool {
    let n = data.remaining().min(buf.remaining());
    buf.put_slice(&data.chunk()[..n]);
    data.advance(n);
    !data.has_remaining()
}

/// The error of writing to a stream that is over.
pub(crate) fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the stream is closed")
}
