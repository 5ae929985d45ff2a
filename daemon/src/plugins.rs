//! The daemon's side of plugins and scripts: what the host needs of it
//! (`platform`, `methods`, `peers`), what runs by default and from where
//! (`setup`), and the handle by which clients ask about it (`handle`). What a
//! plugin is, and how one is loaded, is the business of the host.

mod handle;
mod journal;
mod methods;
mod peers;
mod platform;
mod setup;

pub use handle::Plugins;
pub use journal::EventJournal;
pub use peers::PeerBook;
pub use platform::{DaemonPlatform, PlatformParts};
pub(crate) use setup::yields;
pub use setup::{DEFAULTS, Setup, Shipped};
