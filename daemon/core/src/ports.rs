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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn ephemeral_ports_go_round_and_skip_what_is_taken() {
        let mut ports = Ports::new(u16::MAX);
        assert!(ports.listen(EPHEMERAL_FIRST));
        assert_eq!(ports.ephemeral(|_| true), Some(u16::MAX));
        assert_eq!(ports.ephemeral(|p| p != EPHEMERAL_FIRST + 1), Some(EPHEMERAL_FIRST + 2));
        assert_eq!(ports.ephemeral(|_| false), None);
        assert!(!ports.listen(EPHEMERAL_FIRST), "bound already");
    }

    #[test]
    fn any_start_gives_an_ephemeral_port() {
        for start in 0..=u16::MAX {
            let port = Ports::new(start).ephemeral(|_| true).expect("free");
            assert!(port >= EPHEMERAL_FIRST);
        }
    }

    #[test]
    fn a_bucket_gives_its_rate_and_holds_no_more() {
        let mut bucket = Bucket::new(10, Time::ZERO);
        let take_all = |bucket: &mut Bucket, now| (0..100).filter(|_| bucket.take(now)).count();
        assert_eq!(take_all(&mut bucket, Time::ZERO), 10);
        let later = Time::ZERO + Duration::from_millis(250);
        assert_eq!(take_all(&mut bucket, later), 2);
        assert_eq!(take_all(&mut bucket, later + Duration::from_millis(50)), 1, "halves add up");
        assert_eq!(take_all(&mut bucket, later + Duration::from_secs(3600)), 10);
        assert_eq!(take_all(&mut Bucket::new(0, Time::ZERO), later), 0);
        let mut wide = Bucket::new(u32::MAX, Time::ZERO);
        assert!(wide.take(Time::from_nanos(u64::MAX)), "no overflow");
    }
}
