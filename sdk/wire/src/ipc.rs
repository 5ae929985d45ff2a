//! Messages on the daemon's Unix socket (protocol page "Daemon socket").
//!
//! Framing: length (4), then that many bytes: one command byte and its
//! payload. A client that sends [`Command::Hello`] first gets what the
//! published protocol lacks: tagged requests that may overlap, credit per
//! stream in both directions, half-close, and errors with a code.

mod command;
mod event;
pub mod lane;
mod setting;

pub use command::{Command, CommandError, Handshake};
pub use event::{Event, EventError, json};
pub use setting::{Congestion, Setting, UnknownCongestion};

use crate::address::SocketAddress;

/// The most bytes a message may have after its length.
pub const MAX_MESSAGE: usize = 1_048_576;
/// Bytes of the length prefix.
pub const LENGTH_LEN: usize = 4;
/// Default path of the socket.
pub const DEFAULT_SOCKET: &str = "/tmp/pilot.sock";
/// Version of what hello negotiates.
pub const HELLO_VERSION: u16 = 1;
/// Bytes before the data of a send or receive message, length included.
pub const DATA_HEADER_LEN: usize = LENGTH_LEN + 1 + 4;
/// Bytes before the data of a send datagram message, length included.
pub const DATAGRAM_HEADER_LEN: usize = LENGTH_LEN + 1 + 6 + 2;

/// What a client asks for in hello and the daemon grants in its answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(pub u32);

impl Features {
    /// Requests may be tagged ([`Command::Request`]) and answered out of order.
    pub const TAGGED: Self = Self(1);
    /// Neither side sends stream data beyond the credit the other gave.
    pub const CREDIT: Self = Self(2);
    /// [`Command::Shutdown`], [`Event::End`] and [`Event::Reset`] are used.
    pub const HALF_CLOSE: Self = Self(4);
    /// [`Event::Error`] carries codes other than 1.
    pub const CODES: Self = Self(8);
    /// Bulk streams may leave the socket for shared memory ([`lane`]).
    pub const LANE: Self = Self(16);
    /// [`Setting::Congestion`] is understood.
    pub const CONGESTION: Self = Self(32);
    /// [`Command::Plugins`] and [`Command::Reload`] are answered.
    pub const PLUGINS: Self = Self(64);
    /// [`Command::Registry`] is answered, and datagrams go to whole networks.
    pub const NETWORKS: Self = Self(128);
    /// Everything this version knows.
    pub const ALL: Self = Self(255);

    /// Whether all of `other` is in here.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// What both have.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

/// What went wrong, in [`Event::Error`] and [`Event::Reset`]. Clients of the
/// published protocol are always told [`ErrorCode::GENERAL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ErrorCode(pub u16);

impl ErrorCode {
    /// The only published code.
    pub const GENERAL: Self = Self(1);
    /// The request itself was wrong.
    pub const INVALID_ARGUMENT: Self = Self(2);
    /// No such node, hostname, connection or port.
    pub const NOT_FOUND: Self = Self(3);
    /// The peer answered, and refused.
    pub const REFUSED: Self = Self(4);
    /// The peer did not answer in time.
    pub const TIMEOUT: Self = Self(5);
    /// The port or name is taken.
    pub const ALREADY_EXISTS: Self = Self(6);
    /// The registry cannot be reached.
    pub const REGISTRY: Self = Self(7);
    /// There is no trust with the peer, or it has ended.
    pub const UNTRUSTED: Self = Self(8);
    /// A configured limit is reached.
    pub const LIMIT: Self = Self(9);
    /// The connection has ended.
    pub const CLOSED: Self = Self(10);
    /// The daemon is shutting down.
    pub const SHUTDOWN: Self = Self(11);
}

/// A whole message inside `bytes`, if one is there.
///
/// Returns the message body (command byte and payload) and the bytes used
/// including the length.
///
/// # Errors
/// The declared length, when it exceeds [`MAX_MESSAGE`]: the connection must
/// then be closed.
pub fn split_message(bytes: &[u8]) -> Result<Option<(&[u8], usize)>, usize> {
    let Some((len, rest)) = bytes.split_first_chunk::<LENGTH_LEN>() else { return Ok(None) };
    let len = u32::from_be_bytes(*len) as usize;
    if len > MAX_MESSAGE {
        return Err(len);
    }
    Ok(rest.get(..len).map(|body| (body, LENGTH_LEN + len)))
}

/// The nine bytes before the data of a send message.
pub fn send_header(connection: u32, data_len: usize) -> [u8; DATA_HEADER_LEN] {
    data_header(command::SEND, connection, data_len)
}

/// The nine bytes before the data of a receive message.
pub fn receive_header(connection: u32, data_len: usize) -> [u8; DATA_HEADER_LEN] {
    data_header(event::RECEIVE, connection, data_len)
}

/// The thirteen bytes before the data of a send datagram message.
pub fn datagram_header(to: SocketAddress, data_len: usize) -> [u8; DATAGRAM_HEADER_LEN] {
    debug_assert!(data_len + 9 <= MAX_MESSAGE);
    let len = u32::try_from(data_len + 9).unwrap_or(u32::MAX).to_be_bytes();
    let [a0, a1, a2, a3, a4, a5] = to.address.to_bytes();
    let port = to.port.to_be_bytes();
    let code = command::SEND_DATAGRAM;
    [len[0], len[1], len[2], len[3], code, a0, a1, a2, a3, a4, a5, port[0], port[1]]
}

fn data_header(code: u8, connection: u32, data_len: usize) -> [u8; DATA_HEADER_LEN] {
    debug_assert!(data_len + 5 <= MAX_MESSAGE);
    let len = u32::try_from(data_len + 5).unwrap_or(u32::MAX).to_be_bytes();
    let id = connection.to_be_bytes();
    [len[0], len[1], len[2], len[3], code, id[0], id[1], id[2], id[3]]
}

/// Appends a message: length, `code`, and what `payload` writes.
fn put_message(out: &mut Vec<u8>, code: u8, payload: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; LENGTH_LEN]);
    out.push(code);
    payload(out);
    let len = u32::try_from(out.len() - start - LENGTH_LEN).unwrap_or(u32::MAX);
    out[start..start + LENGTH_LEN].copy_from_slice(&len.to_be_bytes());
}
