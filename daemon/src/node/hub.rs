//! The core with everything that is open on it. Clients are kept apart from
//! it, so that one client and the hub can be worked on together.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use pilot_core::{Core, Read, StreamId, Time};
use pilot_host::PortService;
use pilot_wire::NodeId;
use pilot_wire::ipc::{ErrorCode, Event, Features};
use tokio::sync::mpsc;
use tracing::debug;

use super::conn::{Conn, Ended, Owner};
use super::lane::{Lane, Lanes};
use super::plane::{Plane, Refused};
use super::ready::{Notifier, ReadyList, Token};
use crate::events::{Events, Refusals};
use crate::ipc::client::{Client, DATA_BOUND, Tag};
use crate::plugins::yields;
use crate::service::{LocalStream, Outgoing, Service, StreamShared};
use crate::udp::UdpStatus;
use crate::workers::EdgeCounters;

/// Bytes of one connection passed on before it is the next one's turn.
const PASS: usize = 256 << 10;
/// The send credit that every connection starts with, told in hello. More
/// follows as the connection makes use of it.
const FIRST_SEND_CREDIT: usize = 64 << 10;
/// What a connection may have in credit and in the core at the least, also
/// while memory is short.
const LEAST_SEND_CREDIT: u64 = 16 << 10;
/// Answers of the control plane waiting for the loop; beyond it they wait.
const ANSWERS: usize = 256;

/// Who listens on a port.
#[derive(Clone)]
pub(crate) enum Listener {
    Client(u64),
    Service(Rc<dyn Service>),
    /// A plugin or script, on a thread of its own.
    Plugin(Arc<dyn PortService>),
}

/// An answer of the control plane for a client.
pub(crate) struct Answered {
    pub(crate) client: u64,
    /// None for what is answered only when it fails.
    pub(crate) tag: Option<Tag>,
    /// Code of the JSON answer.
    pub(crate) code: u8,
    pub(crate) result: Result<serde_json::Value, Refused>,
}

/// What the loop itself counts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LoopCounters {
    /// Clients connected now.
    pub(crate) clients: usize,
    /// Datagrams dropped because a client did not read.
    pub(crate) datagrams_dropped: u64,
}

/// What is owned beside the clients.
pub(crate) struct Hub {
    pub(crate) core: Core,
    pub(crate) plane: Rc<dyn Plane>,
    pub(crate) conns: HashMap<u32, Conn>,
    pub(crate) ports: HashMap<u16, Listener>,
    /// Plugins whose ports clients have taken for now.
    pub(super) displaced: HashMap<u16, Arc<dyn PortService>>,
    pub(crate) ended: Ended,
    pub(crate) ready: Arc<ReadyList>,
    pub(crate) counters: LoopCounters,
    pub(crate) udp: UdpStatus,
    /// Which worker this is and what came to its socket by mistake, when there
    /// are several.
    pub(crate) edge: Option<(usize, EdgeCounters)>,
    pub(crate) started: Instant,
    /// New dials and binds are refused.
    pub(crate) ending: bool,
    /// Notices for clients other than the one being served; at most one per
    /// connection.
    pub(crate) notices: Vec<(u64, u32)>,
    pub(crate) answers: mpsc::Sender<Answered>,
    /// Bytes a client may send on a new connection, as hello says.
    pub(crate) first_credit: u64,
    /// Bytes that a connection may have in credit and in the core.
    most_credit: u64,
    pub(crate) lanes: Lanes,
    pub(crate) events: Events,
    pub(crate) refusals: Refusals,
    /// Endpoints that events have told of.
    pub(crate) added: HashMap<NodeId, SocketAddr>,
    pieces: Vec<Bytes>,
}

impl Hub {
    pub(crate) fn new(
        core: Core,
        plane: Rc<dyn Plane>,
        send_buffer: usize,
        max_lanes: usize,
        events: Events,
    ) -> (Self, mpsc::Receiver<Answered>) {
        let (answers, receiver) = mpsc::channel(ANSWERS);
        let hub = Self {
            core,
            plane,
            conns: HashMap::new(),
            ports: HashMap::new(),
            displaced: HashMap::new(),
            ended: Ended::default(),
            ready: Arc::default(),
            counters: LoopCounters::default(),
            udp: UdpStatus::default(),
            edge: None,
            started: Instant::now(),
            ending: false,
            notices: Vec::new(),
            answers,
            first_credit: send_buffer.min(FIRST_SEND_CREDIT) as u64,
            most_credit: send_buffer as u64,
            lanes: Lanes::new(max_lanes),
            events,
            refusals: Refusals::new(Instant::now()),
            added: HashMap::new(),
            pieces: Vec::new(),
        };
        (hub, receiver)
    }

    /// The core's clock.
    pub(crate) fn now(&self) -> Time {
        self.time_of(Instant::now())
    }

    /// A moment on the core's clock.
    pub(crate) fn time_of(&self, at: Instant) -> Time {
        let nanos = at.saturating_duration_since(self.started).as_nanos();
        Time::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Gives an open stream to a client.
    pub(crate) fn give_to_client(&mut self, id: u32, mut conn: Conn, client: &mut Client) {
        conn.owner = Owner::Client(client.id);
        conn.receive_credit =
            if client.has(Features::CREDIT) { u64::from(client.receive_credit) } else { u64::MAX };
        conn.send_credit = self.first_credit;
        conn.allowance = self.first_credit;
        if client.has(Features::CREDIT) {
            let start = (self.core.initial_buffer() as u64).min(self.most_credit);
            let more = start.saturating_sub(self.first_credit);
            conn.allowance += more;
            conn.send_credit += more;
            tell_credit(client, id, more);
        }
        client.connections.insert(id);
        if conn.readable && conn.receive_credit > 0 {
            conn.queued = true;
            client.readable.push_back(id);
        }
        self.conns.insert(id, conn);
    }

    /// Bytes of a connection were acknowledged: gives the client credit for
    /// them, and more while it uses what it has and memory is plenty; less when
    /// it is short. Returns whether anything was granted.
    pub(crate) fn renew_credit(&mut self, client: &mut Client, id: u32, freed: usize) -> bool {
        let cap = (self.core.send_allowance() as u64).min(self.most_credit);
        let Some(conn) = self.conns.get_mut(&id) else { return false };
        conn.freed += freed as u64;
        if conn.freed < conn.allowance / 4 {
            return false;
        }
        let freed = std::mem::take(&mut conn.freed);
        let target = conn.allowance.saturating_add(freed).min(cap);
        let shrunk = conn.allowance.saturating_sub(freed).max(cap.max(LEAST_SEND_CREDIT));
        let allowance = if target >= conn.allowance { target } else { shrunk.min(conn.allowance) };
        let bytes = (freed + allowance).saturating_sub(conn.allowance);
        conn.allowance = allowance;
        conn.send_credit += bytes;
        tell_credit(client, id, bytes);
        bytes > 0
    }

    /// Gives an open stream to a service: the stream for its future.
    pub(crate) fn give_to_service(
        &mut self,
        id: u32,
        mut conn: Conn,
        local_port: u16,
    ) -> LocalStream {
        let notifier = Notifier::new(Arc::clone(&self.ready), Token::Local(id));
        let shared = StreamShared::new(notifier);
        let stream = LocalStream::new(Arc::clone(&shared), StreamId(id), local_port, conn.remote);
        conn.owner = Owner::Local { shared, shut: false };
        self.core.set_no_delay(StreamId(id), true);
        self.conns.insert(id, conn);
        self.pump_local(id);
        stream
    }

    /// Has `service` answer on `port`, instead of an earlier plugin, which is
    /// returned.
    ///
    /// # Errors
    /// When somebody else has the port, or the daemon is ending.
    pub(crate) fn listen(
        &mut self,
        port: u16,
        service: Arc<dyn PortService>,
    ) -> Result<Option<Arc<dyn PortService>>, String> {
        if self.ending {
            return Err("the daemon is shutting down".to_owned());
        }
        match self.ports.get_mut(&port) {
            Some(Listener::Plugin(earlier)) => Ok(Some(std::mem::replace(earlier, service))),
            Some(Listener::Client(_)) if yields(port) => Ok(self.displaced.insert(port, service)),
            Some(Listener::Client(_)) => Err(format!(
                "port {port} is bound by an agent of this daemon; end that agent or give {} \
                 another port",
                service.name()
            )),
            Some(Listener::Service(owner)) => Err(format!(
                "port {port} belongs to the {} service of the daemon itself; give {} another port",
                owner.name(),
                service.name()
            )),
            None => {
                self.core.listen(port).map_err(|e| format!("port {port}: {e}"))?;
                self.ports.insert(port, Listener::Plugin(service));
                Ok(None)
            }
        }
    }

    /// No plugin answers on `port` any more. What others have bound stays.
    pub(crate) fn unlisten(&mut self, port: u16) {
        self.displaced.remove(&port);
        if matches!(self.ports.get(&port), Some(Listener::Plugin(_))) {
            self.ports.remove(&port);
            self.core.unlisten(port);
        }
    }

    /// Makes a port free for a client to listen on: nobody has it, or a plugin
    /// that yields.
    ///
    /// # Errors
    /// When somebody else has it.
    pub(crate) fn take_port(&mut self, port: u16) -> Result<(), pilot_core::ListenError> {
        if yields(port)
            && let Some(Listener::Plugin(service)) = self.ports.get(&port)
        {
            // The core listens already.
            self.displaced.insert(port, Arc::clone(service));
            return Ok(());
        }
        self.core.listen(port)
    }

    /// A client has let go of a port: it is that of a plugin which has yielded,
    /// or nobody's.
    pub(crate) fn free_port(&mut self, port: u16) {
        match self.displaced.remove(&port) {
            Some(service) => {
                self.ports.insert(port, Listener::Plugin(service));
            }
            None => {
                self.ports.remove(&port);
                self.core.unlisten(port);
            }
        }
    }

    /// Passes on what a client's connections have, as far as its credit and
    /// its outbox allow.
    pub(crate) fn pump_client(&mut self, client: &mut Client) {
        let now = self.now();
        while client.waiting() < DATA_BOUND {
            let Some(id) = client.readable.pop_front() else { return };
            let Some(conn) = self.conns.get_mut(&id) else { continue };
            conn.queued = false;
            if conn.over {
                continue;
            }
            if matches!(conn.lane, Lane::Open(_)) {
                self.pass_down(client, id);
                continue;
            }
            let stream = StreamId(id);
            let allowed = usize::try_from(conn.receive_credit).unwrap_or(usize::MAX).min(PASS);
            let mut taken = 0;
            let mut end = false;
            while taken < allowed {
                match self.core.read(stream, allowed - taken) {
                    Read::Data(data) => {
                        taken += data.len();
                        self.pieces.push(data);
                    }
                    Read::Blocked => {
                        conn.readable = false;
                        break;
                    }
                    Read::End => {
                        conn.readable = false;
                        end = true;
                        break;
                    }
                }
            }
            if taken > 0 {
                client.send_data(id, &mut self.pieces);
                self.lanes.count(client, id, conn, taken);
            }
            if client.has(Features::CREDIT) {
                conn.receive_credit -= taken as u64;
            }
            if end && !conn.ended {
                conn.ended = true;
                conn.say_finished(&self.events, id);
                if client.has(Features::HALF_CLOSE) {
                    client.send(&Event::End { connection: id });
                } else {
                    // Without half-close the end of reading is the end of all.
                    client.send(&Event::Closed { connection: id });
                    conn.closed_told = true;
                    conn.over = true;
                    self.core.close(stream, now);
                }
            } else if conn.readable && conn.receive_credit > 0 {
                conn.queued = true;
                client.readable.push_back(id);
            }
        }
    }

    /// Moves bytes between a service's stream and the core, both ways.
    pub(crate) fn pump_local(&mut self, id: u32) {
        let (stream, now) = (StreamId(id), self.now());
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let Owner::Local { shared, .. } = &conn.owner else { return };
        let mut ended = false;
        if conn.readable && !conn.over {
            let mut room = shared.room();
            while conn.readable && room > 0 {
                let (mut taken, mut end) = (0, false);
                let most = room.min(PASS);
                while taken < most {
                    match self.core.read(stream, most - taken) {
                        Read::Data(data) => {
                            taken += data.len();
                            self.pieces.push(data);
                        }
                        Read::Blocked => {
                            conn.readable = false;
                            break;
                        }
                        Read::End => {
                            conn.readable = false;
                            conn.ended = true;
                            end = true;
                            break;
                        }
                    }
                }
                room = shared.deliver(&mut self.pieces, end);
                ended |= end;
            }
        }
        if ended {
            conn.say_finished(&self.events, id);
        }
        let Owner::Local { shared, shut } = &mut conn.owner else { return };
        let standing = shared.take_outgoing(self.core.writable(stream), &mut self.pieces);
        for data in self.pieces.drain(..) {
            if self.core.write(stream, data, now).is_err() {
                shared.broken("the stream is closed".to_owned());
                return;
            }
        }
        match standing {
            Outgoing::Open => {}
            Outgoing::Finished if *shut => {}
            Outgoing::Finished => {
                *shut = true;
                conn.finished = true;
                self.core.shutdown(stream, now);
            }
            Outgoing::Dropped => {
                self.core.close(stream, now);
                self.conns.remove(&id);
                self.ended.insert(id);
            }
            Outgoing::Reset(reason) => {
                debug!(connection = id, peer = %conn.remote, %reason, "reset by its service");
                self.core.reset(stream);
                self.conns.remove(&id);
                self.ended.insert(id);
            }
        }
    }

    /// Lets go of everything a client had: its data is still delivered.
    pub(crate) fn drop_client(&mut self, client: &Client) {
        let now = self.now();
        for port in &client.ports {
            self.free_port(*port);
        }
        // Dials that wait are in `connections` as well.
        for id in &client.connections {
            if let Some(mut conn) = self.conns.remove(id) {
                if !conn.over {
                    conn.lane.finish(&mut self.core, *id, now);
                    self.core.close(StreamId(*id), now);
                }
                self.ended.insert(*id);
            }
        }
    }

    /// Breaks a client's connection because the client misbehaves on it.
    pub(crate) fn break_conn(&mut self, id: u32, code: ErrorCode, text: &'static str) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.over = true;
            conn.fault = Some((code, text));
            self.core.reset(StreamId(id));
        }
    }
}

fn tell_credit(client: &mut Client, connection: u32, bytes: u64) {
    if bytes > 0 {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        client.send(&Event::Credit { connection, bytes });
    }
}
