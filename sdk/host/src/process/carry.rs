//! One stream between its daemon and the child, both ways.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use super::frames::{Frame, Kind, PIECE, WINDOW};
use super::pipe::{cost, credit, credit_body};
use crate::stream::BoxStream;

/// Carries until both sides have ended or one breaks. `failed` is told when the
/// plugin breaks the stream.
pub(super) async fn carry(
    stream: BoxStream,
    id: u64,
    frames: UnboundedReceiver<Frame>,
    out: UnboundedSender<Frame>,
    failed: &dyn Fn(String),
) {
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
    poll_fn(|cx| carrier.poll(cx, failed)).await;
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
    out: UnboundedSender<Frame>,
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
    fn poll(&mut self, cx: &mut Context<'_>, failed: &dyn Fn(String)) -> Poll<()> {
        loop {
            match self.frames.poll_recv(cx) {
                Poll::Ready(Some(frame)) => {
                    if self.take(frame, failed) {
                        return Poll::Ready(());
                    }
                }
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => break,
            }
        }
        if self.write(cx) {
            return Poll::Ready(());
        }
        if !self.close {
            self.read(cx);
        }
        Poll::Pending
    }

    fn send(&self, kind: Kind, body: impl Into<Bytes>) {
        // Without a writer the parent is about to end.
        let _ = self.out.send(Frame::new(kind, self.id, body));
    }

    /// Whether the stream is over.
    fn take(&mut self, frame: Frame, failed: &dyn Fn(String)) -> bool {
        match frame.kind {
            Kind::Data => {
                self.held += cost(frame.body.len());
                // One write may go beyond, by a piece of any size; a child that
                // does not wait at all is not one of ours.
                if self.held > WINDOW + (64 << 20) {
                    let text = "the child sends more than it may".to_owned();
                    self.stream.reset(&text);
                    failed(text);
                    return true;
                }
                self.unwritten.push_back(frame.body);
            }
            Kind::Credit => self.credit += credit(&frame.body) as i64,
            Kind::End => self.end = true,
            Kind::Close => {
                self.end = true;
                self.close = true;
            }
            Kind::Reset => {
                let reason = String::from_utf8_lossy(&frame.body);
                self.stream.reset(&reason);
                return true;
            }
            _ => {}
        }
        false
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
