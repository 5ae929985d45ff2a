//! Services inside the daemon: the trait the loop serves, the stream it hands
//! to them, and an echo that plugins are measured against.

mod echo;
mod local_stream;

use std::future::Future;
use std::io;
use std::pin::Pin;

pub use echo::Echo;
pub use local_stream::LocalStream;
pub(crate) use local_stream::{Outgoing, StreamShared};

/// Something that answers on a virtual port. One future per stream; dropping
/// the stream closes it, and what was written is still delivered.
pub trait Service {
    /// Name for logs.
    fn name(&self) -> &'static str;

    /// The virtual port it listens on.
    fn port(&self) -> u16;

    /// Serves one stream until it ends. An error is logged and ends only this
    /// stream.
    fn serve(&self, stream: LocalStream) -> Pin<Box<dyn Future<Output = io::Result<()>>>>;
}
