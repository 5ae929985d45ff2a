//! A stream in the hands of a plugin. Reads give what has arrived, writes wait
//! while the peer does not read.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::buffer::Buffer;
use super::instance::Shared;
use crate::abi;

/// A line that [`Reader::read_line`] takes unless told otherwise has at most
/// this many bytes.
const FIRST_LINE: usize = 256;

/// One stream of the host and who waits for it.
pub(super) struct Handle {
    pub(super) shared: Rc<Shared>,
    pub(super) id: u64,
    port: u16,
    /// The host has told that the stream is gone.
    gone: Cell<bool>,
    /// Closed or reset here.
    closed: Cell<bool>,
    reader: RefCell<Option<Waker>>,
    writer: RefCell<Option<Waker>>,
}

impl Handle {
    /// The host has something to tell.
    pub(super) fn ready(&self, what: u32) {
        let gone = what & abi::GONE != 0;
        if gone {
            self.gone.set(true);
        }
        if gone || what & abi::READABLE != 0 {
            wake(&self.reader);
        }
        if gone || what & abi::WRITABLE != 0 {
            wake(&self.writer);
        }
    }
}

fn wake(waker: &RefCell<Option<Waker>>) {
    let waker = waker.borrow_mut().take();
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// Who holds the stream; the last one to go closes it.
struct Held {
    handle: Rc<Handle>,
    key: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        let Handle { shared, id, closed, .. } = &*self.handle;
        shared.streams.borrow_mut().try_remove(self.key);
        if closed.get() {
            return;
        }
        if std::thread::panicking() {
            shared.raw.reset(*id, "the plugin panicked");
        } else {
            shared.dropped(*id);
        }
    }
}

/// A stream. Dropping it closes it after what was written.
pub struct Stream {
    reader: Reader,
    writer: Writer,
}

/// The reading half of a stream; see [`Stream::into_split`].
pub struct Reader {
    held: Rc<Held>,
    rest: Buffer,
}

/// The writing half of a stream; see [`Stream::into_split`].
pub struct Writer {
    held: Rc<Held>,
}

impl Stream {
    /// Takes over a stream of the host and gives the number that its events
    /// are to come with.
    pub(super) fn adopt(shared: &Rc<Shared>, id: u64, port: u16) -> (Self, usize) {
        let handle = Rc::new(Handle {
            shared: Rc::clone(shared),
            id,
            port,
            gone: Cell::new(false),
            closed: Cell::new(false),
            reader: RefCell::default(),
            writer: RefCell::default(),
        });
        let key = shared.streams.borrow_mut().insert(Rc::clone(&handle));
        let held = Rc::new(Held { handle, key });
        let reader = Reader { held: Rc::clone(&held), rest: Buffer::default() };
        (Self { reader, writer: Writer { held } }, key + 1)
    }

    pub(super) fn id(&self) -> u64 {
        self.writer.held.handle.id
    }

    /// The port it came in on; 0 for a dialled stream.
    pub fn port(&self) -> u16 {
        self.writer.held.handle.port
    }

    /// See [`Reader::recv`].
    ///
    /// # Errors
    /// When the stream broke.
    pub async fn recv(&mut self) -> io::Result<Option<Buffer>> {
        self.reader.recv().await
    }

    /// See [`Reader::read`].
    ///
    /// # Errors
    /// When the stream broke.
    pub async fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.reader.read(into).await
    }

    /// See [`Reader::read_exact`].
    ///
    /// # Errors
    /// When the stream broke or ended before.
    pub async fn read_exact(&mut self, into: &mut [u8]) -> io::Result<()> {
        self.reader.read_exact(into).await
    }

    /// See [`Reader::read_line`].
    ///
    /// # Errors
    /// When the stream broke, or the line is too long.
    pub async fn read_line(&mut self, max: usize) -> io::Result<Option<Vec<u8>>> {
        self.reader.read_line(max).await
    }

    /// See [`Writer::send`].
    ///
    /// # Errors
    /// When the stream broke or was shut down.
    pub async fn send(&mut self, data: impl Into<Buffer>) -> io::Result<()> {
        self.writer.send(data).await
    }

    /// See [`Writer::write_all`].
    ///
    /// # Errors
    /// When the stream broke or was shut down.
    pub async fn write_all(&mut self, data: &[u8]) -> io::Result<()> {
        self.writer.write_all(data).await
    }

    /// See [`Reader::poll_recv`].
    ///
    /// # Errors
    /// When the stream broke.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Buffer>>> {
        self.reader.poll_recv(cx)
    }

    /// See [`Writer::poll_write`].
    ///
    /// # Errors
    /// When the stream broke or was shut down.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.writer.poll_write(cx, data)
    }

    /// No more will be written; reading goes on.
    pub fn shutdown(&mut self) {
        self.writer.shutdown();
    }

    /// Breaks the stream: the peer is told so. The reason is for the log here.
    pub fn reset(self, reason: &str) {
        let handle = &self.writer.held.handle;
        handle.closed.set(true);
        handle.shared.raw.reset(handle.id, reason);
    }

    /// Two halves, for two futures. The stream closes when both are dropped.
    pub fn into_split(self) -> (Reader, Writer) {
        (self.reader, self.writer)
    }
}

impl Reader {
    /// The next bytes as they arrived, without a copy; `None` at the end.
    ///
    /// # Errors
    /// When the stream broke.
    pub async fn recv(&mut self) -> io::Result<Option<Buffer>> {
        std::future::poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// As [`Reader::recv`], for futures written by hand.
    ///
    /// # Errors
    /// When the stream broke.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Buffer>>> {
        if !self.rest.is_empty() {
            return Poll::Ready(Ok(Some(std::mem::take(&mut self.rest))));
        }
        let handle = &self.held.handle;
        match handle.shared.raw.read(handle.id) {
            Ok(data) => Poll::Ready(Ok(Some(data))),
            Err(abi::END) => Poll::Ready(Ok(None)),
            Err(abi::WOULD_BLOCK) if !handle.gone.get() => {
                *handle.reader.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            }
            Err(status) => Poll::Ready(Err(broken(status))),
        }
    }

    /// Copies what has arrived, at most as much as fits; 0 at the end.
    ///
    /// # Errors
    /// When the stream broke.
    pub async fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        let Some(mut data) = self.recv().await? else { return Ok(0) };
        let n = data.len().min(into.len());
        into[..n].copy_from_slice(&data[..n]);
        data.advance(n);
        self.rest = data;
        Ok(n)
    }

    /// Fills `into`.
    ///
    /// # Errors
    /// When the stream broke, or ended before (`UnexpectedEof`).
    pub async fn read_exact(&mut self, into: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while filled < into.len() {
            match self.read(&mut into[filled..]).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => filled += n,
            }
        }
        Ok(())
    }

    /// The next line without its end (`\n` or `\r\n`); the last one may lack
    /// it. `None` at the end.
    ///
    /// # Errors
    /// When the stream broke, or the line has more than `max` bytes
    /// (`InvalidData`).
    pub async fn read_line(&mut self, max: usize) -> io::Result<Option<Vec<u8>>> {
        let mut line = Vec::with_capacity(FIRST_LINE.min(max));
        loop {
            let Some(mut data) = self.recv().await? else {
                return Ok((!line.is_empty()).then_some(line));
            };
            let end = data.iter().position(|b| *b == b'\n');
            let n = end.unwrap_or(data.len());
            // One more for a carriage return.
            if line.len() + n > max.saturating_add(1) {
                return Err(too_long(max));
            }
            line.extend_from_slice(&data[..n]);
            if end.is_some() {
                data.advance(n + 1);
                self.rest = data;
                if line.last() == Some(&b'\r') {
                    line.pop();
                }
                return if line.len() > max { Err(too_long(max)) } else { Ok(Some(line)) };
            }
        }
    }
}

impl Writer {
    /// Gives bytes to the stream without a copy; waits while it takes none.
    ///
    /// # Errors
    /// When the stream broke or was shut down.
    pub async fn send(&mut self, data: impl Into<Buffer>) -> io::Result<()> {
        let mut data = Some(data.into());
        std::future::poll_fn(|cx| {
            let Some(buffer) = data.take().filter(|b| !b.is_empty()) else {
                return Poll::Ready(Ok(()));
            };
            let handle = &self.held.handle;
            match handle.shared.raw.write_buffer(handle.id, buffer) {
                Ok(()) => Poll::Ready(Ok(())),
                Err((abi::WOULD_BLOCK, buffer)) if !handle.gone.get() => {
                    data = Some(buffer);
                    *handle.writer.borrow_mut() = Some(cx.waker().clone());
                    Poll::Pending
                }
                Err((status, _)) => Poll::Ready(Err(broken(status))),
            }
        })
        .await
    }

    /// Copies all of `data` to the stream; waits while it takes none.
    ///
    /// # Errors
    /// When the stream broke or was shut down.
    pub async fn write_all(&mut self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let n = std::future::poll_fn(|cx| self.poll_write(cx, data)).await?;
            data = &data[n..];
        }
        Ok(())
    }

    /// Copies as much of `data` as there is room for, for futures written by
    /// hand.
    ///
    /// # Errors
    /// When the stream broke or was shut down.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let handle = &self.held.handle;
        match handle.shared.raw.write(handle.id, data) {
            Ok(n) => Poll::Ready(Ok(n)),
            Err(abi::WOULD_BLOCK) if !handle.gone.get() => {
                *handle.writer.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            }
            Err(status) => Poll::Ready(Err(broken(status))),
        }
    }

    /// No more will be written; reading goes on.
    pub fn shutdown(&mut self) {
        let handle = &self.held.handle;
        handle.shared.raw.shutdown(handle.id);
    }
}

fn broken(status: i32) -> io::Error {
    let (kind, text) = match status {
        abi::CLOSED => (io::ErrorKind::ConnectionReset, "the stream is closed"),
        abi::WOULD_BLOCK | abi::INVALID => (io::ErrorKind::BrokenPipe, "the stream is gone"),
        _ => (io::ErrorKind::Other, "the host refused"),
    };
    io::Error::new(kind, text)
}

fn too_long(max: usize) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a line has more than {max} bytes"))
}
