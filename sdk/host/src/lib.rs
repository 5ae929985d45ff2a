//! The host of plugins and scripts: finds, loads, swaps and supervises them,
//! keeps events on disk until their sinks have them, and knows nothing of
//! tunnels or registries. What it needs of the process around it is the
//! [`Platform`]; what it gives back is a [`PortService`] per virtual port.
//!
//! Three back-ends make instances, all behind [`Backend`] and [`Instance`]:
//! `native` (a shared library in this process), `process` (the same library in
//! a child process) and `lua`. The `manager` decides what runs.

mod instance;
mod native;
mod platform;
mod process;
mod stream;

pub use instance::{
    Backend, BoxFuture, Context, Failure, Incident, Instance, KeyValue, Limits, Observer,
    StartError, Stats, StoreError,
};
pub use native::{OpenError, open_native};
pub use platform::{CallError, Platform, PortService};
pub use process::{ProcessError, open_process, run_child};
pub use stream::{BoxStream, HostStream};
