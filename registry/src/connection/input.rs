//! Reading without a buffer of one's own while nothing comes.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::Poll;

use pilot_wire::registry::FrameBuffer;
use tokio::io::{AsyncRead, ReadBuf};

/// Most bytes of one read.
const ROOM: usize = 64 * 1024;

thread_local! {
    /// Where every connection of this thread reads into.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; ROOM].into());
}

/// Appends what can be read to `input`; 0 bytes are the end. While there is
/// nothing, `input` and `out`, which has been sent, give back what they hold,
/// but for the part of a frame.
pub(super) async fn read<S: AsyncRead + Unpin>(
    stream: &mut S,
    input: &mut FrameBuffer,
    out: &mut Vec<u8>,
) -> io::Result<usize> {
    poll_fn(|cx| {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            match Pin::new(&mut *stream).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) => {
                    input.push(buffer.filled());
                    Poll::Ready(Ok(buffer.filled().len()))
                }
                Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
                Poll::Pending => {
                    if !input.is_partial() {
                        *input = FrameBuffer::new();
                    }
                    if out.is_empty() {
                        *out = Vec::new();
                    }
                    Poll::Pending
                }
            }
        })
    })
    .await
}
