//! A process, a journal and plugins of our own, which the manager cannot tell
//! from real ones: a file's text says how the plugin behaves.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use pilot_host::{
    Backend, BoxFuture, BoxStream, CallError, Context, Deliver, Failure, FileKind, HostStream,
    Incident, Instance, Isolation, Limits, Loader, Manager, ManagerOptions, Platform, PluginStatus,
    PortService, SinkHandle, Sinks, StartError, Stats,
};
use pilot_plugin::{Batch, Delivery, JoinRequest, Manifest, Peer, Verdict};
use pilot_wire::{Address, SocketAddress};
use serde_json::{Map, Value, json};

/// What a file says.
#[derive(Clone, Debug, serde::Deserialize)]
struct Text {
    manifest: Manifest,
    /// Told apart from others.
    #[serde(default)]
    label: String,
    /// Fails with this: `open`, `start`, `self-test`, `validate`.
    #[serde(default)]
    fails: String,
    /// Never ends when it is drained.
    #[serde(default)]
    stuck: bool,
}

pub(crate) struct Fake {
    pub(crate) name: String,
    pub(crate) label: String,
    pub(crate) generation: u64,
    pub(crate) config: Value,
    pub(crate) context: Context,
    text: Text,
    pub(crate) stats: Mutex<Stats>,
    pub(crate) streams: Mutex<Vec<BoxStream>>,
    pub(crate) opened: AtomicUsize,
    pub(crate) drained: Mutex<Option<Duration>>,
    late: AtomicUsize,
}

impl Fake {
    pub(crate) fn report(&self, incident: Incident) {
        self.context.observer.incident(&self.name, self.generation, incident);
    }

    pub(crate) fn panicked(&self) {
        self.report(Incident::Panicked { callback: "serve", text: "oh".to_owned() });
    }

    /// Streams that came after it was told to drain.
    pub(crate) fn late(&self) -> usize {
        self.late.load(Ordering::SeqCst)
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.drained.lock().unwrap().is_some()
    }

    /// Its streams are over.
    pub(crate) fn finish(&self) {
        self.streams.lock().unwrap().clear();
        self.end_if_done();
    }

    fn end_if_done(&self) {
        if self.is_drained() && !self.text.stuck && self.streams.lock().unwrap().is_empty() {
            self.stats.lock().unwrap().ended = true;
        }
    }
}

impl Instance for Fake {
    fn open(&self, mut stream: BoxStream) {
        if self.is_drained() {
            self.late.fetch_add(1, Ordering::SeqCst);
        }
        self.opened.fetch_add(1, Ordering::SeqCst);
        stream.write(Bytes::from(self.generation.to_string()));
        self.streams.lock().unwrap().push(stream);
    }

    fn datagram(&self, _: SocketAddress, _: u16, _: Bytes) {
        self.opened.fetch_add(1, Ordering::SeqCst);
    }

    fn validate(&self, request: JoinRequest) -> BoxFuture<Result<Verdict, Failure>> {
        match self.text.fails.as_str() {
            "validate" => Box::pin(async { Err(Failure::Crashed("oh".to_owned())) }),
            "silence" => Box::pin(std::future::pending()),
            _ => Box::pin(async move {
                Ok(match request.owner.as_str() {
                    "friend" => Verdict::allow(),
                    _ => Verdict::deny("not a friend"),
                })
            }),
        }
    }

    fn deliver(&self, batch: Batch) -> BoxFuture<Result<Delivery, Failure>> {
        let answer = Delivery::retry(format!("{} has {}", self.label, batch.sink));
        Box::pin(async move { Ok(answer) })
    }

    fn drain(&self, deadline: Duration) {
        *self.drained.lock().unwrap() = Some(deadline);
        if deadline.is_zero() {
            self.streams.lock().unwrap().clear();
        }
        self.end_if_done();
    }

    fn stats(&self) -> Stats {
        let mut stats = self.stats.lock().unwrap().clone();
        stats.streams = self.streams.lock().unwrap().len();
        stats.streams_total = self.opened.load(Ordering::SeqCst) as u64;
        stats
    }
}

struct Opened {
    text: Text,
    made: Arc<Mutex<Vec<Arc<Fake>>>>,
}

impl Backend for Opened {
    fn manifest(&self) -> &Manifest {
        &self.text.manifest
    }

    fn start(&self, config: &Value, context: Context) -> Result<Arc<dyn Instance>, StartError> {
        match self.text.fails.as_str() {
            "start" => return Err(StartError::Refused("no".to_owned())),
            "timeout" => return Err(StartError::Timeout(Duration::from_millis(1))),
            "self-test" => return Err(StartError::SelfTest("not fit".to_owned())),
            "panic" => panic!("oh no"),
            _ => {}
        }
        let fake = Arc::new(Fake {
            name: context.name.to_string(),
            label: self.text.label.clone(),
            generation: context.generation,
            config: config.clone(),
            context,
            text: self.text.clone(),
            stats: Mutex::default(),
            streams: Mutex::default(),
            opened: AtomicUsize::new(0),
            drained: Mutex::default(),
            late: AtomicUsize::new(0),
        });
        self.made.lock().unwrap().push(Arc::clone(&fake));
        Ok(fake)
    }
}

/// Opens files of ours.
#[derive(Default)]
pub(crate) struct Files {
    pub(crate) made: Arc<Mutex<Vec<Arc<Fake>>>>,
    pub(crate) opened: Mutex<Vec<(PathBuf, Isolation)>>,
}

impl Loader for Files {
    fn open(
        &self,
        _: FileKind,
        path: &Path,
        isolation: Isolation,
        _: &Limits,
    ) -> Result<Arc<dyn Backend>, String> {
        self.opened.lock().unwrap().push((path.to_owned(), isolation));
        let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
        let json = bytes.strip_prefix(elf().as_slice()).unwrap_or(&bytes);
        let text: Text = serde_json::from_slice(json).map_err(|e| e.to_string())?;
        if text.fails == "open" {
            return Err("it has no entry".to_owned());
        }
        if text.fails == "hang" {
            return Err("x.so: does not finish loading within 10 s".to_owned());
        }
        Ok(Arc::new(Opened { text, made: Arc::clone(&self.made) }))
    }
}

/// The smallest file that is a library as far as one can tell from outside.
pub(crate) fn elf() -> Vec<u8> {
    let mut header = vec![0_u8; 64];
    header[..6].copy_from_slice(b"\x7fELF\x02\x01");
    header[16] = 3;
    header[32] = 64;
    header[40] = 64;
    header[54] = 56;
    header[58] = 64;
    header
}

/// The process around the manager.
#[derive(Default)]
pub(crate) struct Process {
    pub(crate) ports: Mutex<BTreeMap<u16, Arc<dyn PortService>>>,
    pub(crate) listened: AtomicUsize,
    pub(crate) refuses: AtomicBool,
    pub(crate) events: Mutex<Vec<(String, Map<String, Value>)>>,
}

impl Process {
    pub(crate) fn port(&self, port: u16) -> Option<Arc<dyn PortService>> {
        self.ports.lock().unwrap().get(&port).cloned()
    }

    /// Events of this name about this plugin.
    pub(crate) fn events(&self, name: &str, plugin: &str) -> Vec<Map<String, Value>> {
        let events = self.events.lock().unwrap();
        let about = |data: &Map<String, Value>| data.get("name").is_none_or(|p| p == plugin);
        events.iter().filter(|(n, data)| n == name && about(data)).map(|e| e.1.clone()).collect()
    }
}

impl Platform for Process {
    fn address(&self) -> Option<Address> {
        None
    }

    fn peer(&self, remote: SocketAddress) -> Peer {
        Peer::at(remote)
    }

    fn dial(&self, _: &str) -> BoxFuture<Result<BoxStream, String>> {
        Box::pin(async { Err("not here".to_owned()) })
    }

    fn send_datagram(&self, _: SocketAddress, _: u16, _: Bytes) -> Result<(), String> {
        Err("not here".to_owned())
    }

    fn call(&self, method: &str, _: Value) -> BoxFuture<Result<Value, CallError>> {
        let method = method.to_owned();
        Box::pin(async { Err(CallError::Unknown(method)) })
    }

    fn tell(&self, happening: pilot_host::events::Happening) {
        let data = happening.data().unwrap_or_default();
        self.events.lock().unwrap().push((happening.name().to_owned(), data));
    }

    fn emit(&self, name: &str, data: Map<String, Value>) {
        self.events.lock().unwrap().push((name.to_owned(), data));
    }

    fn listen(&self, port: u16, service: Arc<dyn PortService>) -> BoxFuture<Result<(), String>> {
        if self.refuses.load(Ordering::SeqCst) {
            return Box::pin(async { Err("an agent has it".to_owned()) });
        }
        self.ports.lock().unwrap().insert(port, service);
        self.listened.fetch_add(1, Ordering::SeqCst);
        Box::pin(async { Ok(()) })
    }

    fn unlisten(&self, port: u16) {
        self.ports.lock().unwrap().remove(&port);
    }
}

/// What a stream did, seen from the peer's side.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) wrote: Mutex<Vec<String>>,
    pub(crate) reset: Mutex<Option<String>>,
}

pub(crate) struct Stream(pub(crate) Arc<Seen>);

impl HostStream for Stream {
    fn remote(&self) -> SocketAddress {
        "0:0000.0000.0001:9".parse().unwrap()
    }

    fn local_port(&self) -> u16 {
        7
    }

    fn poll_read(&mut self, _: &mut TaskContext<'_>) -> Poll<io::Result<Option<Bytes>>> {
        Poll::Pending
    }

    fn poll_room(&mut self, _: &mut TaskContext<'_>) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(1))
    }

    fn write(&mut self, data: Bytes) {
        self.0.wrote.lock().unwrap().push(String::from_utf8_lossy(&data).into_owned());
    }

    fn shutdown(&mut self) {}

    fn reset(&mut self, reason: &str) {
        *self.0.reset.lock().unwrap() = Some(reason.to_owned());
    }
}

/// The journal.
#[derive(Default)]
pub(crate) struct Journal {
    pub(crate) sinks: Arc<Mutex<HashMap<String, (Value, Deliver)>>>,
    pub(crate) log: Arc<Mutex<Vec<String>>>,
}

struct Attached {
    sink: String,
    sinks: Arc<Mutex<HashMap<String, (Value, Deliver)>>>,
    log: Arc<Mutex<Vec<String>>>,
}

impl Sinks for Journal {
    fn attach(
        &self,
        sink: &str,
        settings: &Value,
        deliver: Deliver,
    ) -> Result<Box<dyn SinkHandle>, String> {
        let mut handle = Attached {
            sink: sink.to_owned(),
            sinks: Arc::clone(&self.sinks),
            log: Arc::new(Mutex::default()),
        };
        handle.replace(settings, deliver)?;
        handle.log = Arc::clone(&self.log);
        self.log.lock().unwrap().push(format!("attach {sink}"));
        Ok(Box::new(handle))
    }
}

impl SinkHandle for Attached {
    fn replace(&mut self, settings: &Value, deliver: Deliver) -> Result<(), String> {
        if settings.get("bad").is_some() {
            return Err("there is no setting \"bad\"".to_owned());
        }
        let new = (settings.clone(), deliver);
        self.sinks.lock().unwrap().insert(self.sink.clone(), new);
        self.log.lock().unwrap().push(format!("replace {}", self.sink));
        Ok(())
    }

    fn detach(self: Box<Self>) {
        self.sinks.lock().unwrap().remove(&self.sink);
        self.log.lock().unwrap().push(format!("detach {}", self.sink));
    }

    fn status(&self) -> Value {
        json!({ "waiting": 0 })
    }
}

/// A manager with its folders.
pub(crate) struct World {
    pub(crate) root: tempfile::TempDir,
    pub(crate) loader: Arc<Files>,
    pub(crate) process: Arc<Process>,
    pub(crate) journal: Arc<Journal>,
    pub(crate) manager: Option<Manager>,
}

impl World {
    /// Folders `plugins`, `scripts`, `shipped`, and no manager yet.
    pub(crate) fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        for folder in ["plugins", "scripts", "shipped"] {
            std::fs::create_dir(root.path().join(folder)).unwrap();
        }
        Self {
            root,
            loader: Arc::default(),
            process: Arc::default(),
            journal: Arc::default(),
            manager: None,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub(crate) fn options(&self) -> ManagerOptions {
        let mut options = ManagerOptions::new(self.path("data"));
        options.config_file = Some(self.path("pilot.yaml"));
        options.shipped = vec![self.path("shipped")];
        options
    }

    /// Writes the configuration; the folders are always named.
    pub(crate) fn config(&self, text: &str) {
        let text = format!("plugin-dirs: [plugins]\nscript-dirs: [scripts]\n{text}");
        std::fs::write(self.path("pilot.yaml"), text).unwrap();
    }

    pub(crate) fn start(&mut self, options: ManagerOptions) {
        if !self.path("pilot.yaml").exists() {
            self.config("");
        }
        let manager = Manager::start(
            options,
            Arc::clone(&self.loader) as Arc<dyn Loader>,
            Arc::clone(&self.journal) as Arc<dyn Sinks>,
            Arc::clone(&self.process) as Arc<dyn Platform>,
        );
        let manager = manager.unwrap();
        block(manager.ready());
        self.manager = Some(manager);
    }

    pub(crate) fn manager(&self) -> &Manager {
        self.manager.as_ref().unwrap()
    }

    pub(crate) fn status(&self, name: &str) -> PluginStatus {
        self.manager().status(name).unwrap_or_else(|| panic!("no {name}"))
    }

    pub(crate) fn reload(&self) -> pilot_host::ReloadReport {
        block(self.manager().reload())
    }

    /// Instances of this name, in the order they were made.
    pub(crate) fn made(&self, name: &str) -> Vec<Arc<Fake>> {
        self.loader.made.lock().unwrap().iter().filter(|f| f.name == name).cloned().collect()
    }

    pub(crate) fn last(&self, name: &str) -> Arc<Fake> {
        self.made(name).pop().unwrap_or_else(|| panic!("no {name}"))
    }

    /// Opens a stream; gives what came of it.
    pub(crate) fn open(&self, port: u16) -> Arc<Seen> {
        let seen = Arc::new(Seen::default());
        let service = self.process.port(port).unwrap_or_else(|| panic!("nobody on {port}"));
        service.open(Box::new(Stream(Arc::clone(&seen))));
        seen
    }

    /// The text of a refused stream.
    pub(crate) fn refused(&self, port: u16) -> String {
        self.open(port).reset.lock().unwrap().clone().expect("it was refused")
    }

    /// Has the watcher go round once: changes a file of its own and waits until
    /// that has been seen, so that what was changed before has been seen too.
    pub(crate) fn settle(&self, round: usize) {
        let label = format!("round-{round}");
        script(&self.path("scripts/sentinel.lua"), &label, &[]);
        let seen = || self.made("sentinel").last().is_some_and(|f| f.label == label);
        until("the sentinel was loaded", seen);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(manager) = self.manager.take() {
            block(manager.shutdown(Duration::ZERO));
        }
    }
}

pub(crate) fn text(label: &str, ports: &[u16], more: &Value) -> String {
    let mut text = json!({
        "manifest": Manifest::new("fake", "1.0").service("main", ports),
        "label": label,
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        match key.as_str() {
            "fails" | "stuck" => text[key] = value.clone(),
            _ => text["manifest"][key] = value.clone(),
        }
    }
    text.to_string()
}

/// Writes a script that answers on these ports.
pub(crate) fn script(path: &Path, label: &str, ports: &[u16]) {
    std::fs::write(path, text(label, ports, &Value::Null)).unwrap();
}

/// Writes a library that answers on these ports.
pub(crate) fn library(path: &Path, label: &str, ports: &[u16]) {
    library_with(path, label, ports, &Value::Null);
}

pub(crate) fn library_with(path: &Path, label: &str, ports: &[u16], more: &Value) {
    let bytes = [elf(), text(label, ports, more).into_bytes()].concat();
    std::fs::write(path, bytes).unwrap();
}

/// Waits for something that must come.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < end, "it never came: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits for an answer.
pub(crate) fn block<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}
