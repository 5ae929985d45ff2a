//! Shared libraries in this process. `library` opens one and reads its table,
//! `thread` runs an instance on a thread of its own, `table` is what the
//! instance can call, `watchdog` sees what takes too long.

mod elf;
mod instance;
mod library;
mod local;
mod messages;
mod shared;
mod streams;
mod table;
mod thread;
mod timing;
mod watchdog;

pub use library::{OpenError, open_native};
pub(crate) use shared::callback_name;
pub use timing::{EventTimes, time_events};
