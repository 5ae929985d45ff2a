//! What a plugin author depends on: the C ABI ([`abi`]), the types that cross
//! it as JSON, and a safe API in Rust over it.
//!
//! A port service that answers on port 2000 with what it is sent:
//!
//! ```
//! #![forbid(unsafe_code)]
//! use pilot_plugin::{Error, Host, Manifest, NoConfig, Peer, Plugin, Stream};
//!
//! struct Echo;
//!
//! impl Plugin for Echo {
//!     type Config = NoConfig;
//!
//!     fn manifest() -> Manifest {
//!         Manifest::new("my-echo", env!("CARGO_PKG_VERSION")).service("echo", &[2000])
//!     }
//!
//!     fn start(_: Host, _: NoConfig) -> Result<Self, Error> {
//!         Ok(Self)
//!     }
//!
//!     async fn serve(&self, mut stream: Stream, _: Peer) -> Result<(), Error> {
//!         while let Some(data) = stream.recv().await? {
//!             stream.send(data).await?;
//!         }
//!         Ok(())
//!     }
//! }
//!
//! pilot_plugin::export_plugin!(Echo);
//! ```
//!
//! An instance runs on one thread, and its futures on an executor of its own:
//! state can be in `Cell` and `RefCell`, and nothing may block that thread for
//! long ([`Host::blocking`] is for what does). `docs/PLUGINS.md` teaches the
//! rest.

pub mod abi;
mod author;
mod event;
mod manifest;
mod peer;
mod rule;

pub use author::{
    Buffer, Error, Host, Level, NoConfig, Plugin, Reader, Store, Stream, Writer, entry,
};
pub use event::{Batch, Delivery, Event};
pub use manifest::{Manifest, Rule, Service, Sink};
pub use peer::Peer;
pub use pilot_wire as wire;
pub use rule::{JoinRequest, Verdict};
pub use schemars::{self, JsonSchema};
pub use serde;
pub use serde_json as json;
