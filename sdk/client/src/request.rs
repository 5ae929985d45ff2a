//! Requests that wait for their answers, and how an answer finds its request.
//!
//! With tags, up to [`MAX_OUTSTANDING`] requests overlap. A daemon of the
//! published protocol cannot say which request an error belongs to, so there
//! one is outstanding at a time.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use pilot_wire::SocketAddress;
use pilot_wire::ipc::{Command, Event, Features, LENGTH_LEN};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::connect::Grants;
use crate::error::{Error, ErrorKind};
use crate::link::Link;
use crate::listener::Listener;
use crate::lock;
use crate::stream::Stream;

/// Requests that may be outstanding; further ones wait for their turn.
const MAX_OUTSTANDING: usize = 1024;
/// The key of the only request there is without tags.
const UNTAGGED: u32 = 0;

/// What a request waits for.
pub(crate) enum Waiting {
    Bind { port: u16, reply: oneshot::Sender<Result<Listener, Error>> },
    Dial { to: SocketAddress, reply: oneshot::Sender<Result<Stream, Error>> },
    Json { code: u8, reply: oneshot::Sender<Result<Vec<u8>, Error>> },
    Closed { connection: u32, reply: oneshot::Sender<Result<(), Error>> },
}

impl Waiting {
    /// Whether `event` is the success this request waits for.
    pub(crate) fn expects(&self, event: &Event<'_>) -> bool {
        match (self, event) {
            (Self::Bind { port, .. }, Event::BindOk { port: bound }) => port == bound,
            (Self::Dial { .. }, Event::DialOk { .. }) => true,
            (Self::Json { code, .. }, Event::Json { code: answer, .. }) => code == answer,
            (Self::Closed { connection, .. }, Event::Closed { connection: closed }) => {
                connection == closed
            }
            _ => false,
        }
    }

    /// Tells the caller that the request failed. A caller that has given up
    /// is not told.
    pub(crate) fn fail(self, error: Error) {
        match self {
            Self::Bind { reply, .. } => drop(reply.send(Err(error))),
            Self::Closed { reply, .. } => drop(reply.send(Err(error))),
            Self::Dial { reply, .. } => drop(reply.send(Err(error))),
            Self::Json { reply, .. } => drop(reply.send(Err(error))),
        }
    }
}

/// The table of outstanding requests.
pub(crate) struct Requests {
    tagged: bool,
    next: AtomicU32,
    turns: Arc<Semaphore>,
    /// A request keeps its turn until the answer is there, also when its
    /// caller has given up: the answer still comes.
    table: Mutex<HashMap<u32, (Waiting, OwnedSemaphorePermit)>>,
}

impl Requests {
    pub(crate) fn new(grants: &Grants) -> Self {
        let tagged = grants.has(Features::TAGGED);
        Self {
            tagged,
            next: AtomicU32::new(1),
            turns: Arc::new(Semaphore::new(if tagged { MAX_OUTSTANDING } else { 1 })),
            table: Mutex::default(),
        }
    }

    /// Takes the request a tagged reply belongs to.
    pub(crate) fn take(&self, id: u32) -> Option<Waiting> {
        lock(&self.table).remove(&id).map(|(waiting, _)| waiting)
    }

    /// Takes the one untagged request if `wanted` says so.
    pub(crate) fn take_untagged(&self, wanted: impl FnOnce(&Waiting) -> bool) -> Option<Waiting> {
        if self.tagged {
            return None;
        }
        let mut table = lock(&self.table);
        if table.get(&UNTAGGED).is_some_and(|(waiting, _)| wanted(waiting)) {
            return table.remove(&UNTAGGED).map(|(waiting, _)| waiting);
        }
        None
    }

    /// Fails everything that waits. The link must be marked dead before.
    pub(crate) fn fail_all(&self, error: &Error) {
        let all = std::mem::take(&mut *lock(&self.table));
        for (waiting, _) in all.into_values() {
            waiting.fail(error.clone());
        }
    }
}

impl Link {
    /// Sends `command` and waits for its answer.
    pub(crate) async fn request<T>(
        &self,
        command: &Command<'_>,
        waiting: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Waiting,
    ) -> Result<T, Error> {
        let gone = || Error::new(ErrorKind::Disconnected, "daemon disconnected");
        let turn = Arc::clone(&self.requests.turns).acquire_owned().await.map_err(|_| gone())?;
        let (reply, answer) = oneshot::channel();
        let id = if self.requests.tagged {
            self.requests.next.fetch_add(1, Ordering::Relaxed)
        } else {
            UNTAGGED
        };
        {
            let mut table = lock(&self.requests.table);
            if let Some(error) = self.error() {
                return Err(error);
            }
            table.insert(id, (waiting(reply), turn));
        }
        let mut body = Vec::new();
        command.encode(&mut body);
        if body.len() - LENGTH_LEN + 5 > pilot_wire::ipc::MAX_MESSAGE {
            self.requests.take(id);
            return Err(Error::new(ErrorKind::InvalidArgument, "the request is too long"));
        }
        if self.requests.tagged {
            self.control(&Command::Request { id, command: &body[LENGTH_LEN..] });
        } else {
            self.control(command);
        }
        answer.await.unwrap_or_else(|_| Err(self.error().unwrap_or_else(gone)))
    }
}
