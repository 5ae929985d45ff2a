//! Formats of the well-known services that the daemon, its plugins and its
//! clients share (protocol page "Services").

pub mod data_exchange;
pub mod event_stream;
pub mod handshake;
pub mod nameserver;
mod pending;
pub mod rfc3339;
pub mod secure;
pub mod tasks;
