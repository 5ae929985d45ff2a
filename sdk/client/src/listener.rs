//! Taking streams that peers open to a port of ours.

use std::collections::HashMap;
use std::sync::Arc;

use pilot_wire::SocketAddress;
use pilot_wire::ipc::Command;
use tokio::sync::Mutex;
use tokio::sync::mpsc;

use crate::error::{Error, ErrorKind};
use crate::link::Guard;
use crate::lock;
use crate::stream::Stream;

/// Accepted streams that may wait for the application, the daemon's default
/// limit per port. One more is closed at once.
const BACKLOG: usize = 1024;

/// A bound port. Dropping it frees the port (a daemon of the published
/// protocol frees it when the client ends) and closes streams not yet taken.
pub struct Listener {
    port: u16,
    streams: Mutex<mpsc::Receiver<Stream>>,
    guard: Arc<Guard>,
}

/// Where the reader puts streams for one port.
#[derive(Clone)]
pub(crate) struct Incoming(mpsc::Sender<Stream>);

impl Incoming {
    /// Hands a stream over. One that does not fit, or that nobody waits for,
    /// is dropped, which closes it.
    pub(crate) fn offer(&self, stream: Stream) {
        drop(self.0.try_send(stream));
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.0.is_closed()
    }
}

impl Listener {
    /// Takes over a port that the daemon has bound for this client.
    pub(crate) fn new(port: u16, ports: &mut HashMap<u16, Incoming>, guard: Arc<Guard>) -> Self {
        let (sender, streams) = mpsc::channel(BACKLOG);
        ports.insert(port, Incoming(sender));
        Self { port, streams: Mutex::new(streams), guard }
    }

    /// The next stream a peer opens, and the peer's address and port.
    ///
    /// # Errors
    /// When the daemon has gone.
    pub async fn accept(&self) -> Result<(Stream, SocketAddress), Error> {
        match self.streams.lock().await.recv().await {
            Some(stream) => {
                let remote = stream.remote_addr();
                Ok((stream, remote))
            }
            None => Err(self
                .guard
                .link
                .error()
                .unwrap_or_else(|| Error::new(ErrorKind::Closed, "the listener is closed"))),
        }
    }

    /// The bound port.
    pub const fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.guard.link.grants.hello {
            lock(&self.guard.link.ports).remove(&self.port);
            self.guard.link.control(&Command::Unbind { port: self.port });
        }
    }
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener").field("port", &self.port).finish()
    }
}
