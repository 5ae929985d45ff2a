//! The driver socket: where it lies, and what is kept per client.
//!
//! What the commands do is the loop's business (`node`).

pub(crate) mod client;
mod inbox;
mod outbox;
mod replies;
mod socket;

pub use socket::{IpcListener, SocketError};
