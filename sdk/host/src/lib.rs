//! The host of plugins and scripts: finds, loads, swaps and supervises them,
//! keeps events on disk until their sinks have them, and knows nothing of
//! tunnels or registries. What it needs of the process around it is the
//! [`Platform`]; what it gives back is a [`PortService`] per virtual port.
//!
//! Three back-ends make instances, all behind [`Backend`] and [`Instance`]:
//! `native` (a shared library in this process), `process` (the same library in
//! a child process) and `lua`. The `manager` decides what runs.

pub mod events;
mod files;
mod instance;
pub mod journal;
mod loaders;
mod lua;
mod manager;
mod native;
mod platform;
mod process;
mod schema;
pub mod script_tool;
mod settings;
mod store;
mod stream;
mod watch;

pub use instance::{
    Backend, BoxFuture, Context, Failure, Incident, Instance, KeyValue, Limits, Observer,
    StartError, Stats, StoreError,
};
pub use loaders::Loaders;
pub use lua::{LuaError, open_lua, open_lua_source};
pub use manager::{
    Deliver, DrainingStatus, FileKind, LastReload, Loader, Manager, ManagerError, ManagerOptions,
    PluginReload, PluginStatus, Provides, ReloadReport, ReloadResult, ServiceStatus, SinkHandle,
    Sinks, State,
};
#[doc(hidden)]
pub use native::{EventTimes, time_events};
pub use native::{OpenError, open_native};
pub use pilot_plugin::Peer;
pub use platform::{CallError, Platform, PortService};
pub use process::{ProcessError, open_process, run_child};
pub use settings::{Entry, Isolation, Lines, Ports, Settings, SettingsError};
pub use store::{STORE_MAX_KEY, STORE_MAX_VALUE, STORE_QUOTA, Stores};
pub use stream::{BoxStream, HostStream};
