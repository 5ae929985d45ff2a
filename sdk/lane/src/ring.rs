//! The two ends of a ring. Who waits sets its flag, fences and looks again; who
//! moves an index fences and looks at the flag: one of both sees the other.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use pilot_wire::ipc::lane::{CAPACITY, Direction, Index, LaneFault, filled, parts};

use crate::memory::Memory;

/// A producer that waits is kicked when so much is free again.
const ROOM: u32 = CAPACITY / 2;

/// The writing end. There is one per ring.
pub struct Producer {
    memory: Arc<Memory>,
    direction: Direction,
    head: u32,
}

/// The reading end. There is one per ring.
pub struct Consumer {
    memory: Arc<Memory>,
    direction: Direction,
    tail: u32,
}

impl Producer {
    /// The writing end of a new ring.
    pub fn new(memory: Arc<Memory>, direction: Direction) -> Self {
        Self { memory, direction, head: 0 }
    }

    /// Bytes that fit.
    ///
    /// # Errors
    /// When the other side's index cannot be.
    pub fn room(&self) -> Result<usize, LaneFault> {
        Ok((CAPACITY - self.filled()?) as usize)
    }

    /// Writes as much as fits and says how much that was.
    ///
    /// # Errors
    /// When the other side's index cannot be.
    pub fn write(&mut self, bytes: &[u8]) -> Result<usize, LaneFault> {
        let room = CAPACITY - self.filled()?;
        let len = u32::try_from(bytes.len()).map_or(room, |len| len.min(room));
        let (offset, first, second) = parts(self.head, len);
        let ring = self.direction.ring();
        self.memory.copy_in(ring + offset, &bytes[..first]);
        self.memory.copy_in(ring, &bytes[first..first + second]);
        self.head = self.head.wrapping_add(len);
        self.cell(Index::Head).store(self.head, Ordering::Release);
        Ok(first + second)
    }

    /// Whether the consumer has to be kicked, to be asked after writing. It
    /// counts as kicked from then on.
    pub fn must_kick(&self) -> bool {
        fence(Ordering::SeqCst);
        let sleeps = self.cell(Index::Sleeps);
        sleeps.load(Ordering::Relaxed) != 0 && sleeps.swap(0, Ordering::Relaxed) != 0
    }

    /// Has the consumer kick when there is room again. False when there is.
    ///
    /// # Errors
    /// When the other side's index cannot be.
    pub fn wait(&self) -> Result<bool, LaneFault> {
        self.cell(Index::Waits).store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let wait = CAPACITY - self.filled()? < ROOM;
        if !wait {
            self.cell(Index::Waits).store(0, Ordering::Relaxed);
        }
        Ok(wait)
    }

    fn filled(&self) -> Result<u32, LaneFault> {
        filled(self.head, self.cell(Index::Tail).load(Ordering::Acquire))
    }

    fn cell(&self, index: Index) -> &std::sync::atomic::AtomicU32 {
        self.memory.index(self.direction.index(index))
    }
}

impl Consumer {
    /// The reading end of a new ring.
    pub fn new(memory: Arc<Memory>, direction: Direction) -> Self {
        Self { memory, direction, tail: 0 }
    }

    /// Bytes that can be read.
    ///
    /// # Errors
    /// When the other side's index cannot be.
    pub fn available(&self) -> Result<usize, LaneFault> {
        Ok(self.filled()? as usize)
    }

    /// Fills `bytes` as far as there is something, and says how far.
    ///
    /// # Errors
    /// When the other side's index cannot be.
    pub fn read(&mut self, bytes: &mut [u8]) -> Result<usize, LaneFault> {
        let (offset, first, second) = self.next(bytes.len())?;
        let ring = self.direction.ring();
        self.memory.copy_out(ring + offset, &mut bytes[..first]);
        self.memory.copy_out(ring, &mut bytes[first..first + second]);
        self.advance(first + second);
        Ok(first + second)
    }

    /// At most `max` bytes, in a buffer of their own.
    ///
    /// # Errors
    /// When the other side's index cannot be.
    pub fn take(&mut self, max: usize) -> Result<Vec<u8>, LaneFault> {
        let mut bytes = Vec::with_capacity(self.available()?.min(max));
        self.append(max, &mut bytes)?;
        Ok(bytes)
    }

    /// Appends at most `max` bytes to `bytes`.
    ///
    /// # Errors
    /// When the other side's index cannot be.
    pub fn append(&mut self, max: usize, bytes: &mut Vec<u8>) -> Result<(), LaneFault> {
        let (offset, first, second) = self.next(max)?;
        let ring = self.direction.ring();
        self.memory.append_out(ring + offset, first, bytes);
        self.memory.append_out(ring, second, bytes);
        self.advance(first + second);
        Ok(())
    }

    /// Whether the producer has to be kicked, to be asked after reading. It
    /// counts as kicked from then on.
    pub fn must_kick(&self) -> bool {
        fence(Ordering::SeqCst);
        let waits = self.cell(Index::Waits);
        waits.load(Ordering::Relaxed) != 0
            && self.filled().is_ok_and(|filled| CAPACITY - filled >= ROOM)
            && waits.swap(0, Ordering::Relaxed) != 0
    }

    /// Has the producer kick when it writes. False when something is there.
    ///
    /// # Errors
    /// When the other side's index cannot be.
    pub fn sleep(&self) -> Result<bool, LaneFault> {
        self.cell(Index::Sleeps).store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let empty = self.filled()? == 0;
        if !empty {
            self.cell(Index::Sleeps).store(0, Ordering::Relaxed);
        }
        Ok(empty)
    }

    fn next(&self, max: usize) -> Result<(usize, usize, usize), LaneFault> {
        let filled = self.filled()?;
        let len = u32::try_from(max).map_or(filled, |max| max.min(filled));
        Ok(parts(self.tail, len))
    }

    fn advance(&mut self, len: usize) {
        // At most the capacity, by `next`.
        self.tail = self.tail.wrapping_add(len as u32);
        self.cell(Index::Tail).store(self.tail, Ordering::Release);
    }

    fn filled(&self) -> Result<u32, LaneFault> {
        filled(self.cell(Index::Head).load(Ordering::Acquire), self.tail)
    }

    fn cell(&self, index: Index) -> &std::sync::atomic::AtomicU32 {
        self.memory.index(self.direction.index(index))
    }
}
