//! Between a stream and something that blocks (a pipe of a program, a local
//! socket): a thread for each direction, and a bounded queue between it and
//! the futures of the plugin.

use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, Read, Write};
use std::pin::pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::thread;

/// Bytes read at once.
const PIECE: usize = 64 << 10;
/// Bytes that wait in one direction; whoever brings more waits.
const WAITING: usize = 256 << 10;
/// Stack of a thread: it reads and writes, and no more.
const STACK: usize = 256 << 10;

#[derive(Default)]
struct Queue {
    pieces: VecDeque<Vec<u8>>,
    bytes: usize,
    /// The thread is done: nothing more comes, or nothing more is taken.
    ended: Option<io::Result<()>>,
    /// The future's side wants no more than what waits.
    finished: bool,
    /// The future's side is dropped.
    gone: bool,
    waker: Option<Waker>,
}

#[derive(Default)]
struct Lane {
    queue: Mutex<Queue>,
    /// For the thread.
    changed: Condvar,
}

impl Lane {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, queue: MutexGuard<'a, Queue>) -> MutexGuard<'a, Queue> {
        self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, result: io::Result<()>) {
        let mut queue = self.lock();
        queue.ended = Some(result);
        wake(queue);
    }

    fn leave(&self) {
        self.lock().gone = true;
        self.changed.notify_all();
    }
}

fn wake(mut queue: MutexGuard<'_, Queue>) {
    let waker = queue.waker.take();
    drop(queue);
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// What a thread reads.
pub(crate) struct Source {
    lane: Arc<Lane>,
}

impl Source {
    /// Reads from `from` until its end, or until this is dropped and a read
    /// returns.
    pub(crate) fn new(from: impl Read + Send + 'static) -> io::Result<Self> {
        let lane = Arc::<Lane>::default();
        let of_thread = Arc::clone(&lane);
        spawn("bridge-read", move || {
            let result = read_all(from, &of_thread);
            of_thread.end(result);
        })?;
        Ok(Self { lane })
    }

    /// The next bytes; `None` at the end.
    pub(crate) async fn recv(&mut self) -> io::Result<Option<Vec<u8>>> {
        std::future::poll_fn(|cx| {
            let mut queue = self.lane.lock();
            if let Some(piece) = queue.pieces.pop_front() {
                queue.bytes -= piece.len();
                self.lane.changed.notify_all();
                return Poll::Ready(Ok(Some(piece)));
            }
            match &mut queue.ended {
                Some(result) => Poll::Ready(std::mem::replace(result, Ok(())).map(|()| None)),
                None => {
                    queue.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.lane.leave();
    }
}

fn read_all(mut from: impl Read, lane: &Lane) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        let n = match from.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        let mut queue = lane.lock();
        while queue.bytes >= WAITING && !queue.gone {
            queue = lane.wait(queue);
        }
        if queue.gone {
            return Ok(());
        }
        queue.bytes += n;
        queue.pieces.push_back(piece[..n].to_vec());
        wake(queue);
    }
}

/// What a thread writes.
pub(crate) struct Sink {
    lane: Arc<Lane>,
}

impl Sink {
    /// Writes to `to`; `done` gets it after [`Sink::finish`].
    pub(crate) fn new<W: Write + Send + 'static>(
        mut to: W,
        done: impl FnOnce(W) + Send + 'static,
    ) -> io::Result<Self> {
        let lane = Arc::<Lane>::default();
        let of_thread = Arc::clone(&lane);
        spawn("bridge-write", move || {
            let result = write_all(&mut to, &of_thread);
            done(to);
            of_thread.end(result);
        })?;
        Ok(Self { lane })
    }

    /// Gives bytes to the thread; waits while much waits already.
    ///
    /// # Errors
    /// When they are not taken any more.
    pub(crate) async fn send(&mut self, piece: Vec<u8>) -> io::Result<()> {
        let mut piece = Some(piece);
        std::future::poll_fn(|cx| {
            let mut queue = self.lane.lock();
            if let Some(ended) = &mut queue.ended {
                let closed = Err(io::ErrorKind::BrokenPipe.into());
                return Poll::Ready(std::mem::replace(ended, Ok(())).and(closed));
            }
            if queue.bytes >= WAITING {
                queue.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            let Some(piece) = piece.take() else { return Poll::Ready(Ok(())) };
            queue.bytes += piece.len();
            queue.pieces.push_back(piece);
            self.lane.changed.notify_all();
            Poll::Ready(Ok(()))
        })
        .await
    }

    /// No more will come.
    pub(crate) fn finish(&mut self) {
        self.lane.lock().finished = true;
        self.lane.changed.notify_all();
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.lane.leave();
    }
}

fn write_all(to: &mut impl Write, lane: &Lane) -> io::Result<()> {
    loop {
        let mut queue = lane.lock();
        let piece = loop {
            if let Some(piece) = queue.pieces.pop_front() {
                break piece;
            }
            if queue.finished || queue.gone {
                return Ok(());
            }
            queue = lane.wait(queue);
        };
        drop(queue);
        to.write_all(&piece)?;
        to.flush()?;
        let mut queue = lane.lock();
        queue.bytes -= piece.len();
        wake(queue);
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).stack_size(STACK).spawn(work).map(drop)
}

/// Runs both until `down` ends or one fails; the end of `up` is waited
/// through.
pub(crate) async fn both<E>(
    up: impl Future<Output = Result<(), E>>,
    down: impl Future<Output = Result<(), E>>,
) -> Result<(), E> {
    let (mut up, mut down) = (pin!(up), pin!(down));
    let mut up_runs = true;
    std::future::poll_fn(|cx| {
        if up_runs && let Poll::Ready(ended) = up.as_mut().poll(cx) {
            up_runs = false;
            if ended.is_err() {
                return Poll::Ready(ended);
            }
        }
        down.as_mut().poll(cx)
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;
    use std::task::{Context, Wake};

    use super::*;

    struct Unpark(thread::Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    fn wait<T>(future: impl Future<Output = T>) -> T {
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut future = pin!(future);
        loop {
            match future.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(value) => return value,
                Poll::Pending => thread::park(),
            }
        }
    }

    #[test]
    fn bytes_cross_in_both_directions_and_ends_too() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let echo = thread::spawn(move || {
            let mut all = Vec::new();
            far.read_to_end(&mut all).unwrap();
            far.write_all(&all).unwrap();
        });
        let mut source = Source::new(near.try_clone().unwrap()).unwrap();
        let close = |near: UnixStream| near.shutdown(Shutdown::Write).unwrap();
        let mut sink = Sink::new(near, close).unwrap();
        // More than waits at once.
        let data: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
        for piece in data.chunks(50_000) {
            wait(sink.send(piece.to_vec())).unwrap();
        }
        sink.finish();
        let mut back = Vec::new();
        while let Some(piece) = wait(source.recv()).unwrap() {
            back.extend(piece);
        }
        echo.join().unwrap();
        assert_eq!(back, data);
    }

    #[test]
    fn a_closed_end_is_an_error_for_who_sends() {
        let (near, far) = UnixStream::pair().unwrap();
        drop(far);
        let mut sink = Sink::new(near, drop).unwrap();
        while wait(sink.send(vec![0; PIECE])).is_ok() {}
    }

    #[test]
    fn threads_end_with_what_holds_them() {
        let (near, far) = UnixStream::pair().unwrap();
        let (done, told) = mpsc::channel();
        let sink = Sink::new(near, move |_| done.send(()).unwrap()).unwrap();
        drop(sink);
        told.recv_timeout(std::time::Duration::from_secs(30)).unwrap();
        drop(far);
    }

    #[test]
    fn a_failure_above_ends_both() {
        let never = std::future::pending::<Result<(), u8>>;
        assert_eq!(wait(both(async { Err(1) }, never())), Err(1));
        assert_eq!(wait(both(never(), async { Err(2) })), Err(2));
        assert_eq!(wait(both(never(), async { Ok(()) })), Ok(()));
    }
}
