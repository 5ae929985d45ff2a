//! The tunnel with one peer: key exchange, sessions, path.
//!
//! Key exchange follows the protocol page "Tunnel layer" with its advice: a
//! fresh ephemeral key for every exchange that this side starts, nothing reset
//! for a key already in use, old keys accepted while new ones are taken into
//! use, retired keys refused.

mod exchange;
mod mtu;
pub(crate) mod path;
mod replay;
mod session;

pub(crate) use exchange::{Accepted, Tunnel};
pub(crate) use session::{OpenError, Shape};

/// Bytes that the tunnel adds around a packet: frame header and tag.
pub(crate) const FRAME_OVERHEAD: usize =
    pilot_wire::tunnel::SEALED_HEADER_LEN + pilot_wire::tunnel::TAG_LEN;
