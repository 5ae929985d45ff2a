//! The registry: node IDs, names, trust pairs and waiting handshakes, served
//! over TCP as framed JSON.
//!
//! [`state`] is pure: commands in, replies out. [`store`] makes commands
//! durable, the writer thread applies them only after that, [`service`] reads
//! requests and decides what needs a command at all, [`server`] moves bytes.
//! Beside that, [`plugins`] judge who may join ([`rules`]) and are told what
//! happens (`events`); none of the above waits for them.

mod admin;
mod admins;
pub mod audit;
pub mod config;
mod connection;
mod denials;
mod events;
mod limits;
mod metrics;
pub mod plugins;
pub mod published;
pub mod push;
pub mod reload;
pub mod rules;
pub mod server;
pub mod service;
pub mod state;
pub mod store;
mod tls;
pub mod tools;
mod writer;

pub use config::{Config, ConfigError};
pub use plugins::Plugins;
pub use server::{Registry, RunError, StartError};
pub use writer::WriterError;
