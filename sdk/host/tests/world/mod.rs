//! A process around the host, in memory: streams with both ends in the test, a
//! platform that keeps what it is told, and a store in a map.

#![allow(dead_code, unreachable_pub, reason = "every test binary uses some of it")]

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use pilot_host::{
    BoxFuture, BoxStream, CallError, Context, HostStream, Incident, KeyValue, Limits, Observer,
    Platform, PortService, StoreError,
};
use pilot_plugin::Peer;
use pilot_wire::{Address, NodeId, SocketAddress};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes that a direction holds.
const ROOM: usize = 256 << 10;

/// Waits until `done`, and says what for when it takes too long.
pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < until, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Polls a future on this thread until it is done.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime
        .block_on(async { tokio::time::timeout(PATIENCE, future).await })
        .expect("no answer within the patience of a test")
}

/// A plugin of the workspace. Building the workspace makes it; here it is made
/// only when it is missing or older than what it is made of.
pub fn plugin(package: &str) -> PathBuf {
    made(&["--package", package], &format!("lib{}.so", package.replace('-', "_")))
}

/// A program of the workspace, likewise.
pub fn program(package: &str, name: &str) -> PathBuf {
    made(&["--package", package, "--bin", name], name)
}

fn made(what: &[&str], name: &str) -> PathBuf {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let test = std::env::current_exe().unwrap();
    // target/PROFILE/deps/TEST
    let profile = test.parent().and_then(|deps| deps.parent()).unwrap();
    let file = profile.join(name);
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let sources = ["sdk/wire/src", "sdk/plugin/src", "sdk/host/src", "plugins", "tests/plugins"];
    let newest = sources.iter().map(|folder| newest(&top.join(folder))).max().unwrap();
    if file.metadata().and_then(|m| m.modified()).is_ok_and(|made| made >= newest) {
        return file;
    }
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command.args(["build", "--quiet"]).args(what);
    command.arg("--target-dir").arg(profile.parent().unwrap());
    if profile.ends_with("release") {
        command.arg("--release");
    }
    assert!(command.status().unwrap().success(), "{what:?} does not build");
    // Cargo leaves what is up to date as it is.
    std::fs::File::open(&file).unwrap().set_modified(SystemTime::now()).unwrap();
    file
}

/// When the newest file below a folder was changed.
fn newest(folder: &Path) -> SystemTime {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let of = |entry: std::fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => newest(&entry.path()),
        _ => entry.metadata().and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH),
    };
    entries.map(of).max().unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Compiles a C file below the top of the project.
pub fn compile(source: &str, define: &str) -> (TempDir, PathBuf) {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("libplugin.so");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-pthread"]);
    cc.arg("-I").arg(top.join("sdk/plugin/include")).arg("-o").arg(&file);
    if !define.is_empty() {
        cc.arg(format!("-D{define}"));
    }
    assert!(cc.arg(top.join(source)).status().unwrap().success(), "{source} does not compile");
    (dir, file)
}

#[derive(Default)]
struct Pipe {
    data: VecDeque<Bytes>,
    len: usize,
    ended: bool,
    broken: Option<String>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// One direction of a stream.
#[derive(Default)]
struct Direction {
    pipe: Mutex<Pipe>,
    changed: Condvar,
}

impl Direction {
    fn change<T>(&self, f: impl FnOnce(&mut Pipe) -> T) -> T {
        let mut pipe = self.pipe.lock().unwrap();
        let result = f(&mut pipe);
        let wakers = [pipe.reader.take(), pipe.writer.take()];
        drop(pipe);
        self.changed.notify_all();
        wakers.into_iter().flatten().for_each(Waker::wake);
        result
    }
}

/// The end that a plugin gets.
pub struct Near {
    incoming: Arc<Direction>,
    outgoing: Arc<Direction>,
    remote: SocketAddress,
    port: u16,
}

/// The end in the test; its methods wait.
pub struct Far {
    incoming: Arc<Direction>,
    outgoing: Arc<Direction>,
}

/// A stream that came in on `port`.
pub fn stream(port: u16) -> (BoxStream, Far) {
    let (up, down) = (Arc::new(Direction::default()), Arc::new(Direction::default()));
    let near =
        Near { incoming: Arc::clone(&up), outgoing: Arc::clone(&down), remote: remote(), port };
    (Box::new(near), Far { incoming: down, outgoing: up })
}

/// Who is at the other end.
pub fn remote() -> SocketAddress {
    Address::backbone(NodeId(77)).port(40_000)
}

fn broken(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, reason.to_owned())
}

impl HostStream for Near {
    fn remote(&self) -> SocketAddress {
        self.remote
    }

    fn local_port(&self) -> u16 {
        self.port
    }

    fn poll_read(&mut self, cx: &mut TaskContext<'_>) -> Poll<io::Result<Option<Bytes>>> {
        let mut pipe = self.incoming.pipe.lock().unwrap();
        if let Some(data) = pipe.data.pop_front() {
            pipe.len -= data.len();
            drop(pipe);
            self.incoming.changed.notify_all();
            return Poll::Ready(Ok(Some(data)));
        }
        if let Some(reason) = &pipe.broken {
            return Poll::Ready(Err(broken(reason)));
        }
        if pipe.ended {
            return Poll::Ready(Ok(None));
        }
        pipe.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    fn poll_room(&mut self, cx: &mut TaskContext<'_>) -> Poll<io::Result<usize>> {
        let mut pipe = self.outgoing.pipe.lock().unwrap();
        if let Some(reason) = &pipe.broken {
            return Poll::Ready(Err(broken(reason)));
        }
        if pipe.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if pipe.len >= ROOM {
            pipe.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(ROOM - pipe.len))
    }

    fn write(&mut self, data: Bytes) {
        self.outgoing.change(|pipe| {
            pipe.len += data.len();
            pipe.data.push_back(data);
        });
    }

    fn shutdown(&mut self) {
        self.outgoing.change(|pipe| pipe.ended = true);
    }

    fn reset(&mut self, reason: &str) {
        for direction in [&self.incoming, &self.outgoing] {
            direction.change(|pipe| {
                pipe.data.clear();
                pipe.broken = Some(reason.to_owned());
            });
        }
    }
}

impl Drop for Near {
    fn drop(&mut self) {
        self.outgoing.change(|pipe| pipe.ended = true);
        self.incoming.change(|pipe| {
            if pipe.broken.is_none() && !pipe.ended {
                pipe.broken = Some("closed by the plugin".to_owned());
            }
        });
    }
}

impl Far {
    /// Sends; waits while the plugin does not read.
    pub fn send(&self, data: impl Into<Bytes>) -> io::Result<()> {
        let data = data.into();
        let pipe = self.outgoing.pipe.lock().unwrap();
        let (pipe, timeout) = self
            .outgoing
            .changed
            .wait_timeout_while(pipe, PATIENCE, |p| p.len >= ROOM && p.broken.is_none())
            .unwrap();
        assert!(!timeout.timed_out(), "the plugin does not read");
        if let Some(reason) = &pipe.broken {
            return Err(broken(reason));
        }
        drop(pipe);
        self.outgoing.change(|pipe| {
            pipe.len += data.len();
            pipe.data.push_back(data);
        });
        Ok(())
    }

    /// No more will be sent.
    pub fn finish(&self) {
        self.outgoing.change(|pipe| pipe.ended = true);
    }

    /// What the plugin has written next; `None` at the end.
    pub fn recv(&self) -> io::Result<Option<Bytes>> {
        let pipe = self.incoming.pipe.lock().unwrap();
        let (mut pipe, timeout) = self
            .incoming
            .changed
            .wait_timeout_while(pipe, PATIENCE, |p| {
                p.data.is_empty() && !p.ended && p.broken.is_none()
            })
            .unwrap();
        assert!(!timeout.timed_out(), "the plugin writes nothing");
        if let Some(data) = pipe.data.pop_front() {
            pipe.len -= data.len();
            let waker = pipe.writer.take();
            drop(pipe);
            waker.into_iter().for_each(Waker::wake);
            return Ok(Some(data));
        }
        match &pipe.broken {
            Some(reason) => Err(broken(reason)),
            None => Ok(None),
        }
    }

    /// Everything up to the end.
    pub fn recv_all(&self) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        while let Some(data) = self.recv()? {
            all.extend_from_slice(&data);
        }
        Ok(all)
    }

    /// Sends `data`, ends, and gives what comes back.
    pub fn exchange(&self, data: &[u8]) -> io::Result<Vec<u8>> {
        std::thread::scope(|scope| {
            let sent = scope.spawn(|| {
                for piece in data.chunks(60_000) {
                    self.send(Bytes::copy_from_slice(piece))?;
                }
                self.finish();
                Ok(())
            });
            let all = self.recv_all();
            sent.join().unwrap().and(all)
        })
    }
}

impl Drop for Far {
    /// The peer closes.
    fn drop(&mut self) {
        self.outgoing.change(|pipe| pipe.ended = true);
        self.incoming.change(|pipe| {
            if !pipe.ended && pipe.broken.is_none() {
                pipe.broken = Some("closed by the peer".to_owned());
            }
        });
    }
}

/// A platform that keeps what it is told.
#[derive(Default)]
pub struct World {
    pub events: Mutex<Vec<(String, Map<String, Value>)>>,
    pub incidents: Mutex<Vec<(u64, Incident)>>,
    /// The other ends of dialled streams.
    pub dialled: Mutex<Vec<(String, Far)>>,
    pub datagrams: Mutex<Vec<(SocketAddress, u16, Bytes)>>,
    pub ports: Mutex<BTreeMap<u16, Arc<dyn PortService>>>,
    store: Mutex<BTreeMap<String, Vec<u8>>>,
}

impl World {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// What an instance is made with.
    pub fn context(self: &Arc<Self>, name: &str, limits: Limits) -> Context {
        Context {
            name: name.into(),
            generation: 1,
            platform: Arc::clone(self) as _,
            store: Arc::clone(self) as _,
            observer: Arc::clone(self) as _,
            limits,
            granted: ["*".to_owned()].into(),
        }
    }

    /// Opens a stream to whatever answers on `port`.
    pub fn open(&self, port: u16) -> Far {
        let service = self.ports.lock().unwrap().get(&port).cloned().expect("nobody listens");
        let (near, far) = stream(port);
        service.open(near);
        far
    }

    pub fn has_incident(&self, wanted: impl Fn(&Incident) -> bool) -> bool {
        self.incidents.lock().unwrap().iter().any(|(_, incident)| wanted(incident))
    }
}

impl Platform for World {
    fn address(&self) -> Option<Address> {
        Some(Address::backbone(NodeId(1)))
    }

    fn peer(&self, remote: SocketAddress) -> Peer {
        Peer { trusted: true, hostname: Some("far".to_owned()), ..Peer::at(remote) }
    }

    fn dial(&self, to: &str) -> BoxFuture<Result<BoxStream, String>> {
        if to.starts_with("nobody") {
            let why = format!("cannot resolve {to}");
            return Box::pin(std::future::ready(Err(why)));
        }
        let (near, far) = stream(0);
        self.dialled.lock().unwrap().push((to.to_owned(), far));
        Box::pin(std::future::ready(Ok(near)))
    }

    fn send_datagram(&self, to: SocketAddress, port: u16, data: Bytes) -> Result<(), String> {
        self.datagrams.lock().unwrap().push((to, port, data));
        Ok(())
    }

    fn call(&self, method: &str, request: Value) -> BoxFuture<Result<Value, CallError>> {
        let answer = match method {
            "test.echo" => Ok(request),
            "test.fail" => Err(CallError::Failed("as asked".to_owned())),
            "node.status" => Ok(json!({ "node_id": 1, "hostname": "near" })),
            other => Err(CallError::Unknown(other.to_owned())),
        };
        Box::pin(std::future::ready(answer))
    }

    fn tell(&self, happening: pilot_host::events::Happening) {
        let data = happening.data().unwrap_or_default();
        self.events.lock().unwrap().push((happening.name().to_owned(), data));
    }

    fn emit(&self, name: &str, data: Map<String, Value>) {
        self.events.lock().unwrap().push((name.to_owned(), data));
    }

    fn listen(&self, port: u16, service: Arc<dyn PortService>) -> BoxFuture<Result<(), String>> {
        self.ports.lock().unwrap().insert(port, service);
        Box::pin(std::future::ready(Ok(())))
    }

    fn unlisten(&self, port: u16) {
        self.ports.lock().unwrap().remove(&port);
    }
}

impl Observer for World {
    fn incident(&self, _: &str, generation: u64, incident: Incident) {
        self.incidents.lock().unwrap().push((generation, incident));
    }
}

impl KeyValue for World {
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.store.lock().unwrap().get(key).cloned())
    }

    fn put(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        if value.len() > 1 << 20 {
            let wanted = value.len() as u64;
            return Err(StoreError::Quota { plugin: "test".into(), wanted, quota: 1 << 20 });
        }
        self.store.lock().unwrap().insert(key.to_owned(), value.to_vec());
        Ok(())
    }

    fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.store.lock().unwrap().remove(key);
        Ok(())
    }

    fn keys(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let store = self.store.lock().unwrap();
        Ok(store.keys().filter(|key| key.starts_with(prefix)).cloned().collect())
    }
}
