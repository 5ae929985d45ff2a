//! A stream as the process around the host hands it over.

use std::io;
use std::task::{Context, Poll};

use bytes::Bytes;
use pilot_wire::SocketAddress;

/// A stream on its way to a plugin or script. Dropping it closes the stream
/// after what was written. It is used by one thread at a time.
pub trait HostStream: Send {
    /// The peer's address and port; the tunnel has proven the node.
    fn remote(&self) -> SocketAddress;

    /// The port it came in on; 0 for a dialled stream.
    fn local_port(&self) -> u16;

    /// The next bytes as they arrived; `None` at the end.
    ///
    /// # Errors
    /// When the stream broke.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>>;

    /// Waits until there is room to write; gives how many bytes. One
    /// [`HostStream::write`] may follow, of any length: its sender waits longer
    /// for the next.
    ///
    /// # Errors
    /// When the stream broke or was shut down.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>>;

    /// Writes after [`HostStream::poll_room`] said that there is room.
    fn write(&mut self, data: Bytes);

    /// No more will be written; reading goes on.
    fn shutdown(&mut self);

    /// Breaks the stream: the peer is told so, and what was not sent is lost.
    fn reset(&mut self, reason: &str);
}

/// A stream of any process.
pub type BoxStream = Box<dyn HostStream>;
