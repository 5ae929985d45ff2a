//! What a registry can be told.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pilot_beacon::settings::{Key, Program, Settings, SettingsError};

const STORE: Key = Key::value("store", "", "state file; empty = state is lost at the end");
const TLS: [Key; 3] = [
    Key::switch("tls", "not available yet"),
    Key::value("tls-cert", "", "not available yet"),
    Key::value("tls-key", "", "not available yet"),
];
const RATE: Key =
    Key::value("register-rate", "10", "registrations a minute and source address; 0 = any number");
const CONNECTIONS: Key = Key::value("max-connections", "4096", "connections at a time");
const DATA: Key = Key::value(
    "data",
    "",
    "folder of events and of what plugins keep [the folder of store; without either no plugins]",
);
const PLUGIN_PATH: Key = Key::value(
    "plugin-path",
    "",
    "folders of the plugins that ship with Pilot, separated by : [beside the program]",
);
const OWNER: Key = Key::value(
    "owner-recovery",
    "off",
    "off, or published: a known owner text alone takes over a node with a new key",
);

/// The `pilot-registry` program and its keys.
pub const REGISTRY: Program = Program {
    name: "pilot-registry",
    about: "Assigns addresses and names, and keeps trust pairs.",
    env_prefix: "PILOT_REGISTRY_",
    keys: &[
        Key::value("addr", "127.0.0.1:9000", "TCP address to serve; :PORT means every interface"),
        STORE,
        Key::value("admin-token", "", "taken as published; network requests are refused anyway"),
        Key::value("beacon", "", "taken as published, not used"),
        RATE,
        OWNER,
        CONNECTIONS,
        DATA,
        PLUGIN_PATH,
        TLS[0],
        TLS[1],
        TLS[2],
    ],
    nested: pilot_host::Settings::KEYS,
};

/// The `pilot-rendezvous` program and its keys.
pub const RENDEZVOUS: Program = Program {
    name: "pilot-rendezvous",
    about: "A registry and a beacon in one process.",
    env_prefix: "PILOT_RENDEZVOUS_",
    keys: &[
        Key::value("registry-addr", "127.0.0.1:9000", "TCP address of the registry"),
        Key::value("beacon-addr", "127.0.0.1:9001", "UDP address of the beacon"),
        STORE,
        RATE,
        OWNER,
        CONNECTIONS,
        DATA,
        PLUGIN_PATH,
        Key::value("http", "", "not available yet"),
        Key::value("standby", "", "not available yet"),
        TLS[0],
        TLS[1],
        TLS[2],
    ],
    nested: pilot_host::Settings::KEYS,
};

/// Why a configuration is refused; the text names the place.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A key of the registry's own.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// What the file says of plugins or scripts.
    #[error(transparent)]
    Plugins(#[from] pilot_host::SettingsError),
}

/// A checked configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// TCP address to serve.
    pub addr: String,
    /// The flag that `addr` came from, for messages.
    pub addr_key: &'static str,
    /// State file; `None` keeps the state in memory only.
    pub store: Option<PathBuf>,
    /// Registrations a minute and source address; 0 is any number.
    pub register_rate: u32,
    /// Whether a known owner text alone takes over a node, as published.
    pub owner_recovery: bool,
    /// Most connections at a time; further ones are closed at once.
    pub max_connections: usize,
    /// A connection without a complete request for so long is closed.
    pub idle: Duration,
    /// A node not heard of for so long is removed.
    pub node_ttl: Duration,
    /// Time between looks for such nodes.
    pub reap_interval: Duration,
    /// Folder of events and of what plugins keep; `None` for that of the store.
    pub data: Option<PathBuf>,
    /// Folders of the plugins that ship with Pilot; `None` for the usual ones.
    pub plugin_path: Option<Vec<PathBuf>>,
    /// What the file says of plugins and scripts.
    pub plugins: pilot_host::Settings,
    /// The file that it came from.
    pub config_file: Option<PathBuf>,
}

impl Config {
    /// Defaults, in memory, at `addr`.
    pub fn at(addr: impl Into<String>) -> Self {
        Self {
            addr: addr.into(),
            addr_key: "addr",
            store: None,
            register_rate: 10,
            owner_recovery: false,
            max_connections: 4096,
            idle: Duration::from_secs(300),
            node_ttl: Duration::from_secs(180),
            reap_interval: Duration::from_secs(60),
            data: None,
            plugin_path: None,
            plugins: pilot_host::Settings::default(),
            config_file: None,
        }
    }

    /// Folder of events and of what plugins keep. None when there is no place
    /// for one, or when nothing could ever name a plugin: no file that may come
    /// to do so, no folder to drop one into.
    pub fn plugin_folder(&self) -> Option<PathBuf> {
        if self.data.is_some() {
            return self.data.clone();
        }
        if self.config_file.is_none() && !self.needs_plugins() {
            return None;
        }
        let folder = self.store.as_ref()?.parent().unwrap_or(Path::new(""));
        Some(if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder.to_owned() })
    }

    /// Whether somebody relies on plugins: without them the registry does not
    /// start.
    pub fn needs_plugins(&self) -> bool {
        self.data.is_some() || self.first_plugin_key().is_some()
    }

    /// A key that says something of plugins.
    pub(crate) fn first_plugin_key(&self) -> Option<&'static str> {
        let plugins = &self.plugins;
        let said = [
            !plugins.plugins.is_empty(),
            !plugins.scripts.is_empty(),
            !plugins.plugin_dirs.is_empty(),
            !plugins.script_dirs.is_empty(),
            !plugins.trusted_keys.is_empty(),
        ];
        pilot_host::Settings::KEYS.iter().zip(said).find(|(_, said)| *said).map(|(key, _)| *key)
    }

    /// Reads the registry's part of the rendezvous keys.
    ///
    /// # Errors
    /// When a value is refused.
    pub fn for_rendezvous(settings: &Settings) -> Result<Self, ConfigError> {
        for key in ["http", "standby"] {
            refuse_if_set(settings, key)?;
        }
        Self::read(settings, "registry-addr")
    }

    fn read(settings: &Settings, addr_key: &'static str) -> Result<Self, ConfigError> {
        for key in ["tls-cert", "tls-key"] {
            refuse_if_set(settings, key)?;
        }
        if settings.flag("tls")? {
            return Err(settings.refuse("tls", "is not available yet; leave it out").into());
        }
        let max_connections = settings.parse("max-connections", "a number from 1")?;
        if max_connections == 0 {
            return Err(settings
                .refuse("max-connections", "is 0, expected a number from 1")
                .into());
        }
        let path = |key| Some(settings.text(key)).filter(|s| !s.is_empty()).map(PathBuf::from);
        let plugins = match settings.file() {
            Some((file, text)) => pilot_host::Settings::parse(text, file)?,
            None => pilot_host::Settings::default(),
        };
        Ok(Self {
            addr_key,
            store: path("store"),
            data: path("data"),
            plugin_path: Some(settings.text("plugin-path")).filter(|s| !s.is_empty()).map(folders),
            plugins,
            config_file: settings.file().map(|(file, _)| file.to_owned()),
            register_rate: settings.parse("register-rate", "a number, 0 for no limit")?,
            owner_recovery: match settings.text("owner-recovery") {
                "off" => false,
                "published" => true,
                other => {
                    let problem = format!("is {other:?}, expected off or published");
                    return Err(settings.refuse("owner-recovery", problem).into());
                }
            },
            max_connections,
            ..Self::at(settings.address(addr_key)?)
        })
    }
}

impl TryFrom<&Settings> for Config {
    type Error = ConfigError;

    fn try_from(settings: &Settings) -> Result<Self, ConfigError> {
        Self::read(settings, "addr")
    }
}

/// Folders with colons between them.
fn folders(text: &str) -> Vec<PathBuf> {
    text.split(':').map(str::trim).filter(|f| !f.is_empty()).map(PathBuf::from).collect()
}

fn refuse_if_set(settings: &Settings, key: &str) -> Result<(), SettingsError> {
    if settings.text(key).is_empty() {
        return Ok(());
    }
    Err(settings.refuse(key, "is not available yet; leave it out"))
}

#[cfg(test)]
mod tests {
    use pilot_beacon::settings::Invocation;

    use super::*;

    fn read(program: &Program, args: &[&str]) -> Result<Config, ConfigError> {
        let args = args.iter().map(|a| (*a).to_owned());
        let Invocation::Run(settings) = Settings::load(program, args, |_| None)? else {
            panic!("nothing to run");
        };
        if program.name == RENDEZVOUS.name {
            Config::for_rendezvous(&settings)
        } else {
            Config::try_from(&settings)
        }
    }

    #[test]
    fn both_programs_take_what_a_file_says_of_plugins() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.yaml");
        let file = path.to_str().unwrap();
        let text = "register-rate: 3\nplugin_dirs: [plugins]\nplugin-path: /a:/b\n\
                    plugins:\n  gate:\n    isolation: process\n";
        std::fs::write(&path, text).unwrap();
        for program in [&REGISTRY, &RENDEZVOUS] {
            let config = read(program, &["-config", file, "-store", "/var/r.db"]).unwrap();
            assert_eq!(config.register_rate, 3);
            assert_eq!(config.plugins.plugin_dirs, [dir.path().join("plugins")]);
            assert!(config.plugins.plugins.contains_key("gate"));
            assert_eq!(config.plugin_path, Some(vec!["/a".into(), "/b".into()]));
            assert_eq!(config.config_file.as_deref(), Some(path.as_path()));
            assert_eq!(config.plugin_folder(), Some("/var".into()));
            assert_eq!(config.first_plugin_key(), Some("plugins"));
        }
        std::fs::write(&path, "addr: :1\nplugins:\n  gate:\n    isolatoin: process\n").unwrap();
        let refused = read(&REGISTRY, &["-config", file]).unwrap_err().to_string();
        assert!(
            refused.contains("c.yaml line 4") && refused.contains("did you mean isolation?"),
            "{refused}"
        );
    }

    #[test]
    fn plugins_have_a_folder_when_there_is_a_place() {
        let folder = |args: &[&str]| read(&REGISTRY, args).unwrap().plugin_folder();
        assert_eq!(folder(&[]), None);
        // Nothing could ever name a plugin.
        assert_eq!(folder(&["-store", "/var/r.db"]), None);
        assert_eq!(folder(&["-store", "/var/r.db", "-data", "/d"]), Some("/d".into()));
        assert_eq!(folder(&["-data", "/d"]), Some("/d".into()));
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.yaml");
        std::fs::write(&file, "").unwrap();
        let file = file.to_str().unwrap();
        assert_eq!(folder(&["-config", file]), None);
        assert_eq!(folder(&["-config", file, "-store", "r.db"]), Some(".".into()));
        let config = read(&REGISTRY, &["-config", file, "-store", "r.db"]).unwrap();
        assert!(!config.needs_plugins());
        assert!(read(&REGISTRY, &["-data", "/d"]).unwrap().needs_plugins());
    }
}
