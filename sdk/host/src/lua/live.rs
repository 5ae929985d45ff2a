//! What all machines of one instance share: the script, the process around it,
//! the counters, and how a failure is told.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::Source;
use super::error::ScriptError;
use crate::instance::{Context, Incident, Limits};

/// Lines that a script may log in a second; more are dropped, and their number
/// is logged.
const LOG_LINES: u32 = 1000;

/// One instance, as its machines see it.
pub(super) struct Live {
    pub(super) source: Arc<Source>,
    /// None in the machine that only learns what the script declares.
    pub(super) context: Option<Context>,
    pub(super) limits: Limits,
    pub(super) calls: AtomicU64,
    pub(super) streams: AtomicU64,
    /// Streams that the script dialled and still has.
    pub(super) dialled: AtomicUsize,
    pub(super) held: Arc<Held>,
    errors: AtomicU64,
    last_error: Mutex<Option<String>>,
    events: Mutex<Bucket>,
    lines: Mutex<Bucket>,
}

impl Live {
    pub(super) fn new(source: Arc<Source>, context: Context) -> Self {
        let limits = context.limits.clone();
        Self::with(source, Some(context), limits)
    }

    /// For a machine that is thrown away.
    pub(super) fn probe(source: Arc<Source>, limits: &Limits) -> Arc<Self> {
        Arc::new(Self::with(source, None, limits.clone()))
    }

    fn with(source: Arc<Source>, context: Option<Context>, limits: Limits) -> Self {
        Self {
            source,
            context,
            calls: AtomicU64::new(0),
            streams: AtomicU64::new(0),
            dialled: AtomicUsize::new(0),
            held: Arc::new(Held::new(usize::try_from(limits.memory).unwrap_or(usize::MAX))),
            errors: AtomicU64::new(0),
            last_error: Mutex::default(),
            events: Mutex::new(Bucket::new(limits.events)),
            lines: Mutex::new(Bucket::new(LOG_LINES)),
            limits,
        }
    }

    /// Name for logs.
    pub(super) fn name(&self) -> &str {
        self.context.as_ref().map_or(&self.source.name, |context| &context.name)
    }

    /// A callback failed: counts it, keeps it, tells it.
    pub(super) fn fail(&self, error: &ScriptError) {
        let text = error.to_string();
        self.errors.fetch_add(1, Ordering::Relaxed);
        if self.may_log().is_some() {
            tracing::warn!(target: "pilot::script", script = self.name(), "{text}");
        }
        *lock(&self.last_error) = Some(text.clone());
        self.tell(Incident::Failed { text });
    }

    pub(super) fn tell(&self, incident: Incident) {
        if let Some(context) = &self.context {
            context.observer.incident(&context.name, context.generation, incident);
        }
    }

    pub(super) fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    pub(super) fn last_error(&self) -> Option<String> {
        lock(&self.last_error).clone()
    }

    /// Whether one more event may be emitted now.
    pub(super) fn may_emit(&self) -> bool {
        lock(&self.events).take().is_some()
    }

    /// Whether one more line may be logged now, and how many were dropped
    /// before it.
    pub(super) fn may_log(&self) -> Option<u64> {
        lock(&self.lines).take()
    }

    /// Whether the configuration grants `what`.
    pub(super) fn granted(&self, what: &str) -> bool {
        self.grants().iter().any(|grant| grant == "*" || grant == what)
    }

    pub(super) fn grants(&self) -> &[String] {
        self.context.as_ref().map_or(&[], |context| &context.granted)
    }
}

/// Bytes that are held for a script outside of its machines: what arrived on
/// streams and was not read, bodies of requests and answers. All machines of an
/// instance may have as many as one machine may take.
#[derive(Debug)]
pub(super) struct Held {
    now: AtomicUsize,
    most: usize,
}

impl Held {
    pub(super) const fn new(most: usize) -> Self {
        Self { now: AtomicUsize::new(0), most }
    }
}

/// One holder's part of it; given back when it is dropped.
#[derive(Debug, Default)]
pub(super) struct Charge {
    held: Option<Arc<Held>>,
    bytes: usize,
}

impl Charge {
    pub(super) fn of(held: &Arc<Held>) -> Self {
        Self { held: Some(Arc::clone(held)), bytes: 0 }
    }

    /// It holds so many bytes now.
    pub(super) fn set(&mut self, bytes: usize) {
        if let Some(held) = &self.held {
            if bytes > self.bytes {
                held.now.fetch_add(bytes - self.bytes, Ordering::Relaxed);
            } else {
                held.now.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
            }
        }
        self.bytes = bytes;
    }

    /// It holds so many more.
    pub(super) fn add(&mut self, bytes: usize) {
        self.set(self.bytes.saturating_add(bytes));
    }

    /// What to say when all together hold more than they may.
    pub(super) fn exceeded(&self) -> Option<String> {
        let held = self.held.as_ref()?;
        (held.now.load(Ordering::Relaxed) > held.most)
            .then(|| format!("more than {} bytes wait for the script already", held.most))
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// So many in a second, and as many at once.
struct Bucket {
    rate: u32,
    left: f64,
    filled: Instant,
    refused: u64,
}

impl Bucket {
    fn new(rate: u32) -> Self {
        Self { rate, left: f64::from(rate), filled: Instant::now(), refused: 0 }
    }

    /// Takes one; gives how many were refused since the last that was taken.
    fn take(&mut self) -> Option<u64> {
        let now = Instant::now();
        let earned = now.duration_since(self.filled).as_secs_f64() * f64::from(self.rate);
        self.left = (self.left + earned).min(f64::from(self.rate));
        self.filled = now;
        if self.left < 1.0 {
            self.refused += 1;
            return None;
        }
        self.left -= 1.0;
        Some(std::mem::take(&mut self.refused))
    }
}

/// A lock whose holder cannot leave a half-made state behind.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
