//! The UDP side of the beacon: receive, ask [`State`], send. One task; what
//! the socket cannot take at once is dropped, as UDP may.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use pilot_wire::beacon::Message;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::mpsc;

use crate::config::{Config, MAX_PEERS};
use crate::state::{Action, Counters, State, deliver_in_place};
use crate::{health, peers};

/// Longest datagram that can arrive.
const RECEIVE_BUFFER: usize = 65_535;
/// Asked of the kernel in both directions; less is lived with.
const SOCKET_BUFFER: usize = 4 << 20;
/// Datagrams taken in one go before other work gets a turn.
const BURST: usize = 64;

/// Why a beacon does not start.
#[derive(Debug, thiserror::Error)]
pub enum BeaconError {
    /// The address does not resolve.
    #[error("{key} {addr}: cannot resolve: {source}")]
    Resolve {
        /// Which setting.
        key: &'static str,
        /// Its value.
        addr: String,
        /// Why.
        source: io::Error,
    },
    /// The port is taken, or the address is not ours.
    #[error("{key} {addr}: cannot listen: {source}; choose another address with -{key}")]
    Bind {
        /// Which setting.
        key: &'static str,
        /// Its value.
        addr: String,
        /// Why.
        source: io::Error,
    },
}

/// A bound beacon.
#[derive(Debug)]
pub struct Beacon {
    socket: UdpSocket,
    local: SocketAddr,
    health: Option<TcpListener>,
    static_peers: Vec<SocketAddr>,
    config: Config,
}

impl Beacon {
    /// Binds the sockets and resolves configured peers.
    ///
    /// # Errors
    /// When an address does not resolve or cannot be bound.
    pub async fn bind(config: Config) -> Result<Self, BeaconError> {
        let socket = bind_udp(&config.addr).await?;
        let bind_error =
            |source| BeaconError::Bind { key: "addr", addr: config.addr.clone(), source };
        let local = socket.local_addr().map_err(bind_error)?;
        let health =
            match &config.health {
                Some(addr) => Some(health::bind(addr).await.map_err(|source| {
                    BeaconError::Bind { key: "health", addr: addr.clone(), source }
                })?),
                None => None,
            };
        let mut static_peers = Vec::new();
        for addr in &config.peers {
            static_peers.push(resolve("peers", addr).await?);
        }
        Ok(Self { socket, local, health, static_peers, config })
    }

    /// Where it serves.
    pub const fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Where `GET /healthz` is answered, if asked for.
    pub fn health_addr(&self) -> Option<SocketAddr> {
        self.health.as_ref().and_then(|h| h.local_addr().ok())
    }

    /// Serves until `shutdown` completes; returns what was done.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Counters {
        let Self { socket, local, health, static_peers, config } = self;
        let mut state = State::new(config.beacon_id);
        state.set_peers(static_peers.iter().copied());
        // One list at a time: a newer one waits for the older to be taken.
        let (found, mut found_peers) = mpsc::channel(1);
        let side_tasks = async {
            let watch = async {
                match &config.registry {
                    Some(registry) => peers::watch(registry, config.beacon_id, local, &found).await,
                    None => std::future::pending().await,
                }
            };
            let health = async {
                match health {
                    Some(listener) => health::serve(listener).await,
                    None => std::future::pending().await,
                }
            };
            tokio::join!(watch, health);
        };
        let relay = async {
            let mut buffer = vec![0; RECEIVE_BUFFER];
            let mut scratch = Vec::with_capacity(64);
            let mut gossip = tokio::time::interval(config.gossip);
            gossip.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    ready = socket.readable() => {
                        if let Err(e) = ready {
                            tracing::warn!("beacon socket: {e}");
                        }
                        take_burst(&socket, &mut state, &mut buffer, &mut scratch);
                        tokio::task::consume_budget().await;
                    }
                    _ = gossip.tick() => {
                        state.expire(Instant::now());
                        scratch.clear();
                        state.write_sync(&mut scratch);
                        for peer in state.peers() {
                            send(&socket, &scratch, peer, local);
                        }
                    }
                    Some(found) = found_peers.recv() => {
                        let all = static_peers.iter().copied().chain(found).filter(|p| *p != local);
                        state.set_peers(all.take(MAX_PEERS));
                    }
                }
            }
            #[expect(unreachable_code, reason = "gives the endless loop a type")]
            ()
        };
        let state = {
            tokio::select! {
                () = relay => {}
                () = side_tasks => {}
                () = shutdown => {}
            }
            state
        };
        let counters = state.counters();
        tracing::info!(?counters, nodes = state.len(), "beacon ended");
        counters
    }
}

/// Handles what waits in the socket, at most [`BURST`] datagrams.
fn take_burst(socket: &UdpSocket, state: &mut State, buffer: &mut [u8], scratch: &mut Vec<u8>) {
    let local = match socket.local_addr() {
        Ok(local) => local,
        Err(e) => return tracing::warn!("beacon socket: {e}"),
    };
    for _ in 0..BURST {
        let (len, from) = match socket.try_recv_from(buffer) {
            Ok(received) => received,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
            // An ICMP answer to something we sent; the next datagram is fine.
            Err(e) => {
                tracing::debug!("beacon receive: {e}");
                continue;
            }
        };
        let datagram = &mut buffer[..len];
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        let mut say = |message: Message<'_>, to| {
            scratch.clear();
            message.encode(scratch);
            send(socket, scratch, to, local);
        };
        match state.handle(datagram, from, Instant::now()) {
            Action::Observed { to } => say(Message::DiscoverReply { endpoint: to }, to),
            Action::Introduce { requester, target } => {
                say(Message::PunchCommand { endpoint: target }, requester);
                say(Message::PunchCommand { endpoint: requester }, target);
            }
            Action::Deliver { to } => {
                if let Some(deliver) = deliver_in_place(datagram) {
                    send(socket, deliver, to, local);
                }
            }
            Action::Forward { to } => send(socket, datagram, to, local),
            Action::Learnt => {}
            Action::Drop(reason) => tracing::debug!(?reason, %from, len, "datagram dropped"),
        }
    }
}

fn send(socket: &UdpSocket, bytes: &[u8], to: SocketAddr, local: SocketAddr) {
    // A dual-stack socket takes IPv4 destinations in their mapped form.
    let to = match (local, to) {
        (SocketAddr::V6(_), SocketAddr::V4(v4)) => {
            SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port())
        }
        _ => to,
    };
    if let Err(e) = socket.try_send_to(bytes, to) {
        tracing::debug!(%to, len = bytes.len(), "datagram not sent: {e}");
    }
}

async fn resolve(key: &'static str, addr: &str) -> Result<SocketAddr, BeaconError> {
    let error = |source| BeaconError::Resolve { key, addr: addr.to_owned(), source };
    let mut found = tokio::net::lookup_host(addr).await.map_err(error)?;
    let first = found.next().ok_or_else(|| error(io::ErrorKind::NotFound.into()))?;
    Ok(SocketAddr::new(first.ip().to_canonical(), first.port()))
}

/// The addresses that `host:port` may mean for listening, in order of
/// preference: `:PORT` is every interface, IPv6 with IPv4 if there is any.
///
/// # Errors
/// When the name does not resolve.
pub async fn listen_candidates(addr: &str) -> io::Result<Vec<SocketAddr>> {
    match addr.strip_prefix(':').map(str::parse::<u16>) {
        Some(Ok(port)) => {
            Ok(vec![SocketAddr::from(([0u16; 8], port)), SocketAddr::from(([0u8; 4], port))])
        }
        _ => Ok(tokio::net::lookup_host(addr).await?.collect()),
    }
}

async fn bind_udp(addr: &str) -> Result<UdpSocket, BeaconError> {
    let candidates = listen_candidates(addr).await.map_err(|source| BeaconError::Resolve {
        key: "addr",
        addr: addr.to_owned(),
        source,
    })?;
    let mut error = io::ErrorKind::AddrNotAvailable.into();
    for candidate in candidates {
        match bind_one(candidate) {
            Ok(socket) => return Ok(socket),
            Err(e) => error = e,
        }
    }
    Err(BeaconError::Bind { key: "addr", addr: addr.to_owned(), source: error })
}

fn bind_one(addr: SocketAddr) -> io::Result<UdpSocket> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.is_ipv6() && addr.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    // Best effort: the kernel caps what it grants.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    UdpSocket::from_std(socket.into())
}
