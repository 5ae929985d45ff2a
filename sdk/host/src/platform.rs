//! What the host needs of the process around it, and what it gives back.

use std::sync::Arc;

use bytes::Bytes;
use pilot_plugin::Peer;
use pilot_wire::{Address, SocketAddress};
use serde_json::{Map, Value};

use crate::events::Happening;
use crate::instance::BoxFuture;
use crate::stream::BoxStream;

/// Why a [`Platform::call`] gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// This process has no such method.
    #[error("there is no method {0:?} here")]
    Unknown(String),
    /// It was tried and failed; the text says what to do.
    #[error("{0}")]
    Failed(String),
}

/// The process around the host: a daemon, a registry, a test. Called on any
/// thread; no method blocks. Futures do not need a runtime of a certain kind.
pub trait Platform: Send + Sync + 'static {
    /// This node's address; none while it is not registered.
    fn address(&self) -> Option<Address>;

    /// Who is at `remote`, as far as it is known here.
    fn peer(&self, remote: SocketAddress) -> Peer;

    /// Opens a stream to `ADDRESS:PORT` or `HOSTNAME:PORT`. The error is a text
    /// for the plugin's author.
    fn dial(&self, to: &str) -> BoxFuture<Result<BoxStream, String>>;

    /// Sends a datagram, not acknowledged.
    ///
    /// # Errors
    /// A text that says why it was not tried.
    fn send_datagram(&self, to: SocketAddress, source_port: u16, data: Bytes)
    -> Result<(), String>;

    /// Does `method` with `request` (`docs/PLUGINS.md`, "Host methods").
    fn call(&self, method: &str, request: Value) -> BoxFuture<Result<Value, CallError>>;

    /// Takes an event of a plugin or script, which may not bear a name of the
    /// host's own ([`Happening::of_plugin`]). What cannot be kept is counted and
    /// shows as a gap.
    fn emit(&self, name: &str, data: Map<String, Value>);

    /// Takes an event of the host itself.
    fn tell(&self, happening: Happening);

    /// Has `service` answer on `port` from now on, instead of an earlier
    /// service; the answer comes when it does.
    fn listen(&self, port: u16, service: Arc<dyn PortService>) -> BoxFuture<Result<(), String>>;

    /// Nobody answers on `port` any more.
    fn unlisten(&self, port: u16);
}

/// What answers on a virtual port. No method blocks.
pub trait PortService: Send + Sync {
    /// Name for logs.
    fn name(&self) -> &str;

    /// Takes a stream that came in.
    fn open(&self, stream: BoxStream);

    /// Whether it takes datagrams.
    fn takes_datagrams(&self) -> bool {
        false
    }

    /// Takes a datagram.
    fn datagram(&self, _from: SocketAddress, _port: u16, _data: Bytes) {}
}
