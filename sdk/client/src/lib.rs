//! The driver an agent imports: [`Client`], [`Listener`], [`Stream`] and
//! [`Datagrams`] over one Unix socket to the local daemon.
//!
//! ```no_run
//! # async fn demo() -> Result<(), Box<dyn std::error::Error>> {
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! let client = pilot_sdk::Client::connect().await?;
//! let mut stream = client.dial("agent-b:7").await?;
//! stream.write_all(b"hello").await?;
//! stream.shutdown().await?;
//! let mut answer = Vec::new();
//! stream.read_to_end(&mut answer).await?;
//! # Ok(())
//! # }
//! ```
//!
//! One task per client reads the socket and hands data to the streams; writes
//! go from the caller's task straight to the socket. A stream holds at most
//! the receive credit ([`Options::receive_credit`]) of unread bytes, and a
//! writer waits when the daemon has given no credit, so that backpressure
//! reaches the application on both sides. With a daemon of the published
//! protocol, which knows no credit, the client stops reading the socket while
//! any stream holds that much.
//!
//! This crate knows the socket protocol and nothing behind it: no tunnels, no
//! registry, no policy.

mod client;
mod conn;
mod connect;
mod datagram;
mod descriptors;
mod error;
mod info;
mod link;
mod listener;
mod reader;
mod request;
mod stream;
mod target;

pub use client::Client;
pub use connect::{ConnectError, Options, socket_path};
pub use datagram::{Datagram, Datagrams};
pub use error::{Error, ErrorKind};
pub use info::{
    ConnectionInfo, HandshakeStatus, Info, PeerInfo, PendingRequest, Resolved, TrustedNode,
};
pub use listener::Listener;
pub use pilot_wire::ipc::Congestion;
pub use pilot_wire::{Address, NodeId, SocketAddress};
pub use stream::{ReadHalf, Stream, WriteHalf};
pub use target::{Host, Target, TargetError};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks even after a panic elsewhere: every critical section here leaves its
/// data whole at each step.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
