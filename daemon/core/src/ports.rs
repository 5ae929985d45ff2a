//! Listening ports, ephemeral ports, and rates.

use pilot_wire::packet::port::EPHEMERAL_FIRST;
use rustc_hash::FxHashMap;

use crate::time::Time;

/// Streams open per listening port.
#[derive(Debug, Default)]
pub(crate) struct Ports {
    listeners: FxHashMap<u16, usize>,
    next_ephemeral: u16,
}

impl Ports {
    /// `start` is random, so that a restarted node does not meet the remains
    /// of its own old streams at a peer.
    pub(crate) fn new(start: u16) -> Self {
        Self { listeners: FxHashMap::default(), next_ephemeral: start | EPHEMERAL_FIRST }
    }

    /// Returns whether the port was free.
    pub(crate) fn listen(&mut self, port: u16) -> bool {
        match self.listeners.entry(port) {
            std::collections::hash_map::Entry::Occupied(_) => false,
            std::collections::hash_map::Entry::Vacant(v) => {
                v.insert(0);
                true
            }
        }
    }

    pub(crate) fn unlisten(&mut self, port: u16) {
        self.listeners.remove(&port);
    }

    /// Streams open on a listening port.
    pub(crate) fn open_on(&mut self, port: u16) -> Option<&mut usize> {
        self.listeners.get_mut(&port)
    }

    pub(crate) fn len(&self) -> usize {
        self.listeners.len()
    }

    /// The next ephemeral port for which `free` holds.
    pub(crate) fn ephemeral(&mut self, free: impl Fn(u16) -> bool) -> Option<u16> {
        for _ in EPHEMERAL_FIRST..=u16::MAX {
            let port = self.next_ephemeral;
            self.next_ephemeral = port.checked_add(1).unwrap_or(EPHEMERAL_FIRST);
            if free(port) && !self.listeners.contains_key(&port) {
                return Some(port);
            }
        }
        None
    }
}

/// A token bucket; starts full.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    rate: u64,
    /// Tokens times one billion.
    level: u64,
    filled: Time,
}

const TOKEN: u64 = 1_000_000_000;

impl Bucket {
    /// `rate` tokens a second, as many at once.
    pub(crate) fn new(rate: u32, now: Time) -> Self {
        let rate = u64::from(rate);
        Self { rate, level: rate.saturating_mul(TOKEN), filled: now }
    }

    pub(crate) fn take(&mut self, now: Time) -> bool {
        let passed = u64::try_from(now.since(self.filled).as_nanos()).unwrap_or(u64::MAX);
        self.filled = now;
        let full = self.rate.saturating_mul(TOKEN);
        self.level = self.level.saturating_add(passed.saturating_mul(self.rate)).min(full);
        if self.level < TOKEN {
            return false;
        }
        self.level -= TOKEN;
        true
    }
}
