//! A node that speaks only the published protocol: written from its pages,
//! faults included, and sharing nothing with the core but header layouts. What
//! the real daemon exchanges with it, it can exchange with the published one.
//!
//! Not imitated: SYN rate limits, connection limits and webhooks; a full
//! receive queue drops a segment and counts it instead of stopping the loop.

mod config;
mod connection;
mod counters;
pub(crate) mod crypto;
pub mod driver;
mod node;
mod receive;
mod registry;
mod rendezvous;
mod send;
mod stream;
#[cfg(test)]
mod tests;
mod trust;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ed25519_dalek::SigningKey;
use pilot_wire::packet::{Flags, Header, Protocol, port};
use pilot_wire::{Address, NodeId, SocketAddress, beacon};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

pub use config::{Config, Switches};
pub use counters::Counters;
pub use rendezvous::Rendezvous;
pub use stream::Stream;
pub use trust::{Pending, Trusted};

use connection::Connection;
use node::{Command, Node};
use registry::RegistryClient;
use trust::TrustState;

/// Commands that may wait for the loop; senders wait when it is full.
const COMMANDS: usize = 256;
/// Connections that may wait to be accepted; further ones are reset.
const ACCEPT_QUEUE: usize = 64;
/// Datagrams that may wait for the application; further ones are lost.
const DATAGRAMS: usize = 256;
/// How long the beacon may take for the first discover.
const DISCOVER_LIMIT: Duration = Duration::from_secs(5);
/// Receive buffer asked for, so that loopback bursts do not count as loss.
const SOCKET_BUFFER: usize = 4 << 20;

/// Why a dial failed; the texts are the published ones.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// RST came.
    #[error("connection refused")]
    Refused,
    /// Nothing came.
    #[error("dial timeout")]
    Timeout,
    /// The registry did not say where the node is.
    #[error("{0}")]
    Resolve(String),
    /// The peer's loop has ended.
    #[error("the published peer has stopped")]
    Stopped,
}

/// A datagram from a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Who sent it.
    pub source: SocketAddress,
    /// The port it was sent to; none needs to be bound.
    pub destination_port: u16,
    /// Its payload.
    pub data: Vec<u8>,
}

/// What the loop, the services and the handles share.
struct Shared {
    node: NodeId,
    identity: SigningKey,
    registry: tokio::sync::Mutex<RegistryClient>,
    commands: mpsc::Sender<Command>,
    counters: Mutex<Counters>,
    trust: Mutex<TrustState>,
}

impl Shared {
    async fn lookup(&self, node: NodeId) -> Option<[u8; 32]> {
        self.registry.lock().await.lookup(node).await.ok()
    }

    fn publish(&self, counters: Counters) {
        *self.counters.lock().unwrap_or_else(PoisonError::into_inner) = counters;
    }

    fn trust(&self) -> MutexGuard<'_, TrustState> {
        self.trust.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stream(&self, id: u64, remote: SocketAddress, connection: &Connection) -> Stream {
        let (inbox, commands) = (Arc::clone(&connection.inbox), self.commands.clone());
        Stream { id, remote, local_port: connection.local_port, inbox, commands }
    }

    async fn endpoint(&self, node: NodeId) -> Result<SocketAddr, DialError> {
        let resolved = self.registry.lock().await.resolve(node, self.node).await;
        let text = resolved.map_err(|e| DialError::Resolve(format!("{e:#}")))?;
        text.parse().map_err(|e| DialError::Resolve(format!("resolve {text}: {e}")))
    }

    async fn dial(&self, to: SocketAddress) -> Result<Stream, DialError> {
        let endpoint = self.endpoint(to.address.node).await?;
        let (reply, answer) = oneshot::channel();
        let command = Command::Dial { to, endpoint, reply };
        self.commands.send(command).await.map_err(|_| DialError::Stopped)?;
        answer.await.map_err(|_| DialError::Stopped)?
    }

    async fn listen(&self, port: u16) -> Result<mpsc::Receiver<Stream>> {
        let (accepted, streams) = mpsc::channel(ACCEPT_QUEUE);
        let (reply, answer) = oneshot::channel();
        let command = Command::Listen { port, accepted, reply };
        self.commands.send(command).await.ok().context("the published peer has stopped")?;
        ensure!(answer.await?, "port {port} already bound");
        Ok(streams)
    }
}

/// A running peer. Dropping it ends it without a word, as a crash would.
pub struct PublishedPeer {
    shared: Arc<Shared>,
    address: SocketAddr,
    config: Config,
    datagrams: tokio::sync::Mutex<mpsc::Receiver<Datagram>>,
    tasks: Vec<JoinHandle<()>>,
}

impl PublishedPeer {
    /// Starts a new node that behaves as published.
    ///
    /// # Errors
    /// When it cannot register.
    pub async fn start(registry: &str, beacon: Option<SocketAddr>) -> Result<Self> {
        Self::start_with(Config::new(registry, beacon)).await
    }

    /// Starts a node: discovers its endpoint, registers, serves ports 7 and 444.
    ///
    /// # Errors
    /// When it cannot register.
    pub async fn start_with(config: Config) -> Result<Self> {
        if let Some(beacon) = config.beacon {
            discover_endpoint(beacon).await?;
        }
        let socket = UdpSocket::bind("127.0.0.1:0").await?;
        // Less is fine too; the kernel has its own limit.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER);
        let address = socket.local_addr()?;
        let identity = SigningKey::from_bytes(&config.seed);
        let mut registry = RegistryClient::new(config.registry.clone(), identity.clone());
        let endpoint = config.switches.advertise.unwrap_or(address).to_string();
        let node = registry.register(&endpoint).await?;
        if config.switches.public {
            registry.set_visibility(node, true).await?;
        }
        let (commands, receiver) = mpsc::channel(COMMANDS);
        let (datagram_sender, datagrams) = mpsc::channel(DATAGRAMS);
        let shared = Arc::new(Shared {
            node,
            identity: identity.clone(),
            registry: tokio::sync::Mutex::new(registry),
            commands,
            counters: Mutex::default(),
            trust: Mutex::default(),
        });
        let switches = config.switches.clone();
        let heartbeat = switches.heartbeat;
        let node = Node::new(
            Arc::clone(&shared),
            socket,
            config.beacon,
            identity,
            switches,
            datagram_sender,
        );
        let mut tasks = vec![tokio::spawn(node.run(receiver))];
        let echo = shared.listen(port::ECHO).await?;
        let trust = shared.listen(port::TRUST).await?;
        let _ = shared.commands.send(Command::Discover).await;
        tasks.push(tokio::spawn(serve_echo(echo)));
        tasks.push(tokio::spawn(trust::serve(Arc::clone(&shared), trust)));
        tasks.push(tokio::spawn(trust::heartbeats(Arc::clone(&shared), heartbeat, endpoint)));
        let datagrams = tokio::sync::Mutex::new(datagrams);
        Ok(Self { shared, address, config, datagrams, tasks })
    }

    /// Ends it as a published daemon ends: FIN on every stream, deregistered.
    ///
    /// # Errors
    /// When the registry refuses.
    pub async fn stop(mut self) -> Result<Config> {
        let (done, stopped) = oneshot::channel();
        let _ = self.shared.commands.send(Command::Shutdown { done }).await;
        let _ = stopped.await;
        self.shared.registry.lock().await.deregister(self.shared.node).await?;
        self.abort().await;
        Ok(self.config.clone())
    }

    /// Ends it at once, as a crash would.
    pub async fn kill(mut self) -> Config {
        self.abort().await;
        self.config.clone()
    }

    async fn abort(&mut self) {
        for task in self.tasks.drain(..) {
            task.abort();
            let _ = task.await;
        }
    }

    /// Its node number.
    pub fn node(&self) -> NodeId {
        self.shared.node
    }

    /// Its virtual address.
    pub fn address(&self) -> Address {
        Address::backbone(self.shared.node)
    }

    /// Its tunnel socket.
    pub fn endpoint(&self) -> SocketAddr {
        self.address
    }

    /// What it has sent and seen.
    pub fn counters(&self) -> Counters {
        *self.shared.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a stream.
    ///
    /// # Errors
    /// When the node cannot be resolved, refuses or does not answer.
    pub async fn dial(&self, node: NodeId, port: u16) -> Result<Stream, DialError> {
        self.shared.dial(Address::backbone(node).port(port)).await
    }

    /// Accepts streams on a port.
    ///
    /// # Errors
    /// When it is bound.
    pub async fn listen(&self, port: u16) -> Result<mpsc::Receiver<Stream>> {
        self.shared.listen(port).await
    }

    /// Sends a datagram.
    ///
    /// # Errors
    /// When the node cannot be resolved.
    pub async fn send_datagram(&self, node: NodeId, port: u16, data: &[u8]) -> Result<()> {
        let endpoint = Some(self.shared.endpoint(node).await?);
        let to = Address::backbone(node).port(port);
        let command = Command::Datagram { to, endpoint, data: data.to_vec() };
        self.shared.commands.send(command).await.ok().context("the published peer has stopped")
    }

    /// The next datagram for any port.
    pub async fn datagram(&self) -> Option<Datagram> {
        self.datagrams.lock().await.recv().await
    }

    /// Sends a packet of any content, in the clear or as the tunnel stands.
    ///
    /// # Errors
    /// When the peer has stopped.
    pub async fn inject(&self, header: Header, payload: &[u8], plain: bool) -> Result<()> {
        let node = header.destination.address.node;
        let command = Command::Packet { node, header, payload: payload.to_vec(), plain };
        self.shared.commands.send(command).await.ok().context("the published peer has stopped")
    }

    /// Sends a packet through the tunnel to `node`, whatever its header says.
    ///
    /// # Errors
    /// When the peer has stopped.
    pub async fn inject_to(&self, node: NodeId, header: Header, payload: &[u8]) -> Result<()> {
        let command = Command::Packet { node, header, payload: payload.to_vec(), plain: false };
        self.shared.commands.send(command).await.ok().context("the published peer has stopped")
    }

    /// A key exchange that names another node, signed with this one's key.
    pub fn forged_key_exchange(&self, node: NodeId) -> Vec<u8> {
        let key = crypto::ProcessKey::from_bytes(rand::random());
        key.auth_frame(node, &self.shared.identity).to_vec()
    }

    /// Sends any datagram from the tunnel socket.
    ///
    /// # Errors
    /// When the peer has stopped.
    pub async fn send_frame(&self, to: SocketAddr, frame: &[u8]) -> Result<()> {
        let command = Command::Frame { to, frame: frame.to_vec() };
        self.shared.commands.send(command).await.ok().context("the published peer has stopped")
    }

    /// A control ping; its answer is consumed by the loop.
    ///
    /// # Errors
    /// When the peer has stopped.
    pub async fn ping(&self, node: NodeId, payload: &[u8]) -> Result<()> {
        let header = Header {
            flags: Flags::NONE,
            protocol: Protocol::Control,
            source: self.address().port(port::EPHEMERAL_FIRST),
            destination: Address::backbone(node).port(port::PING),
            seq: 1,
            ack: 0,
            window: 0,
        };
        self.inject(header, payload, false).await
    }

    /// Drops endpoint and key of a node, as published trust revocation does.
    ///
    /// # Errors
    /// When the peer has stopped.
    pub async fn forget(&self, node: NodeId) -> Result<()> {
        let command = Command::Forget { node };
        self.shared.commands.send(command).await.ok().context("the published peer has stopped")
    }

    /// Sets the hostname at the registry.
    ///
    /// # Errors
    /// When the registry refuses.
    pub async fn set_hostname(&self, hostname: &str) -> Result<()> {
        self.shared.registry.lock().await.set_hostname(self.node(), hostname).await.map(drop)
    }
}

impl Drop for PublishedPeer {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Registers an identity as a published daemon does, and nothing more; the node
/// number.
///
/// # Errors
/// When the registry refuses.
pub async fn register(
    registry: &str,
    identity: &SigningKey,
    endpoint: SocketAddr,
    public: bool,
) -> Result<NodeId> {
    let mut registry = RegistryClient::new(registry.to_owned(), identity.clone());
    let node = registry.register(&endpoint.to_string()).await?;
    registry.set_visibility(node, public).await?;
    Ok(node)
}

/// As published: from a socket that is closed again, with node ID 0.
async fn discover_endpoint(beacon: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    let mut message = Vec::new();
    beacon::Message::Discover { node: NodeId(0) }.encode(&mut message);
    socket.send_to(&message, beacon).await?;
    let mut reply = [0; 64];
    let received = tokio::time::timeout(DISCOVER_LIMIT, socket.recv(&mut reply)).await;
    let len = received.context("the beacon does not answer")??;
    let parsed = beacon::Message::parse(&reply[..len])?;
    let expected = beacon::Message::DiscoverReply { endpoint: socket.local_addr()? };
    ensure!(parsed == expected, "the beacon answers {parsed:?}");
    Ok(())
}

async fn serve_echo(mut streams: mpsc::Receiver<Stream>) {
    while let Some(stream) = streams.recv().await {
        tokio::spawn(async move {
            while let Ok(Some(segment)) = stream.read().await {
                if stream.write(&segment).await.is_err() {
                    return;
                }
            }
        });
    }
}
