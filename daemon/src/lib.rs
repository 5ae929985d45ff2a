//! The daemon of one machine: a virtual NIC for its agents.
//!
//! One task owns the protocol core and moves everything through it (`node`);
//! the control plane (`control`) speaks to the registry, `trust` holds who may
//! reach this node, `networks` which networks it is in, `ipc` serves the agents of this machine. More than one such
//! loop, peers spread over them, is the business of `workers`.

pub mod config;
pub mod control;
mod durable;
pub mod events;
pub mod identity;
pub mod ipc;
pub mod metrics;
pub mod networks;
pub mod node;
pub mod plugins;
mod rfc3339;
pub mod run;
pub mod service;
pub mod state;
pub mod trust;
pub mod udp;
pub mod workers;
