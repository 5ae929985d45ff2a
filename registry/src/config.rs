//! What a registry can be told.

use std::path::PathBuf;
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
        TLS[0],
        TLS[1],
        TLS[2],
    ],
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
        Key::value("http", "", "not available yet"),
        Key::value("standby", "", "not available yet"),
        TLS[0],
        TLS[1],
        TLS[2],
    ],
};

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
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
        }
    }

    /// Reads the registry's part of the rendezvous keys.
    ///
    /// # Errors
    /// When a value is refused.
    pub fn for_rendezvous(settings: &Settings) -> Result<Self, SettingsError> {
        for key in ["http", "standby"] {
            refuse_if_set(settings, key)?;
        }
        Self::read(settings, "registry-addr")
    }

    fn read(settings: &Settings, addr_key: &'static str) -> Result<Self, SettingsError> {
        for key in ["tls-cert", "tls-key"] {
            refuse_if_set(settings, key)?;
        }
        if settings.flag("tls")? {
            return Err(settings.refuse("tls", "is not available yet; leave it out"));
        }
        let max_connections = settings.parse("max-connections", "a number from 1")?;
        if max_connections == 0 {
            return Err(settings.refuse("max-connections", "is 0, expected a number from 1"));
        }
        Ok(Self {
            addr_key,
            store: Some(settings.text("store")).filter(|s| !s.is_empty()).map(PathBuf::from),
            register_rate: settings.parse("register-rate", "a number, 0 for no limit")?,
            owner_recovery: match settings.text("owner-recovery") {
                "off" => false,
                "published" => true,
                other => {
                    let problem = format!("is {other:?}, expected off or published");
                    return Err(settings.refuse("owner-recovery", problem));
                }
            },
            max_connections,
            ..Self::at(settings.address(addr_key)?)
        })
    }
}

impl TryFrom<&Settings> for Config {
    type Error = SettingsError;

    fn try_from(settings: &Settings) -> Result<Self, SettingsError> {
        Self::read(settings, "addr")
    }
}

fn refuse_if_set(settings: &Settings, key: &str) -> Result<(), SettingsError> {
    if settings.text(key).is_empty() {
        return Ok(());
    }
    Err(settings.refuse(key, "is not available yet; leave it out"))
}
