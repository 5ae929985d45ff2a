//! A stream as hyper wants it.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use hyper::rt::{Read, ReadBufCursor, Write};
use pilot_plugin::{Buffer, Stream};

use crate::watch::Watch;

/// A stream, and the rest of what was last read from it.
pub(crate) struct Io {
    stream: Stream,
    rest: Buffer,
    watch: Rc<Watch>,
}

impl Io {
    pub(crate) fn new(stream: Stream, watch: Rc<Watch>) -> Self {
        Self { stream, rest: Buffer::default(), watch }
    }
}

impl Read for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.rest.is_empty() {
            match this.stream.poll_recv(cx) {
                Poll::Ready(Ok(Some(data))) => this.rest = data,
                Poll::Ready(Ok(None)) => return Poll::Ready(Ok(())),
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Pending => return Poll::Pending,
            }
        }
        let n = this.rest.len().min(into.remaining());
        into.put_slice(&this.rest[..n]);
        this.rest.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl Write for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let wrote = this.stream.poll_write(cx, data);
        if matches!(wrote, Poll::Ready(Ok(1..))) {
            this.watch.wrote();
        }
        wrote
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().stream.shutdown();
        Poll::Ready(Ok(()))
    }
}
