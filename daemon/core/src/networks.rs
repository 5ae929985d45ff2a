//! Networks beside the backbone: which ones this node is in, which ones it
//! shares with a peer, and datagrams to all of one. The driver says who shares
//! what; nothing that a peer says about itself counts.

use pilot_wire::packet::{Flags, Header, Protocol};
use pilot_wire::{Address, NodeId, SocketAddress};
use rustc_hash::FxHashMap;

use crate::core::{Core, DatagramError};
use crate::event::CloseReason;
use crate::peer::Outgoing;
use crate::stream::Stream;
use crate::time::Time;

/// Largest payload of a broadcast, in bytes: what every path takes from the
/// start, so that no member is left out for its path.
pub const MAX_BROADCAST: usize = 1024;

/// What is known of networks. Bounded by the driver, which says all of it.
#[derive(Debug, Default)]
pub(crate) struct Networks {
    own: Vec<u16>,
    shared: FxHashMap<NodeId, Shares>,
}

/// What a peer shares.
#[derive(Debug)]
struct Shares {
    networks: Box<[u16]>,
    /// Those in which it may broadcast.
    speaks: Box<[u16]>,
}

impl Networks {
    /// Whether this node is in a network; it always is in the backbone.
    pub(crate) fn has(&self, network: u16) -> bool {
        network == 0 || self.own.contains(&network)
    }

    /// Whether a peer and this node are both in a network.
    pub(crate) fn shared_with(&self, node: NodeId, network: u16) -> bool {
        network == 0
            || self.has(network)
                && self.shared.get(&node).is_some_and(|s| s.networks.contains(&network))
    }

    /// Whether a broadcast of a peer in a network is taken; there is none in the
    /// backbone.
    pub(crate) fn may_broadcast(&self, node: NodeId, network: u16) -> bool {
        self.shared.get(&node).is_some_and(|s| s.speaks.contains(&network))
    }
}

/// The header of a datagram packet.
pub(crate) fn datagram_header(source: SocketAddress, destination: SocketAddress) -> Header {
    Header {
        flags: Flags::NONE,
        protocol: Protocol::Datagram,
        source,
        destination,
        seq: 0,
        ack: 0,
        window: 0,
    }
}

impl Core {
    pub(crate) fn set_networks(&mut self, networks: &[u16]) {
        self.networks.own = networks.to_vec();
        let left = |s: &Stream| !self.networks.has(s.remote.address.network);
        self.end_streams(self.slots(left));
    }

    pub(crate) fn set_shared(&mut self, node: NodeId, networks: &[u16], speaks: &[u16]) {
        if networks.is_empty() {
            self.networks.shared.remove(&node);
        } else {
            let shares = Shares { networks: networks.into(), speaks: speaks.into() };
            self.networks.shared.insert(node, shares);
        }
        let left = |s: &Stream| {
            let remote = s.remote.address;
            remote.node == node && !self.networks.shared_with(node, remote.network)
        };
        self.end_streams(self.slots(left));
    }

    fn end_streams(&mut self, slots: Vec<usize>) {
        for slot in slots {
            self.streams[slot].abort(CloseReason::Untrusted);
            self.touch(slot);
        }
    }

    /// Sends one datagram to each of `recipients`, addressed to all of a
    /// network; source port 0 is a new ephemeral one. This node itself is left
    /// out. Nothing tells whether any arrives.
    ///
    /// # Errors
    /// When it can certainly not arrive anywhere.
    pub fn broadcast(
        &mut self,
        to: SocketAddress,
        recipients: &[NodeId],
        source_port: u16,
        data: &[u8],
        now: Time,
    ) -> Result<(), DatagramError> {
        let local = self.local.ok_or(DatagramError::NoAddressYet)?;
        let network = to.address.network;
        if network == 0 || !to.address.is_broadcast() {
            return Err(DatagramError::Broadcast);
        }
        if !self.networks.has(network) {
            return Err(DatagramError::NotAMember(network));
        }
        if data.len() > MAX_BROADCAST {
            return Err(DatagramError::TooLarge { len: data.len(), limit: MAX_BROADCAST });
        }
        let port = match source_port {
            0 => self.ports.ephemeral(|_| true).unwrap_or(u16::MAX),
            port => port,
        };
        let header = datagram_header(Address { network, node: local }.port(port), to);
        let packet = header.to_packet(data);
        let others = recipients.iter().filter(|n| **n != local && n.0 != 0);
        for node in others.filter(|n| **n != NodeId::BROADCAST) {
            let slot = self.ensure_peer(*node, now);
            self.send_outside(slot, Outgoing { packet: packet.clone(), via: None });
            self.want_endpoint(slot);
        }
        Ok(())
    }
}
