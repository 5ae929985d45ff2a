//! One direction of a path, in virtual time: what happens to each datagram and
//! when it comes out. It reads no clock and opens no socket.
//!
//! In this order: MTU, queue, bottleneck, loss, delay. So what is lost has used
//! its share of the bottleneck, as on a bad last hop.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// IPv4 (20) and UDP (8) headers, in bytes: they count against rate, queue and
/// MTU like the payload.
pub const HEADERS: usize = 28;
/// Most bytes inside a link, queued or under way; what comes beyond is dropped
/// as if the queue were full. A second of half a gigabit.
const HELD_BYTES: usize = 64 << 20;
/// Most datagrams inside a link; what comes beyond is dropped likewise.
const HELD_DATAGRAMS: usize = 1 << 17;
/// A datagram held back to be overtaken waits at least this long.
const LEAST_REORDER: Duration = Duration::from_millis(1);

/// Room before the bottleneck.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Queue {
    /// This many bandwidth-delay products: rate times twice the delay.
    Bdp(f64),
    /// This many bytes.
    Bytes(usize),
}

/// What one direction does to datagrams.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Profile {
    /// Bits per second through the bottleneck; `None` is no bottleneck.
    pub rate: Option<u64>,
    /// One way, after the bottleneck.
    pub delay: Duration,
    /// The delay varies evenly by up to this much, more or less. Order is kept.
    pub jitter: Duration,
    /// Share of datagrams lost after the bottleneck, 0 to 1.
    pub loss: f64,
    /// Share of datagrams held back by a quarter of the delay, 0 to 1.
    pub reorder: f64,
    /// Share of datagrams that come out twice, 0 to 1.
    pub duplicate: f64,
    /// Beyond it the newest datagram is dropped. An idle bottleneck takes one
    /// datagram whatever the queue.
    pub queue: Queue,
    /// Largest IP packet in bytes; larger ones vanish without a word.
    pub mtu: usize,
}

impl Default for Profile {
    /// A clean Ethernet path without a bottleneck.
    fn default() -> Self {
        Self {
            rate: None,
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            loss: 0.0,
            reorder: 0.0,
            duplicate: 0.0,
            queue: Queue::Bdp(1.0),
            mtu: 1500,
        }
    }
}

impl Profile {
    /// Half of a path with this round-trip time, a queue of one BDP, and loss
    /// in each direction.
    pub fn path(rate: u64, round_trip: Duration, loss: f64) -> Self {
        Self { rate: Some(rate), delay: round_trip / 2, loss, ..Self::default() }
    }

    /// Size of the queue in bytes; at least two packets when it is given in
    /// BDPs.
    pub fn queue_bytes(&self) -> usize {
        let bytes = match (self.queue, self.rate) {
            (Queue::Bytes(bytes), _) => bytes,
            (Queue::Bdp(_), None) => HELD_BYTES,
            (Queue::Bdp(times), Some(rate)) => {
                let bdp = rate as f64 / 8.0 * self.delay.as_secs_f64() * 2.0;
                // A float cast ends at the largest integer.
                ((bdp * times) as usize).max(2 * self.mtu)
            }
        };
        bytes.min(HELD_BYTES)
    }
}

/// Why a datagram did not come through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// Larger than the MTU.
    TooLarge,
    /// The queue was full.
    QueueFull,
    /// By chance.
    Lost,
}

/// What went through a link and what did not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Datagrams offered.
    pub offered: u64,
    /// UDP payload bytes offered.
    pub offered_bytes: u64,
    /// Datagrams that came out, copies included.
    pub delivered: u64,
    /// UDP payload bytes that came out, copies included.
    pub delivered_bytes: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Dropped by a full queue.
    pub queue_full: u64,
    /// Larger than the MTU.
    pub too_large: u64,
    /// Held back to be overtaken.
    pub reordered: u64,
    /// Copies made.
    pub duplicated: u64,
    /// Longest queue seen, in bytes of IP packets.
    pub longest_queue: usize,
}

#[derive(Debug)]
struct Held<T> {
    due: Duration,
    /// Order of those due at the same time.
    order: u64,
    len: usize,
    datagram: T,
}

impl<T> Held<T> {
    fn key(&self) -> (Duration, u64) {
        (self.due, self.order)
    }
}

impl<T> PartialEq for Held<T> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<T> Eq for Held<T> {}

impl<T> PartialOrd for Held<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Held<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

/// One direction. Time is the span since any fixed moment.
#[derive(Debug)]
pub struct Link<T> {
    profile: Profile,
    queue_bytes: usize,
    rng: StdRng,
    /// Until then the bottleneck is busy with what it has taken.
    free_at: Duration,
    /// When the last datagram offered came.
    newest: Duration,
    /// When the last datagram in order comes out.
    last_due: Duration,
    held: BinaryHeap<Reverse<Held<T>>>,
    held_bytes: usize,
    order: u64,
    counters: Counters,
}

impl<T: Clone> Link<T> {
    /// An empty link. The same seed and offers give the same outcome.
    pub fn new(profile: Profile, seed: u64) -> Self {
        Self {
            profile,
            queue_bytes: profile.queue_bytes(),
            rng: StdRng::seed_from_u64(seed),
            free_at: Duration::ZERO,
            newest: Duration::ZERO,
            last_due: Duration::ZERO,
            held: BinaryHeap::new(),
            held_bytes: 0,
            order: 0,
            counters: Counters::default(),
        }
    }

    /// From now on datagrams fare like this; those inside come out as planned.
    pub fn set_profile(&mut self, profile: Profile) {
        self.profile = profile;
        self.queue_bytes = profile.queue_bytes();
    }

    /// What was counted so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Bytes of IP packets that wait for the bottleneck, the rest of the one in
    /// it included.
    pub fn backlog(&self, now: Duration) -> usize {
        let Some(rate) = self.profile.rate else { return 0 };
        let wait = self.free_at.saturating_sub(now).as_nanos();
        usize::try_from(wait * u128::from(rate) / 8_000_000_000).unwrap_or(usize::MAX)
    }

    /// A datagram of `len` payload bytes comes in. A time before that of the
    /// previous offer counts as that one. Returns when it comes out.
    ///
    /// # Errors
    /// Why it does not come out.
    pub fn offer(&mut self, now: Duration, len: usize, datagram: T) -> Result<Duration, Dropped> {
        let now = now.max(self.newest);
        self.newest = now;
        self.counters.offered += 1;
        self.counters.offered_bytes += len as u64;
        // All of the chances are drawn for every datagram, so that one share
        // changed leaves what the others hit unchanged.
        let [loss, reorder, duplicate] = std::array::from_fn(|_| self.rng.random::<f64>());
        let jitter = self.profile.jitter.mul_f64(self.rng.random::<f64>() * 2.0);

        let size = len + HEADERS;
        if size > self.profile.mtu {
            self.counters.too_large += 1;
            return Err(Dropped::TooLarge);
        }
        let backlog = self.backlog(now);
        let queue_full = backlog > 0 && backlog + size > self.queue_bytes;
        // One place is kept free for a copy.
        let full = self.held_bytes + 2 * size > HELD_BYTES || self.held.len() + 2 > HELD_DATAGRAMS;
        if queue_full || full {
            self.counters.queue_full += 1;
            return Err(Dropped::QueueFull);
        }
        self.counters.longest_queue = self.counters.longest_queue.max(backlog + size);
        self.free_at = self.free_at.max(now) + self.transmission(size);
        if loss < self.profile.loss {
            self.counters.lost += 1;
            return Err(Dropped::Lost);
        }
        let late = (self.free_at + self.profile.delay + jitter).saturating_sub(self.profile.jitter);
        // Jitter may not let it leave before the bottleneck has sent it.
        let mut due = late.max(self.free_at).max(self.last_due);
        if reorder < self.profile.reorder {
            self.counters.reordered += 1;
            due += (self.profile.delay / 4).max(LEAST_REORDER);
        } else {
            self.last_due = due;
        }
        if duplicate < self.profile.duplicate {
            self.counters.duplicated += 1;
            self.hold(due, len, datagram.clone());
        }
        self.hold(due, len, datagram);
        Ok(due)
    }

    /// The next datagram that is out by `now`, and when it was.
    pub fn poll(&mut self, now: Duration) -> Option<(Duration, T)> {
        if self.next_due()? > now {
            return None;
        }
        let Reverse(held) = self.held.pop()?;
        self.held_bytes -= held.len + HEADERS;
        self.counters.delivered += 1;
        self.counters.delivered_bytes += held.len as u64;
        Some((held.due, held.datagram))
    }

    /// When the next datagram comes out.
    pub fn next_due(&self) -> Option<Duration> {
        self.held.peek().map(|Reverse(held)| held.due)
    }

    /// How long the bottleneck is busy with `size` bytes.
    fn transmission(&self, size: usize) -> Duration {
        match self.profile.rate {
            Some(rate) => {
                let nanos = size as u128 * 8_000_000_000 / u128::from(rate.max(1));
                Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
            }
            None => Duration::ZERO,
        }
    }

    fn hold(&mut self, due: Duration, len: usize, datagram: T) {
        self.held_bytes += len + HEADERS;
        self.held.push(Reverse(Held { due, order: self.order, len, datagram }));
        self.order += 1;
    }
}

#[cfg(test)]
mod tests;
