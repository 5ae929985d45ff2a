//! The registry: node IDs, names, trust pairs and waiting handshakes, served
//! over TCP as framed JSON.
//!
//! [`state`] is pure: commands in, replies out. [`store`] makes commands
//! durable, the writer thread applies them only after that, [`service`] reads
//! requests and decides what needs a command at all, [`server`] moves bytes.

pub mod config;
mod connection;
mod limits;
pub mod server;
pub mod service;
pub mod state;
pub mod store;
mod writer;

pub use config::Config;
pub use server::{Registry, StartError};
