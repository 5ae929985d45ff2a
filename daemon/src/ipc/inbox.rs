//! Cuts what a client sends into commands and stream data, in place: data is
//! handed on in slices of the read buffer, before its message is complete.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use pilot_wire::ipc::{DATA_HEADER_LEN, LENGTH_LEN, MAX_MESSAGE, send_header};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

/// Room for one read.
const READ_ROOM: usize = 256 << 10;
/// With less room than this left, a new buffer is taken.
const MIN_ROOM: usize = 16 << 10;
/// Data shorter than this is copied, so that it does not hold a read buffer of
/// 256 KiB until the peer has acknowledged it. A stuck stream thus holds at
/// most 64 times what its send buffer counts.
const COPY_BELOW: usize = 4 << 10;

/// What stands next in the buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// A whole message other than send: command byte and payload.
    Command(Bytes),
    /// Stream data: take it with [`Inbox::take_data`].
    Data {
        /// Connection ID.
        connection: u32,
        /// Bytes that can be taken now; 0 for a send without data.
        available: usize,
        /// Whether nothing of this message was taken before.
        first: bool,
    },
    /// Read more first.
    Incomplete,
}

/// A message longer than the protocol allows; the client must go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("message of {0} bytes, the limit is {MAX_MESSAGE}")]
pub(crate) struct TooLong(pub(crate) usize);

/// The send message whose data is being taken.
#[derive(Clone, Copy)]
struct Open {
    connection: u32,
    left: usize,
    first: bool,
}

/// What was read and not yet used: at most [`READ_ROOM`], or one message.
#[derive(Default)]
pub(crate) struct Inbox {
    buffer: BytesMut,
    open: Option<Open>,
    /// Bytes the message at the front needs in all.
    wanted: usize,
}

impl Inbox {
    /// One read from `stream`; 0 is the end. When nothing is there, the
    /// context's waker is told about what comes.
    pub(crate) fn poll_read(
        &mut self,
        stream: &mut UnixStream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let room = self.buffer.capacity() - self.buffer.len();
        let missing = self.wanted.saturating_sub(self.buffer.len());
        if room < MIN_ROOM.max(missing) {
            self.buffer.reserve(READ_ROOM.max(missing));
        }
        pin!(stream.read_buf(&mut self.buffer)).poll(cx)
    }

    #[cfg(test)]
    fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Looks at what comes next; whole commands are taken out.
    pub(crate) fn next(&mut self) -> Result<Next, TooLong> {
        loop {
            if let Some(open) = self.open {
                let available = open.left.min(self.buffer.len());
                return Ok(if available == 0 && open.left > 0 {
                    Next::Incomplete
                } else {
                    Next::Data { connection: open.connection, available, first: open.first }
                });
            }
            self.wanted = 0;
            let Some(length) = self.buffer.first_chunk::<LENGTH_LEN>() else {
                return Ok(Next::Incomplete);
            };
            let length = u32::from_be_bytes(*length) as usize;
            if length > MAX_MESSAGE {
                return Err(TooLong(length));
            }
            if length == 0 {
                self.buffer.advance(LENGTH_LEN);
                continue;
            }
            let Some(&code) = self.buffer.get(LENGTH_LEN) else { return Ok(Next::Incomplete) };
            if code == send_header(0, 0)[LENGTH_LEN] && LENGTH_LEN + length >= DATA_HEADER_LEN {
                let Some(&[_, _, _, _, _, a, b, c, d]) =
                    self.buffer.first_chunk::<DATA_HEADER_LEN>()
                else {
                    return Ok(Next::Incomplete);
                };
                self.buffer.advance(DATA_HEADER_LEN);
                self.open = Some(Open {
                    connection: u32::from_be_bytes([a, b, c, d]),
                    left: LENGTH_LEN + length - DATA_HEADER_LEN,
                    first: true,
                });
                continue;
            }
            if self.buffer.len() < LENGTH_LEN + length {
                self.wanted = LENGTH_LEN + length;
                return Ok(Next::Incomplete);
            }
            self.buffer.advance(LENGTH_LEN);
            return Ok(Next::Command(self.buffer.split_to(length).freeze()));
        }
    }

    /// The next `len` bytes of the data announced by [`Next::Data`].
    pub(crate) fn take_data(&mut self, len: usize) -> Bytes {
        let Some(open) = &mut self.open else { return Bytes::new() };
        let len = len.min(open.left).min(self.buffer.len());
        open.left -= len;
        open.first = false;
        if open.left == 0 {
            self.open = None;
        }
        if len < COPY_BELOW {
            let data = Bytes::copy_from_slice(&self.buffer[..len]);
            self.buffer.advance(len);
            data
        } else {
            self.buffer.split_to(len).freeze()
        }
    }
}

#[cfg(test)]
mod tests {
    use pilot_wire::ipc::Command;

    use super::*;

    fn encoded(command: &Command<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        command.encode(&mut out);
        out
    }

    #[test]
    fn data_is_handed_on_before_its_message_is_whole() {
        let data: Vec<u8> = (0..10_000u32).map(|i| i as u8).collect();
        let message = encoded(&Command::Send { connection: 7, data: &data });
        let mut inbox = Inbox::default();
        inbox.feed(&message[..5009]);
        assert_eq!(inbox.next(), Ok(Next::Data { connection: 7, available: 5000, first: true }));
        let mut got = inbox.take_data(4500).to_vec();
        got.extend(inbox.take_data(4500));
        assert_eq!(inbox.next(), Ok(Next::Incomplete));
        inbox.feed(&message[5009..]);
        inbox.feed(&encoded(&Command::Info));
        assert_eq!(inbox.next(), Ok(Next::Data { connection: 7, available: 5000, first: false }));
        got.extend(inbox.take_data(usize::MAX));
        assert_eq!(got, data);
        assert_eq!(inbox.next(), Ok(Next::Command(Bytes::from_static(&[0x0D]))));
        assert_eq!(inbox.next(), Ok(Next::Incomplete));
    }

    #[test]
    fn a_send_without_data_is_still_seen() {
        let mut inbox = Inbox::default();
        inbox.feed(&encoded(&Command::Send { connection: 7, data: &[] }));
        assert_eq!(inbox.next(), Ok(Next::Data { connection: 7, available: 0, first: true }));
        assert!(inbox.take_data(usize::MAX).is_empty());
        assert_eq!(inbox.next(), Ok(Next::Incomplete));
    }

    #[test]
    fn empty_messages_are_skipped_and_long_ones_refused() {
        let mut inbox = Inbox::default();
        inbox.feed(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0x0D]);
        assert_eq!(inbox.next(), Ok(Next::Command(Bytes::from_static(&[0x0D]))));
        inbox.feed(&[0, 0x10, 0, 1]);
        assert_eq!(inbox.next(), Err(TooLong(MAX_MESSAGE + 1)));
    }

    #[test]
    fn a_short_send_is_a_command_that_lacks_its_connection() {
        let mut inbox = Inbox::default();
        inbox.feed(&[0, 0, 0, 3, 6, 1, 2]);
        assert_eq!(inbox.next(), Ok(Next::Command(Bytes::from_static(&[6, 1, 2]))));
    }

    #[test]
    fn cutting_anywhere_changes_nothing() {
        let mut stream = Vec::new();
        for i in 0..50u32 {
            Command::Send { connection: i, data: &vec![i as u8; (i * 37) as usize] }
                .encode(&mut stream);
            Command::Bind { port: i as u16 }.encode(&mut stream);
        }
        for step in [1, 2, 3, 7, 64, 1000] {
            let mut inbox = Inbox::default();
            let (mut data, mut commands) = (0, 0);
            for piece in stream.chunks(step) {
                inbox.feed(piece);
                loop {
                    match inbox.next().unwrap() {
                        Next::Command(_) => commands += 1,
                        Next::Data { connection, .. } => {
                            let bytes = inbox.take_data(usize::MAX);
                            assert!(bytes.iter().all(|b| u32::from(*b) == connection));
                            data += bytes.len();
                        }
                        Next::Incomplete => break,
                    }
                }
            }
            assert_eq!((data, commands), ((0..50).sum::<usize>() * 37, 50), "step {step}");
        }
    }
}
