//! The UDP socket of a node: batches in, batches out, through GRO and GSO.
//!
//! It knows nothing of what the datagrams mean. Errors of single sends and
//! receives are counted and never end anything: the core retransmits.

use std::collections::HashSet;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use pilot_core::Transmit;
use quinn_udp::{BATCH_SIZE, RecvMeta, UdpSocketState};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Room per receive call slot: the most that one coalesced datagram has.
const SLOT: usize = 64 << 10;
/// What is asked of the kernel for each direction.
const KERNEL_BUFFER: usize = 8 << 20;
/// Destinations remembered as refusing segmentation offload; beyond it nobody
/// is offered it any more.
const PLAIN_DESTINATIONS: usize = 1024;
/// Send errors are logged at most this often; all are counted.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The socket could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum UdpError {
    /// The address cannot be bound.
    #[error(
        "listen: cannot bind UDP {address}: {source}; choose another address or port, or stop what uses it"
    )]
    Bind {
        /// What was asked for.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The system refuses what every UDP socket needs.
    #[error("listen: UDP socket on {address} cannot be prepared: {source}")]
    Prepare {
        /// Where it is bound.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
}

/// What went through the socket and what did not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UdpCounters {
    /// Send calls that the system took.
    pub sends: u64,
    /// Datagrams in them; more than calls where segmentation offload works.
    pub segments: u64,
    /// Datagrams too large for the path or the system (EMSGSIZE).
    pub too_large: u64,
    /// Datagrams not sent for another reason.
    pub send_errors: u64,
    /// Receive calls that failed.
    pub receive_errors: u64,
    /// Batches that had to be sent as single datagrams.
    pub offload_refused: u64,
}

impl UdpCounters {
    fn add(&mut self, more: Self) {
        let Self { sends, segments, too_large, send_errors, receive_errors, offload_refused } =
            more;
        self.sends += sends;
        self.segments += segments;
        self.too_large += too_large;
        self.send_errors += send_errors;
        self.receive_errors += receive_errors;
        self.offload_refused += offload_refused;
    }
}

/// The kernel's buffers of the socket, in bytes of payload and overhead as the
/// system counts them for its limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelBuffers {
    /// Asked for, in each direction.
    pub wanted: usize,
    /// Granted for what arrives.
    pub receive: usize,
    /// Granted for what is sent.
    pub send: usize,
}

impl KernelBuffers {
    /// What is missing and how to change it, when the system granted less than
    /// was asked for.
    pub fn shortfall(&self) -> Option<String> {
        let Self { wanted, receive, send } = *self;
        let short = [("receive", "rmem_max", receive), ("send", "wmem_max", send)]
            .into_iter()
            .filter(|(_, _, granted)| *granted < wanted);
        let (missing, settings): (Vec<_>, Vec<_>) = short
            .map(|(what, limit, granted)| {
                (
                    format!("{granted} of {wanted} bytes to {what}"),
                    format!("net.core.{limit}={wanted}"),
                )
            })
            .unzip();
        (!missing.is_empty()).then(|| {
            format!(
                "the kernel grants UDP buffers of {}, so bursts may be lost; allow more with: \
                 sysctl -w {}",
                missing.join(" and "),
                settings.join(" ")
            )
        })
    }
}

/// The socket as it stands, for people and metrics.
#[derive(Clone, Debug, Default)]
pub struct UdpStatus {
    /// Totals.
    pub counters: UdpCounters,
    /// Kernel buffers.
    pub buffers: KernelBuffers,
    /// Whether the system can segment at all.
    offload: bool,
    plain: Arc<HashSet<SocketAddr>>,
}

impl UdpStatus {
    /// Whether batches to `to` go out in single calls.
    pub fn offloads(&self, to: SocketAddr) -> bool {
        self.offload && !self.plain.contains(&to)
    }

    /// Adds another socket of the same node: totals are summed, and of buffers
    /// and offload what holds for both stays.
    pub(crate) fn add(&mut self, more: &Self) {
        self.counters.add(more.counters);
        self.buffers.receive = self.buffers.receive.min(more.buffers.receive);
        self.buffers.send = self.buffers.send.min(more.buffers.send);
        self.offload &= more.offload;
        if !more.plain.is_empty() {
            Arc::make_mut(&mut self.plain).extend(more.plain.iter());
        }
    }
}

/// A bound, non-blocking UDP socket with its receive buffers.
pub struct Udp {
    socket: UdpSocket,
    state: UdpSocketState,
    /// `BATCH_SIZE` slots; the system gives pages only as they are used.
    slots: Vec<u8>,
    /// Shared with the snapshots, and copied when it changes under one.
    plain: Arc<HashSet<SocketAddr>>,
    buffers: KernelBuffers,
    all_plain: bool,
    is_v6: bool,
    counters: UdpCounters,
    last_log: Option<Instant>,
}

/// How far a batch came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It is gone, or was counted as an error.
    All,
    /// The socket is full; the rest starts at this offset.
    Blocked(usize),
    /// The system takes no datagram of `len` bytes to there. The rest starts at
    /// `offset`, behind all of that size.
    TooLarge {
        /// UDP payload of the datagram that was refused.
        len: usize,
        /// What is left of the batch, if anything: its shorter last datagram.
        offset: usize,
    },
}

impl Udp {
    /// Binds `address` and asks for large kernel buffers.
    ///
    /// # Errors
    /// When the address is taken or not ours, or the socket cannot be set up.
    pub fn bind(address: SocketAddr) -> Result<Self, UdpError> {
        let socket = open(address, false).map_err(|source| UdpError::Bind { address, source })?;
        Self::from_socket(socket, address)
    }

    /// Takes a bound socket over, inside the runtime that is to serve it.
    ///
    /// # Errors
    /// When it cannot be set up; `address` is what the error names.
    pub(crate) fn from_socket(socket: Socket, address: SocketAddr) -> Result<Self, UdpError> {
        Self::prepare(socket).map_err(|source| UdpError::Prepare { address, source })
    }

    fn prepare(socket: Socket) -> io::Result<Self> {
        let buffers = enlarge_buffers(&socket);
        if let Some(shortfall) = buffers.shortfall() {
            tracing::warn!("{shortfall}");
        }
        let state = UdpSocketState::new((&socket).into())?;
        let socket = UdpSocket::from_std(socket.into())?;
        let is_v6 = socket.local_addr()?.is_ipv6();
        Ok(Self {
            socket,
            state,
            slots: vec![0; BATCH_SIZE * SLOT],
            plain: Arc::default(),
            buffers,
            all_plain: false,
            is_v6,
            counters: UdpCounters::default(),
            last_log: None,
        })
    }

    /// Where the socket is bound.
    ///
    /// # Errors
    /// What the system says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// What was counted so far, and how the socket is set up.
    pub fn status(&self) -> UdpStatus {
        UdpStatus {
            counters: self.counters,
            buffers: self.buffers,
            offload: !self.all_plain && self.state.max_gso_segments() > 1,
            plain: Arc::clone(&self.plain),
        }
    }

    /// Whether datagrams may be waiting.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.socket.poll_recv_ready(cx).map(drop)
    }

    /// Whether a blocked send may be tried again.
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.socket.poll_send_ready(cx).map(drop)
    }

    /// One receive call; `each` gets every datagram. Returns the bytes
    /// received, `None` when nothing was waiting.
    pub fn receive(&mut self, mut each: impl FnMut(SocketAddr, &mut [u8])) -> Option<usize> {
        let mut metas = [RecvMeta::default(); BATCH_SIZE];
        let Self { socket, state, slots, counters, .. } = self;
        let mut chunks = slots.chunks_exact_mut(SLOT);
        let mut buffers: [IoSliceMut<'_>; BATCH_SIZE] =
            std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
        let mut count = 0;
        // What is said here only decides whether the socket counts as ready.
        // A call that came back short has emptied it; and an error that
        // repeats must not keep the loop spinning.
        let _ = socket.try_io(Interest::READABLE, || {
            match state.recv((&*socket).into(), &mut buffers, &mut metas) {
                Ok(n) => count = n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => counters.receive_errors += 1,
            }
            if count == BATCH_SIZE { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }
        });
        if count == 0 {
            return None;
        }
        let mut total = 0;
        for (meta, slot) in metas.iter().zip(slots.chunks_exact_mut(SLOT)).take(count) {
            let from = SocketAddr::new(meta.addr.ip().to_canonical(), meta.addr.port());
            let len = meta.len.min(SLOT);
            total += len;
            for datagram in slot[..len].chunks_mut(meta.stride.max(1)) {
                each(from, datagram);
            }
        }
        Some(total)
    }

    /// Sends a batch from `offset` on.
    pub fn send(&mut self, batch: Transmit, contents: &[u8], mut offset: usize) -> Sent {
        let contents = &contents[..batch.len.min(contents.len())];
        let segment = batch.segment.max(1);
        while offset < contents.len() {
            let rest = &contents[offset..];
            let offload = rest.len() > segment && self.may_offload(batch.to);
            let (now, segment_size) = if offload {
                (rest, Some(segment))
            } else {
                (&rest[..segment.min(rest.len())], None)
            };
            match self.send_call(batch.to, now, segment_size) {
                Ok(()) => {
                    offset += now.len();
                    self.counters.sends += 1;
                    self.counters.segments += now.len().div_ceil(segment) as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Sent::Blocked(offset),
                Err(e) if quinn_udp::is_msg_size_err(&e) => {
                    return self.too_large(segment, rest.len(), offset);
                }
                // Some kernels say this of segments that are too large as well:
                // one alone tells which it is.
                Err(e) if offload && is_offload_error(&e) => {
                    match self.send_call(batch.to, &rest[..segment], None) {
                        Ok(()) => {
                            self.refuse_offload(batch.to);
                            offset += segment;
                            self.counters.sends += 1;
                            self.counters.segments += 1;
                        }
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                            return Sent::Blocked(offset);
                        }
                        Err(e) if quinn_udp::is_msg_size_err(&e) => {
                            return self.too_large(segment, rest.len(), offset);
                        }
                        Err(e) => {
                            self.count_error(batch.to, segment, &e);
                            offset += segment;
                        }
                    }
                }
                Err(e) => {
                    self.count_error(batch.to, now.len(), &e);
                    offset += now.len();
                }
            }
        }
        Sent::All
    }

    /// Leaves out every datagram of the size that was refused; only the last one
    /// of a batch may be smaller.
    fn too_large(&mut self, segment: usize, left: usize, offset: usize) -> Sent {
        let len = segment.min(left);
        let whole = left / len;
        self.counters.too_large += whole as u64;
        tracing::debug!(len, "the system refuses a datagram of this size");
        Sent::TooLarge { len, offset: offset + whole * len }
    }

    fn may_offload(&self, to: SocketAddr) -> bool {
        !self.all_plain && self.state.max_gso_segments() > 1 && !self.plain.contains(&to)
    }

    fn send_call(
        &self,
        to: SocketAddr,
        contents: &[u8],
        segment_size: Option<usize>,
    ) -> io::Result<()> {
        let transmit = quinn_udp::Transmit {
            destination: self.reachable(to),
            ecn: None,
            contents,
            segment_size,
            src_ip: None,
        };
        self.socket
            .try_io(Interest::WRITABLE, || self.state.try_send((&self.socket).into(), &transmit))
    }

    /// An IPv6 socket reaches IPv4 peers under their mapped address.
    fn reachable(&self, to: SocketAddr) -> SocketAddr {
        match to.ip() {
            IpAddr::V4(v4) if self.is_v6 => SocketAddr::new(v4.to_ipv6_mapped().into(), to.port()),
            _ => to,
        }
    }

    fn refuse_offload(&mut self, to: SocketAddr) {
        self.counters.offload_refused += 1;
        if self.plain.len() >= PLAIN_DESTINATIONS {
            self.all_plain = true;
        } else {
            Arc::make_mut(&mut self.plain).insert(to);
        }
        tracing::info!(%to, "segmentation offload refused; sending single datagrams there");
    }

    fn count_error(&mut self, to: SocketAddr, len: usize, error: &io::Error) {
        self.counters.send_errors += 1;
        if self.last_log.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
            self.last_log = Some(Instant::now());
            tracing::warn!(%to, len, %error, "UDP send failed (logged once a minute)");
        }
    }
}

/// Binds `address`, which several sockets may have if all are `shared`.
pub(crate) fn open(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if let SocketAddr::V6(v6) = address {
        socket.set_only_v6(!v6.ip().is_unspecified())?;
    }
    socket.set_nonblocking(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Asks for large kernel buffers, past the system's limit where that is
/// permitted; what was granted.
fn enlarge_buffers(socket: &Socket) -> KernelBuffers {
    let reference = SockRef::from(socket);
    // Each may be refused; what came of it is read back below.
    let _ = reference.set_recv_buffer_size(KERNEL_BUFFER);
    let _ = reference.set_send_buffer_size(KERNEL_BUFFER);
    #[cfg(target_os = "linux")]
    {
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(socket, KERNEL_BUFFER);
        let _ = rustix::net::sockopt::set_socket_send_buffer_size_force(socket, KERNEL_BUFFER);
    }
    // Linux reports twice what was granted (socket(7), SO_RCVBUF).
    let doubled = if cfg!(target_os = "linux") { 2 } else { 1 };
    KernelBuffers {
        wanted: KERNEL_BUFFER,
        receive: reference.recv_buffer_size().unwrap_or(0) / doubled,
        send: reference.send_buffer_size().unwrap_or(0) / doubled,
    }
}

/// EIO and EINVAL are how drivers without segmentation offload answer.
fn is_offload_error(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(rustix::io::Errno::from_raw_os_error),
        Some(rustix::io::Errno::IO | rustix::io::Errno::INVAL)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn bound() -> Udp {
        let udp = Udp::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        // Before it has heard from the system once, tokio takes a socket for
        // full.
        std::future::poll_fn(|cx| udp.poll_writable(cx)).await;
        udp
    }

    async fn receive_all(udp: &mut Udp, datagrams: usize) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut got = Vec::new();
        let all = async {
            while got.len() < datagrams {
                std::future::poll_fn(|cx| udp.poll_readable(cx)).await;
                while udp.receive(|from, data| got.push((from, data.to_vec()))).is_some() {}
            }
        };
        tokio::time::timeout(Duration::from_secs(10), all).await.unwrap();
        got
    }

    #[tokio::test]
    async fn a_batch_arrives_as_its_datagrams() {
        let (mut a, mut b) = (bound().await, bound().await);
        let contents: Vec<u8> = (0..3500u32).map(|i| i as u8).collect();
        let to = b.local_addr().unwrap();
        let batch = Transmit { to, len: contents.len(), segment: 1000 };
        assert_eq!(a.send(batch, &contents, 0), Sent::All);
        let got = receive_all(&mut b, 4).await;
        let lens: Vec<usize> = got.iter().map(|(_, d)| d.len()).collect();
        assert_eq!(lens, [1000, 1000, 1000, 500]);
        let sends = if a.status().offloads(to) { 1 } else { 4 };
        assert_eq!((a.counters.sends, a.counters.segments), (sends, 4));
        assert_eq!(got.iter().flat_map(|(_, d)| d.clone()).collect::<Vec<u8>>(), contents);
        assert!(got.iter().all(|(from, _)| *from == a.local_addr().unwrap()));
    }

    #[tokio::test]
    async fn a_destination_without_offload_gets_single_datagrams() {
        let (mut a, mut b) = (bound().await, bound().await);
        let to = b.local_addr().unwrap();
        let before = a.status();
        a.refuse_offload(to);
        assert!(!a.may_offload(to) && !a.status().offloads(to));
        assert_eq!(before.offloads(to), a.state.max_gso_segments() > 1, "a snapshot stays");
        let contents = vec![7; 2500];
        let batch = Transmit { to, len: 2500, segment: 1000 };
        assert_eq!(a.send(batch, &contents, 0), Sent::All);
        let lens: Vec<usize> = receive_all(&mut b, 3).await.iter().map(|(_, d)| d.len()).collect();
        assert_eq!(lens, [1000, 1000, 500]);
        assert_eq!((a.counters.sends, a.counters.segments), (3, 3));
    }

    #[tokio::test]
    async fn a_datagram_beyond_the_limit_is_counted_and_harms_nothing() {
        let (mut a, mut b) = (bound().await, bound().await);
        let to = b.local_addr().unwrap();
        let contents = vec![1; 65_536];
        let batch = Transmit { to, len: 65_536, segment: 65_536 };
        let refused = Sent::TooLarge { len: 65_536, offset: 65_536 };
        assert_eq!(a.send(batch, &contents, 0), refused);
        assert_eq!(a.counters.too_large, 1);
        assert_eq!((a.counters.sends, a.counters.segments), (0, 0));
        let small = Transmit { to, len: 3, segment: 3 };
        assert_eq!(a.send(small, &contents, 0), Sent::All);
        assert_eq!(receive_all(&mut b, 1).await[0].1, [1, 1, 1]);
    }

    #[test]
    fn missing_kernel_buffers_are_named_with_what_to_do() {
        let granted = |receive, send| KernelBuffers { wanted: 8_388_608, receive, send };
        assert_eq!(granted(8_388_608, 9_000_000).shortfall(), None);
        let text = granted(212_992, 212_992).shortfall().unwrap();
        let command = "sysctl -w net.core.rmem_max=8388608 net.core.wmem_max=8388608";
        assert!(text.contains("212992 of 8388608 bytes to receive"), "{text}");
        assert!(text.contains("212992 of 8388608 bytes to send"), "{text}");
        assert!(text.ends_with(command), "{text}");
        let text = granted(8_388_608, 212_992).shortfall().unwrap();
        assert!(!text.contains("rmem_max") && text.contains("wmem_max=8388608"), "{text}");
    }

    #[tokio::test]
    async fn the_buffers_granted_are_known() {
        let buffers = bound().await.status().buffers;
        assert_eq!(buffers.wanted, KERNEL_BUFFER);
        assert!(buffers.receive > 0 && buffers.send > 0, "{buffers:?}");
    }

    #[tokio::test]
    async fn a_taken_port_is_named() {
        let a = bound().await;
        let address = a.local_addr().unwrap();
        let error = Udp::bind(address).err().unwrap().to_string();
        assert!(error.contains(&address.to_string()), "{error}");
    }

    #[tokio::test]
    async fn an_empty_datagram_is_no_trouble() {
        let (a, mut b) = (bound().await, bound().await);
        let to = b.local_addr().unwrap();
        a.socket.send_to(&[], to).await.unwrap();
        a.socket.send_to(&[9], to).await.unwrap();
        assert_eq!(receive_all(&mut b, 1).await[0].1, [9]);
    }
}
