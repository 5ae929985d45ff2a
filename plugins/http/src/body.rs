//! Bodies of answers: a text, or a part of a file that is read as it is sent.

use std::fs::File;
use std::future::Future;
use std::io;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::body::{Bytes, Frame, SizeHint};
use pilot_plugin::{Error, Host};

use crate::watch::Watch;

/// Bytes of a file read at once, and held in memory for a stream.
const PIECE: u64 = 256 << 10;

type Reading = Pin<Box<dyn Future<Output = Result<io::Result<Vec<u8>>, Error>>>>;

/// The body of an answer. Tells the watch when it is given or dropped.
pub(crate) struct Body {
    kind: Kind,
    watch: Option<Rc<Watch>>,
}

enum Kind {
    Full(Bytes),
    File { host: Host, file: Arc<File>, offset: u64, left: u64, reading: Option<Reading> },
}

impl Body {
    pub(crate) fn empty() -> Self {
        Self::full(Bytes::new())
    }

    pub(crate) fn full(bytes: Bytes) -> Self {
        Self { kind: Kind::Full(bytes), watch: None }
    }

    /// `len` bytes of a file, from `offset`.
    pub(crate) fn file(host: Host, file: Arc<File>, offset: u64, len: u64) -> Self {
        let kind = Kind::File { host, file, offset, left: len, reading: None };
        Self { kind, watch: None }
    }

    /// Leaves everything out.
    pub(crate) fn clear(&mut self) {
        self.kind = Kind::Full(Bytes::new());
    }

    pub(crate) fn tell(&mut self, watch: Rc<Watch>) {
        self.watch = Some(watch);
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if let Some(watch) = self.watch.take() {
            watch.answered();
        }
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let (host, file, offset, left, reading) = match &mut self.get_mut().kind {
            Kind::Full(bytes) if bytes.is_empty() => return Poll::Ready(None),
            Kind::Full(bytes) => {
                return Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes)))));
            }
            Kind::File { left: 0, .. } => return Poll::Ready(None),
            Kind::File { host, file, offset, left, reading } => (host, file, offset, left, reading),
        };
        let running = reading.get_or_insert_with(|| {
            let (host, file, at, n) = (host.clone(), Arc::clone(file), *offset, PIECE.min(*left));
            Box::pin(async move { host.blocking(move || read(&file, at, n)).await })
        });
        let Poll::Ready(read) = running.as_mut().poll(cx) else { return Poll::Pending };
        *reading = None;
        let piece = match read {
            Ok(Ok(piece)) => piece,
            Ok(Err(e)) => return Poll::Ready(Some(Err(e))),
            Err(e) => return Poll::Ready(Some(Err(io::Error::other(e.to_string())))),
        };
        *offset += piece.len() as u64;
        *left -= piece.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(piece.into()))))
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Full(bytes) => bytes.is_empty(),
            Kind::File { left, .. } => *left == 0,
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match &self.kind {
            Kind::Full(bytes) => bytes.len() as u64,
            Kind::File { left, .. } => *left,
        })
    }
}

/// Reads exactly `len` bytes; blocks. A file that has shrunk is an error: the
/// peer was told another length.
fn read(file: &File, offset: u64, len: u64) -> io::Result<Vec<u8>> {
    let mut piece = vec![0; usize::try_from(len).unwrap_or_default()];
    file.read_exact_at(&mut piece, offset)?;
    Ok(piece)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_shrinks_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), "0123456789").unwrap();
        let file = File::open(dir.path().join("f")).unwrap();
        assert_eq!(read(&file, 2, 3).unwrap(), b"234");
        assert_eq!(read(&file, 8, 3).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
