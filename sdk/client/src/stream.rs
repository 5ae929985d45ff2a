//! A reliable, ordered stream of bytes to a peer.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use pilot_wire::SocketAddress;
use pilot_wire::ipc::{Command, Congestion, DATA_HEADER_LEN, Features, Setting, send_header};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::coop;

use crate::conn::{Conn, Owed, closed};
use crate::error::{Error, ErrorKind};
use crate::link::Guard;

/// Most data in one message. A published daemon takes up to 1 MiB; smaller
/// messages let streams take turns.
const MAX_DATA: usize = 64 * 1024;
/// Slices of a vectored write that go into one message; more wait for the
/// next.
const MAX_SLICES: usize = 16;

/// A reliable, ordered stream of bytes to a peer.
///
/// Reads end when the peer has shut its side down; [`shutdown`] ends the own
/// side and leaves reading open (with a daemon of the published protocol it
/// closes both). Dropping a stream closes it in order: what was written is
/// delivered, what was not read is lost.
///
/// [`shutdown`]: tokio::io::AsyncWriteExt::shutdown
pub struct Stream {
    end: Arc<End>,
}

/// The reading half of a [`Stream`]. Dropping it discards what was not read and
/// what comes later; the peer is not told.
pub struct ReadHalf {
    end: Arc<End>,
}

/// The writing half of a [`Stream`]. Dropping it shuts the own side down.
pub struct WriteHalf {
    end: Arc<End>,
}

/// Our end of a connection; closes it when the last holder is gone.
struct End {
    conn: Arc<Conn>,
    guard: Arc<Guard>,
    /// What the socket must have taken before a flush is done.
    mark: AtomicU64,
    shut: AtomicBool,
    /// Close has been sent.
    closed: AtomicBool,
}

impl Drop for End {
    fn drop(&mut self) {
        self.conn.abandon();
        if !*self.closed.get_mut() {
            self.guard.link.control(&Command::Close { connection: self.conn.id });
        }
    }
}

impl End {
    fn poll_read(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let turn = ready!(coop::poll_proceed(cx));
        let owed = ready!(self.conn.poll_read(cx, buf))?;
        turn.made_progress();
        self.pay(owed);
        Poll::Ready(Ok(()))
    }

    fn poll_chunk(&self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        let turn = ready!(coop::poll_proceed(cx));
        let chunk = ready!(self.conn.poll_chunk(cx))?;
        turn.made_progress();
        Poll::Ready(Ok(chunk.map(|taken| {
            self.pay(taken.owed);
            taken.data
        })))
    }

    fn pay(&self, owed: Owed) {
        let link = &self.guard.link;
        let connection = self.conn.id;
        match owed {
            Owed::Credit(bytes) if link.grants.has(Features::CREDIT) => {
                link.control(&Command::Credit { connection, bytes });
            }
            Owed::Kick => link.kick(connection),
            Owed::Nothing | Owed::Credit(_) => {}
        }
    }

    fn poll_write(&self, cx: &mut Context<'_>, data: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let turn = ready!(coop::poll_proceed(cx));
        if self.shut.load(Ordering::Relaxed) {
            return Poll::Ready(Err(closed().into()));
        }
        let wanted: usize = data.iter().map(|slice| slice.len()).sum();
        if wanted == 0 {
            return Poll::Ready(Ok(0));
        }
        let connection = self.conn.id;
        let link = &self.guard.link;
        let begin = || {
            link.control(&Command::LaneBegin { connection });
        };
        if let Some(written) = self.conn.poll_lane_write(cx, data, begin) {
            let (len, kick) = ready!(written)?;
            if kick {
                link.kick(connection);
            }
            turn.made_progress();
            return Poll::Ready(Ok(len));
        }
        let mut left = ready!(self.conn.poll_credit(cx, wanted.min(MAX_DATA)))?;
        // The header needs the length before the slices are known to fit.
        let mut message = [IoSlice::new(&[]); MAX_SLICES + 1];
        let mut used = 1;
        let mut len = 0;
        for slice in data.iter().filter(|slice| !slice.is_empty()).take(MAX_SLICES) {
            let part = &slice[..slice.len().min(left)];
            message[used] = IoSlice::new(part);
            used += 1;
            len += part.len();
            left -= part.len();
            if left == 0 {
                break;
            }
        }
        let header = send_header(self.conn.id, len);
        message[0] = IoSlice::new(&header);
        let total = DATA_HEADER_LEN + len;
        match self.guard.link.poll_message(cx, &message[..used], total) {
            Poll::Ready(mark) => {
                self.mark.store(mark?, Ordering::Relaxed);
                self.conn.spend_credit(len);
                turn.made_progress();
                Poll::Ready(Ok(len))
            }
            Poll::Pending => {
                if self.conn.watch_send(cx) {
                    // The stream has ended meanwhile; the credit check says how.
                    cx.waker().wake_by_ref();
                }
                Poll::Pending
            }
        }
    }

    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mark = self.mark.load(Ordering::Relaxed);
        self.guard.link.poll_flushed(cx, mark).map_err(io::Error::from)
    }

    /// Ends the own side, once.
    fn shut(&self) {
        if self.shut.swap(true, Ordering::Relaxed) {
            return;
        }
        let connection = self.conn.id;
        let link = &self.guard.link;
        let mark = if link.grants.has(Features::HALF_CLOSE) {
            link.control(&Command::Shutdown { connection })
        } else {
            self.closed.store(true, Ordering::Relaxed);
            link.control(&Command::Close { connection })
        };
        self.mark.store(mark, Ordering::Relaxed);
    }

    fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shut();
        self.poll_flush(cx)
    }

    fn set_no_delay(&self, on: bool) -> Result<(), Error> {
        if !self.guard.link.grants.hello {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the daemon cannot change how small writes are gathered",
            ));
        }
        self.set(Setting::NoDelay(on))
    }

    fn set_congestion(&self, congestion: Congestion) -> Result<(), Error> {
        if !self.guard.link.grants.has(Features::CONGESTION) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the daemon cannot change the congestion control of a connection",
            ));
        }
        self.set(Setting::Congestion(congestion))
    }

    fn set(&self, setting: Setting) -> Result<(), Error> {
        let link = &self.guard.link;
        link.control(&Command::Set { connection: self.conn.id, setting });
        link.error().map_or(Ok(()), Err)
    }
}

impl Stream {
    pub(crate) fn new(conn: Arc<Conn>, guard: Arc<Guard>) -> Self {
        Self {
            end: Arc::new(End {
                conn,
                guard,
                mark: AtomicU64::new(0),
                shut: AtomicBool::new(false),
                closed: AtomicBool::new(false),
            }),
        }
    }

    /// The peer's address and port.
    pub fn remote_addr(&self) -> SocketAddress {
        self.end.conn.remote
    }

    /// The daemon's number for this connection, as in
    /// [`crate::Info::conn_list`].
    pub fn id(&self) -> u32 {
        self.end.conn.id
    }

    /// Whether small writes are sent at once instead of being gathered
    /// (RFC 896). They are gathered unless this is set.
    ///
    /// # Errors
    /// When the daemon knows only the published protocol, or has gone.
    pub fn set_no_delay(&self, on: bool) -> Result<(), Error> {
        self.end.set_no_delay(on)
    }

    /// How this end shares a bottleneck from now on; the new controller starts
    /// with its initial window. Without it the daemon's own setting holds.
    ///
    /// # Errors
    /// When the daemon did not grant [`Features::CONGESTION`] (it is older, or
    /// it was not asked for), or has gone.
    pub fn set_congestion(&self, congestion: Congestion) -> Result<(), Error> {
        self.end.set_congestion(congestion)
    }

    /// The next received bytes without copying them; `None` at the end.
    ///
    /// # Errors
    /// When the stream broke or the daemon has gone.
    pub async fn read_chunk(&mut self) -> io::Result<Option<Bytes>> {
        std::future::poll_fn(|cx| self.end.poll_chunk(cx)).await
    }

    /// Two halves that can be used from different tasks. The stream is closed
    /// when both are dropped.
    pub fn into_split(self) -> (ReadHalf, WriteHalf) {
        (ReadHalf { end: Arc::clone(&self.end) }, WriteHalf { end: self.end })
    }
}

impl ReadHalf {
    /// The peer's address and port.
    pub fn remote_addr(&self) -> SocketAddress {
        self.end.conn.remote
    }

    /// The next received bytes without copying them; `None` at the end.
    ///
    /// # Errors
    /// When the stream broke or the daemon has gone.
    pub async fn read_chunk(&mut self) -> io::Result<Option<Bytes>> {
        std::future::poll_fn(|cx| self.end.poll_chunk(cx)).await
    }
}

impl WriteHalf {
    /// The peer's address and port.
    pub fn remote_addr(&self) -> SocketAddress {
        self.end.conn.remote
    }
}

impl Drop for ReadHalf {
    fn drop(&mut self) {
        // Or data that nobody reads would hold up the whole client when the
        // daemon knows no credit.
        self.end.conn.abandon();
    }
}

impl Drop for WriteHalf {
    fn drop(&mut self) {
        self.end.shut();
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.end.poll_read(cx, buf)
    }
}

impl AsyncRead for ReadHalf {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.end.poll_read(cx, buf)
    }
}

/// A write is ready when the socket has taken it or holds its rest; flush when
/// all of it has left this process.
macro_rules! async_write {
    ($type:ty) => {
        impl AsyncWrite for $type {
            fn poll_write(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &[u8],
            ) -> Poll<io::Result<usize>> {
                self.end.poll_write(cx, &[IoSlice::new(buf)])
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bufs: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                self.end.poll_write(cx, bufs)
            }

            fn is_write_vectored(&self) -> bool {
                true
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.end.poll_flush(cx)
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.end.poll_shutdown(cx)
            }
        }
    };
}

async_write!(Stream);
async_write!(WriteHalf);

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream")
            .field("id", &self.id())
            .field("remote", &self.remote_addr().to_string())
            .finish()
    }
}
