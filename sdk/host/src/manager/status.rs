//! What the manager tells about plugins and reloads, for people and programs.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::settings::Isolation;

/// What kind of file a plugin is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FileKind {
    /// A shared library with the C ABI.
    Library,
    /// A Lua script.
    Script,
}

/// How a plugin stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It runs.
    Running,
    /// It is being started.
    Starting,
    /// It was removed; its last streams are finishing.
    Draining,
    /// It could not be loaded or started.
    Failed,
    /// The configuration or too many failures switched it off.
    #[default]
    Off,
    /// It failed several times and is tried again later.
    BackingOff,
    /// It runs, uses more than it may, and is given no new streams.
    OverBudget,
}

/// A service and where it answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceStatus {
    /// Name in the manifest.
    pub name: String,
    /// Ports.
    pub ports: Vec<u16>,
    /// Whether datagrams are for it as well.
    pub datagrams: bool,
}

/// What a plugin provides.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Provides {
    /// Port services.
    pub services: Vec<ServiceStatus>,
    /// Join rules.
    pub rules: Vec<String>,
    /// Event sinks.
    pub sinks: Vec<String>,
}

/// An older generation whose streams are finishing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DrainingStatus {
    /// Generation.
    pub generation: u64,
    /// Streams that are left.
    pub streams: usize,
}

/// The last time it was started, replaced or refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LastReload {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// Why: `start`, `config`, `file`, `reload`, `panicked`, `hung`, `died`,
    /// `back-off`, `set`, `removed`.
    pub cause: String,
    /// What came of it.
    pub result: ReloadResult,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What came of a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReloadResult {
    /// It runs now and did not before.
    Started,
    /// A new generation took over.
    Reloaded,
    /// Nothing about it has changed.
    Unchanged,
    /// It failed; the earlier generation goes on.
    Kept,
    /// It failed, and nothing runs.
    Failed,
    /// It is gone.
    Removed,
    /// It is switched off.
    Off,
}

/// How a plugin stands, and what it has done. Counts are over all generations
/// since the process started.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PluginStatus {
    /// Name, unique in the process.
    pub name: String,
    /// What kind of file it is.
    pub kind: FileKind,
    /// What it says it is.
    pub description: String,
    /// What it provides.
    pub provides: Provides,
    /// Its file, where one was found.
    pub file: Option<String>,
    /// SHA-256 of what runs, hex.
    pub sha256: Option<String>,
    /// Version that it says it has.
    pub version: Option<String>,
    /// Generation that runs, or the last one.
    pub generation: u64,
    /// Where it runs.
    pub isolation: Isolation,
    /// How it stands.
    pub state: State,
    /// Why it stands so, where there is something to say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
    /// Streams open now.
    pub streams: usize,
    /// Streams in all.
    pub streams_total: u64,
    /// Streams, verdicts and batches that failed.
    pub errors: u64,
    /// The last failure.
    pub last_error: Option<String>,
    /// Processor time used, in milliseconds.
    pub cpu_ms: u64,
    /// Calls into it.
    pub calls: u64,
    /// Messages waiting for its thread.
    pub queue: usize,
    /// Bytes of memory, where that is known.
    pub memory: Option<u64>,
    /// Older generations that are not done.
    pub draining: Vec<DrainingStatus>,
    /// Threads that are stuck in it and cannot be ended.
    pub hung: usize,
    /// The last reload.
    pub last_reload: Option<LastReload>,
    /// Status of its sinks by name, as the journal gives it.
    pub sink_status: BTreeMap<String, Value>,
}

/// What a reload did.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ReloadReport {
    /// Why the configuration was refused; what was in force stays.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_error: Option<String>,
    /// What happened to each plugin, in the order it happened.
    pub plugins: Vec<PluginReload>,
}

/// What a reload did to one plugin.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PluginReload {
    /// Its name.
    pub name: String,
    /// What came of it.
    pub result: ReloadResult,
    /// Generation that runs now, or the last one.
    pub generation: u64,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
