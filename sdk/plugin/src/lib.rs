//! What a plugin author depends on: the C ABI ([`abi`]), the types that cross
//! it as JSON, and (in Rust) a safe API over it.

pub mod abi;
mod event;
mod manifest;
mod peer;
mod rule;

pub use event::{Batch, Delivery, Event};
pub use manifest::{Manifest, Rule, Service, Sink};
pub use peer::Peer;
pub use pilot_wire as wire;
pub use rule::{JoinRequest, Verdict};
