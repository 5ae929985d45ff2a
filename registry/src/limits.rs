//! What is bounded per source address, connections, and the beacons of the last
//! minute. None of it is durable.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pilot_wire::registry::Beacon;

use crate::state::Refusal;

/// Source addresses remembered. When they are as many, each new one first lets
/// the next [`EVICTIONS`] go if their buckets are full by now, and is refused
/// if none is: nobody gets a new bucket by bringing many addresses.
const MAX_SOURCES: usize = 65_536;
/// Buckets looked at for a new source.
const EVICTIONS: usize = 64;
/// How long a beacon's registration holds, in seconds.
const BEACON_TTL: u64 = 60;
/// Most beacons at a time; a further one is refused.
const MAX_BEACONS: usize = 256;
/// Longest beacon address, in bytes.
const MAX_BEACON_ADDR: usize = 256;

/// One source holds at most one in so many of all places for connections. A
/// share, as many daemons may stand behind one address, and a registry with few
/// places has few for each. Loopback is exempt: who is on the machine has other
/// means, and a proxy on it stands for everybody.
const SOURCE_SHARE: usize = 4;
/// But never fewer than so many.
const MIN_PER_SOURCE: usize = 64;

/// Places for connections. An IPv6 source is its /64: who has one address of it
/// usually has all.
#[derive(Debug)]
pub(crate) struct Places {
    most: AtomicUsize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    /// Not those of loopback; none with 0.
    sources: HashMap<IpAddr, usize>,
}

/// There is no place for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoPlace {
    /// For nobody.
    #[error("there are {0} connections; see max-connections")]
    Full(usize),
    /// For this source.
    #[error("{0} connections come from this address, as many as one may have of max-connections")]
    Source(usize),
}

impl NoPlace {
    /// Stable reason for programs.
    pub(crate) const fn code(self) -> &'static str {
        match self {
            Self::Full(_) => "max_connections",
            Self::Source(_) => "max_connections_of_source",
        }
    }
}

/// A place that is taken until this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    source: Option<IpAddr>,
}

impl Places {
    /// `most` of them.
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most: AtomicUsize::new(most), taken: Mutex::default() })
    }

    /// So many from now on; who has one keeps it.
    pub(crate) fn set_most(&self, most: usize) {
        self.most.store(most, Relaxed);
    }

    /// Takes a place for a connection from `source`.
    pub(crate) fn take(self: &Arc<Self>, source: IpAddr) -> Result<Place, NoPlace> {
        let source = counted(source);
        let most = self.most.load(Relaxed);
        let mut taken = self.taken();
        if taken.all >= most {
            return Err(NoPlace::Full(taken.all));
        }
        if let Some(source) = source {
            let of_source = taken.sources.entry(source).or_default();
            if *of_source >= (most / SOURCE_SHARE).max(MIN_PER_SOURCE) {
                return Err(NoPlace::Source(*of_source));
            }
            *of_source += 1;
        }
        taken.all += 1;
        Ok(Place { places: Arc::clone(self), source })
    }

    /// Counting cannot panic half-way, so poisoning is ignored.
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        taken.all -= 1;
        let Some(source) = self.source else { return };
        if let Some(of_source) = taken.sources.get_mut(&source) {
            *of_source -= 1;
            if *of_source == 0 {
                taken.sources.remove(&source);
            }
        }
    }
}

/// As what a source is counted; none for loopback.
pub(crate) fn counted(source: IpAddr) -> Option<IpAddr> {
    Some(grouped(source)).filter(|source| !source.is_loopback())
}

/// As what a source is counted where loopback counts as well.
pub(crate) fn grouped(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(v6) if !v6.is_loopback() => {
            let network = v6.to_bits() & (u128::MAX << 64);
            Ipv6Addr::from_bits(network).into()
        }
        source => source,
    }
}

/// A token bucket per source address: `rate` tokens, refilled in a minute. An
/// IPv6 source is its /64.
#[derive(Debug)]
pub(crate) struct RateLimit {
    rate: u32,
    buckets: HashMap<IpAddr, Bucket>,
    /// All that have a bucket, the one that is looked at next first.
    order: VecDeque<IpAddr>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// Sixtieths of a token, so that whole seconds refill whole units.
    level: u64,
    at: u64,
}

impl RateLimit {
    /// `rate` 0 allows everything.
    pub(crate) fn new(rate: u32) -> Self {
        Self { rate, buckets: HashMap::new(), order: VecDeque::new() }
    }

    /// Allows another rate from now on; nobody has more waiting than it gives.
    pub(crate) fn set_rate(&mut self, rate: u32) {
        if self.rate == rate {
            return;
        }
        self.rate = rate;
        // At another rate old levels mean something else.
        self.buckets.clear();
        self.order.clear();
    }

    /// Whether there is a token, which stays.
    pub(crate) fn has(&self, source: IpAddr, now: u64) -> bool {
        let bucket = self.buckets.get(&grouped(source)).filter(|_| self.rate > 0);
        let Some(bucket) = bucket else { return true };
        let gained = now.saturating_sub(bucket.at).saturating_mul(u64::from(self.rate));
        bucket.level + gained >= 60
    }

    /// Takes a token if there is one.
    pub(crate) fn take(&mut self, source: IpAddr, now: u64) -> bool {
        if self.rate == 0 {
            return true;
        }
        let source = grouped(source);
        if !self.buckets.contains_key(&source) {
            if self.buckets.len() >= MAX_SOURCES && !self.make_room(now) {
                return false;
            }
            self.buckets.insert(source, Bucket { level: self.full(), at: now });
            self.order.push_back(source);
        }
        let Some(level) = self.level(source, now) else { return false };
        let taken = level.checked_sub(60);
        self.buckets.insert(source, Bucket { level: taken.unwrap_or(level), at: now });
        taken.is_some()
    }

    fn full(&self) -> u64 {
        u64::from(self.rate) * 60
    }

    fn level(&self, source: IpAddr, now: u64) -> Option<u64> {
        let bucket = self.buckets.get(&source)?;
        let gained = now.saturating_sub(bucket.at).saturating_mul(u64::from(self.rate));
        Some(self.full().min(bucket.level.saturating_add(gained)))
    }

    /// Forgets some whose buckets are full, as if they had never come; whether
    /// there was one.
    fn make_room(&mut self, now: u64) -> bool {
        let before = self.buckets.len();
        for _ in 0..EVICTIONS {
            let Some(source) = self.order.pop_front() else { break };
            if self.level(source, now).is_some_and(|level| level < self.full()) {
                self.order.push_back(source);
            } else {
                self.buckets.remove(&source);
            }
        }
        self.buckets.len() < before
    }
}

/// Beacons that registered lately.
#[derive(Debug, Default)]
pub(crate) struct Beacons {
    beacons: BTreeMap<u32, (String, u64)>,
}

impl Beacons {
    pub(crate) fn register(&mut self, id: u32, addr: &str, now: u64) -> Result<(), Refusal> {
        if id == 0 {
            return Err(Refusal::Missing("beacon_id"));
        }
        if addr.is_empty() || addr.len() > MAX_BEACON_ADDR {
            return Err(Refusal::Missing("addr"));
        }
        self.expire(now);
        if self.beacons.len() >= MAX_BEACONS && !self.beacons.contains_key(&id) {
            return Err(Refusal::Full("beacons"));
        }
        self.beacons.insert(id, (addr.to_owned(), now));
        Ok(())
    }

    pub(crate) fn list(&mut self, now: u64) -> Vec<Beacon> {
        self.expire(now);
        self.beacons.iter().map(|(id, (addr, _))| Beacon { id: *id, addr: addr.clone() }).collect()
    }

    fn expire(&mut self, now: u64) {
        self.beacons.retain(|_, (_, at)| now.saturating_sub(*at) < BEACON_TTL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_refill_over_a_minute() {
        let mut limit = RateLimit::new(10);
        let source = IpAddr::from([10, 0, 0, 1]);
        assert!((0..10).all(|_| limit.take(source, 100)));
        assert!(!limit.take(source, 100));
        assert!(!limit.take(source, 105));
        assert!(limit.take(source, 106) && !limit.take(source, 106));
        assert!(limit.take(IpAddr::from([10, 0, 0, 2]), 106));
        assert_eq!((0..20).filter(|_| limit.take(source, 1000)).count(), 10);
        assert!(!limit.has(source, 1000) && limit.has(source, 1006));
        assert!(limit.has(IpAddr::from([10, 0, 0, 3]), 0));
        limit.set_rate(3);
        assert_eq!((0..20).filter(|_| limit.take(source, 1000)).count(), 3);
        let mut unlimited = RateLimit::new(0);
        assert!((0..1000).all(|_| unlimited.take(source, 0)));
    }

    #[test]
    fn sources_are_bounded() {
        let mut limit = RateLimit::new(1);
        for i in 0..200_000u32 {
            limit.take(IpAddr::from(i.to_be_bytes()), 5);
        }
        assert_eq!((limit.buckets.len(), limit.order.len()), (MAX_SOURCES, MAX_SOURCES));
        // Nobody is let off because others came, and newcomers wait.
        assert!(!limit.take(IpAddr::from([0, 0, 0, 0]), 5));
        assert!(!limit.take(IpAddr::from([10, 0, 0, 1]), 5));
        assert!(limit.take(IpAddr::from([10, 0, 0, 1]), 65));
        assert_eq!(limit.buckets.len(), MAX_SOURCES + 1 - EVICTIONS);
        assert_eq!(limit.order.len(), limit.buckets.len());
    }

    #[test]
    fn a_network_of_ipv6_is_one_source() {
        let mut limit = RateLimit::new(1);
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(limit.take(ip("2001:db8::1"), 5));
        assert!(!limit.take(ip("2001:db8::2"), 5) && !limit.has(ip("2001:db8::3"), 5));
        assert!(limit.take(ip("2001:db8:0:1::1"), 5));
        assert!(limit.take(ip("192.0.2.1"), 5) && !limit.take(ip("::ffff:192.0.2.1"), 5));
        assert!(limit.take(ip("::1"), 5) && limit.take(ip("127.0.0.1"), 5));
    }

    #[test]
    fn one_source_cannot_take_all_places() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let places = Places::new(400);
        let mut held: Vec<_> = (0..100).map(|_| places.take(ip("192.0.2.1")).unwrap()).collect();
        assert_eq!(places.take(ip("192.0.2.1")).unwrap_err(), NoPlace::Source(100));
        // The same address as an IPv4-mapped one.
        assert_eq!(places.take(ip("::ffff:192.0.2.1")).unwrap_err(), NoPlace::Source(100));
        let one = places.take(ip("2001:db8::1")).unwrap();
        let other = places.take(ip("2001:db8::2")).unwrap();
        assert_eq!(places.taken().sources[&ip("2001:db8::")], 2);
        drop((one, other));
        held.pop();
        held.push(places.take(ip("192.0.2.1")).unwrap());
        // Loopback has all that is left.
        held.extend((0..300).map(|_| places.take(ip("127.0.0.1")).unwrap()));
        assert_eq!(places.take(ip("::1")).unwrap_err(), NoPlace::Full(400));
        assert_eq!(places.take(ip("192.0.2.2")).unwrap_err(), NoPlace::Full(400));
        drop(held);
        assert!(places.taken().sources.is_empty() && places.taken().all == 0);
    }

    #[test]
    fn beacons_expire_and_are_bounded() {
        let mut beacons = Beacons::default();
        assert!(beacons.register(0, "x", 0).is_err() && beacons.register(1, "", 0).is_err());
        for id in 1..=300 {
            let good = beacons.register(id, "x:1", 0).is_ok();
            assert_eq!(good, id <= 256);
        }
        assert_eq!(beacons.list(59).len(), 256);
        assert!(beacons.list(60).is_empty());
    }
}
