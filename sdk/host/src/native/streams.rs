//! Streams of an instance. Each is behind a lock of its own, so that they can
//! be reset while the instance's thread hangs in the plugin.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::task::{Wake, Waker};

use pilot_plugin::abi::{READABLE, WRITABLE};
use slab::Slab;

use super::messages::Message;
use super::shared::Shared;
use crate::stream::BoxStream;

/// One stream.
pub(super) struct Cell {
    stream: Mutex<Option<BoxStream>>,
    /// What is ready and not yet told.
    flags: Arc<Flags>,
    pub(super) reader: Waker,
    pub(super) writer: Waker,
}

struct Flags {
    id: u64,
    ready: AtomicU32,
    shared: Weak<Shared>,
}

impl Flags {
    fn raise(&self, what: u32) {
        if self.ready.fetch_or(what, Ordering::AcqRel) == 0
            && let Some(shared) = self.shared.upgrade()
        {
            shared.queue.push(Message::Ready(self.id));
        }
    }
}

struct Reader(Arc<Flags>);
struct Writer(Arc<Flags>);

impl Wake for Reader {
    fn wake(self: Arc<Self>) {
        self.0.raise(READABLE);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.raise(READABLE);
    }
}

impl Wake for Writer {
    fn wake(self: Arc<Self>) {
        self.0.raise(WRITABLE);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.raise(WRITABLE);
    }
}

impl Cell {
    /// The stream, for a moment; absent when it was closed or reset.
    pub(super) fn lock(&self) -> MutexGuard<'_, Option<BoxStream>> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same, unless somebody holds it: a thread that hangs in a call.
    pub(super) fn try_lock(&self) -> Option<MutexGuard<'_, Option<BoxStream>>> {
        match self.stream.try_lock() {
            Ok(stream) => Some(stream),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Has the plugin told that it may read and write.
    pub(super) fn first(&self) {
        self.flags.raise(READABLE | WRITABLE);
    }

    /// What has become ready since the last call.
    pub(super) fn take_ready(&self) -> u32 {
        self.flags.ready.swap(0, Ordering::AcqRel)
    }
}

/// All streams of an instance, by number. A number is not used twice.
#[derive(Default)]
pub(super) struct Table {
    slots: Slab<(u32, Arc<Cell>)>,
    next: u32,
}

impl Table {
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Takes a stream and gives its number.
    pub(super) fn insert(&mut self, stream: BoxStream, shared: &Arc<Shared>) -> (u64, Arc<Cell>) {
        // Never 0, and different for each user of a slot until it wraps.
        self.next = self.next.wrapping_add(1).max(1);
        let entry = self.slots.vacant_entry();
        let key = u64::try_from(entry.key()).unwrap_or(u64::MAX);
        let id = key << 32 | u64::from(self.next);
        let flags =
            Arc::new(Flags { id, ready: AtomicU32::new(0), shared: Arc::downgrade(shared) });
        let cell = Arc::new(Cell {
            stream: Mutex::new(Some(stream)),
            reader: Waker::from(Arc::new(Reader(Arc::clone(&flags)))),
            writer: Waker::from(Arc::new(Writer(Arc::clone(&flags)))),
            flags,
        });
        entry.insert((self.next, Arc::clone(&cell)));
        (id, cell)
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<Arc<Cell>> {
        let key = usize::try_from(id >> 32).ok()?;
        let (serial, _) = self.slots.get(key)?;
        if u64::from(*serial) != id & 0xFFFF_FFFF {
            return None;
        }
        Some(self.slots.remove(key).1)
    }

    /// Takes all.
    pub(super) fn take(&mut self) -> Vec<Arc<Cell>> {
        self.slots.drain().map(|(_, cell)| cell).collect()
    }
}
