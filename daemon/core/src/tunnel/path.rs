//! How datagrams reach one peer: directly or through the beacon.

use std::net::SocketAddr;
use std::time::Duration;

use crate::time::Time;
use crate::tunnel::mtu::Mtu;

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
            self.mtu = Mtu::direct(endpoint.ip(), now);
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
            self.mtu = Mtu::relayed(now);
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
            self.mtu = Mtu::direct(from.ip(), now);
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

#[cfg(test)]
mod tests;
