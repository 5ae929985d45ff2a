//! A driver as published: queues of waiters per reply code, an error for
//! whoever waits longest, 0x09 as end of stream. It shows that the daemon's
//! socket serves clients which know no more than that.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, bail, ensure};
use pilot_wire::{Address, NodeId, SocketAddress};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;

use super::Datagram;

/// Codes of the published driver socket.
pub mod code {
    /// Listen on a port.
    pub const BIND: u8 = 0x01;
    /// Open a stream.
    pub const DIAL: u8 = 0x03;
    /// A stream was opened to us.
    pub const ACCEPT: u8 = 0x05;
    /// Stream data to the daemon.
    pub const SEND: u8 = 0x06;
    /// Stream data from the daemon.
    pub const RECEIVE: u8 = 0x07;
    /// Close a stream.
    pub const CLOSE: u8 = 0x08;
    /// A stream has ended, or a close was answered.
    pub const CLOSED: u8 = 0x09;
    /// A request failed.
    pub const ERROR: u8 = 0x0A;
    /// Send a datagram.
    pub const SEND_DATAGRAM: u8 = 0x0B;
    /// A datagram came.
    pub const RECEIVE_DATAGRAM: u8 = 0x0C;
    /// State of the daemon.
    pub const INFO: u8 = 0x0D;
    /// Trust.
    pub const HANDSHAKE: u8 = 0x0F;
    /// Look a hostname up.
    pub const RESOLVE_HOSTNAME: u8 = 0x11;
    /// Set the own hostname.
    pub const SET_HOSTNAME: u8 = 0x13;
    /// Become public or private.
    pub const SET_VISIBILITY: u8 = 0x15;
    /// Leave the registry.
    pub const DEREGISTER: u8 = 0x17;
    /// Set tags.
    pub const SET_TAGS: u8 = 0x19;
    /// Set the webhook.
    pub const SET_WEBHOOK: u8 = 0x1B;
    /// Switch task execution.
    pub const SET_TASK_EXEC: u8 = 0x1D;
}

/// Bytes per send message; the published driver would send any size at once.
const PIECE: usize = 64 * 1024;
/// Longest message.
const MAX_MESSAGE: usize = 1_048_576;

/// A stream that a peer opened to a bound port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The bound port.
    pub local_port: u16,
    /// Connection ID.
    pub connection: u32,
    /// Who opened it.
    pub remote: SocketAddress,
}

/// Data and end of one connection.
#[derive(Default)]
struct Received {
    data: VecDeque<Vec<u8>>,
    closed: u32,
}

struct Waiter {
    reply: u8,
    answer: oneshot::Sender<Result<Vec<u8>>>,
}

/// What has come in. Unbounded, because a published driver stores what it
/// does not know yet; tests are short.
#[derive(Default)]
struct Inbound {
    waiters: VecDeque<Waiter>,
    connections: BTreeMap<u32, Received>,
    accepted: VecDeque<Accepted>,
    datagrams: VecDeque<Datagram>,
    unclaimed: Vec<(u8, Vec<u8>)>,
    errors: Vec<String>,
    disconnected: bool,
}

#[derive(Default)]
struct Shared {
    inbound: Mutex<Inbound>,
    changed: Notify,
}

impl Shared {
    fn inbound(&self) -> MutexGuard<'_, Inbound> {
        self.inbound.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `look` finds something.
    async fn wait<T>(&self, mut look: impl FnMut(&mut Inbound) -> Option<T>) -> Result<T> {
        loop {
            let changed = self.changed.notified();
            let mut changed = std::pin::pin!(changed);
            // Before looking, so that no change in between is missed.
            changed.as_mut().enable();
            {
                let mut inbound = self.inbound();
                if let Some(found) = look(&mut inbound) {
                    return Ok(found);
                }
                ensure!(!inbound.disconnected, "daemon disconnected");
            }
            changed.await;
        }
    }
}

/// A connection to a daemon's socket.
pub struct PublishedDriver {
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    shared: Arc<Shared>,
    reader: JoinHandle<()>,
}

impl PublishedDriver {
    /// Connects.
    ///
    /// # Errors
    /// When nobody serves the socket.
    pub async fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)
            .await
            .with_context(|| format!("cannot connect to {}", socket.display()))?;
        let (reader, writer) = stream.into_split();
        let shared = Arc::new(Shared::default());
        let reader = tokio::spawn(read(reader, Arc::clone(&shared)));
        Ok(Self { writer: tokio::sync::Mutex::new(writer), shared, reader })
    }

    /// Sends a message that has no reply when it succeeds.
    ///
    /// # Errors
    /// When the daemon is gone.
    pub async fn tell(&self, code: u8, payload: &[u8]) -> Result<()> {
        let mut message = u32::try_from(payload.len() + 1)?.to_be_bytes().to_vec();
        message.push(code);
        message.extend(payload);
        self.raw(&message).await
    }

    /// Writes bytes as they are.
    ///
    /// # Errors
    /// When the daemon is gone.
    pub async fn raw(&self, bytes: &[u8]) -> Result<()> {
        self.writer.lock().await.write_all(bytes).await.context("daemon disconnected")
    }

    /// Sends a request and waits for the next reply with the code after its
    /// own, or for an error when this is the oldest request.
    ///
    /// # Errors
    /// When the daemon says so, with its text after `daemon: `.
    pub async fn request(&self, code: u8, payload: &[u8]) -> Result<Vec<u8>> {
        let (answer, reply) = oneshot::channel();
        {
            let mut inbound = self.shared.inbound();
            ensure!(!inbound.disconnected, "daemon disconnected");
            inbound.waiters.push_back(Waiter { reply: code + 1, answer });
        }
        self.tell(code, payload).await?;
        reply.await.context("daemon disconnected")?
    }

    /// A request whose reply is JSON.
    ///
    /// # Errors
    /// When the daemon says so, or the reply is not JSON.
    pub async fn json(&self, code: u8, payload: &[u8]) -> Result<Value> {
        Ok(serde_json::from_slice(&self.request(code, payload).await?)?)
    }

    /// The daemon's state.
    ///
    /// # Errors
    /// When the daemon is gone.
    pub async fn info(&self) -> Result<Value> {
        self.json(code::INFO, &[]).await
    }

    /// Listens on a port; streams come out of [`PublishedDriver::accept`].
    ///
    /// # Errors
    /// When the port is bound.
    pub async fn bind(&self, port: u16) -> Result<()> {
        let reply = self.request(code::BIND, &port.to_be_bytes()).await?;
        ensure!(reply == port.to_be_bytes(), "bind answered {reply:?}");
        Ok(())
    }

    /// Opens a stream and returns its connection ID.
    ///
    /// # Errors
    /// When the daemon says why not.
    pub async fn dial(&self, to: Address, port: u16) -> Result<u32> {
        let payload = [&to.to_bytes()[..], &port.to_be_bytes()].concat();
        let reply = self.request(code::DIAL, &payload).await?;
        Ok(u32::from_be_bytes(reply.as_slice().try_into().context("dial ok without an ID")?))
    }

    /// The next stream to any bound port.
    ///
    /// # Errors
    /// When the daemon is gone.
    pub async fn accept(&self) -> Result<Accepted> {
        self.shared.wait(|inbound| inbound.accepted.pop_front()).await
    }

    /// Sends stream data.
    ///
    /// # Errors
    /// When the daemon is gone; what it says of the connection comes as an
    /// error of no request.
    pub async fn send(&self, connection: u32, data: &[u8]) -> Result<()> {
        for piece in data.chunks(PIECE) {
            let payload = [&connection.to_be_bytes()[..], piece].concat();
            self.tell(code::SEND, &payload).await?;
        }
        Ok(())
    }

    /// The next data of a connection; `None` at its end.
    ///
    /// # Errors
    /// When the daemon is gone.
    pub async fn receive(&self, connection: u32) -> Result<Option<Vec<u8>>> {
        self.shared
            .wait(|inbound| {
                let received = inbound.connections.get_mut(&connection)?;
                match received.data.pop_front() {
                    Some(data) => Some(Some(data)),
                    None if received.closed > 0 => Some(None),
                    None => None,
                }
            })
            .await
    }

    /// At least `len` bytes of a connection, in one piece.
    ///
    /// # Errors
    /// When it ends before.
    pub async fn receive_exact(&self, connection: u32, len: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let Some(data) = self.receive(connection).await? else {
                bail!("connection {connection} ended after {} of {len} bytes", bytes.len());
            };
            bytes.extend(data);
        }
        Ok(bytes)
    }

    /// Asks to close. Nothing is waited for, since 0x09 never reaches a waiter.
    ///
    /// # Errors
    /// When the daemon is gone.
    pub async fn close(&self, connection: u32) -> Result<()> {
        self.tell(code::CLOSE, &connection.to_be_bytes()).await
    }

    /// Waits until `count` notices have said that the connection has ended.
    ///
    /// # Errors
    /// When the daemon is gone.
    pub async fn closed(&self, connection: u32, count: u32) -> Result<()> {
        self.shared
            .wait(|inbound| {
                let closed = inbound.connections.get(&connection)?.closed;
                (closed >= count).then_some(())
            })
            .await
    }

    /// Sends a datagram.
    ///
    /// # Errors
    /// When the daemon is gone.
    pub async fn send_datagram(&self, to: Address, port: u16, data: &[u8]) -> Result<()> {
        let payload = [&to.to_bytes()[..], &port.to_be_bytes(), data].concat();
        self.tell(code::SEND_DATAGRAM, &payload).await
    }

    /// The next datagram to a port; every client gets those for all ports.
    ///
    /// # Errors
    /// When the daemon is gone.
    pub async fn datagram(&self, port: u16) -> Result<Datagram> {
        self.shared
            .wait(|inbound| {
                let at = inbound.datagrams.iter().position(|d| d.destination_port == port)?;
                inbound.datagrams.remove(at)
            })
            .await
    }

    /// The next error that came while nobody waited.
    ///
    /// # Errors
    /// When the daemon is gone.
    pub async fn stray_error(&self) -> Result<String> {
        self.shared
            .wait(|inbound| (!inbound.errors.is_empty()).then(|| inbound.errors.remove(0)))
            .await
    }

    /// Replies that nobody had asked for; there should be none.
    pub fn unclaimed(&self) -> Vec<(u8, Vec<u8>)> {
        self.shared.inbound().unclaimed.clone()
    }

    /// A handshake sub-command for a node, with a text.
    ///
    /// # Errors
    /// When the daemon says so.
    pub async fn handshake(&self, sub: u8, node: Option<NodeId>, text: &str) -> Result<Value> {
        let mut payload = vec![sub];
        if let Some(node) = node {
            payload.extend(node.0.to_be_bytes());
        }
        payload.extend(text.as_bytes());
        self.json(code::HANDSHAKE, &payload).await
    }
}

impl Drop for PublishedDriver {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

async fn read(mut socket: OwnedReadHalf, shared: Arc<Shared>) {
    while let Ok(len) = socket.read_u32().await {
        let len = len as usize;
        if len > MAX_MESSAGE {
            break;
        }
        let mut message = vec![0; len];
        if socket.read_exact(&mut message).await.is_err() {
            break;
        }
        if let Some((code, payload)) = message.split_first() {
            shared.inbound().take(*code, payload);
        }
        shared.changed.notify_waiters();
    }
    let mut inbound = shared.inbound();
    inbound.disconnected = true;
    inbound.waiters.clear();
    drop(inbound);
    shared.changed.notify_waiters();
}

impl Inbound {
    fn take(&mut self, code: u8, payload: &[u8]) {
        if self.notification(code, payload).is_some() {
            return;
        }
        if code == code::ERROR {
            let text = String::from_utf8_lossy(payload.get(2..).unwrap_or_default()).into_owned();
            match self.waiters.pop_front() {
                Some(waiter) => {
                    let _ = waiter.answer.send(Err(anyhow::anyhow!("daemon: {text}")));
                }
                None => self.errors.push(text),
            }
            return;
        }
        match self.waiters.iter().position(|w| w.reply == code) {
            Some(at) => {
                if let Some(waiter) = self.waiters.remove(at) {
                    let _ = waiter.answer.send(Ok(payload.to_vec()));
                }
            }
            None => self.unclaimed.push((code, payload.to_vec())),
        }
    }

    /// `None` when it is not a notification, or is too short for one.
    fn notification(&mut self, code: u8, payload: &[u8]) -> Option<()> {
        let id = |at: usize| payload.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes);
        let port = |at: usize| payload.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes);
        let address = |at: usize| payload.get(at..at + 6)?.try_into().ok().map(Address::from_bytes);
        match code {
            code::ACCEPT => self.accepted.push_back(Accepted {
                local_port: port(0)?,
                connection: id(2)?,
                remote: address(6)?.port(port(12)?),
            }),
            code::RECEIVE => {
                let received = self.connections.entry(id(0)?).or_default();
                received.data.push_back(payload[4..].to_vec());
            }
            code::CLOSED => self.connections.entry(id(0)?).or_default().closed += 1,
            code::RECEIVE_DATAGRAM => self.datagrams.push_back(Datagram {
                source: address(0)?.port(port(6)?),
                destination_port: port(8)?,
                data: payload[10..].to_vec(),
            }),
            _ => return None,
        }
        Some(())
    }
}
