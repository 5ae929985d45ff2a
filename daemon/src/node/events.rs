//! What the core reports, brought to the client or service it concerns.

use std::net::SocketAddr;
use std::time::Instant;

use bytes::Bytes;
use pilot_core::{CloseReason, DialFailure as CoreDialFailure, Event, Input, StreamId};
use pilot_host::events::Happening;
use pilot_wire::ipc::{ErrorCode, Event as ClientEvent, Features};
use pilot_wire::{NodeId, SocketAddress};
use tracing::{debug, info};

use super::clients::Clients;
use super::conn::{Conn, Owner};
use super::handle::DialFailure;
use super::hub::{Hub, Listener};
use crate::events::Refused;
use crate::ipc::client::DATAGRAM_BOUND;
use crate::service::{LocalStream, Service};

/// Peers of which it is remembered that their endpoint was told; beyond it all
/// are forgotten and told again.
const MAX_ADDED: usize = 4096;

impl Hub {
    /// Acts on one event.
    pub(crate) fn event(&mut self, clients: &mut Clients, event: Event) {
        match event {
            Event::Readable { stream } => self.readable(clients, stream.0),
            Event::Writable { stream, freed } => self.writable(clients, stream.0, freed),
            Event::Incoming { stream, local_port, remote } => {
                self.incoming(clients, stream, local_port, remote);
            }
            Event::Connected { stream } => self.connected(clients, stream),
            Event::DialFailed { stream, reason } => self.dial_failed(clients, stream.0, reason),
            Event::Closed { stream, reason } => self.closed(clients, stream.0, reason),
            Event::Datagram { source, destination_port, data, .. } => {
                self.datagram(clients, source, destination_port, &data);
            }
            // The core asks once and waits for the answer, so there must be one.
            Event::NeedEndpoint { node } => {
                if !self.plane.resolve_endpoint(node) {
                    let now = self.now();
                    self.core.handle(Input::Endpoint { node, endpoint: None }, now);
                }
            }
            Event::NeedKey { node } => {
                if !self.plane.lookup_key(node) {
                    let now = self.now();
                    self.core.handle(Input::IdentityKey { node, key: None }, now);
                }
            }
            Event::Observed { endpoint } => self.plane.observed(endpoint),
            Event::TunnelUp { node, relay, rekeyed } => self.tunnel_up(node, relay, rekeyed),
            Event::RelayActivated { node } => {
                info!(peer = %node, "frames go through the beacon from now on");
                self.events.emit(|| Happening::TunnelRelayActivated { peer_node_id: node });
            }
            Event::Refused { node, port, rule, detail } => {
                debug!(peer = node.map(|n| n.0), port, rule = rule.name(), "refused");
                self.refused(Refused { node, port, rule, detail });
            }
        }
    }

    fn refused(&mut self, refused: Refused) {
        if self.events.wanted() {
            let counter = self.core.counters().refused(refused.rule);
            if let Some(event) = self.refusals.event(refused, counter, Instant::now()) {
                self.events.emit(|| event);
            }
        }
    }

    fn readable(&mut self, clients: &mut Clients, id: u32) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        conn.readable = true;
        match conn.owner {
            Owner::Client(owner) if !conn.queued && conn.receive_credit > 0 && !conn.over => {
                if let Some(client) = clients.touch(owner) {
                    conn.queued = true;
                    client.readable.push_back(id);
                }
            }
            Owner::Local { .. } => self.pump_local(id),
            _ => {}
        }
    }

    fn writable(&mut self, clients: &mut Clients, id: u32, freed: usize) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        match conn.owner {
            Owner::Client(owner) => {
                let Some(client) = clients.get_mut(owner) else { return };
                if client.blocked_on == Some(id) {
                    client.notify();
                }
                if !client.has(Features::CREDIT) || conn.over {
                    return;
                }
                if conn.lane.is_credit() {
                    if let Some(client) = clients.touch(owner) {
                        self.pass_up(client, id);
                    }
                    return;
                }
                if self.renew_credit(client, id, freed) {
                    clients.touch(owner);
                }
            }
            Owner::Local { .. } => self.pump_local(id),
            _ => {}
        }
    }

    fn incoming(
        &mut self,
        clients: &mut Clients,
        stream: StreamId,
        local_port: u16,
        remote: SocketAddress,
    ) {
        self.say_incoming(stream, local_port, remote);
        let conn_with = |owner| Conn { local_port, ..Conn::new(owner, remote) };
        match self.ports.get(&local_port).cloned() {
            Some(Listener::Client(owner)) => {
                let Some(client) = clients.touch(owner) else {
                    return self.core.reset(stream);
                };
                let connection = stream.0;
                client.send(&ClientEvent::Accept { local_port, connection, remote });
                let conn = conn_with(Owner::Client(owner));
                self.give_to_client(connection, conn, client);
            }
            Some(Listener::Service(service)) => {
                let conn = conn_with(Owner::Client(0));
                let local = self.give_to_service(stream.0, conn, local_port);
                serve(&*service, local);
            }
            Some(Listener::Plugin(service)) => {
                let conn = conn_with(Owner::Client(0));
                service.open(Box::new(self.give_to_service(stream.0, conn, local_port)));
            }
            // Unbound since the SYN came.
            None => self.core.reset(stream),
        }
    }

    /// The core has one moment for both.
    fn say_incoming(&self, stream: StreamId, dst_port: u16, remote: SocketAddress) {
        let conn_id = u64::from(stream.0);
        let SocketAddress { address: src_addr, port: src_port } = remote;
        self.events.emit(|| Happening::ConnSynReceived { conn_id, dst_port, src_addr, src_port });
        self.events.emit(|| Happening::ConnEstablished { conn_id, dst_port, src_addr, src_port });
    }

    fn connected(&mut self, clients: &mut Clients, stream: StreamId) {
        let id = stream.0;
        // Whoever dialled may have gone.
        let Some(conn) = self.conns.remove(&id) else { return self.core.reset(stream) };
        let Conn { owner, remote, readable, .. } = conn;
        // The owner is set by whoever gets it.
        let local_port = self.core.local_port(stream).unwrap_or_default();
        let conn = Conn { readable, local_port, ..Conn::new(Owner::Client(0), remote) };
        match owner {
            Owner::DialClient { client, tag } => {
                let Some(client) = clients.touch(client) else { return self.core.reset(stream) };
                client.answer(tag, &ClientEvent::DialOk { connection: id });
                self.give_to_client(id, conn, client);
            }
            Owner::DialLocal { answer } => {
                let local = self.give_to_service(id, conn, 0);
                // When nobody waits any more, dropping the stream closes it.
                let _ = answer.send(Ok(local));
            }
            owner => {
                self.conns.insert(id, Conn { owner, ..conn });
            }
        }
    }

    fn dial_failed(&mut self, clients: &mut Clients, id: u32, reason: CoreDialFailure) {
        let Some(conn) = self.conns.remove(&id) else { return };
        match conn.owner {
            Owner::DialClient { client, tag } => {
                let Some(client) = clients.touch(client) else { return };
                client.connections.remove(&id);
                let (code, text) = dial_error(reason, conn.remote.address.node);
                client.refuse(tag, code, &text);
            }
            Owner::DialLocal { answer } => {
                // Nobody may wait any more.
                let _ = answer.send(Err(DialFailure::Peer(reason)));
            }
            Owner::Client(_) | Owner::Local { .. } => {}
        }
    }

    fn closed(&mut self, clients: &mut Clients, id: u32, reason: CloseReason) {
        let Some(conn) = self.conns.remove(&id) else { return };
        conn.say_broken(&self.events, id, reason);
        self.ended.insert(id);
        match conn.owner {
            Owner::Client(owner) => {
                let Some(client) = clients.touch(owner) else { return };
                client.connections.remove(&id);
                if client.blocked_on == Some(id) {
                    client.notify();
                }
                if client.has(Features::HALF_CLOSE) {
                    match conn.fault.or_else(|| broken(reason)) {
                        None if !conn.ended && !conn.over => {
                            client.send(&ClientEvent::End { connection: id });
                        }
                        None => {}
                        Some((code, text)) => {
                            client.send(&ClientEvent::Reset { connection: id, code, text });
                        }
                    }
                }
                if !conn.closed_told {
                    client.send(&ClientEvent::Closed { connection: id });
                }
            }
            Owner::Local { shared, .. } => match broken(reason) {
                None => shared.over(),
                Some((_, text)) => shared.broken(text.to_owned()),
            },
            Owner::DialClient { client, tag } => {
                let Some(client) = clients.touch(client) else { return };
                client.connections.remove(&id);
                client.refuse(tag, ErrorCode::CLOSED, &reason.to_string());
            }
            Owner::DialLocal { answer } => {
                // Nobody may wait any more.
                let _ = answer.send(Err(DialFailure::Peer(CoreDialFailure::Refused)));
            }
        }
    }

    /// Every client gets every datagram, as published; one that does not read
    /// loses it. So does a plugin that takes datagrams on this port.
    fn datagram(
        &mut self,
        clients: &mut Clients,
        source: SocketAddress,
        destination_port: u16,
        data: &Bytes,
    ) {
        self.events.emit(|| Happening::DataDatagram {
            dst_port: destination_port,
            size: data.len() as u64,
            src_addr: source.address,
            src_port: source.port,
        });
        if let Some(Listener::Plugin(service)) = self.ports.get(&destination_port)
            && service.takes_datagrams()
        {
            service.datagram(source, destination_port, data.clone());
        }
        if clients.len() == 0 {
            return;
        }
        let mut message = Vec::with_capacity(data.len() + 16);
        ClientEvent::ReceiveDatagram { source, destination_port, data }.encode(&mut message);
        let mut dropped = 0;
        clients.touch_all(|client| {
            if client.waiting() > DATAGRAM_BOUND {
                dropped += 1;
            } else {
                client.send_encoded(&message);
            }
        });
        self.counters.datagrams_dropped += dropped;
    }

    fn tunnel_up(&mut self, node: NodeId, relay: bool, rekeyed: bool) {
        info!(peer = %node, relay, rekeyed, "authenticated tunnel");
        self.plane.met(node);
        let endpoint =
            self.core.peers().into_iter().find(|p| p.node == node).and_then(|p| p.endpoint);
        if let Some(endpoint) = endpoint.filter(|_| !rekeyed) {
            self.peer_added(node, endpoint);
        }
        self.events.emit(|| Happening::TunnelEstablished {
            authenticated: true,
            peer_node_id: node,
            rekeyed,
            relay,
        });
        if let Some(endpoint) = endpoint.filter(|_| !relay) {
            self.plane.note_peer(node, endpoint);
        }
    }

    /// The endpoint of a peer is known. Said once for each, as far as memory
    /// goes.
    pub(crate) fn peer_added(&mut self, node: NodeId, endpoint: SocketAddr) {
        if !self.events.wanted() {
            return;
        }
        if self.added.len() >= MAX_ADDED {
            self.added.clear();
        }
        if self.added.insert(node, endpoint) != Some(endpoint) {
            self.events.emit(|| Happening::TunnelPeerAdded {
                endpoint: endpoint.to_string(),
                peer_node_id: node,
            });
        }
    }
}

fn serve(service: &dyn Service, stream: LocalStream) {
    let (name, remote) = (service.name(), stream.remote());
    let served = service.serve(stream);
    tokio::task::spawn_local(async move {
        if let Err(error) = served.await {
            debug!(service = name, %remote, %error, "service stream ended");
        }
    });
}

/// The published texts.
fn dial_error(reason: CoreDialFailure, node: NodeId) -> (ErrorCode, String) {
    match reason {
        CoreDialFailure::Refused => (ErrorCode::REFUSED, reason.to_string()),
        CoreDialFailure::Timeout => (ErrorCode::TIMEOUT, reason.to_string()),
        CoreDialFailure::Unresolved => {
            (ErrorCode::NOT_FOUND, format!("resolve node {node}: registry: request failed"))
        }
    }
}

/// How a stream that did not end in order is reported.
fn broken(reason: CloseReason) -> Option<(ErrorCode, &'static str)> {
    Some(match reason {
        CloseReason::Finished => return None,
        CloseReason::Reset => (ErrorCode::CLOSED, "reset by peer"),
        CloseReason::Aborted => (ErrorCode::CLOSED, "reset locally"),
        CloseReason::Unresponsive => (ErrorCode::TIMEOUT, "peer does not answer"),
        CloseReason::Idle => (ErrorCode::TIMEOUT, "idle timeout"),
        CloseReason::Truncated => {
            (ErrorCode::CLOSED, "stream truncated: data before the end was lost")
        }
        CloseReason::Untrusted => (ErrorCode::UNTRUSTED, "trust ended"),
    })
}
