//! One thread of a script: takes what is given to it and runs it in its
//! machine, each stream in a coroutine of its own. A machine that was used up
//! finishes what it has, beside a fresh one.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak, mpsc as blocking};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use mlua::MultiValue;
use pilot_plugin::{Batch, Delivery, JoinRequest, Verdict};
use pilot_wire::SocketAddress;
use serde_json::Value as Json;
use slab::Slab;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::{AbortHandle, LocalSet, spawn_local};
use tokio::time::{Instant, sleep_until, timeout};

use super::error::ScriptError;
use super::gauge::{Callback, Gauge};
use super::link::{Link, StreamHandle};
use super::live::Live;
use super::vm::{Running, Vm};
use super::{answer, api};
use crate::instance::{Failure, Incident};
use crate::stream::BoxStream;

/// Jobs that are taken from the queue in one go.
const TAKE: usize = 256;
/// Used-up machines that finish what they have, per thread; of one more, the
/// oldest is ended and its streams are reset.
const MAX_WORN: usize = 2;
/// Pauses after a fresh machine could not be made, each twice the one before;
/// until then everything that is asked fails for the same reason.
const RELOAD_MIN: Duration = Duration::from_secs(1);
const RELOAD_MAX: Duration = Duration::from_secs(60);

/// What a thread is given.
pub(super) enum Job {
    Stream(BoxStream),
    Datagram { from: SocketAddress, port: u16, data: Bytes },
    Validate(Box<JoinRequest>, oneshot::Sender<Result<Verdict, Failure>>),
    Deliver(Batch, oneshot::Sender<Result<Delivery, Failure>>),
}

/// How far a thread's life has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Serving,
    /// Ends when nothing is left, at the latest then.
    Draining(Instant),
    Stopped,
}

/// What a thread begins with.
pub(super) struct Start {
    pub(super) live: Arc<Live>,
    pub(super) gauge: Arc<Gauge>,
    pub(super) config: Arc<Json>,
    pub(super) jobs: mpsc::Receiver<Job>,
    pub(super) phase: watch::Receiver<Phase>,
    pub(super) ready: blocking::SyncSender<Result<(), ScriptError>>,
}

/// The thread's function.
pub(super) fn run(start: Start) {
    let (live, gauge) = (Arc::clone(&start.live), Arc::clone(&start.gauge));
    let ended = catch_unwind(AssertUnwindSafe(|| serve(start)));
    // What it still had was dropped with it.
    gauge.streams.store(0, Ordering::Relaxed);
    gauge.leave();
    let text = match ended {
        Ok(Ok(())) => return,
        Ok(Err(text)) => text,
        Err(panic) => panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "the interpreter broke".to_owned()),
    };
    live.tell(Incident::Died { text });
}

fn serve(start: Start) -> Result<(), String> {
    let Start { live, gauge, config, mut jobs, mut phase, ready } = start;
    let vm = match Vm::load(&live, Arc::clone(&gauge), &config) {
        Ok((vm, _)) => Arc::new(vm),
        Err(error) => {
            // Nobody waits when the start took too long; then it is told there.
            let _ = ready.send(Err(error));
            return Ok(());
        }
    };
    let noted = Arc::clone(&gauge);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_park(move || {
            noted.note_cpu();
        })
        .build()
        .map_err(|e| format!("no runtime for the script: {e}"))?;
    if ready.send(Ok(())).is_err() {
        return Ok(());
    }
    let tasks = LocalSet::new();
    let worker = Worker {
        live,
        gauge,
        config,
        vm: Some(vm),
        failed: None,
        worn: Vec::new(),
        open: Rc::default(),
        idle: Rc::default(),
    };
    tasks.block_on(&runtime, worker.serve(&mut jobs, &mut phase));
    // Nothing more comes in; what waits is told so.
    jobs.close();
    while let Ok(job) = jobs.try_recv() {
        if let Job::Stream(mut stream) = job {
            stream.reset("the script has ended");
        }
    }
    Ok(())
}

struct Worker {
    live: Arc<Live>,
    gauge: Arc<Gauge>,
    config: Arc<Json>,
    /// None after a fresh one could not be made.
    vm: Option<Arc<Vm>>,
    /// Why it could not, when it is tried again, and the pause before that.
    failed: Option<(ScriptError, Instant, Duration)>,
    /// Used up, oldest first.
    worn: Vec<Weak<Vm>>,
    open: Rc<RefCell<Slab<Open>>>,
    /// Something that was open is over.
    idle: Rc<Notify>,
}

/// A task of the thread: a stream, or a question that waits.
struct Open {
    vm: Weak<Vm>,
    link: Option<Arc<Link>>,
    task: Option<AbortHandle>,
}

impl Worker {
    async fn serve(mut self, jobs: &mut mpsc::Receiver<Job>, phase: &mut watch::Receiver<Phase>) {
        let mut batch = Vec::with_capacity(TAKE);
        loop {
            let now = *phase.borrow_and_update();
            let deadline = match now {
                Phase::Stopped => break,
                Phase::Draining(_) if jobs.is_empty() && self.open.borrow().is_empty() => break,
                Phase::Draining(deadline) => Some(deadline),
                Phase::Serving => None,
            };
            let idle = Rc::clone(&self.idle);
            tokio::select! {
                changed = phase.changed() => {
                    if changed.is_err() {
                        break;
                    }
                }
                taken = jobs.recv_many(&mut batch, TAKE) => {
                    if taken == 0 {
                        break;
                    }
                    for job in batch.drain(..) {
                        self.take(job);
                    }
                    // Streams get their turn between two batches.
                    tokio::task::yield_now().await;
                }
                () = idle.notified(), if deadline.is_some() => {}
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => break,
            }
        }
        self.end_all("the script has ended");
    }

    fn take(&mut self, job: Job) {
        match job {
            Job::Stream(stream) => self.stream(stream),
            Job::Datagram { from, port, data } => self.datagram(from, port, &data),
            Job::Validate(request, reply) => self.validate(&request, reply),
            Job::Deliver(batch, reply) => self.deliver(&batch, reply),
        }
    }

    fn stream(&mut self, mut stream: BoxStream) {
        let vm = match self.machine() {
            Ok(vm) => vm,
            Err(error) => {
                stream.reset("the script failed");
                self.gauge.streams.fetch_sub(1, Ordering::Relaxed);
                self.live.fail(&error);
                return;
            }
        };
        let peer = self.live.context.as_ref().map(|c| c.platform.peer(stream.remote()));
        let link = Link::accepted(stream, &vm.guard, &self.live);
        let began = vm.functions.serve.as_ref().map(|serve| {
            let peer = peer.map(|peer| api::peer(&vm.lua, &peer)).transpose();
            let handle = vm.lua.create_userdata(StreamHandle(Arc::clone(&link)));
            let args = peer.and_then(|peer| Ok((handle?, peer)));
            args.map_err(|e| vm.failed(&e, None))
                .and_then(|args| vm.begin(Callback::Serve, serve, args))
        });
        let running = match began {
            Some(Ok(running)) => running,
            Some(Err(error)) => {
                link.reset("the script failed");
                self.gauge.streams.fetch_sub(1, Ordering::Relaxed);
                self.live.fail(&error);
                return;
            }
            None => {
                link.reset("this service takes datagrams only");
                self.gauge.streams.fetch_sub(1, Ordering::Relaxed);
                return;
            }
        };
        let live = Arc::clone(&self.live);
        let gauge = Arc::clone(&self.gauge);
        let (own, ours) = (Arc::clone(&vm), Arc::clone(&link));
        self.spawn(&vm, Some(link), async move {
            let counted = Counted(gauge);
            let result = own.finish(running).await;
            // Whoever sees the end of the stream finds it counted no more.
            drop(counted);
            match result {
                Ok(_) => ours.close(),
                Err(error) => {
                    ours.reset("the script failed");
                    live.fail(&error);
                }
            }
        });
    }

    fn datagram(&mut self, from: SocketAddress, port: u16, data: &[u8]) {
        let vm = match self.machine() {
            Ok(vm) => vm,
            Err(error) => return self.live.fail(&error),
        };
        let Some(function) = &vm.functions.datagram else { return };
        let peer = self.live.context.as_ref().map(|c| c.platform.peer(from));
        let args = || {
            let peer = peer.map(|peer| api::peer(&vm.lua, &peer)).transpose()?;
            Ok((vm.lua.create_string(data)?, peer, port))
        };
        let running = args()
            .map_err(|e| vm.failed(&e, None))
            .and_then(|args| vm.begin(Callback::Datagram, function, args));
        match running {
            Err(error) => self.live.fail(&error),
            Ok(running) => {
                let (own, live) = (Arc::clone(&vm), Arc::clone(&self.live));
                self.go_on(&vm, running, move |result| {
                    let _vm = own;
                    if let Err(error) = result {
                        live.fail(&error);
                    }
                });
            }
        }
    }

    fn validate(
        &mut self,
        request: &JoinRequest,
        reply: oneshot::Sender<Result<Verdict, Failure>>,
    ) {
        let limit = self.live.limits.validate;
        let begin = |vm: &Vm| vm.begin_validate(request);
        self.ask(Callback::Validate, limit, reply, begin, answer::verdict);
    }

    fn deliver(&mut self, batch: &Batch, reply: oneshot::Sender<Result<Delivery, Failure>>) {
        let limit = self.live.limits.deliver;
        let begin = |vm: &Vm| vm.begin_deliver(batch);
        self.ask(Callback::Deliver, limit, reply, begin, answer::delivery);
    }

    /// Begins a call, and sends what its answer means.
    fn ask<T: 'static>(
        &mut self,
        callback: Callback,
        limit: Duration,
        reply: oneshot::Sender<Result<T, Failure>>,
        begin: impl FnOnce(&Vm) -> Option<Result<Running, ScriptError>>,
        meaning: impl FnOnce(&MultiValue) -> Result<T, String> + 'static,
    ) {
        let vm = match self.machine() {
            Ok(vm) => vm,
            Err(error) => {
                self.live.fail(&error);
                // Nobody waits any more: then nobody misses it.
                let _ = reply.send(Err(Failure::Failed(error.to_string())));
                return;
            }
        };
        let Some(running) = begin(&vm) else {
            let _ = reply.send(Err(Failure::Unsupported));
            return;
        };
        let live = Arc::clone(&self.live);
        let own = Arc::clone(&vm);
        let answered = move |result: Result<Option<MultiValue>, ScriptError>| {
            let result = match result {
                Ok(Some(returned)) => {
                    meaning(&returned).map_err(|reason| own.wrong_answer(callback, &reason))
                }
                Err(error) => Err(error),
                Ok(None) => {
                    live.fail(&own.wrong_answer(
                        callback,
                        &format!("gave no answer within {} ms", limit.as_millis()),
                    ));
                    let _ = reply.send(Err(Failure::Timeout(limit)));
                    return;
                }
            };
            let result = result.map_err(|error| {
                live.fail(&error);
                Failure::Failed(error.to_string())
            });
            let _ = reply.send(result);
        };
        let mut running = match running {
            Ok(running) => running,
            Err(error) => return answered(Err(error)),
        };
        // Most answer without waiting; those cost no task.
        match poll_once(&mut running) {
            Poll::Ready(result) => {
                answered(result.map(Some).map_err(|e| vm.failed(&e, Some(&running))));
            }
            Poll::Pending => {
                let own = Arc::clone(&vm);
                self.spawn(&vm, None, async move {
                    let result = timeout(limit, own.finish(running)).await;
                    answered(result.map_or(Ok(None), |result| result.map(Some)));
                });
            }
        }
    }

    /// Runs a call to its end, here if it does not wait.
    fn go_on(
        &self,
        vm: &Arc<Vm>,
        mut running: Running,
        then: impl FnOnce(Result<MultiValue, ScriptError>) + 'static,
    ) {
        match poll_once(&mut running) {
            Poll::Ready(result) => then(result.map_err(|e| vm.failed(&e, Some(&running)))),
            Poll::Pending => {
                let own = Arc::clone(vm);
                self.spawn(vm, None, async move { then(own.finish(running).await) });
            }
        }
    }

    /// A task that is known until it is over.
    fn spawn(
        &self,
        vm: &Arc<Vm>,
        link: Option<Arc<Link>>,
        work: impl Future<Output = ()> + 'static,
    ) {
        let key = self.open.borrow_mut().insert(Open { vm: Arc::downgrade(vm), link, task: None });
        let known = Known { open: Rc::clone(&self.open), idle: Rc::clone(&self.idle), key };
        let task = spawn_local(async move {
            let _known = known;
            work.await;
        });
        if let Some(open) = self.open.borrow_mut().get_mut(key) {
            open.task = Some(task.abort_handle());
        }
    }

    /// The machine for something new.
    fn machine(&mut self) -> Result<Arc<Vm>, ScriptError> {
        match &self.vm {
            Some(vm) if !vm.guard.is_worn() => return Ok(Arc::clone(vm)),
            Some(vm) => {
                self.worn.push(Arc::downgrade(vm));
                self.vm = None;
            }
            None => {}
        }
        // Loading takes processor time, up to a whole limit of it, for every job.
        if let Some((error, at, _)) = &self.failed
            && Instant::now() < *at
        {
            return Err(error.clone());
        }
        self.worn.retain(|vm| vm.strong_count() > 0);
        while self.worn.len() > MAX_WORN {
            let oldest = self.worn.remove(0);
            self.end_of(&oldest, "the script used up its machine");
        }
        match Vm::load(&self.live, Arc::clone(&self.gauge), &self.config) {
            Ok((vm, _)) => {
                let vm = Arc::new(vm);
                (self.vm, self.failed) = (Some(Arc::clone(&vm)), None);
                Ok(vm)
            }
            Err(error) => {
                let before = self.failed.as_ref().map_or(Duration::ZERO, |(_, _, pause)| *pause);
                let pause = (before * 2).clamp(RELOAD_MIN, RELOAD_MAX);
                self.failed = Some((error.clone(), Instant::now() + pause, pause));
                Err(error)
            }
        }
    }

    /// Ends what runs in one machine.
    fn end_of(&self, vm: &Weak<Vm>, reason: &str) {
        if let Some(vm) = vm.upgrade() {
            vm.guard.kill();
        }
        self.end(|open| open.vm.ptr_eq(vm), reason);
    }

    fn end_all(&self, reason: &str) {
        self.end(|_| true, reason);
    }

    fn end(&self, which: impl Fn(&Open) -> bool, reason: &str) {
        for (_, open) in self.open.borrow().iter().filter(|(_, open)| which(open)) {
            if let Some(link) = &open.link {
                link.reset(reason);
            }
            if let Some(task) = &open.task {
                task.abort();
            }
        }
    }
}

/// One look at a call that has begun.
fn poll_once(running: &mut Running) -> Poll<mlua::Result<MultiValue>> {
    pin!(running).poll(&mut Context::from_waker(Waker::noop()))
}

/// An entry of the table of tasks; removes itself.
struct Known {
    open: Rc<RefCell<Slab<Open>>>,
    idle: Rc<Notify>,
    key: usize,
}

impl Drop for Known {
    fn drop(&mut self) {
        if let Ok(mut open) = self.open.try_borrow_mut() {
            open.try_remove(self.key);
        }
        self.idle.notify_one();
    }
}

/// A stream of this thread.
struct Counted(Arc<Gauge>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}
