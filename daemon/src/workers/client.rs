//! One client of the driver socket, served by all workers: it has a pipe to
//! each, what it says goes to the worker concerned, and what they say comes
//! back message by message.
//!
//! Whole messages are passed on as they are, as many as belong together in
//! one write. Backpressure is that of the sockets: a client that does not read
//! fills its own pipes and no others, and a worker that does not take its
//! data stops only this client.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use pilot_wire::ipc::{Event, LENGTH_LEN, MAX_MESSAGE, split_message};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;

use super::desk::{Desk, Step};
use crate::ipc::client::COMMAND_BOUND;

/// Room for one read.
const READ_ROOM: usize = 256 << 10;
/// With less room than this left, more is made.
const MIN_ROOM: usize = 16 << 10;

/// Messages shorter than this are copied and written together.
const GATHERED: usize = 4 << 10;

/// What both directions of a client share.
struct Shared<F> {
    desk: RefCell<Desk>,
    /// Answers of the desk that wait for the client.
    out: RefCell<Vec<u8>>,
    /// There are new ones.
    added: Notify,
    /// They have been taken.
    taken: Notify,
    /// The client has ended, and every worker is told so.
    left: Cell<bool>,
    /// Whether workers end because the daemon does.
    ending: F,
}

/// Before workers are told to end, what clients had written is passed on to
/// them: they end after the data that they have.
#[derive(Default)]
pub(crate) struct Settling {
    ordered: Cell<bool>,
    order: Notify,
    unsettled: Cell<usize>,
    settled: Notify,
}

impl Settling {
    /// Has every client's data passed on that lies in its socket now.
    pub(crate) async fn settle(&self) {
        self.ordered.set(true);
        self.order.notify_waiters();
        while self.unsettled.get() > 0 {
            self.settled.notified().await;
        }
    }

    async fn ordered(&self) {
        while !self.ordered.get() {
            self.order.notified().await;
        }
    }
}

/// A client that counts as unsettled while this exists.
pub(super) struct Unsettled(Rc<Settling>);

impl Unsettled {
    pub(super) fn new(settling: &Rc<Settling>) -> Self {
        settling.unsettled.set(settling.unsettled.get() + 1);
        Self(Rc::clone(settling))
    }
}

impl Drop for Unsettled {
    fn drop(&mut self) {
        self.0.unsettled.set(self.0.unsettled.get() - 1);
        self.0.settled.notify_one();
    }
}

/// Serves a client until it has gone and all workers have let go of it, or
/// until one of them throws it out, or all have ended.
pub(super) async fn serve(
    client: UnixStream,
    pipes: Vec<UnixStream>,
    desk: Desk,
    unsettled: Unsettled,
    ending: impl Fn() -> bool,
) {
    let (client_read, client_write) = client.into_split();
    let (mut sources, sinks): (Vec<_>, Vec<_>) = pipes
        .into_iter()
        .map(UnixStream::into_split)
        .map(|(read, write)| (Source::new(read), write))
        .unzip();
    let shared = Shared {
        desk: RefCell::new(desk),
        out: RefCell::default(),
        added: Notify::new(),
        taken: Notify::new(),
        left: Cell::new(false),
        ending,
    };
    tokio::select! {
        () = down(client_write, &mut sources, &shared) => {}
        () = up(client_read, sinks, unsettled, &shared) => {}
    }
    // Here the pipes are shut towards the workers. The desk, and with it the
    // client's ports, is kept until all of them have let go.
    for source in &mut sources {
        source.held = false;
    }
    while let Some((worker, read)) = next(&mut sources, 0).await {
        sources[worker].open = matches!(read, Ok(1..));
        sources[worker].buffer.clear();
    }
}

/// From the client to the workers; does not end, so that what they still say
/// is passed on.
async fn up(
    mut client: OwnedReadHalf,
    sinks: Vec<OwnedWriteHalf>,
    unsettled: Unsettled,
    shared: &Shared<impl Fn() -> bool>,
) {
    let mut sinks: Vec<Sink> = sinks.into_iter().map(Sink::new).collect();
    let settling = Rc::clone(&unsettled.0);
    let mut unsettled = Some(unsettled);
    let mut buffer = BytesMut::new();
    while pass_up(&mut buffer, &mut sinks, shared).await {
        // Answers of the desk itself wait for a client that does not read, so
        // it is not read from either.
        while shared.out.borrow().len() > COMMAND_BOUND {
            shared.taken.notified().await;
        }
        make_room(&mut buffer);
        let read = tokio::select! {
            biased;
            read = client.read_buf(&mut buffer) => read,
            () = settling.ordered(), if unsettled.is_some() => {
                // The runtime may not have heard of what has just come.
                if rustix::io::ioctl_fionread(client.as_ref()).is_ok_and(|unread| unread > 0) {
                    let _ = client.readable().await;
                } else {
                    unsettled = None;
                }
                continue;
            }
        };
        if read.unwrap_or(0) == 0 {
            break;
        }
    }
    shared.left.set(true);
    drop((sinks, unsettled));
    std::future::pending().await
}

/// Passes on all whole messages in the buffer; whether the client stays.
async fn pass_up(
    buffer: &mut BytesMut,
    sinks: &mut [Sink],
    shared: &Shared<impl Fn() -> bool>,
) -> bool {
    let mut at = 0;
    let stays = loop {
        let (body, used) = match split_message(&buffer[at..]) {
            Ok(Some(message)) => message,
            Ok(None) => break true,
            Err(length) => {
                tracing::debug!(length, limit = MAX_MESSAGE, "message too long, client goes");
                break false;
            }
        };
        let message = &buffer[at..at + used];
        let step = shared.desk.borrow_mut().command(body, &mut shared.out.borrow_mut());
        match step {
            Step::Pass(worker) => sinks[worker].pass(message).await,
            Step::One(worker, message) => sinks[worker].pass(&message).await,
            Step::All(message) => {
                for sink in sinks.iter_mut() {
                    sink.pass(&message).await;
                }
            }
            Step::Done => shared.added.notify_one(),
        }
        at += used;
    };
    for sink in sinks {
        sink.flush().await;
    }
    buffer.advance(at);
    stays
}

/// The way to one worker. Short messages are gathered into one write.
struct Sink {
    /// Gone once the worker has ended, which the client learns from the other
    /// direction.
    write: Option<OwnedWriteHalf>,
    staged: Vec<u8>,
}

impl Sink {
    fn new(write: OwnedWriteHalf) -> Self {
        Self { write: Some(write), staged: Vec::new() }
    }

    async fn pass(&mut self, message: &[u8]) {
        if message.len() < GATHERED {
            self.staged.extend_from_slice(message);
            return;
        }
        self.flush().await;
        self.write(message).await;
    }

    async fn flush(&mut self) {
        let mut staged = std::mem::take(&mut self.staged);
        self.write(&staged).await;
        staged.clear();
        self.staged = staged;
    }

    async fn write(&mut self, bytes: &[u8]) {
        if let Some(write) = &mut self.write
            && !bytes.is_empty()
            && write.write_all(bytes).await.is_err()
        {
            self.write = None;
        }
    }
}

/// What one worker says.
struct Source {
    read: OwnedReadHalf,
    buffer: BytesMut,
    open: bool,
    /// It is not read from until a bind has been answered.
    held: bool,
}

impl Source {
    fn new(read: OwnedReadHalf) -> Self {
        Self { read, buffer: BytesMut::new(), open: true, held: false }
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        make_room(&mut self.buffer);
        std::pin::pin!(self.read.read_buf(&mut self.buffer)).as_mut().poll(cx)
    }
}

/// The next worker that said something, looked for from `first` on, and how
/// much; 0 and errors are its end. `None` when all have ended.
async fn next(sources: &mut [Source], first: usize) -> Option<(usize, io::Result<usize>)> {
    std::future::poll_fn(|cx| {
        let mut open = false;
        for worker in (first..sources.len()).chain(0..first) {
            let source = &mut sources[worker];
            if source.open
                && !source.held
                && let Poll::Ready(read) = source.poll_fill(cx)
            {
                return Poll::Ready(Some((worker, read)));
            }
            open |= source.open;
        }
        if open { Poll::Pending } else { Poll::Ready(None) }
    })
    .await
}

/// From the workers to the client, until all have ended or one throws it out.
async fn down(client: OwnedWriteHalf, sources: &mut [Source], shared: &Shared<impl Fn() -> bool>) {
    let mut client = Listener { client, listens: true };
    let mut first = 0;
    loop {
        client.tell_answers(shared).await;
        let (worker, read) = tokio::select! {
            biased;
            () = shared.added.notified() => continue,
            next = next(sources, first) => match next {
                Some(next) => next,
                None => return,
            },
        };
        // Everybody in turn.
        first = (worker + 1) % sources.len();
        if !matches!(read, Ok(1..)) {
            sources[worker].open = false;
            if !shared.left.get() && !(shared.ending)() {
                tracing::debug!(worker, "client thrown out by a worker");
                return;
            }
            shared.desk.borrow_mut().gone(worker, &mut shared.out.borrow_mut());
        }
        pass_down(worker, &mut sources[worker], &mut client, shared).await;
        for (worker, source) in sources.iter_mut().enumerate().filter(|(_, s)| s.held) {
            pass_down(worker, source, &mut client, shared).await;
        }
    }
}

/// Passes on what a worker said, as far as the client may hear it now.
async fn pass_down(
    worker: usize,
    source: &mut Source,
    client: &mut Listener,
    shared: &Shared<impl Fn() -> bool>,
) {
    source.held = false;
    // What lies between these is passed on as it is.
    let (mut from, mut at) = (0, 0);
    while let Ok(Some((body, used))) = split_message(&source.buffer[at..]) {
        match Event::parse(body) {
            Ok(Event::Reply { id, event }) => {
                client.tell(&source.buffer[from..at]).await;
                shared.desk.borrow_mut().reply(worker, id, event, &mut shared.out.borrow_mut());
                client.tell_answers(shared).await;
                from = at + used;
            }
            Ok(Event::Accept { local_port, .. })
                if shared.desk.borrow().holds(worker, local_port) =>
            {
                source.held = true;
                break;
            }
            _ => {}
        }
        at += used;
    }
    client.tell(&source.buffer[from..at]).await;
    source.buffer.advance(at);
}

/// The client, as long as it listens. What is said after that is thrown away,
/// so that workers can get rid of it.
struct Listener {
    client: OwnedWriteHalf,
    listens: bool,
}

impl Listener {
    async fn tell(&mut self, bytes: &[u8]) {
        if self.listens && !bytes.is_empty() {
            self.listens = self.client.write_all(bytes).await.is_ok();
        }
    }

    async fn tell_answers(&mut self, shared: &Shared<impl Fn() -> bool>) {
        let answers = shared.out.take();
        shared.taken.notify_one();
        self.tell(&answers).await;
    }
}

/// Room for the rest of the message at the front, or for a good read.
fn make_room(buffer: &mut BytesMut) {
    let length = buffer.first_chunk::<LENGTH_LEN>().map_or(0, |l| u32::from_be_bytes(*l) as usize);
    let missing = (LENGTH_LEN + length.min(MAX_MESSAGE)).saturating_sub(buffer.len());
    if buffer.capacity() - buffer.len() < MIN_ROOM.max(missing) {
        buffer.reserve(READ_ROOM.max(missing));
    }
}
