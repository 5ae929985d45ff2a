//! What a beacon can be told.

use std::time::Duration;

use crate::settings::{Key, Program, Settings, SettingsError};

/// Most peer beacons; further ones from a registry are left out, further
/// configured ones are an error.
pub const MAX_PEERS: usize = 64;

/// The `pilot-beacon` program and its keys.
pub const PROGRAM: Program = Program {
    name: "pilot-beacon",
    about: "Tells nodes their public endpoint, introduces them and relays between them.",
    env_prefix: "PILOT_BEACON_",
    keys: &[
        Key::value("addr", "127.0.0.1:9001", "UDP address to serve; :PORT means every interface"),
        Key::value("beacon-id", "0", "number of this beacon among its peers"),
        Key::value("peers", "", "peer beacons, host:port, comma separated"),
        Key::value("health", "", "TCP address that answers GET /healthz; empty = none"),
        Key::value("registry", "", "registry that lists peer beacons; needs -beacon-id"),
    ],
    nested: &[],
};

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// UDP address to serve.
    pub addr: String,
    /// Number among peers; 0 = none.
    pub beacon_id: u32,
    /// Peer beacons as host:port.
    pub peers: Vec<String>,
    /// Address of the health endpoint.
    pub health: Option<String>,
    /// Registry that lists peers.
    pub registry: Option<String>,
    /// Time between syncs to each peer.
    pub gossip: Duration,
}

/// Published time between syncs.
const GOSSIP_INTERVAL: Duration = Duration::from_secs(10);

impl Config {
    /// A beacon without peers at `addr`.
    pub fn at(addr: impl Into<String>) -> Self {
        Self {
            addr: addr.into(),
            beacon_id: 0,
            peers: Vec::new(),
            health: None,
            registry: None,
            gossip: GOSSIP_INTERVAL,
        }
    }
}

impl TryFrom<&Settings> for Config {
    type Error = SettingsError;

    fn try_from(settings: &Settings) -> Result<Self, SettingsError> {
        let peers = settings.list("peers");
        if peers.len() > MAX_PEERS {
            return Err(settings.refuse("peers", format!("names more than {MAX_PEERS} beacons")));
        }
        let config = Self {
            addr: settings.address("addr")?,
            beacon_id: settings.parse("beacon-id", "a number from 0 to 4294967295")?,
            peers,
            health: settings.optional_address("health")?,
            registry: settings.optional_address("registry")?,
            gossip: GOSSIP_INTERVAL,
        };
        if config.registry.is_some() && config.beacon_id == 0 {
            return Err(settings.refuse("registry", "needs a -beacon-id other than 0"));
        }
        Ok(config)
    }
}
