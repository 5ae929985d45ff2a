//! The requests of each phase.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use pilot_wire::registry::{FrameError, Registered, Request, Signature, challenge, parse_reply};

use super::Nodes;
use super::pump::Work;
use crate::failure::Failure;

/// What simulated nodes say of where they are. Nobody goes there.
const LISTEN: &str = "127.0.0.1:4000";

/// Registers every node.
pub(super) struct Register {
    pub(super) nodes: Arc<Nodes>,
    /// With a proof of the key.
    pub(super) proof: bool,
}

impl Work for Register {
    fn request(&self, index: u64, out: &mut Vec<u8>) -> Result<(), FrameError> {
        let key = self.nodes.keys.key(index);
        let timestamp = self.proof.then(|| {
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
        });
        Request::Register {
            listen_addr: LISTEN,
            public_key: key.public(),
            owner: "",
            hostname: "",
            timestamp,
            proof: timestamp.map(|t| key.sign(&challenge::register(t, LISTEN))),
        }
        .append_to(out)
    }

    fn answered(&self, index: u64, body: &[u8]) -> Result<(), Failure> {
        let reply: Registered = parse_reply(body)
            .map_err(|e| Failure::connection("register: not what a registry says").reason(e))?;
        let place = self.nodes.place(index);
        self.nodes.numbers[place].store(reply.node_id.0, Ordering::Relaxed);
        Ok(())
    }
}

/// Pairs that can be told apart by [`pair`].
pub(super) const fn most_pairs(nodes: u64) -> u64 {
    nodes.saturating_mul(nodes.saturating_sub(1) / 2)
}

/// The two of a pair, as places: each pair once.
fn pair(nodes: u64, index: u64) -> (u64, u64) {
    let (first, distance) = (index % nodes, 1 + index / nodes);
    (first, (first + distance) % nodes)
}

/// States trust: for each pair one side, then the other.
pub(super) struct Trust {
    pub(super) nodes: Arc<Nodes>,
}

impl Work for Trust {
    fn request(&self, index: u64, out: &mut Vec<u8>) -> Result<(), FrameError> {
        let (a, b) = pair(self.nodes.count(), index / 2);
        let (from, to) = if index.is_multiple_of(2) { (a, b) } else { (b, a) };
        let (node_id, peer_id) = (self.nodes.number(from), self.nodes.number(to));
        let signature = self.nodes.keys.key(from).sign(&challenge::report_trust(node_id, peer_id));
        Request::ReportTrust { node_id, peer_id, signature }.append_to(out)
    }
}

/// Heartbeats of all nodes in turn, again and again.
pub(super) struct Heartbeats {
    nodes: Arc<Nodes>,
    /// They cover no time, so that one signature is good for ever.
    signatures: Vec<OnceLock<Signature>>,
}

impl Heartbeats {
    pub(super) fn new(nodes: Arc<Nodes>) -> Self {
        let signatures = nodes.numbers.iter().map(|_| OnceLock::new()).collect();
        Self { nodes, signatures }
    }
}

impl Work for Heartbeats {
    fn request(&self, index: u64, out: &mut Vec<u8>) -> Result<(), FrameError> {
        let place = self.nodes.place(index);
        let node_id = self.nodes.number(index);
        let signature = *self.signatures[place]
            .get_or_init(|| self.nodes.keys.key(place as u64).sign(&challenge::heartbeat(node_id)));
        Request::Heartbeat { node_id, signature }.append_to(out)
    }
}

/// Takes every node out again.
pub(super) struct Deregister {
    pub(super) nodes: Arc<Nodes>,
}

impl Work for Deregister {
    fn request(&self, index: u64, out: &mut Vec<u8>) -> Result<(), FrameError> {
        let node_id = self.nodes.number(index);
        let signature = self.nodes.keys.key(index).sign(&challenge::deregister(node_id));
        Request::Deregister { node_id, signature }.append_to(out)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_pair_comes_once() {
        for nodes in 2..12 {
            let mut seen = HashSet::new();
            for index in 0..most_pairs(nodes) {
                let (a, b) = pair(nodes, index);
                assert!(a != b && a < nodes && b < nodes);
                assert!(seen.insert((a.min(b), a.max(b))), "{nodes} nodes, pair {index}");
            }
        }
        assert_eq!(most_pairs(1), 0);
    }
}
