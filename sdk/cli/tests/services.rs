//! The commands of the well-known services, against services that the tests
//! play themselves over a daemon in memory.

mod common;
#[path = "../../client/tests/mock/mod.rs"]
mod mock;

#[path = "services/events.rs"]
mod events;
#[path = "services/files.rs"]
mod files;
#[path = "services/names.rs"]
mod names;
#[path = "services/secure.rs"]
mod secure;
#[path = "services/tasks.rs"]
mod tasks;
