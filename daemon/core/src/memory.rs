//! What all streams of a node may hold together, and each one's part of it.
//!
//! Stream buffers are granted generously and bounded strictly: while less than
//! half of the total is in use, each stream may have its own limit; beyond it
//! the limits shrink, towards peers as smaller windows and towards clients as
//! withheld credit; at the total, what was promised is not taken either, except
//! for a floor that is set aside for every stream that may be open.

/// What every stream may hold in each direction, whatever the others hold, in
/// bytes: two units of the window field.
pub(crate) const FLOOR: usize = 8 << 10;
/// The least a stream starts with in each direction while there is room.
const LEAST_START: usize = 64 << 10;

/// The account of a node's stream buffers.
#[derive(Debug)]
pub(crate) struct Memory {
    /// What may be held beyond the floors, in bytes.
    pool: usize,
    used: usize,
}

/// What one stream may hold in each direction now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Allowance {
    /// Bytes; `usize::MAX` while memory is no concern.
    pub(crate) cap: usize,
    /// Nothing is left: not even what was promised is taken.
    pub(crate) strict: bool,
}

impl Memory {
    /// `total` bytes for at most `streams` streams. Half of the total at the
    /// least is no floor.
    pub(crate) fn new(total: usize, streams: usize) -> Self {
        let floors = streams.saturating_mul(2 * FLOOR).min(total / 2);
        Self { pool: total - floors, used: 0 }
    }

    /// Bytes held by all streams.
    pub(crate) fn used(&self) -> usize {
        self.used
    }

    /// A stream that held `before` bytes holds `now` bytes.
    pub(crate) fn change(&mut self, before: usize, now: usize) {
        self.used = (self.used + now).saturating_sub(before);
    }

    /// What a stream whose own limit is `limit` may hold in each direction.
    pub(crate) fn allowance(&self, limit: usize) -> Allowance {
        let half = self.pool / 2;
        if self.used <= half {
            return Allowance { cap: usize::MAX, strict: false };
        }
        let left = self.pool.saturating_sub(self.used);
        let above = limit.saturating_sub(FLOOR);
        let cap = FLOOR + (above as u128 * left as u128 / half.max(1) as u128) as usize;
        Allowance { cap, strict: left == 0 }
    }

    /// What a new stream starts with in each direction, at most `most`, when
    /// `open` streams are open: few get much, many get little.
    pub(crate) fn start(&self, open: usize, most: usize) -> usize {
        let share = self.pool / (4 * (open + 1));
        let start = share.clamp(LEAST_START, LEAST_START.max(most)).min(most);
        start.min(self.allowance(start).cap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn limits_shrink_as_memory_fills_and_never_below_the_floor() {
        let mut memory = Memory::new(100 * MIB, 100);
        assert_eq!(memory.allowance(4 * MIB), Allowance { cap: usize::MAX, strict: false });
        let mut last = usize::MAX;
        for used in [51, 60, 80, 95, 98] {
            memory = Memory::new(100 * MIB, 100);
            memory.change(0, used * MIB);
            let now = memory.allowance(4 * MIB);
            assert!(now.cap < last && now.cap >= FLOOR && !now.strict, "{used}: {now:?}");
            last = now.cap;
        }
        memory.change(0, 10 * MIB);
        assert_eq!(memory.allowance(4 * MIB), Allowance { cap: FLOOR, strict: true });
        memory.change(108 * MIB, 0);
        assert_eq!(memory.used(), 0);
        assert_eq!(memory.allowance(MIB).cap, usize::MAX);
    }

    #[test]
    fn few_streams_start_with_much_and_many_with_little() {
        let memory = Memory::new(1024 * MIB, 10_000);
        assert_eq!(memory.start(0, MIB), MIB);
        assert_eq!(memory.start(9_999, MIB), LEAST_START);
        assert_eq!(memory.start(9_999, 10_000), 10_000, "never more than asked for");
    }
}
