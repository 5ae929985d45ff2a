//! The relay: a thread that takes datagrams from sockets, asks a link for each
//! direction what becomes of them, and sends them on when they are due.
//!
//! What clients send to the near socket goes to the target, from a socket of
//! its own for each client, like through a NAT; what the target answers there
//! goes back from the near socket.
//!
//! It sleeps in `ppoll`, whose timeouts are good to about 60 microseconds, and
//! never spins: the links count in virtual time from when the kernel received a
//! datagram, so that a late wake-up delays single datagrams and takes nothing
//! from the rate.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use quinn_udp::EcnCodepoint;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::link::{Counters, Link, Profile};

mod port;

use port::{Port, Slots};

/// Clients at once; a further one takes the place of the one unheard for
/// longest, which loses what was on its way to it.
const MAX_CLIENTS: usize = 64;
/// Longest sleep, so that a new order is seen soon.
const LONGEST_SLEEP: Duration = Duration::from_millis(10);
/// Nice value asked for: what waits for the relay is what is measured.
const PRIORITY: i32 = -15;
/// A kernel time stamp older than this is not believed.
const OLDEST_STAMP: Duration = Duration::from_secs(1);

/// The relay could not be started.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The address cannot be bound.
    #[error("cannot bind UDP {address}: {source}; choose another address or stop what uses it")]
    Bind {
        /// What was asked for.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The system gives no thread.
    #[error("cannot start the relay's thread: {0}")]
    Thread(io::Error),
}

/// How much later than planned datagrams were sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lateness {
    /// How many were late by less than 2^n microseconds, and not by less than
    /// 2^(n-1).
    counts: [u64; 24],
    /// The latest.
    pub worst: Duration,
}

impl Lateness {
    fn note(&mut self, late: Duration) {
        let micros = u64::try_from(late.as_micros()).unwrap_or(u64::MAX);
        let class = (u64::BITS - micros.leading_zeros()) as usize;
        self.counts[class.min(self.counts.len() - 1)] += 1;
        self.worst = self.worst.max(late);
    }

    /// This share of datagrams was not later than that, to a factor of two.
    pub fn quantile(&self, share: f64) -> Duration {
        let all: u64 = self.counts.iter().sum();
        let mut seen = 0;
        for (class, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen > 0 && seen as f64 >= all as f64 * share {
                return Duration::from_micros(1 << class).min(self.worst);
            }
        }
        self.worst
    }
}

/// What a relay has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// From clients to the target.
    pub up: Counters,
    /// From the target to clients.
    pub down: Counters,
    /// Datagrams from or for nobody known; they are dropped.
    pub strangers: u64,
    /// Datagrams that the system did not send.
    pub send_errors: u64,
    /// Sending against plan.
    pub lateness: Lateness,
}

/// What the owner says to the thread and the thread to the owner.
#[derive(Debug, Default)]
struct Shared {
    stop: bool,
    target: Option<SocketAddr>,
    /// The one client that is served, when it was reserved a place.
    client: Option<SocketAddr>,
    profiles: Option<[Profile; 2]>,
    statistics: Statistics,
}

/// A running relay; dropping it ends its thread.
#[derive(Debug)]
pub struct Relay {
    near: SocketAddr,
    far: Option<SocketAddr>,
    shared: Arc<Mutex<Shared>>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Serves any client at `listen` and passes their datagrams to `target`.
    ///
    /// # Errors
    /// When `listen` cannot be bound.
    pub fn listen(
        listen: SocketAddr,
        target: SocketAddr,
        profile: Profile,
        seed: u64,
    ) -> Result<Self, RelayError> {
        Self::start(listen, Some(target), false, profile, seed)
    }

    /// Between two parties of this machine that are named later with
    /// [`Self::connect`]; until then everything is dropped. The client reaches
    /// the target at [`Self::near`], the target the client at [`Self::far`].
    /// Nobody else is served.
    ///
    /// # Errors
    /// When the loopback address has no port left.
    pub fn between(profile: Profile, seed: u64) -> Result<Self, RelayError> {
        Self::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), None, true, profile, seed)
    }

    fn start(
        listen: SocketAddr,
        target: Option<SocketAddr>,
        reserve: bool,
        profile: Profile,
        seed: u64,
    ) -> Result<Self, RelayError> {
        let (near_port, near) = Port::bind(listen)?;
        let shared = Arc::new(Mutex::new(Shared { target, ..Shared::default() }));
        let mut worker = Worker {
            shared: shared.clone(),
            start: Instant::now(),
            near: near_port,
            sessions: Vec::new(),
            clients: HashMap::new(),
            next_id: 0,
            reserved: reserve,
            target,
            // Independent chances for the two directions.
            up: Link::new(profile, seed),
            down: Link::new(profile, !seed),
            strangers: 0,
            send_errors: 0,
            lateness: Lateness::default(),
        };
        let mut far = None;
        if reserve {
            let (port, address) = Port::bind(SocketAddr::new(near.ip(), 0))?;
            worker.add_session(None, port, Duration::ZERO);
            far = Some(address);
        }
        let thread = thread::Builder::new()
            .name("impair".to_owned())
            .spawn(move || worker.run())
            .map_err(RelayError::Thread)?;
        Ok(Self { near, far, shared, thread: Some(thread) })
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        // A panicked thread leaves plain values, none of them half written.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where clients send to.
    pub fn near(&self) -> SocketAddr {
        self.near
    }

    /// Where the target sends to in order to reach the client of a relay made
    /// by [`Self::between`].
    pub fn far(&self) -> Option<SocketAddr> {
        self.far
    }

    /// Names the two parties of a relay made by [`Self::between`].
    pub fn connect(&self, client: SocketAddr, target: SocketAddr) {
        let mut shared = self.shared();
        shared.client = Some(client);
        shared.target = Some(target);
    }

    /// From now on (10 ms at most) both directions are like this.
    pub fn set_profile(&self, profile: Profile) {
        self.shared().profiles = Some([profile; 2]);
    }

    /// What was done until some milliseconds ago.
    pub fn statistics(&self) -> Statistics {
        self.shared().statistics
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared().stop = true;
        if let Some(thread) = self.thread.take() {
            // It wakes within its longest sleep; its panic is not ours.
            let _ = thread.join();
        }
    }
}

/// A client and the socket that stands for it towards the target.
#[derive(Debug)]
struct Session {
    id: u64,
    client: Option<SocketAddr>,
    port: Port,
    heard: Duration,
}

/// A datagram on its way. The session may be gone when it comes out.
#[derive(Clone, Debug)]
struct Datagram {
    session: u64,
    ecn: Option<EcnCodepoint>,
    data: Bytes,
}

/// What the thread owns.
struct Worker {
    shared: Arc<Mutex<Shared>>,
    start: Instant,
    near: Port,
    /// At most [`MAX_CLIENTS`].
    sessions: Vec<Session>,
    clients: HashMap<SocketAddr, u64>,
    next_id: u64,
    /// The only session was made at the start, and its client is told.
    reserved: bool,
    target: Option<SocketAddr>,
    up: Link<Datagram>,
    down: Link<Datagram>,
    strangers: u64,
    send_errors: u64,
    lateness: Lateness,
}

impl Worker {
    fn run(&mut self) {
        // On Linux this is the calling thread alone. Where it is not permitted
        // the relay is as punctual as the machine is idle.
        let _ = rustix::process::setpriority_process(None, PRIORITY);
        let mut slots = Slots::default();
        while self.exchange() {
            self.receive_all(&mut slots);
            self.send_due();
            self.sleep();
        }
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Takes orders and says what was done. Returns whether to go on.
    fn exchange(&mut self) -> bool {
        // Beside the field access below, so that it does not borrow all of us.
        let shared = self.shared.clone();
        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some([up, down]) = shared.profiles.take() {
            self.up.set_profile(up);
            self.down.set_profile(down);
        }
        self.target = shared.target;
        if self.reserved
            && let Some(session) = self.sessions.first_mut()
            && let Some(client) = shared.client
            && session.client != Some(client)
        {
            session.client = Some(client);
            self.clients.clear();
            self.clients.insert(client, session.id);
        }
        shared.statistics = Statistics {
            up: self.up.counters(),
            down: self.down.counters(),
            strangers: self.strangers,
            send_errors: self.send_errors,
            lateness: self.lateness,
        };
        !shared.stop
    }

    fn receive_all(&mut self, slots: &mut Slots) {
        // One call for each socket and turn: between the turns others and what
        // is due have their chance.
        let epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = self.now();
        let came = |stamp: Option<Duration>| {
            let ago = stamp.map_or(Duration::ZERO, |stamp| epoch.saturating_sub(stamp));
            if ago > OLDEST_STAMP { now } else { now.saturating_sub(ago) }
        };
        let mut unserved = Vec::new();
        let Self { near, clients, sessions, up, down, strangers, target, .. } = self;
        near.receive(slots, |from, stamp, ecn, data| match clients.get(&from) {
            Some(&session) => {
                let datagram = Datagram { session, ecn, data: Bytes::copy_from_slice(data) };
                let _ = up.offer(came(stamp), data.len(), datagram);
                if let Some(session) = sessions.iter_mut().find(|s| s.id == session) {
                    session.heard = now;
                }
            }
            None => unserved.push((from, came(stamp), ecn, Bytes::copy_from_slice(data))),
        });
        for session in sessions {
            session.port.receive(slots, |from, stamp, ecn, data| {
                if *target == Some(from) && session.client.is_some() {
                    let data = Bytes::copy_from_slice(data);
                    let datagram = Datagram { session: session.id, ecn, data };
                    let _ = down.offer(came(stamp), datagram.data.len(), datagram);
                } else {
                    *strangers += 1;
                }
            });
        }
        for (from, at, ecn, data) in unserved {
            match self.session_for(from, now) {
                Some(session) => {
                    let _ = self.up.offer(at, data.len(), Datagram { session, ecn, data });
                }
                None => self.strangers += 1,
            }
        }
    }

    /// The session of a client, made when it is new.
    fn session_for(&mut self, client: SocketAddr, now: Duration) -> Option<u64> {
        if let Some(&id) = self.clients.get(&client) {
            return Some(id);
        }
        if self.reserved {
            return None;
        }
        // Towards loopback from loopback, else from wherever the route says.
        let ip: IpAddr = match self.target?.ip() {
            IpAddr::V4(ip) if ip.is_loopback() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(ip) if ip.is_loopback() => Ipv6Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let (port, _) = Port::bind(SocketAddr::new(ip, 0)).ok()?;
        Some(self.add_session(Some(client), port, now))
    }

    fn add_session(&mut self, client: Option<SocketAddr>, port: Port, now: Duration) -> u64 {
        if self.sessions.len() >= MAX_CLIENTS
            && let Some(oldest) =
                (0..self.sessions.len()).min_by_key(|&index| self.sessions[index].heard)
            && let Some(client) = self.sessions.swap_remove(oldest).client
        {
            self.clients.remove(&client);
        }
        let id = self.next_id;
        self.next_id += 1;
        self.sessions.push(Session { id, client, port, heard: now });
        if let Some(client) = client {
            self.clients.insert(client, id);
        }
        id
    }

    fn send_due(&mut self) {
        let now = self.now();
        while let Some((due, datagram)) = self.up.poll(now) {
            let session = self.sessions.iter().find(|s| s.id == datagram.session);
            let to = session.and_then(|s| Some((&s.port, self.target?)));
            let sent = to.is_some_and(|(port, to)| port.send(to, datagram.ecn, &datagram.data));
            self.send_errors += u64::from(!sent);
            self.lateness.note(self.start.elapsed().saturating_sub(due));
        }
        while let Some((due, datagram)) = self.down.poll(now) {
            let session = self.sessions.iter().find(|s| s.id == datagram.session);
            let to = session.and_then(|s| s.client);
            let sent = to.is_some_and(|to| self.near.send(to, datagram.ecn, &datagram.data));
            self.send_errors += u64::from(!sent);
            self.lateness.note(self.start.elapsed().saturating_sub(due));
        }
    }

    /// Until something arrives or is due.
    fn sleep(&self) {
        let due = [self.up.next_due(), self.down.next_due()].into_iter().flatten().min();
        let wait = due.map_or(LONGEST_SLEEP, |due| due.saturating_sub(self.now()));
        let wait = wait.min(LONGEST_SLEEP);
        let timeout = Timespec { tv_sec: 0, tv_nsec: wait.subsec_nanos().into() };
        let ports = std::iter::once(&self.near).chain(self.sessions.iter().map(|s| &s.port));
        let mut fds: Vec<_> = ports.map(|port| PollFd::new(port.socket(), PollFlags::IN)).collect();
        // Interrupted or not, the next turn looks at everything.
        let _ = poll(&mut fds, Some(&timeout));
    }
}

#[cfg(test)]
mod tests;
