//! Formats of the well-known services that the daemon and its clients share
//! (protocol page "Services").

pub mod data_exchange;
pub mod handshake;
