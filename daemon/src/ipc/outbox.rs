//! What waits to be written to a client: messages and stream data in order,
//! data without a copy, written with one vectored call.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use pilot_wire::ipc::{DATA_HEADER_LEN, receive_header};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use tokio::io::{AsyncWrite, Interest};
use tokio::net::UnixStream;

/// Pieces per write call.
const PIECES: usize = 64;
/// Data up to this long is copied beside the messages instead of becoming a
/// piece of its own.
const INLINE: usize = 1024;
/// A run of messages is not made longer than this.
const RUN: usize = 32 << 10;

enum Piece {
    /// Messages, one after the other.
    Run(Vec<u8>),
    /// What stands before data that follows.
    Header([u8; DATA_HEADER_LEN]),
    Data(Bytes),
    /// A message with which a descriptor goes.
    Descriptor(Vec<u8>, OwnedFd),
}

impl Piece {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Run(run) => run,
            Self::Header(header) => header,
            Self::Data(data) => data,
            Self::Descriptor(message, _) => message,
        }
    }
}

/// Pieces in order. Its users keep it bounded by looking at `len`.
#[derive(Default)]
pub(crate) struct Outbox {
    pieces: VecDeque<Piece>,
    /// Bytes of the first piece that are written already.
    written: usize,
    len: usize,
    /// An emptied run, kept for its memory.
    spare: Vec<u8>,
    /// Nobody reads any more: what is added is thrown away.
    closed: bool,
}

impl Outbox {
    /// Bytes that wait.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Lets `append` add whole messages.
    pub(crate) fn messages(&mut self, append: impl FnOnce(&mut Vec<u8>)) {
        if self.closed {
            return;
        }
        let fits = matches!(self.pieces.back(), Some(Piece::Run(run)) if run.len() < RUN);
        if !fits {
            self.pieces.push_back(Piece::Run(std::mem::take(&mut self.spare)));
        }
        if let Some(Piece::Run(run)) = self.pieces.back_mut() {
            let before = run.len();
            append(run);
            self.len += run.len() - before;
        }
    }

    /// Adds one receive message with the data of `pieces`, which is emptied.
    pub(crate) fn receive(&mut self, connection: u32, pieces: &mut Vec<Bytes>) {
        if self.closed {
            return pieces.clear();
        }
        let total: usize = pieces.iter().map(Bytes::len).sum();
        let header = receive_header(connection, total);
        if total <= INLINE {
            self.messages(|run| {
                run.extend_from_slice(&header);
                for piece in pieces.drain(..) {
                    run.extend_from_slice(&piece);
                }
            });
            return;
        }
        self.len += DATA_HEADER_LEN + total;
        self.pieces.push_back(Piece::Header(header));
        self.pieces.extend(pieces.drain(..).map(Piece::Data));
    }

    /// Adds one message with which `file` goes.
    pub(crate) fn descriptor(&mut self, message: Vec<u8>, file: OwnedFd) {
        if self.closed {
            return;
        }
        self.len += message.len();
        self.pieces.push_back(Piece::Descriptor(message, file));
    }

    /// Writes what the socket takes; pending when it is full, and the context's
    /// waker is told when that changes. After an error nobody reads any more.
    pub(crate) fn poll_flush(
        &mut self,
        stream: &mut UnixStream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while let Some(front) = self.pieces.front() {
            let mut slices = [IoSlice::new(&[]); PIECES];
            let mut count = 0;
            let mut skip = self.written;
            if let Piece::Descriptor(message, file) = front {
                let sent = ready!(poll_send_descriptor(stream, cx, &message[skip..], file));
                match sent {
                    Ok(n) => self.descriptor_sent(n),
                    Err(e) => return Poll::Ready(Err(self.close(e))),
                }
                continue;
            }
            for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
                if matches!(piece, Piece::Descriptor(..)) {
                    break;
                }
                *slice = IoSlice::new(&piece.bytes()[skip..]);
                skip = 0;
                count += 1;
            }
            match ready!(Pin::new(&mut *stream).poll_write_vectored(cx, &slices[..count])) {
                Ok(n) => self.advance(n),
                Err(e) => return Poll::Ready(Err(self.close(e))),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn close(&mut self, error: io::Error) -> io::Error {
        *self = Self { closed: true, ..Self::default() };
        error
    }

    /// The descriptor went with the first of these bytes: the rest, if any, is
    /// a message like others.
    fn descriptor_sent(&mut self, n: usize) {
        if let Some(Piece::Descriptor(message, _)) = self.pieces.front_mut() {
            let message = std::mem::take(message);
            self.pieces[0] = Piece::Run(message);
            self.advance(n);
        }
    }

    fn advance(&mut self, mut n: usize) {
        self.len -= n.min(self.len);
        while let Some(front) = self.pieces.front() {
            let left = front.bytes().len() - self.written;
            if n < left {
                self.written += n;
                return;
            }
            n -= left;
            self.written = 0;
            if let Some(Piece::Run(mut run)) = self.pieces.pop_front() {
                run.clear();
                if run.capacity() <= RUN {
                    self.spare = run;
                }
            }
        }
    }
}

fn poll_send_descriptor(
    stream: &UnixStream,
    cx: &mut Context<'_>,
    message: &[u8],
    file: &OwnedFd,
) -> Poll<io::Result<usize>> {
    loop {
        ready!(stream.poll_write_ready(cx))?;
        let sent = stream.try_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let files = [file.as_fd()];
            control.push(SendAncillaryMessage::ScmRights(&files));
            let slices = [IoSlice::new(message)];
            Ok(rustix::net::sendmsg(stream, &slices, &mut control, SendFlags::empty())?)
        });
        match sent {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            sent => return Poll::Ready(sent),
        }
    }
}

#[cfg(test)]
mod tests {
    use pilot_wire::ipc::Event;
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn everything_comes_out_in_order_through_a_full_socket() {
        let (mut a, mut b) = UnixStream::pair().unwrap();
        let mut outbox = Outbox::default();
        let mut expected = Vec::new();
        for i in 0..400u32 {
            let event = Event::Closed { connection: i };
            outbox.messages(|run| event.encode(run));
            event.encode(&mut expected);
            let data = vec![i as u8; (i as usize * 13) % 5000];
            let (left, right) = data.split_at(data.len() / 3);
            outbox
                .receive(i, &mut vec![Bytes::copy_from_slice(left), Bytes::copy_from_slice(right)]);
            Event::Receive { connection: i, data: &data }.encode(&mut expected);
        }
        assert_eq!(outbox.len(), expected.len());
        let mut got = vec![0; expected.len()];
        let mut blocked = false;
        let write = async {
            std::future::poll_fn(|cx| {
                let result = outbox.poll_flush(&mut a, cx);
                blocked |= result.is_pending();
                result
            })
            .await
            .unwrap();
        };
        let (_, read) = tokio::join!(write, b.read_exact(&mut got));
        read.unwrap();
        assert!(blocked);
        assert_eq!(got, expected);
        assert_eq!(outbox.len(), 0);
    }
}
