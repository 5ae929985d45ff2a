//! A daemon in memory, for tests: it speaks the socket protocol as the wire
//! crate defines it, joins its clients to each other, and answers ports 7
//! (echo) and 1001 (data exchange) itself. It counts every byte a client sends
//! beyond its credit.
#![allow(dead_code, reason = "each test crate uses a part of it")]
#![allow(unreachable_pub, reason = "a module of several test crates")]

mod exchange;
mod state;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use pilot_wire::ipc::{Command, ErrorCode, Event, Features, split_message};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use state::{Client, State};

/// How the daemon behaves.
#[derive(Clone, Copy, Debug)]
pub struct Behaviour {
    /// Whether it knows hello.
    pub hello: bool,
    /// What it grants.
    pub features: Features,
    /// Bytes a client may send on a new connection.
    pub send_credit: u32,
    /// Whether port 1001 takes files in chunks.
    pub large_files: bool,
    /// Whether it answers port 1001 itself; else a client may bind it.
    pub exchange: bool,
    /// Own node number.
    pub node: u32,
    /// Whether a reload keeps an old version of plugin `broken`.
    pub reload_fails: bool,
    /// What its registry answers.
    pub registry: fn(&Value) -> Value,
}

/// A registry that refuses everything.
fn refuse(_: &Value) -> Value {
    serde_json::json!({"type": "error", "error": "request failed"})
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            hello: true,
            features: Features::ALL,
            send_credit: 256 * 1024,
            large_files: true,
            exchange: true,
            node: 1,
            reload_fails: false,
            registry: refuse,
        }
    }
}

impl Behaviour {
    /// A daemon of the published protocol.
    pub fn published() -> Self {
        Self { hello: false, large_files: false, ..Self::default() }
    }
}

/// A running mock; its socket and temporary directory go with it.
pub struct MockDaemon {
    dir: tempfile::TempDir,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

pub struct Shared {
    behaviour: Behaviour,
    state: Mutex<State>,
    /// Bytes beyond credit.
    violations: AtomicUsize,
    /// Lets dials to node 8 go on.
    release: Notify,
    clients: AtomicU32,
}

impl MockDaemon {
    pub fn start(behaviour: Behaviour) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let listener = UnixListener::bind(dir.path().join("p.sock")).expect("bind");
        let shared = Arc::new(Shared {
            behaviour,
            state: Mutex::new(State::new(behaviour)),
            violations: AtomicUsize::new(0),
            release: Notify::new(),
            clients: AtomicU32::new(0),
        });
        let task = tokio::spawn(serve(listener, Arc::clone(&shared)));
        Self { dir, shared, task }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("p.sock")
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Bytes that clients sent beyond their credit.
    pub fn violations(&self) -> usize {
        self.shared.violations.load(Ordering::SeqCst)
    }

    /// Bytes that wait in the daemon because a client gave no credit.
    pub fn waiting(&self) -> usize {
        self.shared.state.lock().expect("state").waiting()
    }

    /// Open connection ends.
    pub fn connections(&self) -> usize {
        self.shared.state.lock().expect("state").conns.len()
    }

    /// Ports that are bound.
    pub fn ports(&self) -> Vec<u16> {
        self.shared.state.lock().expect("state").ports.keys().copied().collect()
    }

    /// What its registry was asked.
    pub fn asked(&self) -> Vec<Value> {
        self.shared.state.lock().expect("state").asked.clone()
    }

    /// Lets one dial to node 8 go on.
    pub fn release_dial(&self) {
        self.shared.release.notify_one();
    }

    /// Breaks a connection.
    pub fn reset(&self, connection: u32, code: ErrorCode, text: &str) {
        self.shared.state.lock().expect("state").reset(connection, code, text);
    }

    /// Breaks connections from a task of its own.
    pub fn resetter(&self) -> impl Fn(u32, ErrorCode, &str) + Send + 'static {
        let shared = Arc::clone(&self.shared);
        move |connection, code, text| {
            shared.state.lock().expect("state").reset(connection, code, text);
        }
    }

    /// Sends a datagram to every client.
    pub fn datagram(&self, event: &Event<'_>) {
        self.shared.state.lock().expect("state").broadcast(event);
    }

    /// Ends at once, like a killed process.
    pub async fn kill(&mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }
}

impl Drop for MockDaemon {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: UnixListener, shared: Arc<Shared>) {
    let mut tasks = JoinSet::new();
    loop {
        let Ok((socket, _)) = listener.accept().await else { return };
        let shared = Arc::clone(&shared);
        tasks.spawn(async move {
            let id = shared.clients.fetch_add(1, Ordering::SeqCst);
            let _ = client(id, socket, &shared).await;
            shared.state.lock().expect("state").forget_client(id);
        });
    }
}

async fn client(id: u32, socket: UnixStream, shared: &Arc<Shared>) -> io::Result<()> {
    let (mut read, mut write) = socket.into_split();
    let (out, mut outgoing) = mpsc::unbounded_channel::<Vec<u8>>();
    let mut me =
        Client { id, out, features: Features::default(), hello: false, receive_credit: u64::MAX };
    shared.state.lock().expect("state").clients.insert(id, me.clone());
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Some(bytes) = outgoing.recv().await {
            if write.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
    let mut buffer = bytes::BytesMut::new();
    loop {
        while let Ok(Some((body, used))) = split_message(&buffer) {
            match Command::parse(body) {
                Ok(Command::Request { id, command }) => {
                    let parsed = Command::parse(command).map(|c| (c, Some(id)));
                    step(&mut me, parsed, shared, &mut tasks);
                }
                parsed => step(&mut me, parsed.map(|c| (c, None)), shared, &mut tasks),
            }
            let _ = buffer.split_to(used);
        }
        if split_message(&buffer).is_err() || read.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
    }
}

type Parsed<'a> = Result<(Command<'a>, Option<u32>), pilot_wire::ipc::CommandError>;

fn step(me: &mut Client, parsed: Parsed<'_>, shared: &Arc<Shared>, tasks: &mut JoinSet<()>) {
    let (command, tag) = match parsed {
        Ok(parsed) => parsed,
        Err(e) => return me.error(None, ErrorCode::INVALID_ARGUMENT, &e.to_string()),
    };
    let behaviour = shared.behaviour;
    if let Command::Hello { features, receive_credit, .. } = command {
        if !behaviour.hello {
            return me.error(None, ErrorCode::GENERAL, "unknown command: 0x40");
        }
        me.hello = true;
        me.features = features.and(behaviour.features);
        if me.features.contains(Features::CREDIT) {
            me.receive_credit = u64::from(receive_credit);
        }
        shared.state.lock().expect("state").clients.insert(me.id, me.clone());
        return me.send(&Event::HelloOk {
            version: 1,
            features: me.features,
            send_credit: behaviour.send_credit,
        });
    }
    // Node 8 takes its time, and holds up nobody who uses tags.
    if let Command::Dial { to } = command
        && to.address.node.0 == 8
    {
        let (me, shared) = (me.clone(), Arc::clone(shared));
        tasks.spawn(async move {
            shared.release.notified().await;
            shared.state.lock().expect("state").dial(&me, tag, to);
        });
        return;
    }
    let over = shared.state.lock().expect("state").command(me, tag, &command);
    shared.violations.fetch_add(over, Ordering::SeqCst);
}
