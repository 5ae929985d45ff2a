//! The child: runs one library as `native` does, with the parent as its
//! platform. Its socket is standard input.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc as sync_mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use pilot_plugin::{Batch, JoinRequest, Peer, abi};
use pilot_wire::{Address, SocketAddress};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use serde_json::{Map, Value};
use tokio::io::{AsyncWriteExt, BufReader, BufWriter};
use tokio::net::UnixStream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context as LayerContext, Layer, SubscriberExt};

use super::frames::{self, Frame, Kind, broken};
use super::pipe::{ChildStream, Pipe};
use super::talk::{
    Answered, BUILD, Began, Called, DatagramHead, Emitted, FailureTold, IncidentTold, Line, Load,
    LoadBuild, OWN_MEMORY, Opened, StatsTold, StoreRequest,
};
use crate::events::Happening;
use crate::instance::{
    Backend, BoxFuture, Context, Incident, Instance, KeyValue, Limits, Observer, StoreError,
};
use crate::native::open_native;
use crate::platform::{CallError, Platform, PortService};
use crate::stream::BoxStream;

/// Files that a child may have open.
const FILES: u64 = 1024;
/// How often it says how it stands.
const STATS: Duration = Duration::from_secs(1);
/// How often it looks whether it has ended.
const LOOK: Duration = Duration::from_millis(20);
/// How long what was written last may take when nobody said until when.
const REST: Duration = Duration::from_secs(5);

/// Runs the child until its plugin has ended or the parent has gone.
///
/// # Errors
/// When the socket breaks, or the parent says something that makes no sense.
pub fn run_child() -> io::Result<()> {
    // The parent's end, whatever its reason, is the child's.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let socket = std::os::unix::net::UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    socket.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(async { run(UnixStream::from_std(socket)?).await });
    // A plugin that hangs does not keep the process.
    runtime.shutdown_background();
    ended
}

async fn run(socket: UnixStream) -> io::Result<()> {
    let (read, write) = socket.into_split();
    let (out, queue) = unbounded_channel();
    let (stop, stopped) = oneshot::channel();
    let writer = tokio::spawn(write_frames(BufWriter::new(write), queue, stopped));
    log_to(&out);
    let mut child = Child::new(Far::new(out));
    let mut read = BufReader::with_capacity(256 << 10, read);
    let mut stats = tokio::time::interval(STATS);
    let mut look = tokio::time::interval(LOOK);
    let (frames, mut arriving) = tokio::sync::mpsc::channel(64);
    let reader = tokio::spawn(async move {
        while let Some(frame) = frames::read(&mut read).await? {
            if frames.send(frame).await.is_err() {
                break;
            }
        }
        io::Result::Ok(())
    });
    loop {
        tokio::select! {
            frame = arriving.recv() => match frame {
                Some(frame) => child.frame(frame)?,
                None => break,
            },
            _ = stats.tick() => child.tell_stats(),
            _ = look.tick() => if child.may_end() { break },
        }
    }
    child.tell_stats();
    reader.abort();
    drop(child);
    // The log keeps a sender, so the queue does not end by itself.
    let _ = stop.send(());
    // What was written last should arrive: the parent reads until the end.
    let _ = tokio::time::timeout(Duration::from_secs(5), writer).await;
    Ok(())
}

async fn write_frames(
    mut to: impl tokio::io::AsyncWrite + Unpin,
    mut queue: UnboundedReceiver<Frame>,
    mut stopped: oneshot::Receiver<()>,
) -> io::Result<()> {
    loop {
        tokio::select! {
            biased;
            Some(frame) = queue.recv() => {
                frames::write(&mut to, &frame).await?;
                if queue.is_empty() {
                    to.flush().await?;
                }
            }
            _ = &mut stopped => return to.flush().await,
        }
    }
}

struct Child {
    far: Arc<Far>,
    load: Option<Load>,
    backend: Option<Arc<dyn Backend>>,
    instance: Arc<Mutex<Option<Arc<dyn Instance>>>>,
    /// Until when it is to end, once that is known.
    until: Option<Instant>,
}

impl Child {
    fn new(far: Arc<Far>) -> Self {
        Self { far, load: None, backend: None, instance: Arc::default(), until: None }
    }

    fn instance(&self) -> Option<Arc<dyn Instance>> {
        self.instance.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the plugin has ended and what it wrote is sent, or out of time.
    fn may_end(&mut self) -> bool {
        if !self.instance().is_some_and(|instance| instance.stats().ended) {
            return false;
        }
        let now = Instant::now();
        let until = *self.until.get_or_insert(now + REST);
        !self.far.has_unsent() || now >= until
    }

    fn tell_stats(&self) {
        let told = self.instance().map_or_else(StatsTold::default, |instance| {
            let stats = instance.stats();
            StatsTold {
                queue: stats.queue,
                calls: stats.calls,
                errors: stats.errors,
                last_error: stats.last_error,
            }
        });
        self.far.send(Frame::json(Kind::Stats, 0, &told));
    }

    fn frame(&mut self, frame: Frame) -> io::Result<()> {
        match frame.kind {
            Kind::Load => {
                let LoadBuild { build } = frame.parse()?;
                if build == BUILD {
                    self.load(frame.parse()?);
                } else {
                    self.not_opened(format!(
                        "the daemon and its pilot-plugin-host are of different builds ({build} \
                         and {BUILD}): restart the daemon"
                    ));
                }
            }
            Kind::Start => self.start(frame.parse()?)?,
            Kind::Open => {
                let Opened { peer, port } = frame.parse()?;
                let stream = self.far.stream(frame.id, peer, port);
                if let Some(instance) = self.instance() {
                    instance.open(stream);
                }
            }
            Kind::Data | Kind::End | Kind::Reset | Kind::Credit => {
                if let Some(pipe) = self.far.pipe(frame.id) {
                    pipe.take(frame);
                }
            }
            Kind::Datagram => {
                let (DatagramHead { far, port }, data) = frame.parse_with_data()?;
                if let Some(instance) = self.instance() {
                    instance.datagram(far, port, data);
                }
            }
            Kind::Validate => {
                let request: JoinRequest = frame.parse()?;
                self.ask(frame.id, Kind::Verdict, |instance| instance.validate(request));
            }
            Kind::Deliver => {
                let (sink, lines): (String, Bytes) = frame.parse_with_data()?;
                let lines = String::from_utf8_lossy(&lines).into_owned();
                let batch = Batch { sink, lines };
                self.ask(frame.id, Kind::Delivery, |instance| instance.deliver(batch));
            }
            Kind::Drain => {
                let deadline = frame.parse()?;
                let now = Instant::now();
                self.until = Some(now.checked_add(deadline).unwrap_or(now));
                if let Some(instance) = self.instance() {
                    instance.drain(deadline);
                }
            }
            Kind::Answer => self.far.answered(&frame)?,
            kind => return Err(broken(&format!("a {kind:?} frame is not for a child"))),
        }
        Ok(())
    }

    fn ask<T: serde::Serialize + Send + 'static>(
        &self,
        id: u64,
        kind: Kind,
        ask: impl FnOnce(&dyn Instance) -> BoxFuture<Result<T, crate::Failure>>,
    ) {
        let Some(instance) = self.instance() else { return };
        let (answer, far) = (ask(&*instance), Arc::clone(&self.far));
        tokio::spawn(async move {
            let told = answer.await.map_err(FailureTold::from);
            far.send(Frame::json(kind, id, &told));
        });
    }

    fn not_opened(&self, text: String) {
        self.far.send(Frame::json(Kind::Started, 0, &Began::NotOpened(text)));
    }

    fn load(&mut self, load: Load) {
        if let Err(text) = limit(load.limits.memory) {
            return self.not_opened(text);
        }
        match open_native(&load.path) {
            Ok(backend) => {
                self.far.send(Frame::json(Kind::Manifest, 0, backend.manifest()));
                self.backend = Some(backend);
            }
            Err(e) => self.not_opened(e.to_string()),
        }
        self.load = Some(load);
    }

    /// On another thread: what the plugin asks while it starts is answered
    /// here.
    fn start(&mut self, config: Value) -> io::Result<()> {
        let (Some(backend), Some(load)) = (self.backend.take(), &self.load) else {
            return Err(broken("start comes before load"));
        };
        let far = Arc::clone(&self.far);
        let context = Context {
            name: load.name.as_str().into(),
            generation: load.generation,
            platform: Arc::clone(&far) as _,
            store: Arc::clone(&far) as _,
            observer: Arc::clone(&far) as _,
            limits: Limits::from(&load.limits),
            granted: load.granted.clone().into(),
        };
        let slot = Arc::clone(&self.instance);
        tokio::task::spawn_blocking(move || {
            let began = match backend.start(&config, context) {
                Ok(instance) => {
                    *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(instance);
                    Began::Yes
                }
                Err(e) => Began::from(e),
            };
            far.send(Frame::json(Kind::Started, 0, &began));
        });
        Ok(())
    }
}

/// What the system enforces. Nothing is loaded without.
fn limit(memory: u64) -> Result<(), String> {
    for (resource, value) in [
        (Resource::Data, memory.saturating_add(OWN_MEMORY)),
        (Resource::Core, 0),
        (Resource::Nofile, FILES),
    ] {
        // A limit that is stricter already stays.
        let value = getrlimit(resource).maximum.map_or(value, |maximum| maximum.min(value));
        setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) })
            .map_err(|e| format!("the limit {resource:?} = {value} cannot be set: {e}"))?;
    }
    Ok(())
}

enum Waiting {
    Dial(oneshot::Sender<Result<BoxStream, String>>),
    Call(oneshot::Sender<Answered>),
    Store(sync_mpsc::SyncSender<(Answered, Bytes)>),
}

/// The parent, as the plugin's platform, store and observer.
struct Far {
    out: UnboundedSender<Frame>,
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, Waiting>>,
    pipes: Mutex<HashMap<u64, (Arc<Pipe>, SocketAddress)>>,
    peers: Mutex<HashMap<SocketAddress, Peer>>,
}

impl Far {
    fn new(out: UnboundedSender<Frame>) -> Arc<Self> {
        Arc::new(Self {
            out,
            next: AtomicU64::new(1),
            waiting: Mutex::default(),
            pipes: Mutex::default(),
            peers: Mutex::default(),
        })
    }

    fn send(&self, frame: Frame) {
        // Without a socket the process is about to end.
        let _ = self.out.send(frame);
    }

    fn pipe(&self, id: u64) -> Option<Arc<Pipe>> {
        let pipes = self.pipes.lock().unwrap_or_else(PoisonError::into_inner);
        pipes.get(&id).map(|(pipe, _)| Arc::clone(pipe))
    }

    fn has_unsent(&self) -> bool {
        let pipes = self.pipes.lock().unwrap_or_else(PoisonError::into_inner);
        pipes.values().any(|(pipe, _)| pipe.has_unsent())
    }

    fn stream(&self, id: u64, peer: Peer, port: u16) -> BoxStream {
        let remote = peer.address;
        let pipe = Pipe::new(id, self.out.clone());
        let mut pipes = self.pipes.lock().unwrap_or_else(PoisonError::into_inner);
        // Streams that are closed are known by their pipe alone.
        pipes.retain(|_, (pipe, _)| Arc::strong_count(pipe) > 1 || pipe.has_unsent());
        pipes.insert(id, (Arc::clone(&pipe), remote));
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if peers.len() > 2 * pipes.len() + 16 {
            peers.retain(|address, _| pipes.values().any(|(_, remote)| remote == address));
        }
        peers.insert(remote, peer);
        Box::new(ChildStream { pipe, remote, port, gone: false })
    }

    fn ask(&self, waiting: Waiting) -> u64 {
        let token = self.next.fetch_add(1, Ordering::Relaxed);
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(token, waiting);
        token
    }

    fn answered(&self, frame: &Frame) -> io::Result<()> {
        let answer = frame.parse_with_data()?;
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = waiting.remove(&frame.id);
        drop(waiting);
        // Nobody may wait any more.
        match waits {
            Some(Waiting::Dial(sender)) => {
                // The stream is known before its first bytes come.
                drop(sender.send(match answer {
                    (Answered::Stream(id), peer) => {
                        let peer = serde_json::from_slice(&peer)
                            .map_err(|e| broken(&format!("a peer is not valid: {e}")))?;
                        Ok(self.stream(id, peer, 0))
                    }
                    (Answered::Failed(text), _) => Err(text),
                    _ => Err("the host's answer makes no sense".to_owned()),
                }));
            }
            Some(Waiting::Call(sender)) => drop(sender.send(answer.0)),
            Some(Waiting::Store(sender)) => drop(sender.send(answer)),
            None => {}
        }
        Ok(())
    }

    fn store(&self, request: &StoreRequest, value: &[u8]) -> Result<(Answered, Bytes), StoreError> {
        let (sender, answer) = sync_mpsc::sync_channel(1);
        let token = self.ask(Waiting::Store(sender));
        self.send(Frame::with_data(Kind::Store, token, request, value));
        let (answered, data) =
            answer.recv().map_err(|_| StoreError::Disk("the host has gone".to_owned()))?;
        match answered {
            Answered::Quota { wanted, quota } => {
                Err(StoreError::Quota { plugin: "this plugin".to_owned(), wanted, quota })
            }
            Answered::Failed(text) => Err(StoreError::Disk(text)),
            answered => Ok((answered, data)),
        }
    }
}

impl Platform for Far {
    fn address(&self) -> Option<Address> {
        None
    }

    fn peer(&self, remote: SocketAddress) -> Peer {
        let peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        peers.get(&remote).cloned().unwrap_or_else(|| Peer::at(remote))
    }

    fn dial(&self, to: &str) -> BoxFuture<Result<BoxStream, String>> {
        let (sender, answer) = oneshot::channel();
        let token = self.ask(Waiting::Dial(sender));
        self.send(Frame::new(Kind::Dial, token, to.to_owned()));
        Box::pin(
            async move { answer.await.unwrap_or_else(|_| Err("the host has gone".to_owned())) },
        )
    }

    fn send_datagram(&self, far: SocketAddress, port: u16, data: Bytes) -> Result<(), String> {
        self.send(Frame::with_data(Kind::Datagram, 0, &DatagramHead { far, port }, &data));
        Ok(())
    }

    fn call(&self, method: &str, request: Value) -> BoxFuture<Result<Value, CallError>> {
        let called = Called { method: method.to_owned(), request };
        let (sender, answer) = oneshot::channel();
        let token = self.ask(Waiting::Call(sender));
        self.send(Frame::json(Kind::Call, token, &called));
        Box::pin(async move {
            match answer.await {
                Ok(Answered::Value(value)) => Ok(value),
                Ok(Answered::UnknownMethod(method)) => Err(CallError::Unknown(method)),
                Ok(Answered::Failed(text)) => Err(CallError::Failed(text)),
                _ => Err(CallError::Failed("the host has gone".to_owned())),
            }
        })
    }

    fn emit(&self, name: &str, data: Map<String, Value>) {
        self.send(Frame::json(Kind::Emit, 0, &Emitted { name: name.to_owned(), data }));
    }

    fn tell(&self, happening: Happening) {
        // Nothing in a child is the host; what it says is a plugin's.
        self.emit(happening.name(), happening.data().unwrap_or_default());
    }

    fn listen(&self, _: u16, _: Arc<dyn PortService>) -> BoxFuture<Result<(), String>> {
        Box::pin(std::future::ready(Err("a child does not listen".to_owned())))
    }

    fn unlisten(&self, _: u16) {}
}

impl Observer for Far {
    fn incident(&self, _: &str, _: u64, incident: Incident) {
        self.send(Frame::json(Kind::Incident, 0, &IncidentTold::from(incident)));
    }
}

impl KeyValue for Far {
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let (answered, value) = self.store(&StoreRequest::Get(key.to_owned()), &[])?;
        Ok(matches!(answered, Answered::Found).then(|| value.to_vec()))
    }

    fn put(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        self.store(&StoreRequest::Put(key.to_owned()), value).map(drop)
    }

    fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.store(&StoreRequest::Delete(key.to_owned()), &[]).map(drop)
    }

    fn keys(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        match self.store(&StoreRequest::Keys(prefix.to_owned()), &[])?.0 {
            Answered::Keys(keys) => Ok(keys),
            _ => Ok(Vec::new()),
        }
    }
}

/// Sends what is logged here to the parent.
fn log_to(out: &UnboundedSender<Frame>) {
    let subscriber = tracing_subscriber::registry().with(Forward { out: out.clone() });
    // A second child in one process keeps the first; there is one.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

struct Forward {
    out: UnboundedSender<Frame>,
}

impl<S: tracing::Subscriber> Layer<S> for Forward {
    fn on_event(&self, event: &tracing::Event<'_>, _: LayerContext<'_, S>) {
        let level = match *event.metadata().level() {
            tracing::Level::ERROR => abi::LOG_ERROR,
            tracing::Level::WARN => abi::LOG_WARN,
            tracing::Level::INFO => abi::LOG_INFO,
            _ => abi::LOG_DEBUG,
        };
        let mut text = Text(String::new());
        event.record(&mut text);
        let frame = Frame::json(Kind::Log, 0, &Line { level, text: text.0 });
        // Without a socket the process is about to end.
        let _ = self.out.send(frame);
    }
}

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}
