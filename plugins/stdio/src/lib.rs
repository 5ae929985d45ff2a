//! Port 1000: plain bytes, by convention text (protocol page "Services",
//! section 9); where `pilotctl connect NODE` ends.
//!
//! Nothing is published about what is at the other end, so it is the
//! operator's choice, `mode`:
//!
//! - `log` (default): every line is kept in `stdio.log` in the data folder,
//!   with the time and the peer's address; control characters are escaped, so
//!   that a peer cannot write to the terminal of who reads it. Nothing is
//!   answered.
//! - `file`: the bytes as they come, all streams one after another, in the
//!   same file. Nothing is answered.
//! - `command`: a program per stream, with the stream as its standard input and
//!   output. It runs with the rights of the daemon: choose it with care. It
//!   finds the peer's address in `PILOT_PEER`. It is killed, with what it
//!   started, when the stream is over; when it closes its output, the stream is
//!   over too.
//! - `echo`: sends back every byte.
//!
//! A file that would grow beyond `max-bytes` becomes `FILE.1`, whose
//! predecessor goes.
#![forbid(unsafe_code)]

mod bridge;
mod journal;
mod program;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use pilot_plugin::json::json;
use pilot_plugin::serde::Deserialize;
use pilot_plugin::wire::NodeId;
use pilot_plugin::{Error, Host, JsonSchema, Manifest, Peer, Plugin, Stream};

use journal::{Journal, Lines};
use program::Program;

/// Name of the file in the data folder.
const FILE: &str = "stdio.log";

/// One node may have this part of `max-streams`; more of it are reset.
const SHARE: usize = 4;

/// What is at the other end of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(crate = "pilot_plugin::serde", rename_all = "lowercase")]
#[schemars(crate = "pilot_plugin::schemars")]
enum Mode {
    /// Lines with time and peer, in a file.
    Log,
    /// The bytes as they are, in a file.
    File,
    /// A program.
    Command,
    /// The peer itself.
    Echo,
}

/// The configuration of standard I/O.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(crate = "pilot_plugin::serde", rename_all = "kebab-case", deny_unknown_fields, default)]
#[schemars(crate = "pilot_plugin::schemars")]
struct Config {
    /// What is at the other end of a stream.
    mode: Mode,
    /// Program and arguments, for `command`.
    command: Vec<String>,
    /// File of `log` and `file`; `stdio.log` in the data folder unless set.
    file: Option<PathBuf>,
    /// Bytes of that file before it is rotated.
    max_bytes: u64,
    /// Streams at once, and so programs; more are reset.
    max_streams: usize,
}

impl Default for Config {
    fn default() -> Self {
        let (command, file) = (Vec::new(), None);
        Self { mode: Mode::Log, command, file, max_bytes: 4 << 20, max_streams: 32 }
    }
}

struct Stdio {
    host: Host,
    config: Config,
    journal: RefCell<Option<Arc<Mutex<Journal>>>>,
    streams: Rc<Cell<usize>>,
    /// Streams by node.
    nodes: Rc<RefCell<HashMap<NodeId, usize>>>,
}

impl Plugin for Stdio {
    type Config = Config;

    fn manifest() -> Manifest {
        Manifest::new("stdio", env!("CARGO_PKG_VERSION"))
            .describe("text from peers, to a file or a program")
            .service("stdio", &[1000])
            .needs("node.folders")
    }

    fn start(host: Host, config: Config) -> Result<Self, Error> {
        match (config.mode, config.command.is_empty()) {
            (Mode::Command, true) => {
                return Err(Error::new("`mode: command` needs `command: [PROGRAM, ARGUMENT...]`"));
            }
            (Mode::Log | Mode::File | Mode::Echo, false) => {
                return Err(Error::new("`command` is used with `mode: command` only"));
            }
            _ => {}
        }
        Ok(Self {
            host,
            config,
            journal: RefCell::default(),
            streams: Rc::default(),
            nodes: Rc::default(),
        })
    }

    async fn serve(&self, stream: Stream, peer: Peer) -> Result<(), Error> {
        if self.streams.get() >= self.config.max_streams {
            let most = self.config.max_streams;
            return Err(Error::new(format!("{most} streams are open already")));
        }
        let (node, most) = (peer.node(), (self.config.max_streams / SHARE).max(1));
        if self.nodes.borrow().get(&node).is_some_and(|n| *n >= most) {
            let text = format!("{most} streams of node {node} are open already");
            return Err(Error::new(text));
        }
        self.streams.set(self.streams.get() + 1);
        *self.nodes.borrow_mut().entry(node).or_default() += 1;
        let _counted = Counted(Rc::clone(&self.streams), Rc::clone(&self.nodes), node);
        match self.config.mode {
            Mode::Log => self.keep(stream, Some(Lines::new(peer.address))).await,
            Mode::File => self.keep(stream, None).await,
            Mode::Command => self.run(stream, &peer).await,
            Mode::Echo => echo(stream).await,
        }
    }
}

impl Stdio {
    async fn keep(&self, mut stream: Stream, mut lines: Option<Lines>) -> Result<(), Error> {
        let journal = self.journal().await?;
        loop {
            let data = stream.recv().await?;
            let end = data.is_none();
            let text = match (&mut lines, data) {
                (Some(lines), Some(data)) => lines.push(&data, SystemTime::now()),
                (Some(lines), None) => lines.finish(SystemTime::now()),
                (None, data) => data.map(|data| data.to_vec()).unwrap_or_default(),
            };
            if !text.is_empty() {
                let journal = Arc::clone(&journal);
                let append =
                    move || journal.lock().unwrap_or_else(PoisonError::into_inner).append(&text);
                self.host.blocking(append).await??;
            }
            if end {
                return Ok(());
            }
        }
    }

    async fn journal(&self) -> Result<Arc<Mutex<Journal>>, Error> {
        let open = self.journal.borrow().clone();
        if let Some(journal) = open {
            return Ok(journal);
        }
        let path = match &self.config.file {
            Some(path) => path.clone(),
            None => {
                let folders = self.host.call("node.folders", json!({})).await?;
                let data = folders["data"].as_str().ok_or_else(|| {
                    Error::new("this node has no data folder; set `file` in the configuration")
                })?;
                PathBuf::from(data).join(FILE)
            }
        };
        let mut slot = self.journal.borrow_mut();
        let make = || Arc::new(Mutex::new(Journal::new(path, self.config.max_bytes)));
        Ok(Arc::clone(slot.get_or_insert_with(make)))
    }

    async fn run(&self, stream: Stream, peer: &Peer) -> Result<(), Error> {
        let (command, address) = (self.config.command.clone(), peer.address.to_string());
        let started = self.host.blocking(move || Program::start(&command, &address)).await?;
        let Program { mut source, mut sink, running: _running } = started.map_err(Error::new)?;
        let (mut reader, mut writer) = stream.into_split();
        let up = async {
            while let Some(data) = reader.recv().await? {
                // A program that reads no more may still write.
                if sink.send(data.to_vec()).await.is_err() {
                    // That the stream breaks is still to be noticed.
                    while reader.recv().await?.is_some() {}
                    return Ok(());
                }
            }
            sink.finish();
            Ok(())
        };
        let down = async {
            while let Some(data) = source.recv().await? {
                writer.send(data).await?;
            }
            Ok(())
        };
        bridge::both::<Error>(up, down).await
    }
}

async fn echo(mut stream: Stream) -> Result<(), Error> {
    while let Some(data) = stream.recv().await? {
        stream.send(data).await?;
    }
    Ok(())
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

pilot_plugin::export_plugin!(Stdio);
