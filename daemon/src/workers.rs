//! Several loops, each on a thread of its own, with peers spread over them by
//! node number.
//!
//! A worker is what `node` is: one core, one UDP socket, one owner of all
//! that its peers have open. Workers share nothing that changes on the data
//! path. The kernel sorts datagrams by sender (`sockets`, `select`), every
//! worker checks that (`edge`), the control plane addresses a peer's worker
//! through its handle, and the clients of the driver socket are served by all
//! workers through a `router`. With one worker none of this is there.

mod client;
mod desk;
mod edge;
mod merge;
mod plan;
mod router;
mod select;
mod sockets;
mod spread;
mod threads;

#[cfg(test)]
pub(crate) use client::Settling;
#[cfg(test)]
pub(crate) use edge::edges;
pub use edge::{Edge, EdgeCounters};
pub(crate) use merge::merge;
pub use plan::{LoopPlan, NativeService};
#[cfg(test)]
pub(crate) use router::Router;
#[cfg(test)]
pub(crate) use select::attach;
#[cfg(test)]
pub(crate) use sockets::bind;
pub use spread::Spread;
pub use threads::{Running, start};

/// The most workers: answers that are waited for fit the bits of a `u64`.
pub const MAX_WORKERS: usize = 64;
