//! An instance's thread: takes messages, calls into the plugin, and accounts
//! for the time.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use pilot_plugin::abi::{self, GONE};
use pilot_plugin::{Batch, JoinRequest, Manifest};
use pilot_wire::SocketAddress;
use rustix::time::{ClockId, clock_gettime};
use serde_json::Value;

use super::instance::NativeInstance;
use super::library::{Callbacks, Handle};
use super::local::{Local, Outcome, set_current};
use super::messages::Message;
use super::shared::{Callback, Shared};
use super::table::{self, HOST};
use super::watchdog;
use crate::instance::{Context, Failure, Incident, Instance, StartError};
use crate::stream::BoxStream;

/// Messages before timers get their turn.
const MESSAGES: usize = 256;
/// Timers that fire before messages get their turn.
const TIMERS: usize = 256;

/// Makes the thread and has it start and test the instance.
pub(super) fn start(
    callbacks: Callbacks,
    manifest: Manifest,
    config: &Value,
    context: Context,
) -> Result<Arc<dyn Instance>, StartError> {
    let limit = context.limits.start;
    let shared = Shared::new(context);
    let crashed = |e: std::io::Error| StartError::Crashed(format!("no thread: {e}"));
    watchdog::watch(&shared).map_err(crashed)?;
    let (sender, started) = mpsc::sync_channel(1);
    let name: String = format!("plugin-{}", shared.context.name);
    let (theirs, config) = (Arc::clone(&shared), config.to_string());
    std::thread::Builder::new()
        .name(name)
        .spawn(move || {
            let context = table::context(Arc::downgrade(&theirs));
            let local = Local::new(Arc::clone(&theirs), context);
            theirs.queue.adopt();
            set_current(Some(Rc::clone(&local)));
            let begun = begin(&theirs, &local, &callbacks, context, &config);
            let runs = begun.as_ref().ok().copied();
            // Whoever started it may have given up.
            let _ = sender.send(begun.map(drop));
            if let Some(handle) = runs {
                let mut thread =
                    Thread { shared: theirs, local, callbacks, handle, draining: None };
                thread.run();
                thread.end();
            } else {
                theirs.end("the plugin did not start", &Failure::Ended);
            }
            set_current(None);
        })
        .map_err(crashed)?;
    match started.recv_timeout(limit) {
        Ok(Ok(())) => Ok(Arc::new(NativeInstance { shared, manifest })),
        Ok(Err(e)) => Err(e),
        Err(mpsc::RecvTimeoutError::Timeout) => {
            shared.abandon();
            shared.end("the plugin did not start", &Failure::Ended);
            Err(StartError::Timeout(limit))
        }
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            shared.end("the plugin did not start", &Failure::Ended);
            Err(StartError::Crashed("its thread ended".to_owned()))
        }
    }
}

fn begin(
    shared: &Shared,
    local: &Local,
    callbacks: &Callbacks,
    context: *const abi::PilotContext,
    config: &str,
) -> Result<Handle, StartError> {
    shared.enter(Callback::Start);
    let started = callbacks.start(&HOST, context, config);
    shared.leave();
    let handle = started.map_err(|(status, text)| match status {
        // A future that panics says so in the log.
        abi::PANIC => match std::mem::take(&mut *local.last_line.borrow_mut()) {
            line if line.is_empty() => StartError::Crashed(text),
            line => StartError::Crashed(line),
        },
        status => StartError::Refused(reason(status, text)),
    })?;
    shared.enter(Callback::SelfTest);
    let tested = callbacks.self_test(handle);
    shared.leave();
    if let Err((status, text)) = tested {
        callbacks.stop(handle);
        let said = local.last_line.borrow().clone();
        return Err(match status {
            abi::PANIC => StartError::Crashed(format!("self-test: {}", reason(status, said))),
            status => StartError::SelfTest(reason(status, text)),
        });
    }
    Ok(handle)
}

fn reason(status: i32, text: String) -> String {
    if text.is_empty() { format!("status {status}, no reason given") } else { text }
}

pub(super) struct Thread {
    pub(super) shared: Arc<Shared>,
    pub(super) local: Rc<Local>,
    pub(super) callbacks: Callbacks,
    pub(super) handle: Handle,
    /// No new streams; at this moment the end.
    pub(super) draining: Option<Instant>,
}

impl Thread {
    fn run(&mut self) {
        loop {
            let mut taken = 0;
            while taken < MESSAGES {
                let Some(message) = self.shared.queue.pop() else { break };
                taken += 1;
                if matches!(message, Message::Stop) {
                    return;
                }
                self.message(message);
                if self.shared.is_abandoned() {
                    return;
                }
            }
            self.fire_timers();
            if self.shared.is_abandoned() || self.is_drained() {
                return;
            }
            if taken == 0 || taken == MESSAGES {
                self.account();
            }
            if taken == 0 {
                let until = [self.local.next_timer(), self.draining];
                self.shared.queue.wait(until.into_iter().flatten().min());
            }
        }
    }

    fn message(&mut self, message: Message) {
        match message {
            Message::Ready(id) => self.ready(id),
            Message::Wake(token) => {
                self.shared.queue.woken(token);
                self.call(Callback::Wake, |c, h| c.wake(h, token));
            }
            Message::Open(stream) => self.open(stream),
            Message::Poll(key) => self.poll(key),
            Message::Datagram { from, port, data } => self.datagram(from, port, &data),
            Message::Validate { question, request } => self.validate(question, &request),
            Message::Deliver { question, batch } => self.deliver(question, &batch),
            Message::Drain { deadline } => {
                if self.draining.is_none() {
                    self.call(Callback::Drain, |c, h| c.drain(h));
                }
                let earlier = self.draining.map_or(deadline, |at| at.min(deadline));
                self.draining = Some(earlier);
            }
            Message::Stop => {}
        }
    }

    pub(super) fn open(&self, stream: BoxStream) {
        let (remote, port) = (stream.remote(), stream.local_port());
        self.shared.counters.streams_total.fetch_add(1, Ordering::Relaxed);
        let peer = self.shared.context.platform.peer(remote);
        let peer = serde_json::to_string(&peer).unwrap_or_default();
        let id = self.local.add_stream(stream);
        // What the plugin does in the call may already need the pointer.
        let mut user = None;
        let status = self.call(Callback::StreamOpen, |c, h| {
            let (status, given) = c.stream_open(h, id, port, &peer);
            self.local.attach(id, given);
            user = Some(given);
            status
        });
        // A panic may be that of another future; the SDK has then reset the
        // stream that it concerns.
        let adopted = status == abi::PANIC && user.is_some_and(|user| !user.is_none());
        if status != abi::OK && !adopted {
            self.reset(id, Callback::StreamOpen, status);
        }
    }

    fn ready(&self, id: u64) {
        let Some((cell, user)) = self.local.stream(id) else { return };
        let what = cell.take_ready();
        if what == 0 {
            return;
        }
        let status = self.call(Callback::StreamReady, |c, h| c.stream_ready(h, id, user, what));
        if !matches!(status, abi::OK | abi::PANIC) {
            self.reset(id, Callback::StreamReady, status);
        }
    }

    fn reset(&self, id: u64, callback: Callback, status: i32) {
        if let Some((stream, _)) = self.local.remove_stream(id) {
            let text = format!("{} returned status {status}", callback.name());
            table::reset(&self.local, stream, &text);
        }
    }

    fn poll(&self, key: usize) {
        let Some((token, outcome)) = self.local.poll_pending(key) else { return };
        let (status, body) = match outcome {
            Outcome::Answer { status, body } => (status, body),
            Outcome::Stream(stream) => (abi::OK, self.local.add_stream(stream).to_string()),
        };
        self.call(Callback::Answer, |c, h| c.answer(h, token, status, &body));
    }

    fn datagram(&self, from: SocketAddress, port: u16, data: &[u8]) {
        let peer = self.shared.context.platform.peer(from);
        let peer = serde_json::to_string(&peer).unwrap_or_default();
        let status =
            self.call(Callback::Datagram, |c, h| c.datagram(h, port, from.port, &peer, data));
        if !matches!(status, abi::OK | abi::PANIC) {
            self.shared.note_error(&format!("datagram returned status {status}"));
        }
    }

    fn validate(&self, question: u64, request: &JoinRequest) {
        let request = serde_json::to_string(request).unwrap_or_default();
        let status = self.call(Callback::Validate, |c, h| c.validate(h, question, &request));
        self.answered(question, Callback::Validate, status);
    }

    fn deliver(&self, question: u64, batch: &Batch) {
        let status =
            self.call(Callback::Deliver, |c, h| c.deliver(h, question, &batch.sink, &batch.lines));
        self.answered(question, Callback::Deliver, status);
    }

    /// A callback that failed gives no answer later.
    fn answered(&self, question: u64, callback: Callback, status: i32) {
        let failure = match status {
            abi::OK | abi::PANIC => return,
            abi::UNSUPPORTED => Failure::Unsupported,
            status => Failure::Failed(format!("{} returned status {status}", callback.name())),
        };
        self.shared.fail_question(question, failure);
    }

    fn fire_timers(&self) {
        let Some(next) = self.local.next_timer() else { return };
        let now = Instant::now();
        if next > now {
            return;
        }
        for _ in 0..TIMERS {
            let Some(token) = self.local.due_timer(now) else { return };
            self.call(Callback::Wake, |c, h| c.wake(h, token));
        }
    }

    /// Calls into the plugin. After a panic every question fails: the future
    /// that was to answer it may be the one that is gone.
    pub(super) fn call(
        &self,
        callback: Callback,
        f: impl FnOnce(&Callbacks, Handle) -> i32,
    ) -> i32 {
        self.shared.enter(callback);
        let status = f(&self.callbacks, self.handle);
        self.shared.leave();
        self.shared.counters.calls.fetch_add(1, Ordering::Relaxed);
        if status == abi::PANIC && !self.shared.is_abandoned() {
            let text = std::mem::take(&mut *self.local.last_line.borrow_mut());
            let text = if text.is_empty() { "panicked".to_owned() } else { text };
            self.shared.note_error(&format!("{}: {text}", callback.name()));
            self.shared.fail_questions(&Failure::Crashed(text.clone()));
            self.shared.tell(Incident::Panicked { callback: callback.name(), text });
        }
        status
    }

    fn is_drained(&self) -> bool {
        self.draining.is_some_and(|at| {
            let done = self.local.stream_ids().is_empty() && !self.shared.has_questions();
            done || at <= Instant::now()
        })
    }

    fn account(&self) {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        let seconds = Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or_default());
        let nanos = u32::try_from(time.tv_nsec).unwrap_or_default();
        let used = (seconds + Duration::from_nanos(u64::from(nanos))).as_nanos();
        let used = u64::try_from(used).unwrap_or(u64::MAX);
        self.shared.counters.cpu_nanos.store(used, Ordering::Relaxed);
    }

    /// Takes leave of the plugin.
    pub(super) fn end(&self) {
        if !self.shared.is_abandoned() {
            for id in self.local.stream_ids() {
                let Some((_, user)) = self.local.stream(id) else { continue };
                if let Some((mut stream, _)) = self.local.remove_stream(id) {
                    stream.reset(&format!("plugin {} ends", self.shared.context.name));
                }
                self.call(Callback::StreamReady, |c, h| c.stream_ready(h, id, user, GONE));
            }
        }
        self.shared.enter(Callback::Stop);
        self.callbacks.stop(self.handle);
        self.shared.leave();
        self.account();
        let reason = format!("plugin {} has ended", self.shared.context.name);
        self.shared.end(&reason, &Failure::Ended);
    }
}
