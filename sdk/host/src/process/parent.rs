//! The parent's side: starts a child, carries streams, questions and answers,
//! and knows what to make of a child's end.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ChildStderr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc as sync_mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use pilot_plugin::{Batch, Delivery, JoinRequest, Manifest, Verdict};
use pilot_wire::SocketAddress;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader, BufWriter};
use tokio::net::UnixStream;
use tokio::sync::mpsc::{Receiver, Sender, UnboundedSender, channel, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task::{JoinSet, LocalSet};

use super::carry::carry;
use super::frames::{self, Frame, Kind, broken};
use super::own::{END_LIMIT, Lines, Process, said, usage};
use super::queue::{MAX_QUEUED, Out, ROOM, queue};
use super::rate::Rate;
use super::talk::{
    Answered, BUILD, Began, Called, DatagramHead, Emitted, FailureTold, IncidentTold, LimitsTold,
    Line, Load, OWN_MEMORY, Opened, StatsTold, StoreRequest,
};
use crate::instance::{
    Backend, BoxFuture, Context, Failure, Incident, Instance, KeyValue, Limits, StartError, Stats,
    StoreError,
};
use crate::platform::CallError;
use crate::stream::BoxStream;

/// The program that a child runs.
const PROGRAM: &str = "pilot-plugin-host";
/// How long opening the library may take.
const OPEN_LIMIT: Duration = Duration::from_secs(15);
/// A child that says nothing for so long is killed; it speaks every second.
const SILENCE: Duration = Duration::from_secs(10);
/// Questions of the child to the platform under way; one more is refused.
const MAX_CALLS: usize = 1024;
/// Streams, questions and datagrams that wait to be passed to the child; one
/// more is refused.
const ORDERS: usize = 4096;
/// Requests to the store under way; one more is refused. A plugin waits for
/// each, so that there is one.
const MAX_STORES: usize = 4;
/// Verdicts and deliveries that are waited for; one more fails.
const MAX_QUESTIONS: usize = 4096;
/// Lines for the log that a child may write each second, and failures that it
/// may report; more are counted and left out.
const LINES: u32 = 200;
/// Longest text that is taken from a child, in bytes; the rest is cut off.
const MAX_TEXT: usize = 64 << 10;
/// Frames and bytes that a child may send while it starts; more is an error.
const EARLY: (usize, usize) = (4096, 16 << 20);
/// Resident pages of files, which the limit that the system enforces leaves
/// out.
const FILE_PAGES: u64 = 64 << 20;
/// How long a child that has ended may still be read from, when something that
/// it started holds its socket.
const REMAINS: Duration = Duration::from_secs(1);
/// How often the child is looked after.
const TICK: Duration = Duration::from_millis(50);

/// Why a library cannot be used in a process of its own.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProcessError {
    /// The program that children run is not there.
    #[error(
        "isolation: process needs the program {PROGRAM}, which is not in {}; install it beside \
         the daemon",
        searched.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(" nor in ")
    )]
    Program {
        /// Where it was looked for.
        searched: Vec<PathBuf>,
    },
    /// The child could not be started, or ended at once.
    #[error("{}: the process for it failed: {why}", path.display())]
    Child {
        /// The library.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The child could not open the library.
    #[error("{0}")]
    Open(String),
}

/// A library that is opened in a child for every instance.
struct Isolated {
    path: PathBuf,
    program: PathBuf,
    manifest: Manifest,
}

/// Reads the manifest of a library in a child process, and has every instance
/// run in one of its own. Nothing of the library runs in this process.
///
/// # Errors
/// When there is no program for children, or the library cannot be used.
pub fn open_process(path: &Path, limits: &Limits) -> Result<Arc<dyn Backend>, ProcessError> {
    let program = program()?;
    let (owned, run, limits) = (path.to_owned(), program.clone(), LimitsTold::from(limits));
    // On a thread of its own: the caller's may belong to a runtime.
    let read = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(|e| e.to_string())?.block_on(async {
            let mut begun = Begun::spawn(&run).map_err(|e| format!("{}: {e}", run.display()))?;
            let load = Load {
                build: BUILD.to_owned(),
                path: owned,
                name: "manifest".to_owned(),
                generation: 0,
                limits,
                granted: Vec::new(),
            };
            let manifest = begun.load(&load).await;
            begun.process.kill();
            manifest.map_err(|e| e.to_string())
        })
    });
    let child = |why: String| ProcessError::Child { path: path.to_owned(), why };
    let read = read.join().map_err(|_| child("its thread panicked".to_owned()))?;
    let manifest = read.map_err(child)?.map_err(ProcessError::Open)?;
    crate::instance::check_manifest(&manifest).map_err(child)?;
    Ok(Arc::new(Isolated { path: path.to_owned(), program, manifest }))
}

fn program() -> Result<PathBuf, ProcessError> {
    let mut searched = Vec::new();
    if let Ok(exe) = std::env::current_exe() {
        // Tests lie one folder deeper.
        let deep = exe.parent().is_some_and(|folder| folder.ends_with("deps"));
        for folder in exe.ancestors().skip(1).take(if deep { 2 } else { 1 }) {
            let file = folder.join(PROGRAM);
            if file.is_file() {
                return Ok(file);
            }
            searched.push(folder.to_owned());
        }
    }
    Err(ProcessError::Program { searched })
}

/// A child whose socket is connected.
struct Begun {
    process: Process,
    socket: UnixStream,
    /// What it said while it started, not yet acted on.
    early: Vec<Frame>,
}

impl Begun {
    fn spawn(program: &Path) -> io::Result<Self> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let process = Process::spawn(program, "child", OwnedFd::from(theirs))?;
        Ok(Self { process, socket: UnixStream::from_std(ours)?, early: Vec::new() })
    }

    /// Has the library opened; its manifest, or why it cannot be.
    async fn load(&mut self, load: &Load) -> io::Result<Result<Manifest, String>> {
        let Self { process, socket, .. } = self;
        let opened = async {
            frames::write(socket, &Frame::json(Kind::Load, 0, load)).await?;
            loop {
                match frames::read(socket).await? {
                    None => return Err(broken("the child ended while it opened the library")),
                    Some(frame) if frame.kind == Kind::Manifest => return Ok(Ok(frame.parse()?)),
                    Some(frame) if frame.kind == Kind::Started => {
                        let why = frame.parse::<Began>()?.into_result();
                        return Ok(Err(match why {
                            Err(StartError::Refused(text)) => text,
                            other => format!("{other:?}"),
                        }));
                    }
                    Some(_) => {}
                }
            }
        };
        let late = || broken("the library does not finish loading");
        let opened = watching(process, tokio::time::timeout(OPEN_LIMIT, opened)).await;
        let opened = opened.unwrap_or_else(|_| Err(late()));
        match opened {
            Ok(opened) => Ok(opened),
            Err(e) => Err(broken(&self.process.last_words(&e.to_string()).await)),
        }
    }
}

/// Waits for `work`, which reads from a child. What a child that has ended
/// started would hold its socket open, so it is ended too.
async fn watching<T>(process: &Process, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    let mut tick = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = tick.tick() => if process.has_ended() {
                process.kill_group();
            }
        }
    }
}

/// Keeps a frame until the instance has started.
fn keep(early: &mut Vec<Frame>, frame: Frame) -> io::Result<()> {
    let bytes: usize = early.iter().map(|frame| frame.body.len()).sum();
    if early.len() >= EARLY.0 || bytes + frame.body.len() > EARLY.1 {
        return Err(broken("it says too much while it starts"));
    }
    early.push(frame);
    Ok(())
}

impl Backend for Isolated {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn start(&self, config: &Value, context: Context) -> Result<Arc<dyn Instance>, StartError> {
        let (orders, inbox) = channel(ORDERS);
        let shared = Arc::new(Shared::new(context));
        let (sender, started) = sync_mpsc::sync_channel(1);
        let name = format!("isolated-{}", shared.context.name);
        let (theirs, config) = (Arc::clone(&shared), config.clone());
        let (program, path) = (self.program.clone(), self.path.clone());
        let crashed = |e: io::Error| StartError::Crashed(e.to_string());
        std::thread::Builder::new()
            .name(name)
            .spawn(move || {
                let runtime = match tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                {
                    Ok(runtime) => runtime,
                    Err(e) => return drop(sender.send(Err(StartError::Crashed(e.to_string())))),
                };
                LocalSet::new().block_on(&runtime, async move {
                    let begun = begin(&program, &path, &theirs, &config).await;
                    match begun {
                        Ok(begun) => {
                            // Whoever started it may have given up.
                            let _ = sender.send(Ok(()));
                            Parent::run(begun, theirs, inbox).await;
                        }
                        Err(e) => drop(sender.send(Err(e))),
                    }
                });
                runtime.shutdown_background();
            })
            .map_err(crashed)?;
        let limit = shared.context.limits.start + OPEN_LIMIT;
        match started.recv_timeout(limit) {
            Ok(Ok(())) => {
                Ok(Arc::new(IsolatedInstance { shared, orders, manifest: self.manifest.clone() }))
            }
            Ok(Err(e)) => Err(e),
            Err(_) => Err(StartError::Timeout(limit)),
        }
    }
}

/// Starts a child and its instance.
async fn begin(
    program: &Path,
    path: &Path,
    shared: &Shared,
    config: &Value,
) -> Result<Begun, StartError> {
    let crashed = |e: io::Error| StartError::Crashed(e.to_string());
    let context = &shared.context;
    let mut begun = Begun::spawn(program).map_err(crashed)?;
    shared.pid.store(u64::from(begun.process.id()), Ordering::Relaxed);
    let load = Load {
        build: BUILD.to_owned(),
        path: path.to_owned(),
        name: context.name.to_string(),
        generation: context.generation,
        limits: LimitsTold::from(&context.limits),
        granted: context.granted.to_vec(),
    };
    let loaded = begun.load(&load).await;
    let started = match loaded {
        Ok(Ok(_)) => start(&mut begun, shared, config).await,
        Ok(Err(text)) => Err(StartError::Refused(text)),
        Err(e) => Err(crashed(e)),
    };
    // When it did not start, the child ends with `begun`.
    started.map(|()| begun)
}

async fn start(begun: &mut Begun, shared: &Shared, config: &Value) -> Result<(), StartError> {
    let limit = shared.context.limits.start + Duration::from_secs(1);
    let Begun { process, socket, early } = begun;
    let started = async {
        frames::write(socket, &Frame::json(Kind::Start, 0, config)).await?;
        loop {
            let Some(frame) = frames::read(socket).await? else {
                return Err(broken("the child ended while it started"));
            };
            match frame.kind {
                Kind::Started => return frame.parse::<Began>(),
                // What a plugin asks while it starts is answered at once.
                Kind::Store => {
                    let answer = store(&*shared.context.store, &frame)?;
                    frames::write(socket, &answer).await?;
                }
                Kind::Log => shared.log(&frame)?,
                // The rest is for the parent that is not there yet.
                _ => keep(early, frame)?,
            }
        }
    };
    match watching(process, tokio::time::timeout(limit, started)).await {
        Ok(Ok(began)) => began.into_result(),
        Ok(Err(e)) => Err(StartError::Crashed(process.last_words(&e.to_string()).await)),
        Err(_) => Err(StartError::Timeout(shared.context.limits.start)),
    }
}

/// What the thread and the handle share.
struct Shared {
    context: Context,
    pid: AtomicU64,
    streams: AtomicUsize,
    streams_total: AtomicU64,
    /// Failures seen on this side.
    errors: AtomicU64,
    told: Mutex<StatsTold>,
    last_error: Mutex<Option<String>>,
    ended: AtomicBool,
    /// What the child may say, whatever it holds itself to.
    events: Rate,
    lines: Rate,
    faults: Rate,
}

impl Shared {
    fn new(context: Context) -> Self {
        Self {
            events: Rate::new(context.limits.events),
            lines: Rate::new(LINES),
            faults: Rate::new(LINES),
            context,
            pid: AtomicU64::new(0),
            streams: AtomicUsize::new(0),
            streams_total: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            told: Mutex::default(),
            last_error: Mutex::default(),
            ended: AtomicBool::new(false),
        }
    }

    fn tell(&self, incident: Incident) {
        let Context { name, generation, observer, .. } = &self.context;
        observer.incident(name, *generation, incident);
    }

    /// The host methods that it may call; as for a plugin in this process.
    fn granted(&self, what: &str) -> bool {
        self.context.granted.iter().any(|granted| granted == what || granted == "*")
    }

    fn log(&self, frame: &Frame) -> io::Result<()> {
        if self.lines.take() {
            let Line { level, text } = frame.parse()?;
            log(&self.context.name, level, &cut(text));
        }
        Ok(())
    }

    /// Tells what was left out since the last time.
    fn tell_left_out(&self) {
        let name = &*self.context.name;
        let all = [(&self.events, "events"), (&self.lines, "lines"), (&self.faults, "failures")];
        for (rate, what) in all {
            let count = rate.left_out();
            if count > 0 {
                let text = format!("{count} {what} of its process were left out: too many");
                tracing::warn!(plugin = name, "{text}");
                self.note_error(&text);
            }
        }
    }

    fn note_error(&self, text: &str) {
        self.errors.fetch_add(1, Ordering::Relaxed);
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(text.to_owned());
    }
}

enum Order {
    Open(BoxStream),
    Datagram { from: SocketAddress, port: u16, data: Bytes },
    Validate(Box<JoinRequest>, oneshot::Sender<Result<Verdict, Failure>>),
    Deliver(Batch, oneshot::Sender<Result<Delivery, Failure>>),
    Drain(Duration),
}

struct IsolatedInstance {
    shared: Arc<Shared>,
    /// Dropped with the handle, which ends the child.
    orders: Sender<Order>,
    manifest: Manifest,
}

impl IsolatedInstance {
    fn refuse(&self, mut stream: BoxStream, text: &str) {
        self.shared.note_error(text);
        stream.reset(text);
    }
}

impl Instance for IsolatedInstance {
    fn open(&self, stream: BoxStream) {
        let (name, limits) = (&self.shared.context.name, &self.shared.context.limits);
        let open = self.shared.streams.load(Ordering::Relaxed);
        if open >= limits.streams {
            return self.refuse(stream, &format!("plugin {name} has {open} streams, its limit"));
        }
        if let Err(e) = self.orders.try_send(Order::Open(stream))
            && let Order::Open(stream) = e.into_inner()
        {
            self.refuse(stream, &format!("plugin {name} does not keep up, or has ended"));
        }
    }

    fn datagram(&self, from: SocketAddress, port: u16, data: Bytes) {
        if self.orders.try_send(Order::Datagram { from, port, data }).is_err() {
            self.shared.note_error("a datagram was dropped: the queue is full");
        }
    }

    fn validate(&self, request: JoinRequest) -> BoxFuture<Result<Verdict, Failure>> {
        if !self.manifest.rules.iter().any(|rule| rule.name == request.rule) {
            return Box::pin(std::future::ready(Err(Failure::Unsupported)));
        }
        let (sender, answer) = oneshot::channel();
        // A full queue drops the sender, which is an answer.
        let _ = self.orders.try_send(Order::Validate(Box::new(request), sender));
        Box::pin(async move { answer.await.unwrap_or(Err(Failure::Ended)) })
    }

    fn deliver(&self, batch: Batch) -> BoxFuture<Result<Delivery, Failure>> {
        if !self.manifest.sinks.iter().any(|sink| sink.name == batch.sink) {
            return Box::pin(std::future::ready(Err(Failure::Unsupported)));
        }
        let (sender, answer) = oneshot::channel();
        // As above.
        let _ = self.orders.try_send(Order::Deliver(batch, sender));
        Box::pin(async move { answer.await.unwrap_or(Err(Failure::Ended)) })
    }

    fn drain(&self, deadline: Duration) {
        // When the queue is full the handle's end does the same.
        let _ = self.orders.try_send(Order::Drain(deadline));
    }

    fn stats(&self) -> Stats {
        let shared = &self.shared;
        let told = shared.told.lock().unwrap_or_else(PoisonError::into_inner);
        let ours = shared.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (cpu, memory) = usage(shared.pid.load(Ordering::Relaxed)).unzip();
        Stats {
            streams: shared.streams.load(Ordering::Relaxed),
            streams_total: shared.streams_total.load(Ordering::Relaxed),
            queue: told
                .queue
                .saturating_add(self.orders.max_capacity().saturating_sub(self.orders.capacity())),
            cpu: cpu.unwrap_or_default(),
            calls: told.calls,
            errors: told.errors.saturating_add(shared.errors.load(Ordering::Relaxed)),
            last_error: ours.or_else(|| told.last_error.clone()),
            running: None,
            memory,
            ended: shared.ended.load(Ordering::Acquire),
        }
    }
}

enum Asked {
    Verdict(oneshot::Sender<Result<Verdict, Failure>>),
    Delivery(oneshot::Sender<Result<Delivery, Failure>>),
}

impl Asked {
    fn fail(self, failure: Failure) {
        // Nobody may wait any more.
        match self {
            Self::Verdict(answer) => drop(answer.send(Err(failure))),
            Self::Delivery(answer) => drop(answer.send(Err(failure))),
        }
    }
}

/// Why the loop ends.
enum End {
    /// The child closed its socket.
    Closed,
    /// It has to be killed; this is why.
    Kill(Incident),
    /// Nobody wants it any more.
    Unwanted,
}

struct Parent {
    shared: Arc<Shared>,
    out: Out,
    streams: HashMap<u64, UnboundedSender<Frame>>,
    /// Each ends with its stream, and how the child broke the contract.
    carriers: JoinSet<(u64, Option<String>)>,
    /// A dial ends with a stream, and whose it is.
    calls: JoinSet<Option<(u64, BoxStream)>>,
    questions: HashMap<u64, (Instant, Asked)>,
    stores: Arc<AtomicUsize>,
    next: u64,
    /// When the child was told to end, until when.
    draining: Option<Instant>,
    heard: Instant,
    /// Since when the child leaves what is for it.
    unread: (Instant, u64),
    /// Since when its process has ended.
    gone: Option<Instant>,
}

impl Parent {
    async fn run(begun: Begun, shared: Arc<Shared>, mut inbox: Receiver<Order>) {
        let Begun { mut process, socket, early } = begun;
        let (read, write) = socket.into_split();
        let (out, mut queue) = queue();
        let writer = tokio::task::spawn_local(async move {
            let mut to = BufWriter::with_capacity(256 << 10, write);
            while let Some(frame) = queue.recv().await {
                frames::write(&mut to, &frame).await?;
                if queue.is_empty() {
                    to.flush().await?;
                }
                queue.wrote(&frame);
            }
            io::Result::Ok(())
        });
        // Few, as each may be large.
        let (frames, mut arriving) = channel(16);
        let reader = tokio::task::spawn_local(async move {
            let mut read = BufReader::with_capacity(256 << 10, read);
            loop {
                let frame = frames::read(&mut read).await.transpose();
                let last = !matches!(frame, Some(Ok(_)));
                if let Some(frame) = frame
                    && frames.send(frame).await.is_err()
                {
                    return;
                }
                if last {
                    return;
                }
            }
        });
        if let Some(stderr) = process.stderr() {
            complaints(stderr, &shared);
        }
        let mut parent = Self {
            shared,
            out,
            streams: HashMap::new(),
            carriers: JoinSet::new(),
            calls: JoinSet::new(),
            questions: HashMap::new(),
            stores: Arc::default(),
            next: 1,
            draining: None,
            heard: Instant::now(),
            unread: (Instant::now(), 0),
            gone: None,
        };
        let said = early.into_iter().find_map(|frame| parent.arrived(Some(Ok(frame))));
        let end = match said {
            Some(end) => end,
            None => parent.work(&process, &mut inbox, &mut arriving).await,
        };
        reader.abort();
        writer.abort();
        inbox.close();
        parent.finish(end, &mut process, &mut inbox).await;
    }

    async fn work(
        &mut self,
        process: &Process,
        inbox: &mut Receiver<Order>,
        arriving: &mut Receiver<io::Result<Frame>>,
    ) -> End {
        let mut tick = tokio::time::interval(TICK);
        let out = self.out.clone();
        loop {
            let queued = out.queued();
            tokio::select! {
                order = inbox.recv(), if queued < ROOM => match order {
                    Some(order) => self.order(order),
                    None => return End::Unwanted,
                },
                () = poll_fn(|cx| out.poll_room(0, cx)), if queued >= ROOM => {}
                frame = arriving.recv(), if queued < MAX_QUEUED => {
                    if let Some(end) = self.arrived(frame) {
                        return end;
                    }
                }
                Some(ended) = self.carriers.join_next() => {
                    if let Ok((id, broken)) = ended {
                        self.streams.remove(&id);
                        if let Some(text) = broken {
                            return breach(&text);
                        }
                    }
                    self.shared.streams.store(self.streams.len(), Ordering::Relaxed);
                }
                Some(called) = self.calls.join_next() => {
                    if let Ok(Some((token, stream))) = called {
                        self.dialled(token, stream);
                    }
                }
                _ = tick.tick() => {
                    self.expire(Instant::now());
                    if let Some(end) = self.look_after(process) {
                        return end;
                    }
                    // Not seen above while there is no room.
                    if queued >= ROOM && inbox.is_closed() {
                        return End::Unwanted;
                    }
                }
            }
        }
    }

    /// Acts on what comes from the child; whether that is the end.
    fn arrived(&mut self, frame: Option<io::Result<Frame>>) -> Option<End> {
        let handled = match frame {
            None => return Some(End::Closed),
            Some(Err(e)) if e.kind() != io::ErrorKind::InvalidData => return Some(End::Closed),
            Some(frame) => frame.and_then(|frame| self.frame(&frame)),
        };
        match handled {
            Ok(None) => None,
            Ok(Some(incident)) => Some(End::Kill(incident)),
            Err(e) => Some(breach(&e.to_string())),
        }
    }

    /// Whether the child lives, answers, reads and keeps to its memory.
    fn look_after(&mut self, process: &Process) -> Option<End> {
        let died = |text: String| Some(End::Kill(Incident::Died { text }));
        let now = Instant::now();
        let seconds = SILENCE.as_secs();
        self.shared.tell_left_out();
        if process.has_ended() {
            // What it started may hold the socket open.
            process.kill_group();
            let since = *self.gone.get_or_insert(now);
            return (now - since > REMAINS).then_some(End::Closed);
        }
        let (queued, written) = (self.out.queued(), self.out.written());
        if queued < MAX_QUEUED && (queued == 0 || written != self.unread.1) {
            self.unread = (now, written);
        }
        if now - self.unread.0 > SILENCE {
            return died(format!("its process has not read what is for it for {seconds} s"));
        }
        // While nothing is taken from it, nothing can be heard.
        if queued < MAX_QUEUED && self.heard.elapsed() > SILENCE {
            return died(format!("its process has not answered for {seconds} s"));
        }
        let limit = self.shared.context.limits.memory.saturating_add(OWN_MEMORY);
        match usage(u64::from(process.id())) {
            Some((_, memory)) if memory > limit.saturating_add(FILE_PAGES) => died(format!(
                "out of memory: its process uses {} MiB, its limit is {} MiB",
                memory >> 20,
                limit >> 20
            )),
            _ => None,
        }
    }

    fn order(&mut self, order: Order) {
        match order {
            Order::Open(stream) => {
                let peer = self.shared.context.platform.peer(stream.remote());
                let opened = Opened { peer, port: stream.local_port() };
                self.shared.streams_total.fetch_add(1, Ordering::Relaxed);
                let id = self.number();
                self.send(Frame::json(Kind::Open, id, &opened));
                self.carry(id, stream);
            }
            Order::Datagram { from, port, data } => {
                let head = DatagramHead { far: from, port };
                self.send(Frame::with_data(Kind::Datagram, 0, &head, &data));
            }
            Order::Validate(request, answer) => {
                let asked = Asked::Verdict(answer);
                if let Some(id) = self.ask(self.shared.context.limits.validate, asked) {
                    self.send(Frame::json(Kind::Validate, id, &request));
                }
            }
            Order::Deliver(batch, answer) => {
                let asked = Asked::Delivery(answer);
                if let Some(id) = self.ask(self.shared.context.limits.deliver, asked) {
                    let Batch { sink, lines } = batch;
                    self.send(Frame::with_data(Kind::Deliver, id, &sink, lines.as_bytes()));
                }
            }
            Order::Drain(deadline) => {
                let now = Instant::now();
                self.draining = Some(now.checked_add(deadline).unwrap_or(now));
                self.send(Frame::json(Kind::Drain, 0, &deadline));
            }
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn send(&self, frame: Frame) {
        self.out.send(frame);
    }

    /// Notes a question; its number, unless too many wait.
    fn ask(&mut self, limit: Duration, asked: Asked) -> Option<u64> {
        if self.questions.len() >= MAX_QUESTIONS {
            asked.fail(Failure::Failed(format!("{MAX_QUESTIONS} questions wait for an answer")));
            return None;
        }
        let id = self.number();
        self.questions.insert(id, (Instant::now() + limit, asked));
        Some(id)
    }

    fn carry(&mut self, id: u64, stream: BoxStream) {
        let (sender, frames) = unbounded_channel();
        self.streams.insert(id, sender);
        self.shared.streams.store(self.streams.len(), Ordering::Relaxed);
        let out = self.out.clone();
        self.carriers.spawn_local(async move { (id, carry(stream, id, frames, out).await) });
    }

    /// Acts on a frame of the child. An incident means that it has to be
    /// killed.
    fn frame(&mut self, frame: &Frame) -> io::Result<Option<Incident>> {
        self.heard = Instant::now();
        match frame.kind {
            Kind::Data | Kind::End | Kind::Reset | Kind::Close | Kind::Credit => {
                // Of a stream that has ended meanwhile.
                if let Some(stream) = self.streams.get(&frame.id) {
                    let _ = stream.send(frame.clone());
                }
            }
            Kind::Verdict => {
                if let Some((_, Asked::Verdict(answer))) = self.questions.remove(&frame.id) {
                    let told: Result<Verdict, FailureTold> = frame.parse()?;
                    // Nobody may wait any more.
                    let _ = answer.send(told.map_err(Failure::from));
                }
            }
            Kind::Delivery => {
                if let Some((_, Asked::Delivery(answer))) = self.questions.remove(&frame.id) {
                    let told: Result<Delivery, FailureTold> = frame.parse()?;
                    // Nobody may wait any more.
                    let _ = answer.send(told.map_err(Failure::from));
                }
            }
            Kind::Call => self.call(frame.id, frame.parse()?),
            Kind::Dial => self.dial(frame.id, &String::from_utf8_lossy(&frame.body)),
            Kind::Store => self.store(frame),
            Kind::Emit => {
                if self.shared.events.take() {
                    let Emitted { name, data } = frame.parse()?;
                    self.shared.context.platform.emit(&name, data);
                }
            }
            Kind::Datagram => {
                let (DatagramHead { far, port }, data) = frame.parse_with_data()?;
                if let Err(why) = self.shared.context.platform.send_datagram(far, port, data) {
                    self.shared.note_error(&format!("datagram to {far}: {why}"));
                }
            }
            Kind::Log => self.shared.log(frame)?,
            Kind::Stats => {
                let mut told: StatsTold = frame.parse()?;
                told.last_error = told.last_error.map(cut);
                *self.shared.told.lock().unwrap_or_else(PoisonError::into_inner) = told;
            }
            Kind::Incident => return Ok(self.incident(frame.parse()?)),
            kind => return Err(broken(&format!("a {kind:?} frame is not for a parent"))),
        }
        Ok(None)
    }

    fn incident(&self, told: IncidentTold) -> Option<Incident> {
        match told {
            IncidentTold::Panicked { .. } | IncidentTold::Failed { .. }
                if !self.shared.faults.take() => {}
            IncidentTold::Panicked { callback, text } => {
                let text = cut(text);
                self.shared.note_error(&format!("{callback}: {text}"));
                let callback = crate::native::callback_name(&callback);
                self.shared.tell(Incident::Panicked { callback, text });
            }
            IncidentTold::Failed { text } => {
                self.shared.tell(Incident::Failed { text: cut(text) });
            }
            IncidentTold::Hung { callback } => {
                let callback = crate::native::callback_name(&callback);
                return Some(Incident::Hung { callback });
            }
            IncidentTold::Died { text } => return Some(Incident::Died { text: cut(text) }),
        }
        None
    }

    fn store(&mut self, frame: &Frame) {
        if self.stores.load(Ordering::Relaxed) >= MAX_STORES || self.calls.len() >= MAX_CALLS {
            let text = format!("{MAX_STORES} requests of this plugin to its store wait");
            let answered = Answered::Failed(text);
            return self.send(Frame::with_data(Kind::Answer, frame.id, &answered, &[]));
        }
        let (store_of, out) = (Arc::clone(&self.shared.context.store), self.out.clone());
        let (frame, stores) = (frame.clone(), Arc::clone(&self.stores));
        stores.fetch_add(1, Ordering::Relaxed);
        self.calls.spawn_blocking(move || {
            let answer = store(&*store_of, &frame);
            // Before the answer, behind which the next request comes.
            stores.fetch_sub(1, Ordering::Relaxed);
            if let Ok(answer) = answer {
                out.send(answer);
            }
            None
        });
    }

    fn denied(&self, what: &str) -> String {
        format!("{what} is not granted to plugin {}", self.shared.context.name)
    }

    fn call(&mut self, token: u64, called: Called) {
        let out = self.out.clone();
        let answer = move |answered: &Answered| {
            out.send(Frame::with_data(Kind::Answer, token, answered, &[]));
        };
        if !self.shared.granted(&called.method) {
            return answer(&Answered::Failed(self.denied(&called.method)));
        }
        if self.calls.len() >= MAX_CALLS {
            let text = format!("{MAX_CALLS} calls of this plugin wait for an answer");
            return answer(&Answered::Failed(text));
        }
        let called = self.shared.context.platform.call(&called.method, called.request);
        self.calls.spawn_local(async move {
            answer(&match called.await {
                Ok(value) => Answered::Value(value),
                Err(CallError::Unknown(method)) => Answered::UnknownMethod(method),
                Err(CallError::Failed(text)) => Answered::Failed(text),
            });
            None
        });
    }

    fn dial(&mut self, token: u64, to: &str) {
        let out = self.out.clone();
        let refuse = move |text: String| {
            out.send(Frame::with_data(Kind::Answer, token, &Answered::Failed(text), &[]));
        };
        if !self.shared.granted("dial") {
            return refuse(self.denied("dial"));
        }
        if self.calls.len() >= MAX_CALLS {
            return refuse(format!("{MAX_CALLS} calls of this plugin wait for an answer"));
        }
        let dialled = self.shared.context.platform.dial(to);
        self.calls.spawn_local(async move {
            match dialled.await {
                Ok(stream) => Some((token, stream)),
                Err(text) => {
                    refuse(text);
                    None
                }
            }
        });
    }

    fn dialled(&mut self, token: u64, stream: BoxStream) {
        let peer = self.shared.context.platform.peer(stream.remote());
        let peer = serde_json::to_vec(&peer).unwrap_or_default();
        let id = self.number();
        self.send(Frame::with_data(Kind::Answer, token, &Answered::Stream(id), &peer));
        self.carry(id, stream);
    }

    fn expire(&mut self, now: Instant) {
        let late: Vec<u64> = self
            .questions
            .iter()
            .filter(|(_, (until, _))| *until <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            let Some((_, asked)) = self.questions.remove(&id) else { continue };
            let limits = &self.shared.context.limits;
            let limit = match asked {
                Asked::Verdict(_) => limits.validate,
                Asked::Delivery(_) => limits.deliver,
            };
            asked.fail(Failure::Timeout(limit));
        }
    }

    /// The end of the child: everything it had is told so.
    async fn finish(mut self, end: End, process: &mut Process, inbox: &mut Receiver<Order>) {
        let wanted = self.draining.is_some() || matches!(end, End::Unwanted);
        let incident = match end {
            End::Kill(incident) => {
                process.kill();
                Some(incident)
            }
            End::Unwanted => {
                process.kill();
                None
            }
            End::Closed => {
                let status = process.ended().await;
                let clean = status.is_some_and(|status| status.success());
                let text = status.map_or_else(
                    || "it closed its socket and had to be killed".to_owned(),
                    |status| said(status, "its process ended"),
                );
                (!wanted || !clean).then_some(Incident::Died { text })
            }
        };
        let name = &self.shared.context.name;
        let reason = match &incident {
            None => format!("plugin {name} ends"),
            Some(Incident::Hung { callback }) => format!("plugin {name} hangs in {callback}"),
            Some(Incident::Died { text } | Incident::Failed { text }) => {
                format!("the process of plugin {name} died: {text}")
            }
            Some(Incident::Panicked { text, .. }) => format!("plugin {name} panicked: {text}"),
        };
        self.shared.ended.store(true, Ordering::Release);
        for stream in self.streams.values() {
            // A carrier that has ended needs nothing.
            let _ = stream.send(Frame::new(Kind::Reset, 0, reason.clone()));
        }
        let failure =
            if incident.is_some() { Failure::Crashed(reason.clone()) } else { Failure::Ended };
        for (_, asked) in std::mem::take(&mut self.questions).into_values() {
            asked.fail(failure.clone());
        }
        while let Some(order) = inbox.recv().await {
            match order {
                Order::Open(mut stream) => stream.reset(&reason),
                Order::Validate(_, answer) => drop(answer.send(Err(failure.clone()))),
                Order::Deliver(_, answer) => drop(answer.send(Err(failure.clone()))),
                Order::Datagram { .. } | Order::Drain(_) => {}
            }
        }
        self.shared.tell_left_out();
        if let Some(incident) = incident {
            self.shared.note_error(&reason);
            self.shared.tell(incident);
        }
        // Streams that the plugin has closed are written to their end.
        let until = self.draining.unwrap_or_else(|| Instant::now() + END_LIMIT);
        let finished = async { while self.carriers.join_next().await.is_some() {} };
        if tokio::time::timeout_at(until.into(), finished).await.is_err() {
            self.streams.clear();
            while self.carriers.join_next().await.is_some() {}
        }
        self.shared.streams.store(0, Ordering::Relaxed);
    }
}

fn breach(text: &str) -> End {
    End::Kill(Incident::Died { text: format!("it broke the contract: {text}") })
}

/// Passes on what a child writes to standard error: the last words of a crash.
fn complaints(stderr: ChildStderr, shared: &Arc<Shared>) {
    let Ok(mut stderr) = tokio::process::ChildStderr::from_std(stderr) else { return };
    let shared = Arc::clone(shared);
    tokio::task::spawn_local(async move {
        let tell = |line: &str| {
            if shared.lines.take() {
                tracing::warn!(plugin = &*shared.context.name, "{line}");
            }
        };
        let (mut lines, mut bytes) = (Lines::default(), vec![0; 8 << 10]);
        while let Ok(n @ 1..) = stderr.read(&mut bytes).await {
            lines.take(&bytes[..n], tell);
        }
        lines.end(tell);
    });
}

/// At most [`MAX_TEXT`] of a text.
fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_TEXT));
    text
}

fn log(name: &str, level: u32, text: &str) {
    match level {
        pilot_plugin::abi::LOG_ERROR => tracing::error!(plugin = name, "{text}"),
        pilot_plugin::abi::LOG_WARN => tracing::warn!(plugin = name, "{text}"),
        pilot_plugin::abi::LOG_INFO => tracing::info!(plugin = name, "{text}"),
        _ => tracing::debug!(plugin = name, "{text}"),
    }
}

/// Does what the child asks of its store; the frame that answers.
fn store(store: &dyn KeyValue, frame: &Frame) -> io::Result<Frame> {
    let (request, value): (StoreRequest, Bytes) = frame.parse_with_data()?;
    let mut found = Vec::new();
    let done = match request {
        StoreRequest::Get(key) => store.get(&key).map(|value| match value {
            Some(value) => {
                found = value;
                Answered::Found
            }
            None => Answered::NotFound,
        }),
        StoreRequest::Put(key) => store.put(&key, &value).map(|()| Answered::Done),
        StoreRequest::Delete(key) => store.delete(&key).map(|()| Answered::Done),
        StoreRequest::Keys(prefix) => store.keys(&prefix).map(Answered::Keys),
    };
    let answered = done.unwrap_or_else(|e| match e {
        StoreError::Quota { wanted, quota, .. } => Answered::Quota { wanted, quota },
        e => Answered::Failed(e.to_string()),
    });
    Ok(Frame::with_data(Kind::Answer, frame.id, &answered, &found))
}

#[cfg(test)]
mod tests;
