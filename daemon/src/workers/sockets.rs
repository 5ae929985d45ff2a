//! One UDP address, one socket for each worker: the kernel gives every
//! datagram to the socket of the worker whose peer sent it.

use std::net::SocketAddr;

use socket2::Socket;

use super::select;
use super::spread::Spread;
use crate::udp::{UdpError, open};

/// Binds one socket for each worker to `address`, in their order.
///
/// # Errors
/// When the address is taken, also by another daemon with workers, or the
/// system does not let sockets share an address.
pub(crate) fn bind(address: SocketAddr, spread: Spread) -> Result<Vec<Socket>, UdpError> {
    let failed = |source| UdpError::Bind { address, source };
    // The first one alone, so that an address in use is refused as ever; only
    // then it lets the others in.
    let first = open(address, false).map_err(failed)?;
    let bound = first.local_addr().map_err(failed)?.as_socket().unwrap_or(address);
    first.set_reuse_port(true).map_err(failed)?;
    let mut sockets = vec![first];
    for _ in 1..spread.workers() {
        sockets.push(open(bound, true).map_err(failed)?);
    }
    if let Some(first) = sockets.first()
        && let Err(error) = select::attach(first, spread)
    {
        tracing::warn!(
            %error,
            "the kernel does not sort datagrams by worker; the workers pass them on to each other"
        );
    }
    Ok(sockets)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Duration;

    use pilot_wire::tunnel::{
        COMPACT, MAGIC_AUTH_KEY, MAGIC_KEY, MAGIC_PLAIN, MAGIC_PUNCH, MAGIC_SEALED,
    };

    use super::*;

    fn frame(magic: [u8; 4], node: u32) -> Vec<u8> {
        [&magic[..], &node.to_be_bytes(), &[0xAB; 60]].concat()
    }

    fn compact(node: u32) -> Vec<u8> {
        // The counter's bits look like a node, too.
        frame([COMPACT, 1, 2, node as u8 ^ 1], node)
    }

    fn deliver(node: u32, inner: &[u8]) -> Vec<u8> {
        [&[6][..], &node.to_be_bytes(), inner].concat()
    }

    /// Sends each datagram from a new port, as peers do, and checks that it
    /// comes out where the rule says.
    fn arrive(workers: usize, host: &str) {
        let spread = Spread::over(workers);
        let sockets = bind(host.parse().unwrap(), spread).unwrap();
        let at = sockets[0].local_addr().unwrap().as_socket().unwrap();
        let sockets: Vec<UdpSocket> = sockets.into_iter().map(Into::into).collect();
        for socket in &sockets {
            assert_eq!(socket.local_addr().unwrap(), at);
            socket.set_nonblocking(false).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        }
        let mut datagrams: Vec<Vec<u8>> = vec![
            vec![0],
            vec![6, 0, 0, 0],
            b"PILS\0\0\x07".to_vec(),
            vec![COMPACT],
            vec![COMPACT, 0, 0, 7, 0, 0, 7],
            vec![2, 4, 127, 0, 0, 1, 0, 7],
            vec![4, 4, 127, 0, 0, 1, 0, 7],
            frame(MAGIC_PUNCH, 1),
            frame(MAGIC_PLAIN, 1),
        ];
        for node in (0..9).chain([u32::MAX - 1, u32::MAX, 0x5049_4C53]) {
            datagrams.extend([MAGIC_SEALED, MAGIC_KEY, MAGIC_AUTH_KEY].map(|m| frame(m, node)));
            datagrams.push(compact(node));
            datagrams.push(deliver(node, &frame(MAGIC_SEALED, node ^ 1)));
            datagrams.push(deliver(node, &compact(node ^ 1)));
        }
        for datagram in datagrams {
            let sender = UdpSocket::bind(SocketAddr::new(at.ip(), 0)).unwrap();
            sender.send_to(&datagram, at).unwrap();
            let mut buffer = [0; 128];
            let owner = spread.of_datagram(&datagram);
            let n = sockets[owner].recv(&mut buffer).unwrap_or_else(|e| {
                panic!("{datagram:?} did not come to worker {owner} of {workers}: {e}")
            });
            assert_eq!(buffer[..n], datagram);
        }
        for socket in &sockets {
            socket.set_nonblocking(true).unwrap();
            assert!(socket.recv(&mut [0; 128]).is_err(), "nothing is left anywhere");
        }
    }

    #[test]
    fn every_frame_arrives_at_the_socket_of_its_sender() {
        for workers in [2, 3, 64] {
            arrive(workers, "127.0.0.1:0");
            arrive(workers, "[::1]:0");
        }
    }

    #[test]
    fn an_address_in_use_is_refused_by_name() {
        let spread = Spread::over(2);
        let first = bind("127.0.0.1:0".parse().unwrap(), spread).unwrap();
        let at = first[0].local_addr().unwrap().as_socket().unwrap();
        for error in [bind(at, spread).err().unwrap(), open_alone(at)] {
            assert!(error.to_string().contains(&at.to_string()), "{error}");
        }
    }

    fn open_alone(address: SocketAddr) -> UdpError {
        let source = open(address, false).err().unwrap();
        UdpError::Bind { address, source }
    }
}
