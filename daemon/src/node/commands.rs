//! What a client's messages do (protocol page "Daemon socket").

use bytes::Bytes;
use pilot_core::{CongestionControl, DialError, StreamId};
use pilot_wire::ipc::{
    Command, CommandError, Congestion, ErrorCode, Event, Features, HELLO_VERSION, Setting, json,
};
use tracing::debug;

use super::conn::{Conn, Owner};
use super::hub::{Hub, Listener};
use super::info;
use crate::ipc::client::{COMMAND_BOUND, Client, Next};

/// Messages of one client per turn; what is left is for the next turn.
const COMMANDS: usize = 256;
/// Bytes read from one client per turn, likewise.
const READ_BYTES: usize = 2 << 20;

/// Code of the answer to dial, for the order of answers.
const DIAL_OK: u8 = 0x04;

/// Whether a client stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Served {
    Stays,
    Goes,
}

enum Flow {
    Go,
    /// A send does not fit: the client waits.
    Wait,
}

impl Hub {
    /// Does what a client sent, as much as a turn allows.
    pub(crate) fn serve(&mut self, client: &mut Client) -> Served {
        let mut commands = 0;
        let mut bytes = 0;
        for id in std::mem::take(&mut client.lanes) {
            self.pass_up(client, id);
        }
        loop {
            loop {
                if client.waiting() > COMMAND_BOUND {
                    client.paused = true;
                    return Served::Stays;
                }
                if commands >= COMMANDS {
                    client.notify();
                    return Served::Stays;
                }
                commands += 1;
                match client.inbox.next() {
                    Ok(Next::Incomplete) => break,
                    Ok(Next::Command(body)) => self.command(client, &body, None),
                    Ok(Next::Data { connection, available, first }) => {
                        if let Flow::Wait = self.data(client, connection, available, first) {
                            return Served::Stays;
                        }
                    }
                    Err(e) => {
                        debug!(client = client.id, error = %e, "client disconnected");
                        return Served::Goes;
                    }
                }
            }
            if bytes >= READ_BYTES {
                client.notify();
                return Served::Stays;
            }
            match client.poll_read() {
                std::task::Poll::Pending => return Served::Stays,
                std::task::Poll::Ready(Ok(0)) => return Served::Goes,
                std::task::Poll::Ready(Ok(n)) => bytes += n,
                std::task::Poll::Ready(Err(e)) => {
                    debug!(client = client.id, error = %e, "client lost");
                    return Served::Goes;
                }
            }
        }
    }

    /// Stream data from a client.
    fn data(&mut self, client: &mut Client, id: u32, available: usize, first: bool) -> Flow {
        client.blocked_on = None;
        let now = self.now();
        let credit = client.has(Features::CREDIT);
        let open =
            self.conns.get_mut(&id).filter(|conn| conn.client() == Some(client.id) && !conn.over);
        let Some(conn) = open else {
            client.inbox.take_data(available);
            if first {
                self.refuse_send(client, id);
            }
            return Flow::Go;
        };
        let stream = StreamId(id);
        let room = if credit {
            if available as u64 > conn.send_credit {
                client.inbox.take_data(available);
                self.break_conn(
                    id,
                    ErrorCode::INVALID_ARGUMENT,
                    "the client sent more than the credit it had; wait for credit messages",
                );
                return Flow::Go;
            }
            available
        } else {
            let room = self.core.writable(stream);
            if room == 0 && available > 0 {
                client.blocked_on = Some(id);
                return Flow::Wait;
            }
            room
        };
        let data = client.inbox.take_data(available.min(room));
        if credit {
            conn.send_credit -= data.len() as u64;
        }
        self.lanes.count(client, id, conn, data.len());
        if !data.is_empty() && self.core.write(stream, data, now).is_err() && first {
            client.refuse_now(None, ErrorCode::CLOSED, "send: connection not established");
        }
        Flow::Go
    }

    /// A send to a connection that is not open for this client.
    fn refuse_send(&mut self, client: &mut Client, id: u32) {
        let known = client.connections.contains(&id) || self.ended.contains(id);
        if known && client.has(Features::HALF_CLOSE) {
            // It has been told, or is being told, that the connection is over.
            return;
        }
        if known {
            client.refuse_now(None, ErrorCode::CLOSED, "send: connection not established");
        } else {
            let text = format!("connection {id} not found");
            client.refuse_now(None, ErrorCode::NOT_FOUND, &text);
        }
    }

    /// Any other message.
    fn command(&mut self, client: &mut Client, body: &Bytes, tag: Option<u32>) {
        let command = match Command::parse(body) {
            Ok(command) => command,
            Err(CommandError::Empty) if tag.is_none() => return,
            Err(e) => {
                return client.refuse_now(tag, ErrorCode::INVALID_ARGUMENT, &e.to_string());
            }
        };
        match command {
            Command::Bind { port } => self.bind(client, tag, port),
            Command::Unbind { port } => self.unbind(client, tag, port),
            Command::Dial { to } => self.dial(client, tag, to),
            Command::Close { connection } => self.close(client, tag, connection),
            Command::Info => self.info(client, tag),
            Command::Hello { version, features, receive_credit } => {
                self.hello(client, tag, version, features, receive_credit);
            }
            Command::Request { id, command } if tag.is_none() => {
                self.command(client, &body.slice_ref(command), Some(id));
            }
            Command::Request { .. } => client.refuse_now(
                tag,
                ErrorCode::INVALID_ARGUMENT,
                "request: a request cannot hold a request",
            ),
            Command::Send { .. }
            | Command::SendDatagram { .. }
            | Command::Credit { .. }
            | Command::Shutdown { .. }
            | Command::Set { .. }
            | Command::LaneTake { .. }
            | Command::LaneBegin { .. }
            | Command::LaneKick { .. }
                if tag.is_some() =>
            {
                client.refuse_now(
                    tag,
                    ErrorCode::INVALID_ARGUMENT,
                    "request: this command has no answer and takes no tag",
                );
            }
            // Sends are taken apart before they come here.
            Command::Send { connection, .. } => self.refuse_send(client, connection),
            Command::SendDatagram { to, data }
                if to.address.is_broadcast() && to.address.network != 0 =>
            {
                self.broadcast(client, to, data);
            }
            Command::SendDatagram { to, data } => {
                let now = self.now();
                if let Err(e) = self.core.send_datagram(to, data, now) {
                    let text = format!("sendto: {e}");
                    client.refuse_now(None, ErrorCode::INVALID_ARGUMENT, &text);
                }
            }
            Command::Credit { connection, bytes } => self.credit(client, connection, bytes),
            Command::Shutdown { connection } => {
                let now = self.now();
                let open = self.conns.get_mut(&connection);
                if let Some(conn) = open.filter(|c| c.client() == Some(client.id) && !c.over) {
                    conn.finished = true;
                    conn.lane.finish(&mut self.core, connection, now);
                    self.core.shutdown(StreamId(connection), now);
                }
            }
            Command::Set { connection, setting } => {
                if self.owned(client, connection).is_some() {
                    self.set(StreamId(connection), setting);
                }
            }
            Command::LaneTake { connection } => self.lane_take(client, connection),
            Command::LaneBegin { connection } => self.lane_begin(client, connection),
            Command::LaneKick { connection } => self.lane_kick(client, connection),
            other => self.request(client, tag, &other),
        }
    }

    /// A connection that is open and this client's.
    pub(crate) fn owned(&mut self, client: &Client, id: u32) -> Option<&mut Conn> {
        self.conns.get_mut(&id).filter(|conn| conn.client() == Some(client.id) && !conn.over)
    }

    fn set(&mut self, stream: StreamId, setting: Setting) {
        match setting {
            Setting::NoDelay(on) => self.core.set_no_delay(stream, on),
            Setting::Congestion(kind) => self.core.set_congestion(stream, controller(kind)),
        }
    }

    fn hello(
        &mut self,
        client: &mut Client,
        tag: Option<u32>,
        version: u16,
        features: Features,
        receive_credit: u32,
    ) {
        if client.greeted || !client.connections.is_empty() {
            let text = "hello: must be the first message, once";
            return client.refuse_now(tag, ErrorCode::INVALID_ARGUMENT, text);
        }
        if version == 0 {
            let text = "hello: version 0 is not a version";
            return client.refuse_now(tag, ErrorCode::INVALID_ARGUMENT, text);
        }
        client.greeted = true;
        client.features = features.and(Features::ALL);
        client.receive_credit = receive_credit;
        let event = Event::HelloOk {
            version: HELLO_VERSION.min(version),
            features: client.features,
            send_credit: u32::try_from(self.first_credit).unwrap_or(u32::MAX),
        };
        client.answer_now(tag, &event);
    }

    fn bind(&mut self, client: &mut Client, tag: Option<u32>, port: u16) {
        if self.ending {
            let text = "bind: the daemon is shutting down";
            return client.refuse_now(tag, ErrorCode::SHUTDOWN, text);
        }
        match self.take_port(port) {
            Ok(()) => {
                self.ports.insert(port, Listener::Client(client.id));
                client.ports.push(port);
                client.answer_now(tag, &Event::BindOk { port });
            }
            Err(_) => {
                let text = format!("port {port} already bound");
                client.refuse_now(tag, ErrorCode::ALREADY_EXISTS, &text);
            }
        }
    }

    fn unbind(&mut self, client: &mut Client, tag: Option<u32>, port: u16) {
        let Some(index) = client.ports.iter().position(|p| *p == port) else {
            let text = format!("unbind: port {port} is not bound by this client");
            return client.refuse_now(tag, ErrorCode::NOT_FOUND, &text);
        };
        client.ports.swap_remove(index);
        self.free_port(port);
        client.answer_now(tag, &Event::UnbindOk { port });
    }

    fn dial(&mut self, client: &mut Client, tag: Option<u32>, to: pilot_wire::SocketAddress) {
        if self.ending {
            let text = "dial: the daemon is shutting down";
            return client.refuse_now(tag, ErrorCode::SHUTDOWN, text);
        }
        if !client.replies.has_room() {
            let text = "dial: too many requests of this client wait for an answer";
            return client.refuse_now(tag, ErrorCode::LIMIT, text);
        }
        let tag = client.replies.open(DIAL_OK, tag);
        let now = self.now();
        match self.core.dial(to, now) {
            Ok(stream) => {
                let owner = Owner::DialClient { client: client.id, tag };
                client.connections.insert(stream.0);
                self.conns.insert(stream.0, Conn::new(owner, to));
            }
            Err(e) => {
                let code = match e {
                    DialError::NotAMember(_) => ErrorCode::NOT_FOUND,
                    _ => ErrorCode::LIMIT,
                };
                client.refuse(tag, code, &format!("dial: {e}"));
            }
        }
    }

    /// Closes any client's or service's connection. Clients of the published
    /// protocol are told at once that it ended; others when it has.
    fn close(&mut self, client: &mut Client, tag: Option<u32>, id: u32) {
        client.answer_now(tag, &Event::Closed { connection: id });
        let now = self.now();
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let dialling = matches!(conn.owner, Owner::DialClient { .. } | Owner::DialLocal { .. });
        if conn.over || dialling {
            return;
        }
        conn.over = true;
        conn.lane.finish(&mut self.core, id, now);
        self.core.close(StreamId(id), now);
        match &conn.owner {
            Owner::Client(owner) if *owner == client.id => {
                if !client.has(Features::HALF_CLOSE) && !conn.closed_told {
                    conn.closed_told = true;
                    client.send(&Event::Closed { connection: id });
                }
            }
            Owner::Client(owner) => self.notices.push((*owner, id)),
            Owner::Local { shared, .. } => shared.broken("closed by a client".to_owned()),
            Owner::DialClient { .. } | Owner::DialLocal { .. } => {}
        }
    }

    /// Tells the owner of a connection that another client closed it.
    pub(crate) fn notice_closed(&mut self, owner: &mut Client, id: u32) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if !owner.has(Features::HALF_CLOSE) && !conn.closed_told {
            conn.closed_told = true;
            owner.send(&Event::Closed { connection: id });
        }
        if owner.blocked_on == Some(id) {
            owner.notify();
        }
    }

    fn credit(&mut self, client: &mut Client, id: u32, bytes: u32) {
        let Some(conn) = self.owned(client, id) else { return };
        conn.receive_credit = conn.receive_credit.saturating_add(u64::from(bytes));
        if conn.readable && !conn.queued && conn.receive_credit > 0 {
            conn.queued = true;
            client.readable.push_back(id);
        }
    }

    fn info(&mut self, client: &mut Client, tag: Option<u32>) {
        let text = info::render(self.info_json());
        client.answer_now(tag, &Event::Json { code: json::INFO, body: text.as_bytes() });
    }

    /// What `info` shows of this loop.
    pub(crate) fn info_json(&self) -> serde_json::Value {
        let uptime = self.started.elapsed().as_secs();
        let facts = self.plane.facts();
        let mut value = info::info(&self.core, &facts, uptime, &self.counters, &self.udp);
        if let Some((worker, edge)) = self.edge {
            info::of_worker(&mut value, worker, edge);
        }
        value
    }
}

/// The core's name of a congestion controller.
pub(crate) const fn controller(congestion: Congestion) -> CongestionControl {
    match congestion {
        Congestion::Cubic => CongestionControl::Cubic,
        Congestion::NewReno => CongestionControl::NewReno,
        Congestion::Bbr => CongestionControl::Bbr,
    }
}
