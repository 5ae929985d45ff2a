//! One peer: identity, tunnel, path, and what waits to be sent to it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use pilot_wire::NodeId;
use pilot_wire::tunnel::Ed25519Public;

use crate::config::Config;
use crate::event::Permission;
use crate::ports::Bucket;
use crate::time::Time;
use crate::tunnel::Tunnel;
use crate::tunnel::path::Path;

/// Packets outside streams that wait per peer; beyond it the oldest go.
pub(crate) const MAX_OUTBOX: usize = 256;
/// How often a peer's registered key is asked for again when a frame bears
/// another one.
const KEY_INTERVAL: Duration = Duration::from_secs(5);
/// Packets for no stream are answered with RST at most at this rate.
const RESETS_PER_SECOND: u32 = 100;

/// Key exchange frames of one peer whose signature is checked, per second.
const EXCHANGES_PER_SECOND: u32 = 20;

/// Broadcasts taken from one peer, per second and at once; those beyond are
/// dropped.
const BROADCASTS_PER_SECOND: u32 = 20;

/// A packet outside any stream: ping, datagram, RST.
#[derive(Debug)]
pub(crate) struct Outgoing {
    /// Header and payload.
    pub(crate) packet: Vec<u8>,
    /// Straight to this address instead of the peer's path.
    pub(crate) via: Option<SocketAddr>,
}

pub(crate) struct Peer {
    pub(crate) node: NodeId,
    pub(crate) identity: Option<Ed25519Public>,
    pub(crate) permission: Permission,
    pub(crate) tunnel: Tunnel,
    pub(crate) path: Path,
    /// Grows with every new session.
    pub(crate) epoch: u32,
    pub(crate) last_heard: Option<Time>,
    /// Slots of streams that may have something to send.
    pub(crate) ready: VecDeque<usize>,
    pub(crate) outbox: VecDeque<Outgoing>,
    /// On the core's list of peers to send to.
    pub(crate) queued: bool,
    pub(crate) endpoint_asked: bool,
    pub(crate) registered: Option<Time>,
    pub(crate) syns: Bucket,
    pub(crate) resets: Bucket,
    pub(crate) exchanges: Bucket,
    pub(crate) broadcasts: Bucket,
    key_asked: Option<Time>,
}

impl Peer {
    pub(crate) fn new(node: NodeId, permission: Permission, config: &Config, now: Time) -> Self {
        Self {
            node,
            identity: None,
            permission,
            tunnel: Tunnel::default(),
            path: Path::default(),
            epoch: 0,
            last_heard: None,
            ready: VecDeque::new(),
            outbox: VecDeque::new(),
            queued: false,
            endpoint_asked: false,
            registered: None,
            syns: Bucket::new(config.syn_rate_per_node, now),
            resets: Bucket::new(RESETS_PER_SECOND, now),
            exchanges: Bucket::new(EXCHANGES_PER_SECOND, now),
            broadcasts: Bucket::new(BROADCASTS_PER_SECOND, now),
            key_asked: None,
        }
    }

    /// Whether anything waits for a session.
    pub(crate) fn has_work(&self) -> bool {
        !self.ready.is_empty() || !self.outbox.is_empty()
    }

    /// Whether the registered key may be asked for now; notes that it is.
    pub(crate) fn may_ask_key(&mut self, now: Time) -> bool {
        let may = self.key_asked.is_none_or(|t| now.since(t) >= KEY_INTERVAL);
        if may {
            self.key_asked = Some(now);
        }
        may
    }

    pub(crate) fn push(&mut self, outgoing: Outgoing) {
        if self.outbox.len() >= MAX_OUTBOX {
            self.outbox.pop_front();
        }
        self.outbox.push_back(outgoing);
    }
}
