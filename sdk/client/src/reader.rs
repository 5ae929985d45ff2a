//! The one task that reads a client's socket and hands out what it finds.
//!
//! It owns the table of connections: a connection is entered while the
//! message that announces it is handled, so data right behind it finds it.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use bytes::{Buf, Bytes, BytesMut};
use pilot_lane::Memory;
use pilot_wire::SocketAddress;
use pilot_wire::ipc::{Command, DATA_HEADER_LEN, Event, EventError, Features, split_message};
use tokio::io::AsyncReadExt;
use tokio::net::unix::OwnedReadHalf;

use crate::conn::{Conn, closed};
use crate::connect::too_long;
use crate::datagram::Datagram;
use crate::descriptors;
use crate::error::{Error, ErrorKind};
use crate::link::{Guard, Link};
use crate::listener::Listener;
use crate::lock;
use crate::request::Waiting;
use crate::stream::Stream;

/// Bytes asked of the kernel at once.
pub(crate) const READ_BUFFER: usize = 256 * 1024;
/// With less room than this the buffer is renewed before the next read.
const MIN_ROOM: usize = 64 * 1024;

/// Reads one socket.
pub(crate) struct Reader {
    pub(crate) socket: OwnedReadHalf,
    pub(crate) buffer: BytesMut,
    pub(crate) link: Arc<Link>,
    /// For the streams made here; weak, or the client would never end.
    pub(crate) guard: Weak<Guard>,
    /// Open connections. Bounded by what the daemon opens for this client,
    /// and on closing by the daemon's answer.
    pub(crate) conns: HashMap<u32, Arc<Conn>>,
    /// Lanes asked for and not answered.
    pub(crate) lanes_due: usize,
    /// Descriptors that came and whose messages are still to be handled.
    pub(crate) files: VecDeque<OwnedFd>,
}

/// What a message asks of the loop beyond what was done at once.
enum Next {
    Go,
    /// The connection is full and the daemon knows no credit: read no more
    /// until the application has caught up.
    WaitFor(Arc<Conn>),
}

impl Reader {
    /// Reads until the socket ends, then tells everybody.
    pub(crate) async fn run(mut self) {
        let error = loop {
            if let Err(error) = self.drain().await {
                break error;
            }
            match self.fill().await {
                Ok(0) => break Error::new(ErrorKind::Disconnected, "daemon disconnected"),
                Ok(_) => {}
                Err(e) => {
                    let text = format!("daemon disconnected: {e}");
                    break Error::new(ErrorKind::Disconnected, text);
                }
            }
        };
        self.link.fail(error);
        // Dead by now, perhaps for an earlier reason; that one is told.
        let error = self.link.error().unwrap_or_else(closed);
        self.link.requests.fail_all(&error);
        lock(&self.link.ports).clear();
        self.link.subscribers.clear();
        for conn in self.conns.values() {
            conn.fail(&error);
        }
    }

    async fn fill(&mut self) -> std::io::Result<usize> {
        if self.lanes_due > 0 {
            let (socket, most) = (self.socket.as_ref(), self.lanes_due);
            return descriptors::read(socket, &mut self.buffer, &mut self.files, most).await;
        }
        let needed = match self.buffer.first_chunk::<4>() {
            // Checked against the limit by `drain`.
            Some(len) => (u32::from_be_bytes(*len) as usize + 4).saturating_sub(self.buffer.len()),
            None => 0,
        };
        if self.buffer.capacity() - self.buffer.len() < needed.max(MIN_ROOM) {
            self.buffer.reserve(needed.max(READ_BUFFER));
        }
        self.socket.read_buf(&mut self.buffer).await
    }

    /// Handles every whole message in the buffer.
    async fn drain(&mut self) -> Result<(), Error> {
        loop {
            let next = match split_message(&self.buffer) {
                Ok(Some((_, used))) => self.handle(used)?,
                Ok(None) => return Ok(()),
                Err(len) => {
                    return Err(Error::protocol(format!("from the daemon: {}", too_long(len))));
                }
            };
            if let Next::WaitFor(conn) = next {
                std::future::poll_fn(|cx| conn.poll_drained(cx)).await;
            }
        }
    }

    /// Handles the message in the first `used` bytes of the buffer.
    fn handle(&mut self, used: usize) -> Result<Next, Error> {
        let event = match Event::parse(&self.buffer[4..used]) {
            Ok(event) => event,
            // A later daemon may say more than this client understands.
            Err(EventError::Empty | EventError::Unknown(_)) => {
                self.buffer.advance(used);
                return Ok(Next::Go);
            }
            Err(e) => return Err(Error::protocol(e.to_string())),
        };
        if let Event::Receive { connection, data } = event {
            let len = data.len();
            return Ok(self.receive(connection, len, used));
        }
        // The rest is rare: it may borrow from a buffer split off.
        let message = self.buffer.split_to(used);
        let event = match Event::parse(&message[4..]) {
            Ok(event) => event,
            Err(e) => return Err(Error::protocol(e.to_string())),
        };
        match event {
            Event::Reply { id, event } => {
                if let Some(waiting) = self.link.requests.take(id) {
                    match Event::parse(event) {
                        Ok(event) => self.answer(waiting, &event),
                        Err(e) => waiting.fail(Error::protocol(e.to_string())),
                    }
                }
            }
            Event::Accept { local_port, connection, remote } => {
                self.accept(local_port, connection, remote);
            }
            Event::Credit { connection, bytes } => {
                if let Some(conn) = self.conns.get(&connection) {
                    conn.add_credit(bytes);
                }
            }
            Event::End { connection } => {
                if let Some(conn) = self.conns.get(&connection) {
                    conn.end_receive(Ok(()));
                }
            }
            Event::Closed { connection } => {
                if let Some(conn) = self.conns.remove(&connection) {
                    conn.end_receive(Ok(()));
                    conn.end_send(closed());
                }
                self.untagged(&event);
            }
            Event::Reset { connection, code, text } => {
                if let Some(conn) = self.conns.remove(&connection) {
                    conn.fail(&Error::answer(code, text).reset());
                }
            }
            Event::ReceiveDatagram { source, destination_port, data } => {
                self.link.subscribers.publish(|| Datagram {
                    source,
                    destination_port,
                    data: Bytes::copy_from_slice(data),
                });
            }
            Event::Error { code, text } => self.untagged_error(Error::answer(code, text)),
            Event::BindOk { .. } | Event::DialOk { .. } | Event::Json { .. } => {
                self.untagged(&event);
            }
            Event::LaneOffer { connection } => {
                if pilot_lane::SUPPORTED && self.conns.contains_key(&connection) {
                    self.lanes_due += 1;
                    self.link.control(&Command::LaneTake { connection });
                }
            }
            Event::Lane { connection, granted } => self.lane(connection, granted),
            Event::LaneKick { connection } => {
                if let Some(conn) = self.conns.get(&connection) {
                    conn.kicked();
                }
            }
            Event::Receive { .. } | Event::HelloOk { .. } | Event::UnbindOk { .. } => {}
        }
        Ok(Next::Go)
    }

    /// Passes on the data in the first `used` bytes of the buffer.
    fn receive(&mut self, connection: u32, len: usize, used: usize) -> Next {
        let Some(conn) = self.conns.get(&connection) else {
            self.buffer.advance(used);
            return Next::Go;
        };
        let credit = self.link.grants.has(Features::CREDIT);
        if credit && !conn.has_room(len) {
            self.buffer.advance(used);
            let text =
                format!("the daemon sent more on connection {connection} than it was allowed");
            conn.fail(&Error::protocol(text));
            self.conns.remove(&connection);
            self.link.control(&Command::Close { connection });
            return Next::Go;
        }
        if Conn::wants_slice(len) {
            let mut message = self.buffer.split_to(used);
            message.advance(DATA_HEADER_LEN);
            conn.push_slice(message.freeze());
        } else {
            conn.push_copy(&self.buffer[DATA_HEADER_LEN..used]);
            self.buffer.advance(used);
        }
        if !credit && conn.is_full() { Next::WaitFor(Arc::clone(conn)) } else { Next::Go }
    }

    /// The answer to a lane asked for.
    fn lane(&mut self, connection: u32, granted: bool) {
        if self.lanes_due == 0 {
            return;
        }
        self.lanes_due -= 1;
        if !granted {
            return;
        }
        let file = self.files.pop_front();
        // It may have ended meanwhile.
        let Some(conn) = self.conns.get(&connection) else { return };
        let opened = match &file {
            Some(file) => Memory::open(file).map_err(|e| e.to_string()),
            None => Err("a lane came without its descriptor".to_owned()),
        };
        match opened {
            Ok(memory) => conn.attach(memory),
            Err(text) => {
                conn.fail(&Error::protocol(format!("from the daemon: {text}")));
                self.conns.remove(&connection);
                self.link.control(&Command::Close { connection });
            }
        }
    }

    /// Enters a connection and makes its stream, unless the client is ending.
    fn open(&mut self, connection: u32, remote: SocketAddress) -> Option<Stream> {
        let guard = self.guard.upgrade()?;
        let grants = &self.link.grants;
        let conn = Conn::new(connection, remote, grants.receive_credit, grants.send_credit);
        let conn = Arc::new(conn);
        if let Some(old) = self.conns.insert(connection, Arc::clone(&conn)) {
            old.fail(&Error::protocol(format!("the daemon used connection {connection} twice")));
        }
        Some(Stream::new(conn, guard))
    }

    fn accept(&mut self, port: u16, connection: u32, remote: SocketAddress) {
        let incoming = lock(&self.link.ports).get(&port).cloned();
        // A stream that nobody takes is dropped, which closes it.
        let Some(stream) = self.open(connection, remote) else { return };
        if let Some(incoming) = incoming {
            incoming.offer(stream);
        }
    }

    fn answer(&mut self, waiting: Waiting, event: &Event<'_>) {
        if let Event::Error { code, text } = *event {
            return waiting.fail(Error::answer(code, text));
        }
        if !waiting.expects(event) {
            // An open stream nobody asked for must not stay open.
            if let Event::DialOk { connection } = *event {
                self.link.control(&Command::Close { connection });
            }
            return waiting.fail(Error::protocol("the daemon answered another request"));
        }
        // A caller that has given up drops what it is sent: a stream closes, a
        // port is unbound.
        match (waiting, event) {
            (Waiting::Bind { port, reply }, _) => {
                if let Some(guard) = self.guard.upgrade() {
                    let listener = Listener::new(port, &mut lock(&self.link.ports), guard);
                    let _ = reply.send(Ok(listener));
                }
            }
            (Waiting::Dial { to, reply }, Event::DialOk { connection }) => {
                if let Some(stream) = self.open(*connection, to) {
                    let _ = reply.send(Ok(stream));
                }
            }
            (Waiting::Json { reply, .. }, Event::Json { body, .. }) => {
                let _ = reply.send(Ok(body.to_vec()));
            }
            (Waiting::Closed { reply, .. }, _) => {
                let _ = reply.send(Ok(()));
            }
            (waiting, _) => waiting.fail(Error::protocol("the daemon answered another request")),
        }
    }

    /// Without tags an answer belongs to the one request there is.
    fn untagged(&mut self, event: &Event<'_>) {
        if let Some(waiting) = self.link.requests.take_untagged(|w| w.expects(event)) {
            self.answer(waiting, event);
        } else if let Event::DialOk { connection } = *event {
            self.link.control(&Command::Close { connection });
        }
    }

    /// Errors of sends come untagged, and between the answers of a published
    /// daemon; their published texts tell them apart.
    fn untagged_error(&mut self, error: Error) {
        let text = error.message();
        if text.starts_with("sendto: ") {
            return self.link.subscribers.failed(error);
        }
        if text.starts_with("send: ") {
            // The stream it concerns is told by what ended it.
            return;
        }
        let missing = text
            .strip_prefix("connection ")
            .and_then(|rest| rest.strip_suffix(" not found"))
            .and_then(|id| id.parse::<u32>().ok());
        if let Some(id) = missing {
            if let Some(conn) = self.conns.remove(&id) {
                conn.fail(&error.reset());
            }
            return;
        }
        if let Some(waiting) = self.link.requests.take_untagged(|_| true) {
            waiting.fail(error);
        }
    }
}
