//! A core and a published peer on a bad link, in virtual time.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use ed25519_dalek::SigningKey;
use pilot_core::{Config, Core, Event, Input, Output, Permission, Time};
use pilot_wire::NodeId;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::peer::Published;

pub(crate) const CORE: u32 = 1;
pub(crate) const PEER: u32 = 2;

/// Ratios are per datagram.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) loss: f64,
    pub(crate) duplicate: f64,
    pub(crate) reorder: f64,
    pub(crate) delay: Duration,
}

impl Link {
    pub(crate) fn clean() -> Self {
        Self { loss: 0.0, duplicate: 0.0, reorder: 0.0, delay: Duration::from_millis(10) }
    }

    pub(crate) fn random(rng: &mut StdRng) -> Self {
        Self {
            loss: [0.0, 0.01, 0.03, 0.1][rng.random_range(0..4)],
            duplicate: [0.0, 0.05][rng.random_range(0..2)],
            reorder: [0.0, 0.1][rng.random_range(0..2)],
            delay: Duration::from_micros(rng.random_range(50..60_000)),
        }
    }
}

pub(crate) struct World {
    pub(crate) now: Time,
    pub(crate) link: Link,
    pub(crate) core: Core,
    pub(crate) events: Vec<Event>,
    pub(crate) peer: Published,
    /// Datagrams sent by the core and by the peer.
    pub(crate) sent: [u64; 2],
    config: Config,
    wake: Option<Time>,
    trace: bool,
    rng: StdRng,
    in_flight: BTreeMap<(Time, u64), (bool, Vec<u8>)>,
    sequence: u64,
    buffer: Vec<u8>,
}

fn address(node: u32) -> SocketAddr {
    format!("10.0.0.{node}:4000").parse().expect("an address")
}

impl World {
    pub(crate) fn new(seed: u64, link: Link, config: &Config) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let core = fresh_core(config, rng.random());
        let peer = Published::new(PEER, address(PEER), (CORE, address(CORE)), seed);
        let mut world = Self {
            now: Time::ZERO,
            link,
            core,
            events: Vec::new(),
            peer,
            sent: [0; 2],
            config: config.clone(),
            wake: None,
            trace: std::env::var_os("PILOT_SIM_SEED").is_some(),
            rng,
            in_flight: BTreeMap::new(),
            sequence: 0,
            buffer: Vec::new(),
        };
        world.drain();
        world
    }

    /// The same node again, with nothing but its identity.
    pub(crate) fn restart_core(&mut self) {
        self.core = fresh_core(&self.config, self.rng.random());
        self.core.handle(Input::LocalNode(NodeId(CORE)), self.now);
        self.events.clear();
    }

    /// As above; what listens there listens again.
    pub(crate) fn restart_peer(&mut self) {
        let listening = std::mem::take(&mut self.peer.listening);
        let seed = self.rng.random();
        self.peer = Published::new(PEER, address(PEER), (CORE, address(CORE)), seed);
        self.peer.listening = listening;
    }

    fn drain(&mut self) {
        let mut buffer = std::mem::take(&mut self.buffer);
        for turn in 0.. {
            assert!(turn < 100_000, "the core never stops having something to do");
            match self.core.poll_output(self.now, &mut buffer) {
                Output::Transmit(t) => {
                    for datagram in buffer.chunks(t.segment) {
                        self.send(false, datagram);
                    }
                }
                Output::Event(Event::NeedKey { node }) => {
                    let key = Some(self.peer.public_key());
                    self.core.handle(Input::IdentityKey { node, key }, self.now);
                }
                Output::Event(Event::NeedEndpoint { node }) => {
                    let endpoint = Some(self.peer.address);
                    self.core.handle(Input::Endpoint { node, endpoint }, self.now);
                }
                Output::Event(event) => {
                    if self.trace {
                        eprintln!("{:?} {event:?}", self.now);
                    }
                    self.events.push(event);
                }
                Output::Wait(at) => {
                    self.wake = at;
                    break;
                }
            }
        }
        self.buffer = buffer;
        for datagram in std::mem::take(&mut self.peer.outgoing) {
            self.send(true, &datagram);
        }
    }

    fn send(&mut self, to_core: bool, datagram: &[u8]) {
        self.sent[usize::from(to_core)] += 1;
        let lost = self.rng.random_bool(self.link.loss);
        if self.trace {
            let kind = String::from_utf8_lossy(&datagram[..4]).into_owned();
            let (to, id) = (if to_core { "to core" } else { "to peer" }, &datagram[8..12]);
            eprintln!("{:?} {to} {kind} {id:x?} {} lost={lost}", self.now, datagram.len());
        }
        if lost {
            return;
        }
        let copies = if self.rng.random_bool(self.link.duplicate) { 2 } else { 1 };
        for _ in 0..copies {
            let mut arrival = self.now + self.link.delay;
            if self.rng.random_bool(self.link.reorder) {
                arrival = arrival + Duration::from_micros(self.rng.random_range(0..20_000));
            }
            self.sequence += 1;
            self.in_flight.insert((arrival, self.sequence), (to_core, datagram.to_vec()));
        }
    }

    /// Lets time pass until `wanted` holds. Returns whether it ever did.
    pub(crate) fn until(
        &mut self,
        limit: Duration,
        mut wanted: impl FnMut(&mut Self) -> bool,
    ) -> bool {
        let limit = self.now + limit;
        loop {
            self.drain();
            if wanted(self) {
                self.drain();
                return true;
            }
            self.drain();
            let arrival = self.in_flight.keys().next().map(|k| k.0);
            let next = [arrival, self.wake, Some(self.peer.wake())];
            let next = next.into_iter().flatten().min().unwrap_or(limit);
            if next >= limit {
                self.now = limit;
                return false;
            }
            self.now = self.now.max(next);
            self.peer.tick(self.now);
            while let Some(entry) = self.in_flight.first_entry() {
                if entry.key().0 > self.now {
                    break;
                }
                let (to_core, mut data) = entry.remove();
                if to_core {
                    let from = self.peer.address;
                    self.core.handle(Input::Datagram { from, data: &mut data }, self.now);
                } else {
                    self.peer.datagram(&data, self.now);
                }
            }
        }
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.until(time, |_| false);
    }
}

fn fresh_core(config: &Config, seed: [u8; 32]) -> Core {
    let mut core = Core::new(config.clone(), SigningKey::from_bytes(&[CORE as u8; 32]), seed);
    core.handle(Input::LocalNode(NodeId(CORE)), Time::ZERO);
    let node = NodeId(PEER);
    core.handle(Input::Permission { node, permission: Permission::Trusted }, Time::ZERO);
    core
}
