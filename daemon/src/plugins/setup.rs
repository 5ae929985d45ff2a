//! What runs by default, from which folders, and what single keys of the
//! configuration mean for plugins.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use pilot_host::{Loader, Manager, ManagerOptions, Platform};
use serde_json::{Value, json};

use super::handle::{WEBHOOK, webhook_entry};
use super::{EventJournal, Plugins};
use crate::config::Config;

/// The plugin that keeps files and messages.
const DATA_EXCHANGE: &str = "data-exchange";

/// A plugin that ships with Pilot and runs unless told otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shipped {
    /// Its name.
    pub name: &'static str,
    /// The port it answers on (protocol page "Services").
    pub port: u16,
    /// The key that switches it off.
    pub switch: Option<&'static str>,
    /// Whether an agent may take its port: those that a published daemon leaves
    /// to agents (protocol page "Services", section 9).
    yields: bool,
}

const fn shipped(name: &'static str, port: u16, switch: Option<&'static str>) -> Shipped {
    Shipped { name, port, switch, yields: false }
}

const fn yielding(name: &'static str, port: u16) -> Shipped {
    Shipped { name, port, switch: None, yields: true }
}

/// Whether an agent that binds `port` takes it from a plugin. The plugin
/// answers again when the agent has let go.
pub(crate) fn yields(port: u16) -> bool {
    DEFAULTS.iter().any(|p| p.port == port && p.yields)
}

/// Every one of them.
pub const DEFAULTS: &[Shipped] = &[
    yielding("control", 1),
    shipped("echo", 7, Some("no-echo")),
    yielding("nameserver", 53),
    yielding("http", 80),
    yielding("secure", 443),
    yielding("stdio", 1000),
    shipped(DATA_EXCHANGE, 1001, Some("no-dataexchange")),
    shipped("event-stream", 1002, Some("no-eventstream")),
    shipped("tasks", 1003, None),
];

/// How plugins are to be started.
pub struct Setup {
    options: ManagerOptions,
    /// Entries that single keys stand for, put over what the file says.
    shortcuts: Vec<(&'static str, Value)>,
}

impl Setup {
    /// What `config` asks for. `program` is the daemon's executable, beside
    /// which shipped plugins are looked for; ports in `native` are served by
    /// the daemon itself, so that no plugin is started for them by default.
    pub fn new(config: &Config, program: Option<&Path>, native: &[u16]) -> Self {
        let mut options = ManagerOptions::new(&config.data);
        options.settings = config.settings.clone();
        options.config_file.clone_from(&config.config_file);
        options.shipped = match &config.plugin_path {
            Some(folders) => folders.clone(),
            None => program.map(beside).unwrap_or_default(),
        };
        options.defaults = DEFAULTS
            .iter()
            .filter(|p| config.default_plugins.contains(&p.name) && !native.contains(&p.port))
            .map(|p| p.name.to_owned())
            .collect();
        let watched = [
            (config.settings.plugin_dirs.is_empty(), "plugins"),
            (config.settings.script_dirs.is_empty(), "scripts"),
        ];
        options.folders = watched
            .into_iter()
            .filter(|(ours, _)| *ours)
            .map(|(_, name)| config.data.join(name))
            .collect();
        for folder in &options.folders {
            // So that there is a place to drop files into.
            if let Err(error) = crate::durable::make_folder(folder) {
                tracing::warn!("cannot make the folder {}: {error}", folder.display());
            }
        }
        Self { shortcuts: shortcuts(config, &options.defaults), options }
    }

    /// Starts the manager and gives it to `plugins`; returns when each plugin
    /// runs or has failed.
    ///
    /// # Errors
    /// When the folder of plugin state cannot be used, or a thread is missing.
    pub async fn start(
        self,
        loader: Arc<dyn Loader>,
        journal: EventJournal,
        platform: Arc<dyn Platform>,
        plugins: &Plugins,
    ) -> anyhow::Result<()> {
        let Self { options, shortcuts } = self;
        let (defaults, folders) = (options.defaults.clone(), options.shipped.clone());
        let sinks = journal.sinks();
        // It reads its store, which the loops need not wait for.
        let start = move || Manager::start(options, loader, sinks, platform);
        let manager = tokio::task::spawn_blocking(start).await;
        let manager = manager.context("starting plugins ended badly")??;
        plugins.started(manager.clone(), journal);
        manager.ready().await;
        for (name, entry) in shortcuts {
            match manager.set_entry(name, entry).await {
                Ok(done) => {
                    if let Some(error) = done.error {
                        tracing::warn!(plugin = name, "not as configured: {error}");
                    }
                }
                Err(error) => tracing::warn!(plugin = name, "not as configured: {error}"),
            }
        }
        warn_of_missing(&manager, &defaults, &folders);
        Ok(())
    }
}

/// Where shipped plugins are: beside the program, in `plugins` below it, and
/// where packages install them.
fn beside(program: &Path) -> Vec<PathBuf> {
    let Some(folder) = program.parent() else { return Vec::new() };
    let mut folders = vec![folder.to_owned(), folder.join("plugins")];
    if let Some(above) = folder.parent() {
        folders.push(above.join("lib/pilot/plugins"));
    }
    folders
}

/// What `webhook` and `max-received-bytes` mean.
fn shortcuts(config: &Config, defaults: &[String]) -> Vec<(&'static str, Value)> {
    let mut entries = Vec::new();
    if let Some(url) = &config.webhook {
        entries.push((WEBHOOK, webhook_entry(url)));
    }
    let exchange = defaults.iter().any(|name| name == DATA_EXCHANGE);
    if let Some(bytes) = config.max_received_bytes.filter(|_| exchange) {
        entries.push((DATA_EXCHANGE, json!({ "config": { "max-bytes": bytes } })));
    }
    entries
}

/// One line for all that are not there: the daemon runs without them.
fn warn_of_missing(manager: &Manager, defaults: &[String], folders: &[PathBuf]) {
    let missing: Vec<&str> = defaults
        .iter()
        .filter(|name| manager.status(name).is_none_or(|status| status.file.is_none()))
        .map(String::as_str)
        .collect();
    if missing.is_empty() {
        return;
    }
    let folders: Vec<String> = folders.iter().map(|f| f.display().to_string()).collect();
    tracing::warn!(
        "plugins that ship with Pilot were not found: {}; looked in {}. Set plugin-path to their \
         folder, or no-plugins to run without them",
        missing.join(", "),
        if folders.is_empty() { "no folder".to_owned() } else { folders.join(", ") }
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Invocation, RawConfig};

    fn config(args: &[&str]) -> Config {
        let args = args.iter().map(|a| (*a).to_owned());
        let env = |n: &str| (n == "HOME").then(|| "/home/u".to_owned());
        let Ok(Invocation::Run(raw)) = RawConfig::load(args, env) else { panic!() };
        Config::try_from(&raw).unwrap()
    }

    #[test]
    fn shipped_plugins_are_beside_the_program() {
        let setup = Setup::new(&config(&[]), Some(Path::new("/opt/pilot/bin/pilot-daemon")), &[]);
        let folders: Vec<_> = setup.options.shipped.iter().map(|f| f.to_str().unwrap()).collect();
        let expected = ["/opt/pilot/bin", "/opt/pilot/bin/plugins", "/opt/pilot/lib/pilot/plugins"];
        assert_eq!(folders, expected);
        let setup = Setup::new(&config(&["-plugin-path", "/a:~/b"]), None, &[]);
        assert_eq!(setup.options.shipped, [PathBuf::from("/a"), PathBuf::from("/home/u/b")]);
        let folders = ["/home/u/.pilot/plugins", "/home/u/.pilot/scripts"].map(PathBuf::from);
        assert_eq!(setup.options.folders, folders);
    }

    #[test]
    fn keys_switch_default_plugins_off() {
        let names = |args: &[&str], native: &[u16]| {
            Setup::new(&config(args), None, native).options.defaults.join(" ")
        };
        let all = "control echo nameserver http secure stdio data-exchange event-stream tasks";
        assert_eq!(names(&[], &[]), all);
        let some = "control nameserver http secure stdio tasks";
        assert_eq!(names(&["-no-echo", "-no-dataexchange", "-no-eventstream"], &[]), some);
        assert_eq!(names(&["-no-echo", "-no-eventstream"], &[1001]), some);
        assert_eq!(names(&["-no-plugins"], &[]), "");
    }

    #[test]
    fn single_keys_configure_plugins() {
        let shortcuts = |args: &[&str]| Setup::new(&config(args), None, &[]).shortcuts;
        assert_eq!(shortcuts(&[]), []);
        let webhook = json!({ "enabled": true, "config": { "url": "http://h/x" } });
        let limit = json!({ "config": { "max-bytes": 1 << 20 } });
        assert_eq!(
            shortcuts(&["-webhook", "http://h/x", "-max-received-bytes", "1M"]),
            [(WEBHOOK, webhook), (DATA_EXCHANGE, limit)]
        );
        assert_eq!(shortcuts(&["-max-received-bytes", "1M", "-no-dataexchange"]), []);
    }
}
