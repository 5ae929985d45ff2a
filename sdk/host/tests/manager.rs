//! The manager with real files and folders, and plugins that are made up.

#[path = "manager/conduct.rs"]
mod conduct;
#[path = "manager/fake.rs"]
mod fake;
#[path = "manager/loading.rs"]
mod loading;
#[path = "manager/reloading.rs"]
mod reloading;
#[path = "manager/serving.rs"]
mod serving;
#[path = "manager/stores.rs"]
mod stores;
