//! One stream between its daemon and the child, both ways.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::sync::mpsc::UnboundedReceiver;

use super::frames::{Frame, Kind, PIECE, WINDOW};
use super::pipe::{cost, credit, credit_body};
use super::queue::Out;
use crate::stream::BoxStream;

/// Bytes that a child may send without waiting: it looks for credit before each
/// piece, so that the last one may go beyond.
const MAX_HELD: usize = WINDOW + 2 * PIECE;

/// Carries until both sides have ended or one breaks. Gives how the child broke
/// the contract, if it did.
pub(super) async fn carry(
    stream: BoxStream,
    id: u64,
    frames: UnboundedReceiver<Frame>,
    out: Out,
) -> Option<String> {
    let mut carrier = Carrier {
        stream,
        id,
        frames,
        out,
        credit: WINDOW as i64,
        unread: Bytes::new(),
        read: Reading::Open,
        unwritten: VecDeque::new(),
        held: 0,
        consumed: 0,
        end: false,
        close: false,
    };
    poll_fn(|cx| carrier.poll(cx)).await
}

#[derive(PartialEq)]
enum Reading {
    Open,
    Over,
}

struct Carrier {
    stream: BoxStream,
    id: u64,
    frames: UnboundedReceiver<Frame>,
    out: Out,
    /// Bytes that may be sent to the child.
    credit: i64,
    /// Read and not yet sent.
    unread: Bytes,
    read: Reading,
    /// From the child, not yet written.
    unwritten: VecDeque<Bytes>,
    /// What of the child's credit is in `unwritten` or not yet given back.
    held: usize,
    consumed: usize,
    /// The child will write no more, or has let go.
    end: bool,
    close: bool,
}

impl Carrier {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<String>> {
        loop {
            match self.frames.poll_recv(cx) {
                Poll::Ready(Some(frame)) => match self.take(frame) {
                    Ok(false) => {}
                    Ok(true) => return Poll::Ready(None),
                    Err(text) => {
                        self.stream.reset(&text);
                        return Poll::Ready(Some(text));
                    }
                },
                Poll::Ready(None) => {
                    // What is left is not to look like all of it.
                    self.stream.reset("the plugin has ended, and its peer did not read in time");
                    return Poll::Ready(None);
                }
                Poll::Pending => break,
            }
        }
        if self.write(cx) {
            return Poll::Ready(None);
        }
        if !self.close {
            self.read(cx);
        }
        Poll::Pending
    }

    fn send(&self, kind: Kind, body: impl Into<Bytes>) {
        self.out.send(Frame::new(kind, self.id, body));
    }

    /// Whether the stream is over.
    fn take(&mut self, frame: Frame) -> Result<bool, String> {
        match frame.kind {
            Kind::Data => {
                self.held += cost(frame.body.len());
                if self.held > MAX_HELD {
                    return Err("it sends more on a stream than it may".to_owned());
                }
                self.unwritten.push_back(frame.body);
            }
            Kind::Credit => {
                self.credit += credit(&frame.body) as i64;
                if self.credit > WINDOW as i64 {
                    return Err("it allows more on a stream than was sent".to_owned());
                }
            }
            Kind::End => self.end = true,
            Kind::Close => {
                self.end = true;
                self.close = true;
            }
            // Let go of before: what it wrote is still written.
            Kind::Reset if self.close => {}
            Kind::Reset => {
                let reason = String::from_utf8_lossy(&frame.body);
                self.stream.reset(&reason);
                return Ok(true);
            }
            _ => {}
        }
        Ok(false)
    }

    /// Writes what the child sent; whether the stream is over.
    fn write(&mut self, cx: &mut Context<'_>) -> bool {
        while let Some(data) = self.unwritten.front() {
            match self.stream.poll_room(cx) {
                Poll::Pending => return false,
                Poll::Ready(Err(e)) => {
                    self.send(Kind::Reset, e.to_string());
                    // The child lets go of it when it has seen that.
                    self.unwritten.clear();
                    self.read = Reading::Over;
                    return self.close;
                }
                Poll::Ready(Ok(_)) => {
                    self.consumed += cost(data.len());
                    if let Some(data) = self.unwritten.pop_front() {
                        self.stream.write(data);
                    }
                }
            }
            if self.consumed >= WINDOW / 4 {
                self.give_back();
            }
        }
        if self.consumed > 0 {
            self.give_back();
        }
        if self.close {
            // Dropped, it closes after what was written.
            return true;
        }
        if self.end {
            self.stream.shutdown();
            self.end = false;
        }
        false
    }

    fn give_back(&mut self) {
        let consumed = std::mem::take(&mut self.consumed);
        self.held = self.held.saturating_sub(consumed);
        self.send(Kind::Credit, credit_body(consumed));
    }

    /// Reads what has arrived for the child, as far as its credit goes.
    fn read(&mut self, cx: &mut Context<'_>) {
        while self.read == Reading::Open && self.credit > 0 {
            if self.out.poll_room(self.id, cx).is_pending() {
                return;
            }
            if self.unread.is_empty() {
                match self.stream.poll_read(cx) {
                    Poll::Pending => return,
                    Poll::Ready(Ok(Some(data))) => self.unread = data,
                    Poll::Ready(Ok(None)) => {
                        self.read = Reading::Over;
                        self.send(Kind::End, Bytes::new());
                        return;
                    }
                    Poll::Ready(Err(e)) => {
                        self.read = Reading::Over;
                        self.send(Kind::Reset, e.to_string());
                        return;
                    }
                }
            }
            let piece = self.unread.split_to(self.unread.len().min(PIECE));
            self.credit -= cost(piece.len()) as i64;
            self.send(Kind::Data, piece);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};
    use std::task::Waker;

    use pilot_wire::SocketAddress;
    use tokio::sync::mpsc::unbounded_channel;

    use super::super::queue::queue;
    use super::*;
    use crate::stream::HostStream;

    #[derive(Default)]
    struct Seen {
        room: bool,
        written: usize,
        reset: Option<String>,
        writer: Option<Waker>,
    }

    #[derive(Clone, Default)]
    struct Slow(Arc<Mutex<Seen>>);

    impl HostStream for Slow {
        fn remote(&self) -> SocketAddress {
            SocketAddress::default()
        }

        fn local_port(&self) -> u16 {
            7
        }

        fn poll_read(&mut self, _: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
            Poll::Pending
        }

        fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
            let mut seen = self.0.lock().unwrap();
            seen.writer = Some(cx.waker().clone());
            if seen.room { Poll::Ready(Ok(1)) } else { Poll::Pending }
        }

        fn write(&mut self, data: Bytes) {
            self.0.lock().unwrap().written += data.len();
        }

        fn shutdown(&mut self) {}

        fn reset(&mut self, reason: &str) {
            self.0.lock().unwrap().reset = Some(reason.to_owned());
        }
    }

    #[tokio::test]
    async fn credit_and_window_are_not_exceeded() {
        let piece = Frame::new(Kind::Data, 2, vec![0; PIECE]);
        let credit = Frame::new(Kind::Credit, 2, credit_body(1));
        for (frame, count) in [(piece, WINDOW / PIECE + 3), (credit, 1)] {
            let (slow, (out, _queue)) = (Slow::default(), queue());
            let (sender, frames) = unbounded_channel();
            for _ in 0..count {
                sender.send(frame.clone()).unwrap();
            }
            let broken = carry(Box::new(slow.clone()), 2, frames, out).await.unwrap();
            assert_eq!(slow.0.lock().unwrap().reset, Some(broken));
        }
    }

    #[tokio::test]
    async fn what_was_written_before_the_close_arrives_after_the_end() {
        let (slow, (out, _queue)) = (Slow::default(), queue());
        let (sender, frames) = unbounded_channel();
        for (kind, body) in [(Kind::Data, "abc"), (Kind::Close, ""), (Kind::Reset, "the end")] {
            sender.send(Frame::new(kind, 2, body)).unwrap();
        }
        let carried = tokio::spawn(carry(Box::new(slow.clone()), 2, frames, out));
        while slow.0.lock().unwrap().writer.is_none() {
            tokio::task::yield_now().await;
        }
        slow.0.lock().unwrap().room = true;
        slow.0.lock().unwrap().writer.take().unwrap().wake();
        assert_eq!(carried.await.unwrap(), None);
        let seen = slow.0.lock().unwrap();
        assert_eq!((seen.written, &seen.reset), (3, &None));
    }
}
