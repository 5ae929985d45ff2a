//! The registry as a host of plugins and scripts: join rules and event sinks.
//! It has no ports, so services are listed and not served. What a plugin is, and
//! how one is loaded, is the business of the host.

mod platform;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, RwLock};
use std::time::Duration;
use std::{fmt, io};

use pilot_host::journal::JournalError;
use pilot_host::{
    BoxFuture, Loaders, Manager, ManagerError, ManagerOptions, PluginStatus, ReloadReport,
};
use pilot_plugin::{JoinRequest, Verdict};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::Config;
use crate::events::Events;
use crate::rules::{JoinRules, NoRules};
use crate::state::State;
use platform::RegistryPlatform;

/// Why no service is served here.
const NO_PORTS: &str = "a registry has no ports";
/// Join rules that run without being configured.
const DEFAULTS: [&str; 3] = ["join-open", "join-token", "join-invite"];
/// Time that plugins have at the end.
const DRAIN: Duration = Duration::from_secs(2);
/// Time beyond it after which they are not waited for.
const GRACE: Duration = Duration::from_secs(3);

/// Why plugins cannot be hosted.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The journal of events cannot be opened.
    #[error("events: {0}; choose another folder with -data")]
    Events(#[from] JournalError),
    /// The folder of plugin state cannot be used, or there is no thread.
    #[error("{0}; choose another folder with -data")]
    Manager(#[from] ManagerError),
    /// There is no place for what plugins keep while a registry runs that keeps
    /// nothing.
    #[error("no temporary folder for plugins: {0}; set TMPDIR, or choose a folder with -data")]
    Temporary(io::Error),
    /// It ended before it was done.
    #[error("starting plugins ended badly: {0}")]
    Start(#[from] tokio::task::JoinError),
}

/// What runs. Cheap to clone; all clones are one. Where plugins are not hosted
/// there are none.
#[derive(Clone, Default)]
pub struct Plugins(Arc<OnceLock<Hosted>>);

struct Hosted {
    manager: Manager,
    /// Goes with the last clone.
    _temporary: Option<TempDir>,
}

impl fmt::Debug for Plugins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Plugins").field(&self.0.get().is_some()).finish()
    }
}

impl Plugins {
    /// Begins to start what `config` asks for, and the join rules that ship with
    /// Pilot; [`Plugins::ready`] waits for it. Gives as well by what the registry
    /// says what happens. Where the folder of the store cannot be used, and
    /// nobody has configured a plugin, a temporary one does.
    ///
    /// # Errors
    /// When the folder cannot be used although something needs it.
    pub(crate) async fn start(
        config: &Config,
        state: Arc<RwLock<State>>,
    ) -> Result<(Self, Events), HostError> {
        if let Some(folder) = config.plugin_folder() {
            match Self::open(config, &folder, None, Arc::clone(&state)).await {
                Err(error) if !config.needs_plugins() => tracing::warn!(
                    "what plugins keep is lost when the registry ends, as no plugin is configured \
                     and their folder cannot be used: {error}"
                ),
                opened => return opened,
            }
        }
        let temporary = match tempfile::Builder::new().prefix("pilot-registry-").tempdir() {
            Ok(temporary) => temporary,
            Err(error) if config.needs_plugins() => return Err(HostError::Temporary(error)),
            Err(error) => {
                tracing::warn!(
                    "no plugin runs, every join is denied: no temporary folder: {error}"
                );
                return Ok((Self::default(), Events::default()));
            }
        };
        let folder = temporary.path().to_owned();
        match Self::open(config, &folder, Some(temporary), state).await {
            Err(error) if !config.needs_plugins() => {
                tracing::warn!("no plugin runs, every join is denied: {error}");
                Ok((Self::default(), Events::default()))
            }
            opened => opened,
        }
    }

    async fn open(
        config: &Config,
        folder: &Path,
        temporary: Option<TempDir>,
        state: Arc<RwLock<State>>,
    ) -> Result<(Self, Events), HostError> {
        let options = options(config, folder);
        let journal = folder.join("events");
        // Both read and write files, for which nobody else needs to wait.
        let (plugins, events) = tokio::task::spawn_blocking(move || {
            let events = Events::open(&journal)?;
            let plugins = Self::default();
            let platform = RegistryPlatform::new(state, events.clone(), plugins.clone());
            if let Some(sinks) = events.sinks() {
                let manager =
                    Manager::start(options, Arc::new(Loaders), sinks, Arc::new(platform))?;
                // The only one: nobody else has it yet.
                let _ = plugins.0.set(Hosted { manager, _temporary: temporary });
            }
            Ok::<_, HostError>((plugins, events))
        })
        .await??;
        Ok((plugins, events))
    }

    fn manager(&self) -> Option<&Manager> {
        self.0.get().map(|hosted| &hosted.manager)
    }

    /// Says which of the shipped rules are not there.
    pub(crate) fn warn_of_missing(&self) {
        let Some(manager) = self.manager() else { return };
        let found = |name: &&str| manager.status(name).is_some_and(|s| s.file.is_some());
        let missing: Vec<&str> = DEFAULTS.into_iter().filter(|name| !found(name)).collect();
        if !missing.is_empty() {
            tracing::warn!(
                "plugins that ship with Pilot were not found: {}; networks cannot use their join \
                 rules. Set plugin-path to their folder",
                missing.join(", ")
            );
        }
    }

    /// Answers when each plugin that was configured at the start runs or has
    /// failed.
    pub async fn ready(&self) {
        if let Some(manager) = self.manager() {
            manager.ready().await;
        }
    }

    /// How every plugin stands; its services are not served.
    pub fn list(&self) -> Vec<PluginStatus> {
        self.manager().map(Manager::list).unwrap_or_default()
    }

    /// The same for programs: `services` stand at the top as well, and say that
    /// they are not served.
    pub(crate) fn describe(&self) -> Value {
        let one = |status: PluginStatus| {
            let mut services = json!(status.provides.services);
            for service in services.as_array_mut().into_iter().flatten() {
                service["served"] = json!(false);
                service["reason"] = json!(NO_PORTS);
            }
            let mut status = json!(status);
            status["services"] = services;
            status
        };
        json!({ "plugins": self.list().into_iter().map(one).collect::<Vec<_>>() })
    }

    /// Looks at the configuration and the files again; nothing where plugins
    /// are not hosted.
    pub async fn reload(&self) -> Option<ReloadReport> {
        match self.manager() {
            Some(manager) => Some(manager.reload().await),
            None => None,
        }
    }

    /// Reloads at every SIGHUP from now on, as long as the runtime lasts.
    ///
    /// # Errors
    /// When the handler cannot be installed.
    pub fn reload_on_hangup(&self) -> io::Result<()> {
        let mut hangup = signal(SignalKind::hangup())?;
        let plugins = self.clone();
        tokio::spawn(async move {
            while hangup.recv().await.is_some() {
                tracing::info!("SIGHUP: plugins and scripts are looked at again");
                match plugins.reload().await {
                    // What came of each plugin the host has logged.
                    Some(ReloadReport { config_error: Some(error), .. }) => {
                        tracing::error!("nothing was reloaded: {error}");
                    }
                    Some(_) => {}
                    None => tracing::warn!("there is nothing to reload: no plugin is hosted"),
                }
            }
        });
        Ok(())
    }

    /// Ends what runs.
    pub(crate) async fn shutdown(&self) {
        let Some(manager) = self.manager() else { return };
        if tokio::time::timeout(DRAIN + GRACE, manager.shutdown(DRAIN)).await.is_err() {
            tracing::warn!("plugins did not end in time");
        }
    }
}

impl JoinRules for Plugins {
    fn validate(&self, request: JoinRequest) -> BoxFuture<Verdict> {
        match self.manager() {
            Some(manager) => manager.validate(request),
            None => NoRules.validate(request),
        }
    }

    fn names(&self) -> Vec<String> {
        self.manager().map(Manager::rules).unwrap_or_default()
    }

    fn ready(&self) -> BoxFuture<()> {
        let plugins = self.clone();
        Box::pin(async move { Self::ready(&plugins).await })
    }
}

/// How the host is started.
fn options(config: &Config, folder: &Path) -> ManagerOptions {
    let mut options = ManagerOptions::new(folder);
    options.settings = config.plugins.clone();
    options.config_file.clone_from(&config.config_file);
    options.shipped = match &config.plugin_path {
        Some(folders) => folders.clone(),
        None => std::env::current_exe().map(|p| ManagerOptions::beside(&p)).unwrap_or_default(),
    };
    // A folder of its own is also one to drop files into. The folder of the
    // store is not: every write to the store would be a change to look at.
    if config.data.is_some() {
        let dropped = [
            (config.plugins.plugin_dirs.is_empty(), "plugins"),
            (config.plugins.script_dirs.is_empty(), "scripts"),
        ];
        let dropped = dropped.into_iter().filter(|(ours, _)| *ours);
        options.folders = dropped.map(|(_, name)| folder.join(name)).collect::<Vec<PathBuf>>();
    }
    options.defaults = DEFAULTS.map(str::to_owned).to_vec();
    options.no_ports = Some(NO_PORTS);
    options
}
