//! The beacon: tells a node under which address it is seen, introduces two
//! nodes so that they can punch, and carries frames where punching fails.
//!
//! [`state`] decides and does no I/O; [`server`] moves datagrams. The program
//! plumbing in [`settings`] and [`program`] also serves the registry.

pub mod config;
mod health;
mod peers;
pub mod program;
pub mod server;
pub mod settings;
pub mod state;

pub use config::Config;
pub use server::{Beacon, BeaconError};
