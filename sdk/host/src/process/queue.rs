//! What waits to be written to a child, counted in bytes: a child that does not
//! read must not fill this process.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::frames::Frame;

/// From so many bytes on no orders are taken and no streams are read.
pub(super) const ROOM: usize = 8 << 20;
/// From so many bytes on nothing is taken from the child either; one that
/// leaves it so is killed.
pub(super) const MAX_QUEUED: usize = 64 << 20;
/// What a frame counts beside its body.
const FRAME: usize = 64;

#[derive(Default)]
struct Count {
    queued: AtomicUsize,
    written: AtomicU64,
    /// Who waits for room, by stream; 0 is the parent itself.
    waiting: Mutex<HashMap<u64, Waker>>,
}

/// Where frames for the child are put.
#[derive(Clone)]
pub(super) struct Out {
    count: Arc<Count>,
    sender: UnboundedSender<Frame>,
}

/// Where the writer takes them.
pub(super) struct Queue {
    count: Arc<Count>,
    frames: UnboundedReceiver<Frame>,
}

pub(super) fn queue() -> (Out, Queue) {
    let (sender, frames) = unbounded_channel();
    let count = Arc::<Count>::default();
    (Out { count: Arc::clone(&count), sender }, Queue { count, frames })
}

impl Out {
    pub(super) fn send(&self, frame: Frame) {
        let size = FRAME + frame.body.len();
        self.count.queued.fetch_add(size, Ordering::SeqCst);
        if self.sender.send(frame).is_err() {
            // A writer that has ended is noticed by the reader's end.
            self.count.queued.fetch_sub(size, Ordering::SeqCst);
        }
    }

    pub(super) fn queued(&self) -> usize {
        self.count.queued.load(Ordering::SeqCst)
    }

    /// Counts the frames that were written.
    pub(super) fn written(&self) -> u64 {
        self.count.written.load(Ordering::Relaxed)
    }

    /// Waits until fewer than [`ROOM`] bytes wait.
    pub(super) fn poll_room(&self, who: u64, cx: &Context<'_>) -> Poll<()> {
        if self.queued() < ROOM {
            return Poll::Ready(());
        }
        let mut waiting = self.count.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.insert(who, cx.waker().clone());
        drop(waiting);
        // It may have become room before the waker was there.
        if self.queued() < ROOM { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Queue {
    pub(super) async fn recv(&mut self) -> Option<Frame> {
        self.frames.recv().await
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// The frame no longer waits.
    pub(super) fn wrote(&self, frame: &Frame) {
        let size = FRAME + frame.body.len();
        let before = self.count.queued.fetch_sub(size, Ordering::SeqCst);
        self.count.written.fetch_add(1, Ordering::Relaxed);
        if before >= ROOM && before - size < ROOM {
            let mut waiting = self.count.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let woken = std::mem::take(&mut *waiting);
            drop(waiting);
            woken.into_values().for_each(Waker::wake);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::super::frames::Kind;
    use super::*;

    #[tokio::test]
    async fn whoever_waits_for_room_is_woken_when_there_is_some() {
        let (out, mut queue) = queue();
        for _ in 0..9 {
            out.send(Frame::new(Kind::Data, 2, vec![0; 1 << 20]));
        }
        assert!(out.queued() > ROOM);
        let waits = out.clone();
        let waiter = tokio::spawn(async move { poll_fn(|cx| waits.poll_room(2, cx)).await });
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished());
        for _ in 0..2 {
            let frame = queue.recv().await.unwrap();
            queue.wrote(&frame);
        }
        waiter.await.unwrap();
        assert_eq!(out.written(), 2);
        drop(queue);
        let queued = out.queued();
        out.send(Frame::new(Kind::Data, 2, "x"));
        assert_eq!(out.queued(), queued);
    }
}
