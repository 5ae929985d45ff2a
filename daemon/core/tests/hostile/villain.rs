//! An attacker with cryptography of its own: it can do everything that its
//! identity allows, and send anything to anybody.

use std::net::SocketAddr;

use ed25519_dalek::SigningKey;
use pilot_wire::options::Options;
use pilot_wire::packet::{Flags, Header, Packet, Protocol};
use pilot_wire::{Address, NodeId, SocketAddress};

use crate::crypto::{Channel, KeyPair, offered_key};
use crate::net::{Net, address, identity};

pub(crate) const PORT: u16 = 50_000;

pub(crate) struct Villain {
    pub(crate) node: u32,
    pub(crate) address: SocketAddr,
    pub(crate) identity: SigningKey,
    pub(crate) keys: KeyPair,
    channels: Vec<Channel>,
    victim: usize,
}

impl Villain {
    /// A node that is registered, with the number `node`.
    pub(crate) fn registered(net: &mut Net, node: u32) -> Self {
        let identity = identity(node);
        net.keys.insert(node, identity.verifying_key().to_bytes());
        let keys = KeyPair::new([node as u8 + 50; 32]);
        Self { node, address: address(node), identity, keys, channels: Vec::new(), victim: 0 }
    }

    /// Exchanges keys with a core.
    pub(crate) fn meet(&mut self, net: &mut Net, victim: usize) {
        self.victim = victim;
        let offer = self.keys.offer(self.node, &self.identity);
        net.inject(victim, self.address, &offer);
        self.mail(net);
        assert!(!self.channels.is_empty(), "the core answers a good key exchange");
    }

    /// A packet header from this node to a core's.
    pub(crate) fn header(&self, to: u32, port: u16) -> Header {
        Header {
            flags: Flags::ACK,
            protocol: Protocol::Stream,
            source: socket(self.node, PORT),
            destination: socket(to, port),
            seq: 0,
            ack: 0,
            window: 512,
        }
    }

    /// Seals a packet under the newest key.
    pub(crate) fn seal(&mut self, header: &Header, payload: &[u8]) -> Vec<u8> {
        let node = self.node;
        let channel = self.channels.last_mut().expect("keys were exchanged");
        channel.seal(node, &header.to_packet(payload))
    }

    pub(crate) fn send(&mut self, net: &mut Net, victim: usize, header: &Header, payload: &[u8]) {
        let frame = self.seal(header, payload);
        net.inject(victim, self.address, &frame);
    }

    /// Everything that came since the last look, opened. A new key is answered,
    /// as a published peer does.
    pub(crate) fn mail(&mut self, net: &mut Net) -> Vec<(Header, Vec<u8>)> {
        let mut packets = Vec::new();
        for frame in net.mail.remove(&self.address).unwrap_or_default() {
            if let Some(key) = offered_key(&frame) {
                if self.channels.iter().all(|c| c.remote != key) {
                    let prefix = [0x11, 0, 0, self.channels.len() as u8];
                    self.channels.push(self.keys.channel(key, prefix));
                    if self.channels.len() > 1 {
                        let answer = self.keys.offer(self.node, &self.identity);
                        net.inject(self.victim, self.address, &answer);
                    }
                }
                continue;
            }
            let opened = self.channels.iter().find_map(|c| c.open(&frame));
            let (_, bytes) = opened.expect("a frame under a key that was exchanged");
            let packet = Packet::decode(&bytes).expect("a packet");
            packets.push((packet.header, packet.payload.to_vec()));
        }
        packets
    }

    /// Stream packets and datagrams that came since the last look.
    pub(crate) fn answers(&mut self, net: &mut Net) -> Vec<(Header, Vec<u8>)> {
        let mut packets = self.mail(net);
        // The core's own probes of the path are no answers.
        packets.retain(|(h, _)| h.protocol != Protocol::Control || h.flags.contains(Flags::ACK));
        packets
    }

    /// Opens a stream as a peer with (`ours`) or without options does.
    pub(crate) fn open(
        &mut self,
        net: &mut Net,
        victim: usize,
        source: u16,
        port: u16,
        ours: bool,
    ) -> Hold {
        let to = net.nodes[victim].id;
        let mut options = Vec::new();
        if ours {
            let offer = Options {
                compact: false,
                max_segment: Some(u16::MAX),
                stream_ack: true,
                half_close: true,
                byte_window: true,
            };
            offer.encode(&mut options);
        }
        let mut syn = self.header(to, port);
        syn.flags = Flags::SYN;
        syn.source.port = source;
        syn.seq = 1000;
        self.mail(net);
        self.send(net, victim, &syn, &options);
        let answers = self.answers(net);
        let answer = answers
            .iter()
            .map(|(h, _)| h)
            .find(|h| h.flags == Flags::SYN | Flags::ACK && h.destination.port == source);
        let answer = answer.unwrap_or_else(|| panic!("no SYN-ACK for {source}: {answers:?}"));
        assert_eq!(answer.ack, 1001);
        Hold {
            header: Header { flags: Flags::ACK, seq: 1001, ack: answer.seq.wrapping_add(1), ..syn },
        }
    }
}

/// A stream that a villain holds; the header of its next packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hold {
    pub(crate) header: Header,
}

impl Hold {
    /// Sends the next bytes in order.
    pub(crate) fn data(
        &mut self,
        villain: &mut Villain,
        net: &mut Net,
        victim: usize,
        data: &[u8],
    ) {
        villain.send(net, victim, &self.header, data);
        self.header.seq = self.header.seq.wrapping_add(data.len() as u32);
    }
}

pub(crate) fn socket(node: u32, port: u16) -> SocketAddress {
    Address::backbone(NodeId(node)).port(port)
}
