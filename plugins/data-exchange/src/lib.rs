//! Port 1001: files and messages from peers, kept in the data folder (protocol
//! page "Services", section 5).
//!
//! Files go to `received/` as they arrive, through a temporary name, and get
//! theirs only when they are whole; messages go to `inbox/` as JSON. Nothing
//! is ever overwritten. A peer of ours can continue a file whose stream broke
//! ([`pilot_plugin::wire::service::data_exchange`] describes how): what came
//! of it stays in `received/` as `.incoming-*`, for `partial-hours` and up to
//! `partial-max-bytes` of all.
//!
//! Emits `file.received` (`filename`, `size`, `path`, `from`) and
//! `message.received` (`type`, `from`, `size`).
#![forbid(unsafe_code)]

mod partial;
mod quota;
mod save;
mod session;
mod stamp;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use pilot_plugin::json::{Value, json};
use pilot_plugin::serde::Deserialize;
use pilot_plugin::wire::NodeId;
use pilot_plugin::wire::service::data_exchange::PORT;
use pilot_plugin::{Buffer, Error, Host, JsonSchema, Level, Manifest, Peer, Plugin, Stream};

use partial::Keep;
use quota::Limits;
use session::{Happened, Sender, Session, Store, Taken};

/// Bytes gathered for one round of hashing and writing. A stream holds at most
/// two rounds in memory: one that is written, one that is gathered.
const ROUND: usize = 1 << 20;
/// Streams served at once; more are reset.
const MAX_STREAMS: usize = 256;
/// Streams of one node served at once; more are reset.
const STREAMS_PER_NODE: usize = MAX_STREAMS / 4;
/// A frame or an offered file that has begun and of which nothing comes for so
/// long ends its stream.
const STALL: Duration = Duration::from_secs(120);
/// When memory for a message is missing, it is tried again after this long.
const MEMORY_WAIT: Duration = Duration::from_millis(50);
/// How often what was left unfinished is looked through.
const SWEEP: Duration = Duration::from_secs(3600);

/// The configuration of data exchange.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(crate = "pilot_plugin::serde", rename_all = "kebab-case", deny_unknown_fields, default)]
#[schemars(crate = "pilot_plugin::schemars")]
struct Config {
    /// Folder with `received` and `inbox`; the node's data folder unless set.
    folder: Option<PathBuf>,
    /// Bytes that saved files and messages may take in all, those of earlier
    /// runs included. No limit unless set.
    max_bytes: Option<u64>,
    /// Bytes of one file or message at the most. No limit unless set.
    max_file_bytes: Option<u64>,
    /// Bytes that stay free on the disk: what would take them is refused.
    keep_free_bytes: u64,
    /// Hours that an interrupted file waits for its sender to continue it.
    partial_hours: u64,
    /// Bytes of all interrupted files; the oldest go first.
    partial_max_bytes: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            folder: None,
            max_bytes: None,
            max_file_bytes: None,
            keep_free_bytes: 256 << 20,
            partial_hours: 24,
            partial_max_bytes: 8 << 30,
        }
    }
}

struct DataExchange {
    host: Host,
    config: Config,
    /// Once the first stream has come: to ask for the folder is to wait.
    store: RefCell<Option<Arc<Store>>>,
    streams: Rc<Cell<usize>>,
    /// Streams by node.
    nodes: Rc<RefCell<HashMap<NodeId, usize>>>,
}

impl Plugin for DataExchange {
    type Config = Config;

    fn manifest() -> Manifest {
        Manifest::new("data-exchange", env!("CARGO_PKG_VERSION"))
            .describe("keeps files and messages that peers send")
            .service("data-exchange", &[PORT])
            .needs("node.folders")
    }

    fn start(host: Host, config: Config) -> Result<Self, Error> {
        Ok(Self {
            host,
            config,
            store: RefCell::default(),
            streams: Rc::default(),
            nodes: Rc::default(),
        })
    }

    async fn serve(&self, stream: Stream, peer: Peer) -> Result<(), Error> {
        if self.streams.get() >= MAX_STREAMS {
            return Err(Error::new(format!("{MAX_STREAMS} streams are open already")));
        }
        let node = peer.node();
        if self.nodes.borrow().get(&node).is_some_and(|n| *n >= STREAMS_PER_NODE) {
            let text = format!("{STREAMS_PER_NODE} streams of node {node} are open already");
            return Err(Error::new(text));
        }
        self.streams.set(self.streams.get() + 1);
        *self.nodes.borrow_mut().entry(node).or_default() += 1;
        let _counted = Counted(Rc::clone(&self.streams), Rc::clone(&self.nodes), node);
        let store = self.store().await?;
        let from = Sender::of(&peer);
        let session = Session::new(store, from.clone());
        let mut serving = Serving {
            host: self.host.clone(),
            from,
            stream,
            gathered: Vec::new(),
            gathered_len: 0,
            input: Ok(true),
        };
        let (session, result) = serving.run(session).await;
        // What is unfinished is removed or kept there: a large file's space is
        // not given back in a moment.
        if let Some(session) = session {
            self.host.blocking(move || session.finish()).await?;
        }
        result
    }
}

impl DataExchange {
    async fn store(&self) -> Result<Arc<Store>, Error> {
        let made = self.store.borrow().clone();
        if let Some(store) = made {
            return Ok(store);
        }
        let (received, inbox) = match &self.config.folder {
            Some(folder) => (folder.join("received"), folder.join("inbox")),
            None => {
                let folders = self.host.call("node.folders", json!({})).await?;
                (folder_of(&folders, "received")?, folder_of(&folders, "inbox")?)
            }
        };
        let Config { max_bytes, max_file_bytes, keep_free_bytes, .. } = self.config;
        let limits = Limits { max_bytes, max_file_bytes, keep_free_bytes };
        let keep = Keep {
            time: Duration::from_secs(self.config.partial_hours.saturating_mul(3600)),
            bytes: self.config.partial_max_bytes,
        };
        let store = self.host.blocking(move || Store::new(received, inbox, limits, keep)).await?;
        // Another stream may have been first.
        let mut slot = self.store.borrow_mut();
        if let Some(first) = &*slot {
            return Ok(Arc::clone(first));
        }
        let store = Arc::new(store);
        *slot = Some(Arc::clone(&store));
        self.host.spawn(sweep_now_and_then(self.host.clone(), Arc::clone(&store)));
        Ok(store)
    }
}

/// The folder `name` as the host gives it.
fn folder_of(folders: &Value, name: &str) -> Result<PathBuf, Error> {
    let given = |key: &str| folders[key].as_str().map(Path::new);
    given(name)
        .map(Path::to_owned)
        .or_else(|| given("data").map(|data| data.join(name)))
        .ok_or_else(|| {
            Error::new("this node has no data folder; set `folder` in the configuration")
        })
}

async fn sweep_now_and_then(host: Host, store: Arc<Store>) {
    loop {
        host.sleep(SWEEP).await;
        let store = Arc::clone(&store);
        if let Ok(removed @ 1..) = host.blocking(move || store.sweep()).await {
            host.log(Level::Info, format!("{removed} interrupted files were given up"));
        }
    }
}

/// One stream less when it is dropped.
struct Counted(Rc<Cell<usize>>, Rc<RefCell<HashMap<NodeId, usize>>>, NodeId);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
        let mut nodes = self.1.borrow_mut();
        if let Some(count) = nodes.get_mut(&self.2) {
            *count -= 1;
            if *count == 0 {
                nodes.remove(&self.2);
            }
        }
    }
}

/// What a thread gives back of a round.
struct Round {
    session: Session,
    /// What could not be used yet.
    rest: Vec<Buffer>,
    result: io::Result<()>,
}

/// Gives a round to the session; on a thread.
fn take(mut session: Session, mut data: Vec<Buffer>) -> Round {
    let now = Instant::now();
    for i in 0..data.len() {
        match session.take(&data[i], now) {
            Ok(Taken::All) => {}
            Ok(Taken::Starved(n)) => {
                data[i].advance(n);
                let mut rest = data.split_off(i);
                rest.retain(|buffer| !buffer.is_empty());
                return Round { session, rest, result: Ok(()) };
            }
            Err(e) => return Round { session, rest: Vec::new(), result: Err(e) },
        }
    }
    Round { session, rest: Vec::new(), result: Ok(()) }
}

/// A stream and its session: while a thread works on one round, the next is
/// gathered.
struct Serving {
    host: Host,
    from: Sender,
    stream: Stream,
    gathered: Vec<Buffer>,
    gathered_len: usize,
    /// Whether more may come; the error that ended it.
    input: io::Result<bool>,
}

impl Serving {
    /// Serves until the end, and gives the session back.
    async fn run(&mut self, mut session: Session) -> (Option<Session>, Result<(), Error>) {
        loop {
            let stall = session.is_unfinished().then(|| Instant::now() + STALL);
            let late = [session.deadline(), stall].into_iter().flatten().min();
            let mut late = late.map(|at| self.until(at));
            let more = std::future::poll_fn(|cx| {
                self.gather(cx);
                if self.gathered_len > 0 || !matches!(self.input, Ok(true)) {
                    return Poll::Ready(true);
                }
                match &mut late {
                    Some(late) => Pin::new(late).poll(cx).map(|()| false),
                    None => Poll::Pending,
                }
            });
            if !more.await {
                return (
                    Some(session),
                    Err(Error::new("what had begun did not come to its end in time")),
                );
            }
            if self.gathered_len == 0 {
                let result = match std::mem::replace(&mut self.input, Ok(false)) {
                    Err(e) => Err(e.into()),
                    Ok(_) if session.is_inside_frame() => {
                        Err(Error::new("the stream ended within a frame"))
                    }
                    Ok(_) => Ok(()),
                };
                return (Some(session), result);
            }
            let round = match self.work(session).await {
                Ok(round) => round,
                // Without a thread the session is gone.
                Err(e) => return (None, Err(e)),
            };
            let starved = !round.rest.is_empty();
            session = round.session;
            if let Err(e) = self.tell(&mut session).await {
                return (Some(session), Err(e));
            }
            if let Err(e) = round.result {
                return (Some(session), Err(e.into()));
            }
            if starved {
                self.gathered_len += round.rest.iter().map(|b| b.len()).sum::<usize>();
                self.gathered.splice(..0, round.rest);
                self.host.sleep(MEMORY_WAIT).await;
            }
        }
    }

    fn until(&self, at: Instant) -> impl Future<Output = ()> + Unpin + use<> {
        self.host.sleep(at.saturating_duration_since(Instant::now()))
    }

    /// Takes what has arrived, up to a round.
    fn gather(&mut self, cx: &mut Context<'_>) {
        while matches!(self.input, Ok(true)) && self.gathered_len < ROUND {
            match self.stream.poll_recv(cx) {
                Poll::Ready(Ok(Some(data))) => {
                    self.gathered_len += data.len();
                    self.gathered.push(data);
                }
                Poll::Ready(Ok(None)) => self.input = Ok(false),
                Poll::Ready(Err(e)) => self.input = Err(e),
                Poll::Pending => return,
            }
        }
    }

    /// Has a thread take what was gathered, and gathers meanwhile.
    async fn work(&mut self, session: Session) -> Result<Round, Error> {
        let data = std::mem::take(&mut self.gathered);
        self.gathered_len = 0;
        let host = self.host.clone();
        let mut round = pin!(async move { host.blocking(move || take(session, data)).await });
        std::future::poll_fn(|cx| {
            self.gather(cx);
            round.as_mut().poll(cx)
        })
        .await
    }

    /// Sends answers, and tells what happened.
    async fn tell(&mut self, session: &mut Session) -> Result<(), Error> {
        let from = self.from.address;
        for happened in session.take_happened() {
            match happened {
                Happened::File { name, size, path } => {
                    let text = format!("{from}: file of {size} bytes, {}", path.display());
                    self.host.log(Level::Info, text);
                    let data =
                        json!({ "filename": name, "size": size, "path": path, "from": from });
                    self.emit("file.received", &data);
                }
                Happened::Message { kind, size } => {
                    let data = json!({ "type": kind.to_string(), "from": from, "size": size });
                    self.emit("message.received", &data);
                }
                Happened::Refused { what, why } => {
                    self.host.log(Level::Warn, format!("{from}: {what} not saved: {why}"));
                }
            }
        }
        let answers = session.take_answers();
        if !answers.is_empty() {
            self.stream.send(answers).await?;
        }
        Ok(())
    }

    fn emit(&self, name: &str, data: &Value) {
        if let Err(e) = self.host.emit(name, data) {
            // Many at once are more than a plugin may emit; they must not fill
            // the log either.
            self.host.log(Level::Debug, e.to_string());
        }
    }
}

pilot_plugin::export_plugin!(DataExchange);
