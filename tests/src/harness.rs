//! Real programs for end-to-end tests and benches: temporary folders, free
//! ports, ready lines, bounded waits on conditions, nothing left behind.

mod cli;
mod data;
mod network;
mod plugins;
mod process;
mod receiver;

pub use data::{EchoApp, Pattern, drain, drain_prefix, pour, round_trip};
pub use network::{
    ADMIN_TOKEN, Daemon, DaemonOptions, LIFTED, Network, RegistryOptions, establish_trust,
    eventually,
};
pub use plugins::{VersionPlugin, compile_plugin, install};
pub use process::{
    Finished, POLL, Process, START_LIMIT, binary, command, cpu_time, resident_bytes, run,
    scheduled_time,
};
pub use receiver::{Reply, WebhookReceiver};
