//! The largest datagram that a path carries: a search by probes (RFC 8899,
//! Datagram Packetization Layer Path MTU Discovery).
//!
//! It knows neither where a probe goes nor what is in it. Sizes are UDP payloads
//! in bytes, a relay's header included. One size is probed at a time: first the
//! base, which also measures the round trip, then sizes that networks commonly
//! have, then what lies between the largest that passed and the smallest that
//! did not. Nothing but an answered probe makes the size grow.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use crate::time::Time;

/// UDP payload that every path carries: 1280 bytes of IPv6 less its header and
/// eight bytes for UDP. It is BASE_PLPMTU and MIN_PLPMTU in one (RFC 8899,
/// section 5.1.2).
pub(crate) const BASE_DATAGRAM: usize = 1232;
/// Packet sizes that networks have: the least that IPv6 asks for, WireGuard,
/// PPPoE, Ethernet, jumbo frames, and the largest there is (loopback).
const COMMON: [usize; 6] = [1280, 1420, 1492, ETHERNET, 9000, 65_535];
const ETHERNET: usize = 1500;
/// The search ends when it is this close, in bytes.
const GRANULARITY: usize = 16;
/// Probes of one size before it counts as too large (RFC 8899, section 5.1.2).
const MAX_PROBES: u8 = 3;
/// How long a probe's answer is waited for: 1.5 round trips, within these
/// bounds. That is short for a queue that fills meanwhile, which does no harm,
/// since a late answer counts as well.
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(10);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(1);
/// The same before a round trip was measured.
const FIRST_TIMEOUT: Duration = Duration::from_millis(400);
/// A later answer is not believed: the path may be another by now.
const LATE: Duration = Duration::from_secs(10);
/// Sent probes whose answers are recognised.
const REMEMBERED: usize = 12;
/// How long the first rest is that follows a black hole or a peer that answers
/// no probe. RFC 8899 has 600 s for every rest (PMTU_RAISE_TIMER); but here a
/// size is missed that has worked before, and is worth a few probes a minute.
const SHORT_REST: Duration = Duration::from_secs(60);
/// How long a finished search rests before wider sizes are tried
/// (PMTU_RAISE_TIMER), and the longest rest when rests are doubled.
const LONG_REST: Duration = Duration::from_secs(600);
/// A black hole within this time after another is one of many: longer than the
/// longest rest, or a path that changes all the time would pass for steady.
const UNSTEADY: Duration = Duration::from_secs(2 * LONG_REST.as_secs());

/// States of RFC 8899, section 5.2. BASE and ERROR have the same size here,
/// since no path is assumed to be narrower than the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Whether the peer answers probes at all, and how fast.
    Base,
    /// Between `good` and `bad`.
    Searching,
    /// Rests, until it is time to try wider sizes.
    Complete,
    /// The peer answers no probe; rests.
    Error,
}

#[derive(Clone, Copy, Debug)]
struct Probe {
    token: u64,
    size: usize,
    sent: Time,
}

/// The search on one path.
#[derive(Debug)]
pub(crate) struct Mtu {
    state: State,
    /// Bytes of IP and UDP headers.
    headers: usize,
    loopback: bool,
    /// The largest size known to pass.
    good: usize,
    /// The smallest size taken for too large.
    bad: usize,
    /// How far beyond `good` to probe when no common size is left; doubles as
    /// long as that passes. 0 once it did not: then `bad` is met half-way.
    stride: usize,
    /// The size that is probed now, and how often it was.
    probing: usize,
    tries: u8,
    /// When there is something to do.
    due: Time,
    round_trip: Option<Duration>,
    recent: VecDeque<Probe>,
    /// The rest after the next black hole that follows soon, or after probes of
    /// the base that nobody answers.
    rest: Duration,
    black_hole: Option<Time>,
}

impl Default for Mtu {
    fn default() -> Self {
        Self::relayed(Time::ZERO)
    }
}

impl Mtu {
    /// The path to `peer`.
    pub(crate) fn direct(peer: IpAddr, now: Time) -> Self {
        // IP header without options or extensions, UDP header.
        let headers = if peer.is_ipv4() { 20 + 8 } else { 40 + 8 };
        Self::new(headers, peer.is_loopback(), now)
    }

    /// The path through the beacon. Whether the peer's half of it has the longer
    /// headers of IPv6 cannot be known.
    pub(crate) fn relayed(now: Time) -> Self {
        Self::new(40 + 8, false, now)
    }

    fn new(headers: usize, loopback: bool, now: Time) -> Self {
        let mut mtu = Self {
            state: State::Base,
            headers,
            loopback,
            good: BASE_DATAGRAM,
            bad: 0,
            stride: 0,
            probing: 0,
            tries: 0,
            due: now,
            round_trip: None,
            recent: VecDeque::new(),
            rest: SHORT_REST,
            black_hole: None,
        };
        mtu.start(State::Base, mtu.limit() + 1, now);
        mtu
    }

    /// The largest UDP payload known to pass, in bytes.
    pub(crate) const fn current(&self) -> usize {
        self.good
    }

    /// When [`Mtu::poll`] is next worth calling.
    pub(crate) fn deadline(&self) -> Option<Time> {
        let done = self.state == State::Complete && self.good == self.limit();
        (!done).then_some(self.due)
    }

    /// The size and token of a probe to send now.
    pub(crate) fn poll(&mut self, token: impl FnOnce() -> u64, now: Time) -> Option<(usize, u64)> {
        if now < self.deadline()? {
            return None;
        }
        if matches!(self.state, State::Complete | State::Error) {
            // The base first: the round trip may have changed, and a peer that
            // is gone is not worth more.
            self.start(State::Base, self.limit() + 1, now);
        }
        if self.tries >= MAX_PROBES {
            self.unanswered(now);
        }
        if self.tries == 0 && self.state == State::Searching {
            let Some(next) = self.next() else {
                self.rest(State::Complete, self.raise_after(now), now);
                return None;
            };
            self.probing = next;
        }
        if !matches!(self.state, State::Base | State::Searching) {
            return None;
        }
        let token = token();
        self.recent.truncate(REMEMBERED - 1);
        self.recent.push_front(Probe { token, size: self.probing, sent: now });
        self.tries += 1;
        self.due = now + self.timeout();
        Some((self.probing, token))
    }

    /// A probe was answered. Returns whether the size grew.
    pub(crate) fn acknowledged(&mut self, token: u64, now: Time) -> bool {
        let Some(at) = self.recent.iter().position(|p| p.token == token) else { return false };
        let Some(probe) = self.recent.remove(at) else { return false };
        let age = now.since(probe.sent);
        if age > LATE {
            return false;
        }
        // Up at once and down slowly: too short a time costs needless probes.
        let smoothed = self.round_trip.map_or(age, |old| old * 7 / 8 + age / 8);
        self.round_trip = Some(smoothed.max(age));
        if probe.size >= self.bad {
            // Only slow or lost, not too large; nor is anything known of others.
            self.bad = self.limit() + 1;
            self.stride = GRANULARITY;
            self.seek(now);
        }
        if matches!(self.state, State::Base | State::Error) {
            if !self.unsteady(now) {
                self.rest = SHORT_REST;
            }
            self.seek(now);
        }
        if probe.size <= self.good {
            return false;
        }
        self.good = probe.size;
        self.stride = match self.stride {
            0 => 0,
            _ if self.rungs().any(|r| r == self.good) => GRANULARITY,
            stride => stride * 2,
        };
        self.seek(now);
        true
    }

    /// Datagrams of the size in use stopped arriving. Returns whether it shrank.
    ///
    /// The search starts at once, below the size that failed. When that happens
    /// again soon, the path is taken for one that changes all the time, and rests
    /// at the base, each time for longer.
    pub(crate) fn black_hole(&mut self, now: Time) -> bool {
        if self.good == BASE_DATAGRAM {
            return false;
        }
        let failed = self.good;
        let again = self.unsteady(now);
        self.black_hole = Some(now);
        self.narrow(failed, now);
        if again {
            self.rest(State::Complete, self.rest, now);
            self.rest = (self.rest * 2).min(LONG_REST);
        } else {
            self.rest = SHORT_REST;
        }
        true
    }

    /// The system refused to send `len` bytes, as more than the path takes.
    /// Returns whether the size shrank.
    pub(crate) fn too_large(&mut self, len: usize, now: Time) -> bool {
        // Nothing can be done about a system that refuses the base.
        let len = len.max(BASE_DATAGRAM + 1);
        if len >= self.bad {
            return false;
        }
        if len <= self.good {
            self.narrow(len, now);
            return true;
        }
        self.bad = len;
        self.recent.retain(|p| p.size < len);
        if self.state == State::Searching && self.probing >= len {
            self.missed();
            self.due = now;
        }
        false
    }

    /// Largest UDP payload that IP can carry to there.
    fn limit(&self) -> usize {
        COMMON[COMMON.len() - 1] - self.headers
    }

    fn timeout(&self) -> Duration {
        let Some(rtt) = self.round_trip else { return FIRST_TIMEOUT };
        // What was measured before a rest may not hold any more.
        let shortest = if self.state == State::Base { FIRST_TIMEOUT } else { SHORTEST_TIMEOUT };
        (rtt * 3 / 2).clamp(shortest, LONGEST_TIMEOUT)
    }

    fn rungs(&self) -> impl Iterator<Item = usize> {
        let headers = self.headers;
        COMMON.into_iter().map(move |packet| packet - headers)
    }

    /// Goes on in `state`, where nothing below `bad` is known to be too large.
    fn start(&mut self, state: State, bad: usize, now: Time) {
        self.state = state;
        self.bad = bad;
        self.stride = GRANULARITY;
        self.probing = BASE_DATAGRAM;
        self.tries = 0;
        self.due = now;
    }

    /// Looks for the next size, now.
    fn seek(&mut self, now: Time) {
        self.state = State::Searching;
        self.tries = 0;
        self.due = now;
    }

    fn rest(&mut self, state: State, pause: Duration, now: Time) {
        self.state = state;
        self.tries = 0;
        self.due = now + pause;
    }

    /// Back to the base: `bad` does not pass, and did before.
    fn narrow(&mut self, bad: usize, now: Time) {
        self.good = BASE_DATAGRAM;
        // What was answered before says nothing any more.
        self.recent.clear();
        self.start(State::Searching, bad, now);
    }

    /// How long a finished search rests: less while a black hole is not long
    /// past, since what worked before may work again.
    fn raise_after(&self, now: Time) -> Duration {
        if self.unsteady(now) { self.rest } else { LONG_REST }
    }

    fn unsteady(&self, now: Time) -> bool {
        self.black_hole.is_some_and(|at| now.since(at) < UNSTEADY)
    }

    /// The last probe of a size has got no answer.
    fn unanswered(&mut self, now: Time) {
        if self.state == State::Base {
            self.rest(State::Error, self.rest, now);
            self.rest = (self.rest * 2).min(LONG_REST);
        } else {
            self.bad = self.probing;
            self.missed();
        }
    }

    /// The size that was probed is too large.
    fn missed(&mut self) {
        if self.probing == self.good + self.stride {
            self.stride = 0;
        }
        self.tries = 0;
    }

    /// The size to probe next; none when the search is over.
    fn next(&self) -> Option<usize> {
        let room = self.bad.saturating_sub(self.good);
        // Beyond the limit nothing is left to find.
        if room <= GRANULARITY || self.good == self.limit() {
            return None;
        }
        let open = || self.rungs().filter(|r| *r > self.good && *r < self.bad);
        let ethernet = ETHERNET - self.headers;
        let common = if self.loopback && self.bad > self.limit() {
            open().last()
        } else if self.good >= ethernet {
            open().next()
        } else {
            // Those below come to their turn when it does not pass.
            open().find(|r| *r == ethernet).or_else(|| open().nth(open().count() / 2))
        };
        common.or_else(|| {
            let stride = self.good + self.stride;
            let stride = (self.stride > 0 && stride < self.bad).then_some(stride);
            Some(stride.unwrap_or(self.good + room / 2))
        })
    }
}

#[cfg(test)]
mod tests;
