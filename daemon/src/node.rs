//! The loop: one owner of the core, and of all that clients and services have
//! open on it.
//!
//! Each turn takes what is ready (datagrams, commands, orders, answers of the
//! control plane), lets the core work, passes on what became readable and
//! writes. Nothing in here waits but [`run`] itself.

mod clients;
mod commands;
mod conn;
mod ending;
mod events;
mod handle;
mod hub;
mod info;
mod lane;
mod plane;
pub(crate) mod ready;
mod requests;
mod snapshot;
#[cfg(test)]
mod tests;
mod turn;

pub(crate) use commands::controller;
#[cfg(test)]
pub(crate) use handle::Order;
pub use handle::{DialFailure, NodeHandle, NodeInbox, channel, channels};
pub use info::NodeFacts;
pub(crate) use info::render as render_info;
pub use plane::{Answer, ControlPlane, Plane, Refused, Request};
pub use snapshot::{Snapshot, StreamTotals};
pub use turn::{NodeParts, run};
