//! Bytes to types and back, for every seam of the Pilot protocol.
//!
//! This crate knows layouts and nothing else: no sockets, no clock, no
//! cryptography, no policy. Decoding never panics and never allocates per
//! packet; what a decoder borrows it borrows from the input. All integers on
//! the wire are big-endian.

pub mod address;
pub mod beacon;
pub mod ipc;
pub mod options;
pub mod packet;
mod reader;
pub mod registry;
pub mod sack;
pub mod service;
pub mod tunnel;

pub use address::{Address, NodeId, SocketAddress};
