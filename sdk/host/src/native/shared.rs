//! What an instance's thread shares with the rest of the host.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pilot_plugin::{Delivery, Verdict};
use tokio::sync::oneshot;

use super::messages::Queue;
use super::streams;
use crate::instance::{Context, Failure, Incident, Stats};

/// Questions that wait for an answer; one more is refused.
const MAX_QUESTIONS: usize = 65_536;

pub(super) struct Shared {
    pub(super) context: Context,
    pub(super) queue: Queue,
    pub(super) table: Mutex<streams::Table>,
    questions: Mutex<Questions>,
    pub(super) counters: Counters,
    running: Running,
    /// The thread has ended, or is left behind.
    ended: AtomicBool,
    /// The watchdog gave up on the thread: what it does no longer counts.
    abandoned: AtomicBool,
    last_error: Mutex<Option<String>>,
}

#[derive(Default)]
pub(super) struct Counters {
    pub(super) streams: AtomicUsize,
    pub(super) streams_total: AtomicU64,
    pub(super) cpu_nanos: AtomicU64,
    pub(super) calls: AtomicU64,
    pub(super) errors: AtomicU64,
}

/// The callback that runs, written without looking at a clock: the watchdog
/// sees by the count whether it is still the same call.
#[derive(Default)]
struct Running {
    /// 1 more than the index in [`CALLBACKS`]; 0 when none runs.
    callback: AtomicU32,
    count: AtomicU64,
    /// Since when the watchdog has seen that count.
    seen: Mutex<Option<(u64, Instant)>>,
}

/// Names of callbacks, for people.
pub(super) const CALLBACKS: [&str; 11] = [
    "start",
    "stop",
    "self_test",
    "stream_open",
    "stream_ready",
    "datagram",
    "wake",
    "answer",
    "validate",
    "deliver",
    "drain",
];

/// The name of a callback that another process told.
pub(crate) fn callback_name(told: &str) -> &'static str {
    CALLBACKS.into_iter().find(|name| *name == told).unwrap_or("callback")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Callback {
    Start,
    Stop,
    SelfTest,
    StreamOpen,
    StreamReady,
    Datagram,
    Wake,
    Answer,
    Validate,
    Deliver,
    Drain,
}

impl Callback {
    pub(super) const fn name(self) -> &'static str {
        CALLBACKS[self as usize]
    }
}

#[derive(Default)]
struct Questions {
    next: u64,
    open: HashMap<u64, (Instant, Asked)>,
}

/// Who waits for an answer.
pub(super) enum Asked {
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

impl Shared {
    pub(super) fn new(context: Context) -> Arc<Self> {
        Arc::new(Self {
            context,
            queue: Queue::default(),
            table: Mutex::default(),
            questions: Mutex::default(),
            counters: Counters::default(),
            running: Running::default(),
            ended: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            last_error: Mutex::default(),
        })
    }

    /// A callback begins.
    pub(super) fn enter(&self, callback: Callback) {
        self.running.count.fetch_add(1, Ordering::Relaxed);
        self.running.callback.store(callback as u32 + 1, Ordering::Release);
    }

    /// It has come back.
    pub(super) fn leave(&self) {
        self.running.callback.store(0, Ordering::Release);
    }

    /// The callback that runs, and since when as far as the watchdog knows.
    pub(super) fn running(&self, now: Instant) -> Option<(&'static str, Instant)> {
        let callback = self.running.callback.load(Ordering::Acquire).checked_sub(1)?;
        let count = self.running.count.load(Ordering::Relaxed);
        let mut seen = self.running.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let since = match *seen {
            Some((last, since)) if last == count => since,
            _ => {
                *seen = Some((count, now));
                now
            }
        };
        Some((CALLBACKS.get(callback as usize).copied().unwrap_or("callback"), since))
    }

    /// Notes an answer that is to come within `limit`.
    pub(super) fn ask(&self, asked: Asked, limit: Duration) -> Option<u64> {
        let mut questions = self.questions();
        if self.has_ended() || questions.open.len() >= MAX_QUESTIONS {
            drop(questions);
            asked.fail(Failure::Ended);
            return None;
        }
        questions.next += 1;
        let question = questions.next;
        questions.open.insert(question, (Instant::now() + limit, asked));
        Some(question)
    }

    pub(super) fn take_question(&self, question: u64) -> Option<Asked> {
        self.questions().open.remove(&question).map(|(_, asked)| asked)
    }

    pub(super) fn has_questions(&self) -> bool {
        !self.questions().open.is_empty()
    }

    pub(super) fn fail_question(&self, question: u64, failure: Failure) {
        if let Some(asked) = self.take_question(question) {
            self.failed(&failure.to_string());
            asked.fail(failure);
        }
    }

    /// Fails every question.
    pub(super) fn fail_questions(&self, failure: &Failure) {
        let open = std::mem::take(&mut self.questions().open);
        for (_, asked) in open.into_values() {
            asked.fail(failure.clone());
        }
    }

    /// Fails what has waited too long.
    pub(super) fn expire_questions(&self, now: Instant) {
        let late: Vec<u64> = {
            let questions = self.questions();
            let late = questions.open.iter().filter(|(_, (until, _))| *until <= now);
            late.map(|(question, _)| *question).collect()
        };
        for question in late {
            let Some(asked) = self.take_question(question) else { continue };
            let limits = &self.context.limits;
            let (what, limit) = match asked {
                Asked::Verdict(_) => ("validate", limits.validate),
                Asked::Delivery(_) => ("deliver", limits.deliver),
            };
            self.failed(&format!("{what} gave no answer within {} ms", limit.as_millis()));
            asked.fail(Failure::Timeout(limit));
        }
    }

    fn questions(&self) -> std::sync::MutexGuard<'_, Questions> {
        self.questions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts and keeps a failure, and tells the manager.
    pub(super) fn failed(&self, text: &str) {
        self.note_error(text);
        self.tell(Incident::Failed { text: text.to_owned() });
    }

    /// Counts and keeps a failure.
    pub(super) fn note_error(&self, text: &str) {
        self.counters.errors.fetch_add(1, Ordering::Relaxed);
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(text.to_owned());
    }

    pub(super) fn tell(&self, incident: Incident) {
        let Context { name, generation, observer, .. } = &self.context;
        observer.incident(name, *generation, incident);
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Acquire)
    }

    /// Leaves the thread behind. Returns whether it was not before.
    pub(super) fn abandon(&self) -> bool {
        !self.abandoned.swap(true, Ordering::AcqRel)
    }

    /// Takes nothing any more: what waits is refused, streams that are left are
    /// reset, questions fail.
    pub(super) fn end(&self, reason: &str, failure: &Failure) {
        self.ended.store(true, Ordering::Release);
        for message in self.queue.close() {
            if let super::messages::Message::Open(mut stream) = message {
                stream.reset(reason);
            }
        }
        let cells = self.table.lock().unwrap_or_else(PoisonError::into_inner).take();
        for cell in cells {
            // One that the thread holds is let go of when its call comes back:
            // who watches all instances must not wait for one.
            let held = cell.try_lock().and_then(|mut stream| stream.take());
            if let Some(mut stream) = held {
                stream.reset(reason);
            }
        }
        self.counters.streams.store(0, Ordering::Relaxed);
        self.fail_questions(failure);
    }

    pub(super) fn stats(&self) -> Stats {
        let counters = &self.counters;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            streams: counters.streams.load(Ordering::Relaxed),
            streams_total: load(&counters.streams_total),
            queue: self.queue.len(),
            cpu: Duration::from_nanos(load(&counters.cpu_nanos)),
            calls: load(&counters.calls),
            errors: load(&counters.errors),
            last_error: self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            running: self.running(Instant::now()),
            memory: None,
            ended: self.has_ended(),
        }
    }
}
