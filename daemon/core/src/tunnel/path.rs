//! How datagrams reach one peer: directly or through the beacon, and how
//! large they may be.

use std::net::SocketAddr;
use std::time::Duration;

use crate::time::Time;

/// UDP payload that every path carries: 1280 bytes of IPv6 less its headers
/// and eight bytes for UDP.
pub(crate) const BASE_DATAGRAM: usize = 1232;
/// What is tried on paths that seem to be wider, widest first: the largest UDP
/// payload (loopback), jumbo frames, Ethernet; each less IP and UDP headers
/// (IPv6 sizes).
const CANDIDATES: [usize; 3] = [65_487, 8_952, 1_452];
/// A probe unanswered for this long is lost.
const PROBE_TIMEOUT: Duration = Duration::from_millis(400);
/// Probes of one size before it is given up (RFC 8899, section 5.1.2).
const MAX_PROBES: u8 = 3;
/// After a black hole, wider datagrams are not tried for this long.
const RAISE_TIMER: Duration = Duration::from_secs(60);
/// A validation probe unanswered for this long is forgotten.
const VALIDATION_TIMEOUT: Duration = Duration::from_secs(3);
/// Direct traffic heard within this time keeps relayed frames from switching
/// the path.
const DIRECT_FRESH: Duration = Duration::from_secs(3);
/// An endpoint from the registry replaces one that was silent for this long.
const OFFER_SILENCE: Duration = Duration::from_secs(1);
/// While relayed, the direct path is tried again this often.
const DIRECT_RETRY: Duration = Duration::from_secs(15);

/// Where the next datagram to the peer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    Direct(SocketAddr),
    Relay(SocketAddr),
}

/// A new source address that must answer a probe before it is used.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    address: SocketAddr,
    token: u64,
    sent: Time,
}

#[derive(Debug, Default)]
pub(crate) struct Path {
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) relay: bool,
    direct_heard: Option<Time>,
    direct_tried: Option<Time>,
    candidate: Option<Candidate>,
    pub(crate) mtu: Mtu,
}

impl Path {
    pub(crate) fn route(&self, beacon: Option<SocketAddr>) -> Option<Route> {
        match (self.relay, self.endpoint, beacon) {
            (true, _, Some(beacon)) => Some(Route::Relay(beacon)),
            (_, Some(endpoint), _) => Some(Route::Direct(endpoint)),
            _ => None,
        }
    }

    /// Takes an endpoint that was not learnt from authenticated traffic: only
    /// when there is none, or the old one has been silent.
    /// Returns whether the path leads somewhere else now.
    pub(crate) fn offer_endpoint(&mut self, endpoint: SocketAddr, now: Time) -> bool {
        let silent = self.direct_heard.is_none_or(|t| now.since(t) >= OFFER_SILENCE);
        let moved = self.endpoint != Some(endpoint) && (self.endpoint.is_none() || silent);
        if moved {
            self.set_endpoint(endpoint, now);
        }
        moved
    }

    fn set_endpoint(&mut self, endpoint: SocketAddr, now: Time) {
        if self.endpoint != Some(endpoint) {
            self.endpoint = Some(endpoint);
            self.mtu = Mtu::new(endpoint.ip().is_loopback(), now);
        }
    }

    /// An authenticated frame came directly from `from`. Returns a token to
    /// probe that address with, when it is new and `newest` frames come from it.
    pub(crate) fn heard_direct(
        &mut self,
        from: SocketAddr,
        newest: bool,
        token: impl FnOnce() -> u64,
        now: Time,
    ) -> Option<u64> {
        if self.endpoint.is_none() {
            self.set_endpoint(from, now);
        }
        if self.endpoint == Some(from) && !self.relay {
            self.direct_heard = Some(now);
            return None;
        }
        let pending = self
            .candidate
            .is_some_and(|c| c.address == from && now.since(c.sent) < VALIDATION_TIMEOUT);
        if !newest || pending {
            return None;
        }
        let token = token();
        self.candidate = Some(Candidate { address: from, token, sent: now });
        Some(token)
    }

    /// An authenticated frame came through the beacon. Returns whether the
    /// path changed.
    pub(crate) fn heard_relayed(&mut self, now: Time) -> bool {
        let fresh = self.direct_heard.is_some_and(|t| now.since(t) <= DIRECT_FRESH);
        !fresh && self.start_relay(now)
    }

    /// Goes through the beacon from now on. Returns whether that is a change.
    pub(crate) fn start_relay(&mut self, now: Time) -> bool {
        let changed = !self.relay;
        self.relay = true;
        if changed {
            self.direct_tried = Some(now);
            self.mtu = Mtu::new(false, now);
        }
        changed
    }

    /// A probe with `token` was answered from `from`: that address is the
    /// peer's. Returns whether the path changed.
    pub(crate) fn validated(&mut self, from: SocketAddr, token: u64, now: Time) -> bool {
        if !self.candidate.is_some_and(|c| c.address == from && c.token == token) {
            return false;
        }
        self.candidate = None;
        let changed = self.endpoint != Some(from) || self.relay;
        self.set_endpoint(from, now);
        if self.relay {
            self.mtu = Mtu::new(from.ip().is_loopback(), now);
        }
        self.relay = false;
        self.direct_heard = Some(now);
        changed
    }

    /// When [`Path::retry_direct`] is next worth calling.
    pub(crate) fn direct_retry_at(&self, now: Time) -> Option<Time> {
        let active = self.relay && self.endpoint.is_some();
        active.then(|| self.direct_tried.map_or(now, |t| t + DIRECT_RETRY))
    }

    /// While relayed: the direct endpoint to probe now, with the token to use.
    pub(crate) fn retry_direct(
        &mut self,
        token: impl FnOnce() -> u64,
        now: Time,
    ) -> Option<(SocketAddr, u64)> {
        if !self.relay || self.direct_tried.is_some_and(|t| now.since(t) < DIRECT_RETRY) {
            return None;
        }
        self.direct_tried = Some(now);
        let address = self.endpoint?;
        let token = token();
        self.candidate = Some(Candidate { address, token, sent: now });
        Some((address, token))
    }
}

/// Search for the largest datagram (RFC 8899), reduced to few candidates.
#[derive(Debug)]
pub(crate) struct Mtu {
    current: usize,
    /// Index into [`CANDIDATES`] of the next size to try.
    next: usize,
    probe: Option<(u64, Time)>,
    sent: u8,
    hold_until: Time,
}

impl Default for Mtu {
    fn default() -> Self {
        Self::new(false, Time::ZERO)
    }
}

impl Mtu {
    fn new(loopback: bool, now: Time) -> Self {
        let next = usize::from(!loopback);
        Self { current: BASE_DATAGRAM, next, probe: None, sent: 0, hold_until: now }
    }

    /// Largest UDP payload known to pass, in bytes.
    pub(crate) const fn current(&self) -> usize {
        self.current
    }

    /// The size and token of a probe to send now.
    pub(crate) fn poll(&mut self, token: impl FnOnce() -> u64, now: Time) -> Option<(usize, u64)> {
        if now < self.hold_until {
            return None;
        }
        if let Some((_, sent)) = self.probe {
            if now.since(sent) < PROBE_TIMEOUT {
                return None;
            }
            if self.sent >= MAX_PROBES {
                self.next += 1;
                self.sent = 0;
            }
        }
        let size = CANDIDATES.get(self.next).copied().filter(|size| *size > self.current);
        let Some(size) = size else {
            self.probe = None;
            return None;
        };
        // Repetitions keep the token: on a long path the answer to an earlier
        // one counts as well.
        let token = match self.probe {
            Some((token, _)) if self.sent > 0 => token,
            _ => token(),
        };
        self.probe = Some((token, now));
        self.sent += 1;
        Some((size, token))
    }

    /// When [`Mtu::poll`] is next worth calling.
    pub(crate) fn deadline(&self) -> Option<Time> {
        let more = CANDIDATES.get(self.next).is_some_and(|size| *size > self.current);
        match self.probe {
            Some((_, sent)) => Some(sent + PROBE_TIMEOUT),
            // After a black hole the search starts again by itself.
            None => more.then_some(self.hold_until),
        }
    }

    /// A probe was answered. Returns whether the size grew.
    pub(crate) fn acknowledged(&mut self, token: u64) -> bool {
        if self.probe.is_none_or(|(t, _)| t != token) {
            return false;
        }
        self.current = CANDIDATES.get(self.next).copied().unwrap_or(self.current);
        self.probe = None;
        // Candidates are tried widest first, so the first answer is the best.
        self.next = CANDIDATES.len();
        self.sent = 0;
        true
    }

    /// Large datagrams stopped arriving. Returns whether the size shrank.
    pub(crate) fn black_hole(&mut self, now: Time) -> bool {
        if self.current == BASE_DATAGRAM {
            return false;
        }
        *self = Self { hold_until: now + RAISE_TIMER, ..Self::new(false, now) };
        true
    }
}

#[cfg(test)]
mod tests;
