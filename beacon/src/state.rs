//! What the beacon knows and decides: datagram in, [`Action`] out. No sockets,
//! no clock.
//!
//! Bounds: at most [`MAX_NODES`] nodes, the least recently seen makes room;
//! entries unseen for [`NODE_TTL`] go; what a peer beacon told is kept for
//! [`PEER_TTL`] and comes from configured peers only.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pilot_wire::NodeId;
use pilot_wire::beacon::{Message, NodeList};

/// Most nodes in the table; one more pushes out the least recently seen.
pub const MAX_NODES: usize = 1_000_000;
/// A node not heard of for so long is forgotten. Daemons ask every 30 s.
pub const NODE_TTL: Duration = Duration::from_secs(600);
/// What a peer beacon told is forgotten after so long without a sync from it.
/// Peers sync every 10 s.
pub const PEER_TTL: Duration = Duration::from_secs(60);
/// Most node IDs in one sync: a UDP datagram holds no more.
pub const MAX_SYNC_NODES: usize = 16_375;

/// What to do about a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Answer the sender with a discover reply that names its own address.
    Observed {
        /// The sender.
        to: SocketAddr,
    },
    /// Send each of two nodes a punch command with the address of the other.
    Introduce {
        /// Who asked.
        requester: SocketAddr,
        /// Whom it asked for.
        target: SocketAddr,
    },
    /// Send the datagram's frame as a relay deliver.
    Deliver {
        /// The destination node.
        to: SocketAddr,
    },
    /// Send the datagram unchanged to a peer beacon.
    Forward {
        /// The peer beacon.
        to: SocketAddr,
    },
    /// Nothing to send; a peer's table was taken over.
    Learnt,
    /// Nothing to send.
    Drop(DropReason),
}

/// Why a datagram leads to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DropReason {
    /// Not a message, or cut short.
    Malformed,
    /// A message that only beacons send to nodes.
    Direction,
    /// The destination or target is not known.
    UnknownNode,
    /// A sync from an address that is not a configured peer.
    Stranger,
}

/// How often each thing was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Discover replies.
    pub observed: u64,
    /// Pairs introduced.
    pub introduced: u64,
    /// Frames delivered to nodes.
    pub delivered: u64,
    /// Frames forwarded to peer beacons.
    pub forwarded: u64,
    /// Tables taken over from peers.
    pub learnt: u64,
    /// Dropped: not a message, or cut short.
    pub malformed: u64,
    /// Dropped: only beacons send it to nodes.
    pub direction: u64,
    /// Dropped: unknown destination or target.
    pub unknown_node: u64,
    /// Dropped: sync from a stranger.
    pub stranger: u64,
}

impl Counters {
    fn count(&mut self, action: Action) {
        let counter = match action {
            Action::Observed { .. } => &mut self.observed,
            Action::Introduce { .. } => &mut self.introduced,
            Action::Deliver { .. } => &mut self.delivered,
            Action::Forward { .. } => &mut self.forwarded,
            Action::Learnt => &mut self.learnt,
            Action::Drop(DropReason::Malformed) => &mut self.malformed,
            Action::Drop(DropReason::Direction) => &mut self.direction,
            Action::Drop(DropReason::UnknownNode) => &mut self.unknown_node,
            Action::Drop(DropReason::Stranger) => &mut self.stranger,
        };
        *counter += 1;
    }
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    addr: SocketAddr,
    at: Instant,
}

#[derive(Debug)]
struct PeerTable {
    nodes: HashSet<NodeId>,
    at: Instant,
}

/// The beacon's tables.
#[derive(Debug)]
pub struct State {
    id: u32,
    capacity: usize,
    nodes: HashMap<NodeId, Seen>,
    /// Each node once, with the time it had when queued: the front is the
    /// least recently seen unless its entry is newer, then it goes to the back.
    by_age: VecDeque<(NodeId, Instant)>,
    peers: HashMap<SocketAddr, Option<PeerTable>>,
    counters: Counters,
}

impl State {
    /// Empty tables of beacon `id`.
    pub fn new(id: u32) -> Self {
        Self::with_capacity(id, MAX_NODES)
    }

    fn with_capacity(id: u32, capacity: usize) -> Self {
        Self {
            id,
            capacity,
            nodes: HashMap::new(),
            by_age: VecDeque::new(),
            peers: HashMap::new(),
            counters: Counters::default(),
        }
    }

    /// Replaces the list of peers; what remaining peers told is kept.
    pub fn set_peers(&mut self, peers: impl IntoIterator<Item = SocketAddr>) {
        let mut old = std::mem::take(&mut self.peers);
        self.peers = peers.into_iter().map(|p| (p, old.remove(&p).flatten())).collect();
    }

    /// Takes one datagram.
    pub fn handle(&mut self, datagram: &[u8], from: SocketAddr, now: Instant) -> Action {
        let action = match Message::parse(datagram) {
            Ok(Message::Discover { node }) => {
                self.see(node, from, now);
                Action::Observed { to: from }
            }
            Ok(Message::PunchRequest { requester, target }) => {
                self.see(requester, from, now);
                match self.nodes.get(&target) {
                    Some(seen) => Action::Introduce { requester: from, target: seen.addr },
                    None => Action::Drop(DropReason::UnknownNode),
                }
            }
            Ok(Message::Relay { destination, .. }) => self.relay(destination, from),
            Ok(Message::Sync { nodes, .. }) => self.learn(nodes, from, now),
            Ok(
                Message::DiscoverReply { .. }
                | Message::PunchCommand { .. }
                | Message::RelayDeliver { .. },
            ) => Action::Drop(DropReason::Direction),
            Err(_) => Action::Drop(DropReason::Malformed),
        };
        self.counters.count(action);
        action
    }

    /// Forgets what is too old. Call it now and then.
    pub fn expire(&mut self, now: Instant) {
        while let Some((node, queued)) = self.by_age.front().copied() {
            if now.saturating_duration_since(queued) < NODE_TTL {
                break;
            }
            self.by_age.pop_front();
            match self.nodes.get(&node) {
                Some(seen) if seen.at > queued => self.by_age.push_back((node, seen.at)),
                _ => {
                    self.nodes.remove(&node);
                }
            }
        }
        for table in self.peers.values_mut() {
            if table.as_ref().is_some_and(|t| now.saturating_duration_since(t.at) >= PEER_TTL) {
                *table = None;
            }
        }
    }

    /// Writes the sync that every peer is to get. With more nodes than one
    /// datagram holds, those that were queued last are listed.
    pub fn write_sync(&self, out: &mut Vec<u8>) {
        let ids: Vec<u8> = self
            .by_age
            .iter()
            .rev()
            .take(MAX_SYNC_NODES)
            .flat_map(|(node, _)| node.0.to_be_bytes())
            .collect();
        Message::Sync { beacon: self.id, nodes: NodeList::new(&ids) }.encode(out);
    }

    /// The configured peers.
    pub fn peers(&self) -> impl Iterator<Item = SocketAddr> {
        self.peers.keys().copied()
    }

    /// What was done so far.
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// How many nodes are known here, not counting those of peers.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether no node is known here.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Node 0 means "not registered yet" and is not stored.
    fn see(&mut self, node: NodeId, addr: SocketAddr, at: Instant) {
        if node == NodeId(0) {
            return;
        }
        if self.nodes.insert(node, Seen { addr, at }).is_some() {
            return;
        }
        self.by_age.push_back((node, at));
        if self.nodes.len() > self.capacity {
            self.push_out_oldest();
        }
    }

    fn push_out_oldest(&mut self) {
        while let Some((node, queued)) = self.by_age.pop_front() {
            match self.nodes.get(&node) {
                Some(seen) if seen.at > queued => self.by_age.push_back((node, seen.at)),
                _ => {
                    self.nodes.remove(&node);
                    return;
                }
            }
        }
    }

    /// Own nodes first. What came from a peer beacon is never forwarded to a
    /// peer beacon, so a frame crosses at most two beacons.
    fn relay(&self, destination: NodeId, from: SocketAddr) -> Action {
        if let Some(seen) = self.nodes.get(&destination) {
            return Action::Deliver { to: seen.addr };
        }
        let knows =
            |t: &Option<PeerTable>| t.as_ref().is_some_and(|t| t.nodes.contains(&destination));
        let peer = self.peers.iter().filter(|(_, t)| knows(t)).map(|(addr, _)| *addr).min();
        match peer {
            Some(to) if !self.peers.contains_key(&from) => Action::Forward { to },
            _ => Action::Drop(DropReason::UnknownNode),
        }
    }

    fn learn(&mut self, nodes: NodeList<'_>, from: SocketAddr, now: Instant) -> Action {
        let Some(table) = self.peers.get_mut(&from) else {
            return Action::Drop(DropReason::Stranger);
        };
        *table = Some(PeerTable { nodes: nodes.iter().collect(), at: now });
        Action::Learnt
    }
}

/// Turns a relay datagram into the relay deliver for its destination, in
/// place; `None` when it is too short to be one.
pub fn deliver_in_place(relay: &mut [u8]) -> Option<&[u8]> {
    use pilot_wire::beacon::{DELIVER_HEADER_LEN, RELAY_HEADER_LEN};
    let sender: [u8; 4] = relay.get(1..5)?.try_into().ok()?;
    let deliver = relay.get_mut(RELAY_HEADER_LEN - DELIVER_HEADER_LEN..)?;
    let (head, _) = deliver.split_first_chunk_mut::<DELIVER_HEADER_LEN>()?;
    *head = [0x06, sender[0], sender[1], sender[2], sender[3]];
    Some(deliver)
}

#[cfg(test)]
mod tests;
