//! A UDP socket that receives in batches with the kernel's time stamps.

use std::io::IoSliceMut;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use quinn_udp::{BATCH_SIZE, EcnCodepoint, RecvMeta, Transmit, UdpSocketState};

use super::RelayError;

/// Room for the largest batch of coalesced datagrams.
const SLOT: usize = 64 << 10;
/// What is asked of the kernel for each direction.
const KERNEL_BUFFER: usize = 4 << 20;

/// Receive buffers; the system gives pages only as they are used.
pub(super) struct Slots(Vec<u8>);

impl Default for Slots {
    fn default() -> Self {
        Self(vec![0; BATCH_SIZE * SLOT])
    }
}

/// A bound socket that never blocks.
#[derive(Debug)]
pub(super) struct Port {
    socket: UdpSocket,
    state: UdpSocketState,
}

impl Port {
    /// Binds, and says where.
    pub(super) fn bind(address: SocketAddr) -> Result<(Self, SocketAddr), RelayError> {
        let open = || {
            let socket = UdpSocket::bind(address)?;
            socket.set_nonblocking(true)?;
            let state = UdpSocketState::new((&socket).into())?;
            // The system caps what it gives; then less of a burst fits.
            let _ = state.set_recv_buffer_size((&socket).into(), KERNEL_BUFFER);
            let _ = state.set_send_buffer_size((&socket).into(), KERNEL_BUFFER);
            let local = socket.local_addr()?;
            Ok((Self { socket, state }, local))
        };
        open().map_err(|source| RelayError::Bind { address, source })
    }

    pub(super) fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    /// One receive call; `each` gets the source, the time since the Unix epoch
    /// at which the kernel got it, the ECN mark and the content of every
    /// datagram, coalesced ones taken apart.
    pub(super) fn receive(
        &self,
        slots: &mut Slots,
        mut each: impl FnMut(SocketAddr, Option<Duration>, Option<EcnCodepoint>, &[u8]),
    ) {
        let mut metas = [RecvMeta::default(); BATCH_SIZE];
        let mut chunks = slots.0.chunks_exact_mut(SLOT);
        let mut buffers: [IoSliceMut<'_>; BATCH_SIZE] =
            std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
        // Nothing there, or an error that says something about an earlier
        // datagram (port unreachable): either way there is nothing to take.
        let Ok(count) = self.state.recv((&self.socket).into(), &mut buffers, &mut metas) else {
            return;
        };
        for (meta, slot) in metas.iter().zip(slots.0.chunks_exact(SLOT)).take(count) {
            for datagram in slot[..meta.len.min(SLOT)].chunks(meta.stride.max(1)) {
                each(meta.addr, meta.timestamp, meta.ecn, datagram);
            }
        }
    }

    /// Sends one datagram. Returns whether the system took it.
    pub(super) fn send(&self, to: SocketAddr, ecn: Option<EcnCodepoint>, data: &[u8]) -> bool {
        let transmit =
            Transmit { destination: to, ecn, contents: data, segment_size: None, src_ip: None };
        self.state.try_send((&self.socket).into(), &transmit).is_ok()
    }
}
