//! What a thread of a script shows of itself, to be read at any time.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// What runs in a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Callback {
    Load = 1,
    Serve,
    Datagram,
    Validate,
    Deliver,
    Spawn,
}

impl Callback {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Serve => "serve",
            Self::Datagram => "datagram",
            Self::Validate => "validate",
            Self::Deliver => "deliver",
            Self::Spawn => "spawn",
        }
    }

    const fn of(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Load),
            2 => Some(Self::Serve),
            3 => Some(Self::Datagram),
            4 => Some(Self::Validate),
            5 => Some(Self::Deliver),
            6 => Some(Self::Spawn),
            _ => None,
        }
    }
}

/// Written by one thread, read by any.
#[derive(Debug, Default)]
pub(super) struct Gauge {
    running: AtomicU8,
    since: AtomicU64,
    cpu: AtomicU64,
    memory: AtomicU64,
    /// Streams given to this thread and not over yet.
    pub(super) streams: AtomicUsize,
    /// Set once: what runs stops at the next occasion, and the thread ends.
    pub(super) halt: AtomicBool,
}

impl Gauge {
    /// A callback goes on at `now`.
    pub(super) fn enter(&self, callback: Callback, now: u64) {
        self.since.store(now, Ordering::Relaxed);
        self.running.store(callback as u8, Ordering::Release);
    }

    pub(super) fn leave(&self) {
        self.running.store(0, Ordering::Release);
    }

    /// One of the thread's machines takes `after` bytes instead of `before`.
    pub(super) fn note_memory(&self, before: u64, after: u64) {
        let all = self.memory.load(Ordering::Relaxed);
        self.memory.store(all.saturating_sub(before).saturating_add(after), Ordering::Relaxed);
    }

    /// What runs, and since when.
    pub(super) fn running(&self) -> Option<(&'static str, Instant)> {
        let callback = Callback::of(self.running.load(Ordering::Acquire))?;
        let since = Duration::from_nanos(self.since.load(Ordering::Relaxed));
        Some((callback.name(), epoch() + since))
    }

    /// Which callback runs on the calling thread, if it is this gauge's.
    pub(super) fn callback(&self) -> Option<Callback> {
        Callback::of(self.running.load(Ordering::Relaxed))
    }

    /// Notes the processor time of the calling thread, which is the writer.
    pub(super) fn note_cpu(&self) -> u64 {
        let used = thread_cpu();
        self.cpu.store(used, Ordering::Relaxed);
        used
    }

    pub(super) fn cpu(&self) -> Duration {
        Duration::from_nanos(self.cpu.load(Ordering::Relaxed))
    }

    pub(super) fn memory(&self) -> u64 {
        self.memory.load(Ordering::Relaxed)
    }

    pub(super) fn halted(&self) -> bool {
        self.halt.load(Ordering::Relaxed)
    }
}

/// Nanoseconds since the process first asked.
pub(super) fn now() -> u64 {
    u64::try_from(epoch().elapsed().as_nanos()).unwrap_or(u64::MAX)
}

fn epoch() -> Instant {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    *EPOCH.get_or_init(Instant::now)
}

/// Processor time of the calling thread, in nanoseconds.
fn thread_cpu() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000
        + u64::try_from(time.tv_nsec).unwrap_or(0)
}
