//! What a daemon can be told: [`RawConfig`] is what was given, [`Config`] what
//! it means.

mod keys;
mod networks;
mod raw;
mod values;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use pilot_host::Settings;
use pilot_tls::Pin;
use pilot_wire::ipc::Congestion;

use crate::plugins::DEFAULTS;

pub use keys::PROGRAM;
pub use networks::{Plaintext, Proof, WantedNetwork};
pub use raw::{ConfigError, Invocation, RawConfig};

/// Form of the logs on standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object per line.
    Json,
}

/// A checked configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Registry as host:port.
    pub registry: Option<String>,
    /// SHA-256 of the registry's certificate; none for no TLS.
    pub registry_pin: Option<Pin>,
    /// Networks to join and stay in.
    pub networks: Vec<WantedNetwork>,
    /// Whether the registry's words on networks can be changed on the way, and what
    /// is done about it.
    pub plaintext: Plaintext,
    /// Beacon as host:port.
    pub beacon: Option<String>,
    /// UDP address of tunnels.
    pub listen: SocketAddr,
    /// Endpoint to register without discovery, host:port.
    pub endpoint: Option<String>,
    /// Path of the driver socket.
    pub socket: PathBuf,
    /// Folder of received files and messages.
    pub data: PathBuf,
    /// Identity file.
    pub identity: PathBuf,
    /// Free text naming the owner.
    pub owner: String,
    /// Hostname to take; `None` leaves what was set last.
    pub hostname: Option<String>,
    /// Visibility; `None` leaves what was set last.
    pub public: Option<bool>,
    /// Whether every valid request for trust is granted.
    pub trust_auto_approve: bool,
    /// Time between heartbeats and stream probes.
    pub keepalive: Duration,
    /// Silence that ends a stream.
    pub idle_timeout: Duration,
    /// How long an ended stream answers.
    pub time_wait: Duration,
    /// SYNs per second in all.
    pub syn_rate: u32,
    /// SYNs per second from one node.
    pub syn_rate_per_node: u32,
    /// Streams per listening port.
    pub max_streams_per_port: usize,
    /// Streams in all.
    pub max_streams: usize,
    /// Threads that peers are spread over.
    pub workers: usize,
    /// Whether bulk streams may share memory with their clients.
    pub lanes: bool,
    /// How streams share a bottleneck unless their client says otherwise.
    pub congestion: Congestion,
    /// The file that it came from, which names plugins and scripts as well.
    pub config_file: Option<PathBuf>,
    /// What the file says of plugins and scripts.
    pub settings: Settings,
    /// Folders of the plugins that ship with Pilot; `None` for the usual ones.
    pub plugin_path: Option<Vec<PathBuf>>,
    /// Those of the shipped plugins that run without being named.
    pub default_plugins: Vec<&'static str>,
    /// Where events are delivered.
    pub webhook: Option<String>,
    /// Bytes that received files and messages may take; `None` is no limit.
    pub max_received_bytes: Option<u64>,
    /// TCP address of metrics.
    pub metrics_listen: Option<SocketAddr>,
    /// Least severe level that is logged.
    pub log_level: tracing::Level,
    /// Form of the logs.
    pub log_format: LogFormat,
}

/// Highest stream limits; more would not fit 16-bit ports.
const MAX_STREAMS: usize = 1 << 20;

impl TryFrom<&RawConfig> for Config {
    type Error = ConfigError;

    fn try_from(raw: &RawConfig) -> Result<Self, ConfigError> {
        refuse_unsupported(raw)?;
        let registry = raw.host_port("registry")?;
        let beacon = raw.host_port("beacon")?;
        let local = registry.iter().chain(&beacon).all(|address| values::is_loopback(address));
        let listen = raw.listen("listen")?;
        let default_listen = if local { [127, 0, 0, 1] } else { [0; 4] };
        let data = match raw.path("data")? {
            Some(data) => data,
            None => raw
                .home()
                .map(|home| home.join(".pilot"))
                .ok_or_else(|| raw.refuse("data", "is needed, since HOME is not set"))?,
        };
        let pin = registry_pin(raw)?;
        let safe = pin.is_some() || registry.iter().all(|address| values::is_loopback(address));
        let config = Self {
            registry_pin: pin,
            plaintext: plaintext(raw, safe)?,
            networks: raw.networks().to_vec(),
            listen: listen.unwrap_or_else(|| SocketAddr::from((default_listen, 0))),
            endpoint: raw.host_port("endpoint")?,
            socket: raw.path("socket")?.ok_or_else(|| raw.refuse("socket", "is empty"))?,
            identity: raw.path("identity")?.unwrap_or_else(|| data.join("identity.key")),
            data,
            owner: raw.text("owner").to_owned(),
            hostname: raw.is_given("hostname").then(|| raw.hostname("hostname")).transpose()?,
            public: raw.is_given("public").then(|| raw.flag("public")).transpose()?,
            trust_auto_approve: raw.flag("trust-auto-approve")?,
            keepalive: raw.duration("keepalive", Duration::from_secs(30))?,
            idle_timeout: raw.duration("idle-timeout", Duration::from_secs(120))?,
            time_wait: raw.duration("time-wait", Duration::from_secs(10))?,
            syn_rate: u32::try_from(raw.number("syn-rate-limit", 100, 1_000_000)?).unwrap_or(100),
            syn_rate_per_node: u32::try_from(raw.number("syn-rate-per-node", 100, 1_000_000)?)
                .unwrap_or(100),
            max_streams_per_port: raw.number("max-conns-per-port", 1024, MAX_STREAMS)?,
            max_streams: raw.number("max-conns-total", 4096, MAX_STREAMS)?,
            workers: raw.number("workers", 1, crate::workers::MAX_WORKERS)?,
            lanes: !raw.flag("no-lanes")?,
            congestion: raw.congestion("congestion")?,
            config_file: raw.file().map(PathBuf::from),
            settings: raw.settings().clone(),
            plugin_path: raw.paths("plugin-path")?,
            default_plugins: default_plugins(raw)?,
            webhook: raw.webhook("webhook")?,
            max_received_bytes: raw.bytes("max-received-bytes")?,
            metrics_listen: metrics(raw)?,
            log_level: raw.log_level("log-level")?,
            log_format: raw.log_format("log-format")?,
            registry,
            beacon,
        };
        if config.endpoint.as_deref().is_some_and(|e| e.ends_with(":0")) {
            return Err(raw.refuse("endpoint", "has port 0, which no peer can reach"));
        }
        Ok(config)
    }
}

/// Where metrics are served. They tell who speaks to whom, so other machines
/// get them only when that is asked for.
fn metrics(raw: &RawConfig) -> Result<Option<SocketAddr>, ConfigError> {
    let remote = raw.flag("metrics-allow-remote")?;
    let address = raw.listen("metrics-listen")?;
    match address {
        Some(address) if !address.ip().is_loopback() && !remote => {
            let problem = format!(
                "is {address}, which other machines may reach; use 127.0.0.1:{port}, or set \
                 metrics-allow-remote to true",
                port = address.port()
            );
            Err(raw.refuse("metrics-listen", problem))
        }
        _ => Ok(address),
    }
}

/// The shipped plugins that no key switches off.
fn default_plugins(raw: &RawConfig) -> Result<Vec<&'static str>, ConfigError> {
    let none = raw.flag("no-plugins")?;
    let mut names = Vec::new();
    for plugin in DEFAULTS {
        let off = plugin.switch.map(|key| raw.flag(key)).transpose()?.unwrap_or(false);
        if !none && !off {
            names.push(plugin.name);
        }
    }
    Ok(names)
}

fn refuse_unsupported(raw: &RawConfig) -> Result<(), ConfigError> {
    if !raw.flag("encrypt")? {
        let problem = "is false, but tunnels are always encrypted here; remove the key";
        return Err(raw.refuse("encrypt", problem));
    }
    Ok(())
}

/// The certificate that the registry must show. A fingerprint without TLS would
/// look like protection and be none.
fn registry_pin(raw: &RawConfig) -> Result<Option<Pin>, ConfigError> {
    const FINGERPRINT: &str = "registry-fingerprint";
    let text = raw.text(FINGERPRINT);
    match (raw.flag("registry-tls")?, text.is_empty()) {
        (false, true) => Ok(None),
        (false, false) => {
            let problem = "is given, but registry-tls is not true; set it, or remove the key";
            Err(raw.refuse(FINGERPRINT, problem))
        }
        (true, true) => {
            let problem = "is true, but registry-fingerprint is missing: without it anybody could \
                           be the registry. The registry prints its fingerprint when it starts \
                           (SHA-256 of its certificate in hex)";
            Err(raw.refuse("registry-tls", problem))
        }
        (true, false) => text.parse().map(Some).map_err(|e| raw.refuse(FINGERPRINT, e)),
    }
}

/// What is done about networks of a registry that is not `safe`.
fn plaintext(raw: &RawConfig, safe: bool) -> Result<Plaintext, ConfigError> {
    const KEY: &str = "networks-over-plaintext";
    match raw.text(KEY) {
        "warn" | "refuse" if safe => Ok(Plaintext::Fine),
        "warn" => Ok(Plaintext::Warn),
        "refuse" => Ok(Plaintext::Refuse),
        other => Err(raw.refuse(KEY, format!("is {other:?}, which is neither warn nor refuse"))),
    }
}

#[cfg(test)]
mod tests;
