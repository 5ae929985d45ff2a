//! The safe API for authors in Rust. `raw` and `entry` are the edge to C;
//! everything else is plain futures on the instance's own thread.

mod blocking;
mod buffer;
#[doc(hidden)]
pub mod entry;
mod error;
mod host;
mod instance;
mod plugin;
mod raw;
mod store;
mod stream;
mod task;

pub use buffer::Buffer;
pub use error::Error;
pub use host::{Host, Level};
pub use plugin::{NoConfig, Plugin};
pub use store::Store;
pub use stream::{Reader, Stream, Writer};
