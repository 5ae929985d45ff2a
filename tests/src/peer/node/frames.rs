//! Tunnel frames in and out: keys, the faulty cache, relay marks, copies in
//! the clear. As published, the loop waits for the registry when a key exchange
//! of an unknown node comes.

use std::net::SocketAddr;

use pilot_wire::tunnel::{AuthKey, Frame, Nonce};
use pilot_wire::{NodeId, beacon};

use super::super::crypto::{Refused, Session, signature_holds};
use super::{Node, Path, Peer, QUEUE_PER_PEER, QUEUED_PEERS};

impl Node {
    pub(super) async fn datagram(&mut self, datagram: &[u8], from: SocketAddr) {
        if datagram.first().is_some_and(|b| *b < beacon::TYPE_LIMIT) {
            match beacon::Message::parse(datagram) {
                Ok(beacon::Message::PunchCommand { endpoint }) => {
                    for _ in 0..3 {
                        self.counters.punches_sent += 1;
                        self.outgoing.push((endpoint, b"PILP".to_vec()));
                    }
                }
                Ok(beacon::Message::RelayDeliver { sender, frame }) => {
                    self.counters.relayed_received += 1;
                    let placeholder = self.beacon.unwrap_or(from);
                    let peer = self
                        .peers
                        .entry(sender)
                        .or_insert(Peer { endpoint: placeholder, relayed: false });
                    self.counters.relay_marks += u64::from(!peer.relayed);
                    peer.relayed = true;
                    self.frame(frame, from, Path::Relayed).await;
                }
                _ => {}
            }
        } else {
            self.frame(datagram, from, Path::Direct).await;
        }
    }

    async fn frame(&mut self, frame: &[u8], from: SocketAddr, path: Path) {
        match Frame::parse(frame) {
            Ok(Frame::Plain(packet)) => {
                self.counters.plain_received += 1;
                self.packet(packet, from);
            }
            Ok(Frame::Sealed { sender, nonce }) => self.sealed(sender, nonce, frame, from),
            Ok(Frame::Key { sender, .. }) => {
                self.counters.keys_received += 1;
                // The registry knows a key for every node: refuse, show ours.
                if self.shared.lookup(sender).await.is_some() && self.peers.contains_key(&sender) {
                    self.send_key(sender);
                }
            }
            Ok(Frame::AuthKey(auth)) => self.auth_key(auth, from, path).await,
            Ok(Frame::Punch) => self.counters.punches_received += 1,
            // A published peer knows no compact frames and drops them.
            Ok(Frame::Compact { .. }) | Err(_) => {}
        }
    }

    async fn auth_key(&mut self, auth: AuthKey, from: SocketAddr, path: Path) {
        self.counters.auth_keys_received += 1;
        let node = auth.sender;
        let expected = match self.cached.get(&node) {
            // The cached key points into the receive buffer: on the path it
            // came by it equals whatever arrives, on the other it never does.
            Some(cached) if self.switches.faulty_key_cache => *cached == path,
            _ => self.shared.lookup(node).await == Some(auth.identity),
        };
        if !expected || !signature_holds(&auth) {
            return;
        }
        let Some(key) = self.key.session_key(&auth.key) else { return };
        self.cached.entry(node).or_insert(path);
        self.counters.auth_keys_accepted += 1;
        let held = self.sessions.get(&node).map(|s| s.peer_key);
        self.counters.rekeys += u64::from(held.is_some_and(|k| k != auth.key));
        self.sessions.insert(node, Session::new(key, auth.key, rand::random()));
        if path == Path::Direct {
            let peer = self.peers.entry(node).or_insert(Peer { endpoint: from, relayed: false });
            peer.endpoint = from;
        }
        if held != Some(auth.key) {
            self.send_key(node);
        }
        for packet in self.queues.remove(&node).unwrap_or_default() {
            self.send_packet(node, &packet);
        }
    }

    fn sealed(&mut self, sender: NodeId, nonce: Nonce, frame: &[u8], from: SocketAddr) {
        let Some(session) = self.sessions.get_mut(&sender) else {
            self.counters.keyless += 1;
            return;
        };
        match session.open(nonce, frame) {
            Ok(packet) => {
                self.counters.sealed_received += 1;
                self.packet(&packet, from);
            }
            Err(Refused::Replay) => self.counters.replays += 1,
            Err(Refused::Tag) => self.counters.undecryptable += 1,
        }
    }

    pub(super) fn send_packet(&mut self, node: NodeId, packet: &[u8]) {
        if let Some(session) = self.sessions.get_mut(&node) {
            let frame = session.seal(self.shared.node, packet);
            self.counters.sealed_sent += 1;
            self.transmit(node, frame);
            return;
        }
        self.send_key(node);
        if self.queues.contains_key(&node) || self.queues.len() < QUEUED_PEERS {
            let queue = self.queues.entry(node).or_default();
            if queue.len() == QUEUE_PER_PEER {
                queue.pop_front();
            }
            queue.push_back(packet.to_vec());
        }
        if self.switches.plaintext_copies {
            self.send_plain(node, packet);
        }
    }

    pub(super) fn send_plain(&mut self, node: NodeId, packet: &[u8]) {
        self.counters.plain_sent += 1;
        let mut frame = b"PILT".to_vec();
        frame.extend(packet);
        self.transmit(node, frame);
    }

    pub(super) fn send_key(&mut self, node: NodeId) {
        let frame = self.key.auth_frame(self.shared.node, &self.identity);
        self.counters.auth_keys_sent += 1;
        self.transmit(node, frame.to_vec());
    }

    /// Answers to a node that is not in the table are not sent.
    fn transmit(&mut self, node: NodeId, frame: Vec<u8>) {
        let Some(peer) = self.peers.get(&node) else { return };
        match self.beacon {
            Some(beacon) if peer.relayed => {
                let mut message = beacon::relay_header(self.shared.node, node).to_vec();
                message.extend(frame);
                self.counters.relayed_sent += 1;
                self.outgoing.push((beacon, message));
            }
            _ => self.outgoing.push((peer.endpoint, frame)),
        }
    }
}
