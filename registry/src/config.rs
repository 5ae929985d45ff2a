//! What a registry can be told.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pilot_beacon::settings::{Key, Program, Settings, SettingsError};

const STORE: Key = Key::value("store", "", "state file; empty = state is lost at the end");
const TLS: [Key; 3] = [
    Key::switch("tls", "serve TLS; without tls-cert with a self-signed certificate that is kept"),
    Key::value("tls-cert", "", "PEM file of the certificate chain"),
    Key::value("tls-key", "", "PEM file of its private key"),
];
const HTTP: Key =
    Key::value("http", "", "TCP address of dashboard, metrics and administration; empty = none");
const ADMIN: [Key; 2] = [
    Key::value("admin-token", "", "who shows it is an administrator; at least 16 characters"),
    Key::value("admin-ca", "", "PEM file: who has a certificate of this CA is an administrator"),
];
const NETWORK_CREATION: Key =
    Key::value("network-creation", "admin", "who may make networks: admin, or any node");
const AUDIT: [Key; 2] = [
    Key::value("audit-days", "0", "days that audit records are kept; 0 = for ever"),
    Key::value("audit-megabytes", "0", "size of the audit log at most; 0 = any"),
];
const RATE: Key =
    Key::value("register-rate", "10", "registrations a minute and source address; 0 = any number");
const CONNECTIONS: Key = Key::value(
    "max-connections",
    "65536",
    "connections at a time, as far as the system allows open files",
);
const DATA: Key = Key::value(
    "data",
    "",
    "folder of events and of what plugins keep [the folder of store; without either a temporary one]",
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
        Key::value("beacon", "", "taken as published, not used"),
        ADMIN[0],
        ADMIN[1],
        NETWORK_CREATION,
        AUDIT[0],
        AUDIT[1],
        HTTP,
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
        HTTP,
        ADMIN[0],
        ADMIN[1],
        NETWORK_CREATION,
        AUDIT[0],
        AUDIT[1],
        Key::value("standby", "", "not available yet"),
        TLS[0],
        TLS[1],
        TLS[2],
    ],
    nested: pilot_host::Settings::KEYS,
};

/// Shortest admin token, in bytes.
const MIN_ADMIN_TOKEN: usize = 16;

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
    /// Most connections at a time, as far as the system allows open files;
    /// further ones are closed at once.
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
    /// TLS for the registry's own port.
    pub tls: Option<TlsFiles>,
    /// TCP address of the admin HTTP server.
    pub http: Option<String>,
    /// Who shows it is an administrator.
    pub admin_token: Option<String>,
    /// Who has a certificate of this CA is an administrator.
    pub admin_ca: Option<PathBuf>,
    /// Whether any registered node may make networks.
    pub any_node_makes_networks: bool,
    /// How long audit records are kept; none for ever.
    pub audit_age: Option<Duration>,
    /// Size of the audit log at most, in bytes; none for any.
    pub audit_bytes: Option<u64>,
}

/// Where the certificate comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate chain and key, PEM; none for a self-signed one, which is
    /// kept in the folder of the store.
    pub pem: Option<(PathBuf, PathBuf)>,
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
            max_connections: 65_536,
            idle: Duration::from_secs(300),
            node_ttl: Duration::from_secs(180),
            reap_interval: Duration::from_secs(60),
            data: None,
            plugin_path: None,
            plugins: pilot_host::Settings::default(),
            config_file: None,
            tls: None,
            http: None,
            admin_token: None,
            admin_ca: None,
            any_node_makes_networks: false,
            audit_age: None,
            audit_bytes: None,
        }
    }

    /// Folder of events and of what plugins keep: `data`, or that of the store.
    /// None for a registry that keeps nothing, whose plugins keep nothing
    /// either.
    pub fn plugin_folder(&self) -> Option<PathBuf> {
        if self.data.is_some() {
            return self.data.clone();
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
        refuse_if_set(settings, "standby")?;
        Self::read(settings, "registry-addr")
    }

    fn read(settings: &Settings, addr_key: &'static str) -> Result<Self, ConfigError> {
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
            tls: tls(settings)?,
            http: settings.optional_address("http")?,
            admin_token: admin_token(settings)?,
            admin_ca: admin_ca(settings)?,
            any_node_makes_networks: match settings.text("network-creation") {
                "admin" => false,
                "any" => true,
                other => {
                    let problem = format!("is {other:?}, expected admin or any");
                    return Err(settings.refuse("network-creation", problem).into());
                }
            },
            audit_age: Some(settings.parse::<u32>("audit-days", "a number of days")?)
                .filter(|days| *days > 0)
                .map(|days| Duration::from_secs(86_400 * u64::from(days))),
            audit_bytes: Some(settings.parse::<u32>("audit-megabytes", "a number")?)
                .filter(|megabytes| *megabytes > 0)
                .map(|megabytes| u64::from(megabytes) << 20),
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

fn tls(settings: &Settings) -> Result<Option<TlsFiles>, SettingsError> {
    let (cert, key) = (settings.text("tls-cert"), settings.text("tls-key"));
    if !settings.flag("tls")? {
        let unused = [("tls-cert", cert), ("tls-key", key)];
        return match unused.into_iter().find(|(_, value)| !value.is_empty()) {
            Some((name, _)) => Err(settings.refuse(name, "is set, but tls is not; set tls")),
            None => Ok(None),
        };
    }
    match (cert.is_empty(), key.is_empty()) {
        (true, true) => Ok(Some(TlsFiles { pem: None })),
        (false, false) => Ok(Some(TlsFiles { pem: Some((cert.into(), key.into())) })),
        (true, false) => Err(settings.refuse("tls-key", "is set without tls-cert")),
        (false, true) => Err(settings.refuse("tls-cert", "is set without tls-key")),
    }
}

fn admin_token(settings: &Settings) -> Result<Option<String>, SettingsError> {
    let token = settings.text("admin-token");
    match token.len() {
        0 => Ok(None),
        1..MIN_ADMIN_TOKEN => Err(settings.refuse(
            "admin-token",
            format!("has {} characters, expected at least {MIN_ADMIN_TOKEN}", token.len()),
        )),
        _ => Ok(Some(token.to_owned())),
    }
}

/// Certificates are shown over TLS, and only the administration asks for them.
fn admin_ca(settings: &Settings) -> Result<Option<PathBuf>, SettingsError> {
    let path = settings.text("admin-ca");
    if path.is_empty() {
        return Ok(None);
    }
    for (needed, is_set) in
        [("http", !settings.text("http").trim().is_empty()), ("tls", settings.flag("tls")?)]
    {
        if !is_set {
            let problem = format!("is set, but {needed} is not; set {needed}");
            return Err(settings.refuse("admin-ca", problem));
        }
    }
    Ok(Some(path.into()))
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
    fn the_administration_is_checked() {
        let config = |args: &[&str]| read(&REGISTRY, args);
        let refused = |args: &[&str]| config(args).unwrap_err().to_string();
        assert!(refused(&["-http", "9000"]).contains("-http"));
        assert!(refused(&["-admin-token", "short"]).contains("at least 16"));
        assert!(refused(&["-admin-ca", "ca.pem"]).contains("set http"));
        assert!(refused(&["-admin-ca", "ca.pem", "-http", ":1"]).contains("set tls"));
        let args =
            ["-admin-ca", "ca.pem", "-http", ":1", "-tls", "-admin-token", "0123456789abcdef"];
        let config = config(&args).unwrap();
        assert_eq!(config.http.as_deref(), Some(":1"));
        assert_eq!(config.tls, Some(TlsFiles { pem: None }));
    }

    #[test]
    fn plugins_have_a_folder_when_there_is_a_place() {
        let folder = |args: &[&str]| read(&REGISTRY, args).unwrap().plugin_folder();
        assert_eq!(folder(&[]), None);
        assert_eq!(folder(&["-store", "/var/r.db"]), Some("/var".into()));
        assert_eq!(folder(&["-store", "r.db"]), Some(".".into()));
        assert_eq!(folder(&["-store", "/var/r.db", "-data", "/d"]), Some("/d".into()));
        assert_eq!(folder(&["-data", "/d"]), Some("/d".into()));
        assert!(!read(&REGISTRY, &["-store", "r.db"]).unwrap().needs_plugins());
        assert!(read(&REGISTRY, &["-data", "/d"]).unwrap().needs_plugins());
    }
}
