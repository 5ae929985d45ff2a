//! A registry, a beacon and daemons, each with its own folder.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use pilot_sdk::Client;
use pilot_wire::NodeId;
use serde_json::Value;
use tempfile::TempDir;

use super::process::{Process, command};

/// How long a condition may take to come true. Generous, since it only costs
/// time when something is broken.
const CONDITION_LIMIT: Duration = Duration::from_secs(30);
/// How often a condition is looked at.
const CONDITION_POLL: Duration = Duration::from_millis(20);
/// Environment variable with the number of workers of every daemon that is not
/// told another, to run any test with several.
const WORKERS: &str = "PILOT_TEST_WORKERS";
/// Name of a daemon's config file in its folder.
const CONFIG: &str = "daemon.yaml";
/// Name of the folder with the scripts of the registry.
const SCRIPTS: &str = "registry-scripts";
/// How long a program may take to end when asked.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// Asks until there is an answer.
///
/// # Errors
/// When there is none after half a minute; the text says what was waited for.
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + CONDITION_LIMIT;
    loop {
        if let Some(answer) = ask().await {
            return Ok(answer);
        }
        if Instant::now() >= deadline {
            bail!("waited {} s for {what}", CONDITION_LIMIT.as_secs());
        }
        tokio::time::sleep(CONDITION_POLL).await;
    }
}

/// What a registry is told beside where it listens and keeps its state.
#[derive(Clone, Debug, Default)]
pub struct RegistryOptions {
    settings: Vec<(String, String)>,
    /// Names and texts.
    scripts: Vec<(String, String)>,
}

impl RegistryOptions {
    /// As a network has it that is not told another.
    pub fn new() -> Self {
        Self::default().set("register-rate", "0")
    }

    /// Sets a key of the registry, or replaces it.
    #[must_use]
    pub fn set(mut self, key: &str, value: &str) -> Self {
        self.settings.retain(|(k, _)| k != key);
        self.settings.push((key.to_owned(), value.to_owned()));
        self
    }

    /// With an administrator, whose token is [`ADMIN_TOKEN`].
    #[must_use]
    pub fn with_admin(self) -> Self {
        self.set("admin-token", ADMIN_TOKEN)
    }

    /// With the admin HTTP server, on a free port; the ready line has it as
    /// `http`.
    #[must_use]
    pub fn with_http(self) -> Self {
        self.set("http", "127.0.0.1:0")
    }

    /// With TLS and a certificate of its own. Daemons of the network pin it.
    #[must_use]
    pub fn with_tls(self) -> Self {
        self.set("tls", "true")
    }

    /// With a script, such as `NAME.lua` for a join rule `NAME`.
    #[must_use]
    pub fn script(mut self, file: &str, text: &str) -> Self {
        self.scripts.push((file.to_owned(), text.to_owned()));
        self
    }
}

/// The token of [`RegistryOptions::with_admin`].
pub const ADMIN_TOKEN: &str = "the token of the tests' administrator";

/// A registry with a store, a beacon, and a folder for whatever joins them.
pub struct Network {
    folder: TempDir,
    registry: Process,
    registry_addr: String,
    registry_options: RegistryOptions,
    beacon: Process,
    beacon_addr: String,
}

impl Network {
    /// Starts a registry and a beacon on free ports.
    ///
    /// # Errors
    /// When a program is not built or does not start.
    pub fn start() -> Result<Self> {
        Self::start_with(RegistryOptions::new())
    }

    /// The same with a registry that is told more.
    ///
    /// # Errors
    /// When a program is not built or does not start.
    pub fn start_with(registry_options: RegistryOptions) -> Result<Self> {
        // Short, because the path of a Unix socket may have 107 bytes.
        let folder = tempfile::Builder::new().prefix("pilot-").tempdir()?;
        let registry = start_registry(folder.path(), "127.0.0.1:0", &registry_options)?;
        let registry_addr = registry.ready_text("addr")?.to_owned();
        let mut beacon = command("pilot-beacon")?;
        beacon.args(["-addr", "127.0.0.1:0"]);
        let beacon = Process::start("pilot-beacon", beacon, &folder.path().join("beacon.log"))?;
        let beacon_addr = beacon.ready_text("addr")?.to_owned();
        Ok(Self { folder, registry, registry_addr, registry_options, beacon, beacon_addr })
    }

    /// The folder that holds everything; gone when this is dropped.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where the registry listens.
    pub fn registry_addr(&self) -> &str {
        &self.registry_addr
    }

    /// Where the beacon listens.
    pub fn beacon_addr(&self) -> &str {
        &self.beacon_addr
    }

    /// The registry's process.
    pub fn registry(&mut self) -> &mut Process {
        &mut self.registry
    }

    /// The beacon's process.
    pub fn beacon(&mut self) -> &mut Process {
        &mut self.beacon
    }

    /// Ends the registry without warning.
    pub fn kill_registry(&mut self) {
        self.registry.kill();
    }

    /// Starts the registry again at the same address, from its store.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart_registry(&mut self) -> Result<()> {
        self.registry.kill();
        let options = &self.registry_options;
        self.registry = start_registry(self.folder.path(), &self.registry_addr, options)?;
        Ok(())
    }

    /// What the registry was told.
    pub fn registry_options(&self) -> &RegistryOptions {
        &self.registry_options
    }

    /// The registry's certificate, if it serves TLS.
    pub fn fingerprint(&self) -> Option<&str> {
        self.registry.ready_text("fingerprint").ok()
    }

    /// Where the registry's admin HTTP server listens.
    ///
    /// # Errors
    /// When it has none.
    pub fn http_addr(&self) -> Result<&str> {
        self.registry.ready_text("http")
    }

    /// Options of a daemon that joins here, as `name`.
    pub fn options(&self, name: &str) -> DaemonOptions {
        let options = DaemonOptions::new(name, &self.registry_addr, &self.beacon_addr);
        match self.fingerprint() {
            Some(pin) => options.set("registry-tls", "true").set("registry-fingerprint", pin),
            None => options,
        }
    }

    /// Starts a daemon and waits until it has joined.
    ///
    /// # Errors
    /// When it does not.
    pub async fn daemon(&self, name: &str) -> Result<Daemon> {
        self.daemon_with(self.options(name)).await
    }

    /// Starts a daemon with these options and waits until it has joined.
    ///
    /// # Errors
    /// When it does not.
    pub async fn daemon_with(&self, options: DaemonOptions) -> Result<Daemon> {
        let daemon = Daemon::start(self.folder.path(), options)?;
        daemon.joined().await?;
        Ok(daemon)
    }

    /// Two daemons, `agent-a` and `agent-b`, that trust each other.
    ///
    /// # Errors
    /// When they cannot be brought that far.
    pub async fn pair(&self) -> Result<(Daemon, Daemon)> {
        self.pair_with(&[]).await
    }

    /// The same with further settings for both.
    ///
    /// # Errors
    /// When they cannot be brought that far.
    pub async fn pair_with(&self, settings: &[(&str, &str)]) -> Result<(Daemon, Daemon)> {
        let start = |name| {
            let mut options = self.options(name);
            for (key, value) in settings {
                options = options.set(key, value);
            }
            Daemon::start(self.folder.path(), options)
        };
        let (a, b) = (start("agent-a")?, start("agent-b")?);
        a.joined().await?;
        b.joined().await?;
        establish_trust(&a, &b).await?;
        Ok((a, b))
    }
}

fn start_registry(folder: &Path, addr: &str, options: &RegistryOptions) -> Result<Process> {
    let mut registry = command("pilot-registry")?;
    registry.args(["-addr", addr, "-store"]).arg(folder.join("registry.db"));
    if !options.scripts.is_empty() {
        let scripts = folder.join(SCRIPTS);
        for (file, text) in &options.scripts {
            super::install(&scripts, file, text.as_bytes())?;
        }
        let config = folder.join("registry.yaml");
        // JSON is YAML.
        let settings = serde_json::json!({"script-dirs": [scripts]});
        fs::write(&config, settings.to_string())?;
        registry.arg("-config").arg(config);
    }
    // As a switch wants it, and in one word as a value that begins with a dash.
    registry.args(options.settings.iter().map(|(key, value)| format!("-{key}={value}")));
    Process::start("pilot-registry", registry, &folder.join("registry.log"))
}

/// The settings of a daemon, as they go into its config file.
#[derive(Clone, Debug)]
pub struct DaemonOptions {
    name: String,
    program: String,
    settings: Vec<(String, String)>,
    /// Lines of the config file below the settings.
    more: String,
    environment: Vec<(String, String)>,
}

impl DaemonOptions {
    /// A daemon called `name` with a registry and a beacon.
    pub fn new(name: &str, registry: &str, beacon: &str) -> Self {
        let options = Self {
            name: name.to_owned(),
            program: "pilot-daemon".to_owned(),
            settings: Vec::new(),
            more: String::new(),
            environment: Vec::new(),
        };
        // A second instead of half a minute between heartbeats, which is also
        // when requests for trust are fetched.
        let options = match std::env::var(WORKERS) {
            Ok(workers) => options.set("workers", &workers),
            Err(_) => options,
        };
        options
            .set("registry", registry)
            .set("beacon", beacon)
            .set("hostname", name)
            .set("listen", "127.0.0.1:0")
            .set("keepalive", "1s")
    }

    /// Runs another program in place of the daemon's own.
    #[must_use]
    pub fn program(mut self, name: &str) -> Self {
        name.clone_into(&mut self.program);
        self
    }

    /// Sets a key of the config file, or replaces it.
    #[must_use]
    pub fn set(mut self, key: &str, value: &str) -> Self {
        self.settings.retain(|(k, _)| k != key);
        self.settings.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Adds lines to the config file, for what is more than a key and a value.
    #[must_use]
    pub fn lines(mut self, yaml: &str) -> Self {
        yaml.clone_into(&mut self.more);
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The value of a key, if it was set.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.settings.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    fn yaml(&self) -> Result<String> {
        let mut yaml = String::new();
        for (key, value) in &self.settings {
            // JSON strings are YAML strings; numbers and booleans stay bare.
            let bare = value.parse::<f64>().is_ok() || matches!(value.as_str(), "true" | "false");
            let value = if bare { value.clone() } else { Value::from(value.as_str()).to_string() };
            writeln!(yaml, "{key}: {value}")?;
        }
        yaml.push_str(&self.more);
        Ok(yaml)
    }

    /// Lifts every limit on streams, for load.
    #[must_use]
    pub fn without_limits(mut self) -> Self {
        for (key, value) in LIFTED {
            self = self.set(key, value);
        }
        self
    }
}

/// Settings that lift the limits on streams.
pub const LIFTED: [(&str, &str); 5] = [
    ("syn-rate-limit", "1000000"),
    ("syn-rate-per-node", "1000000"),
    ("max-conns-per-port", "60000"),
    ("max-conns-total", "60000"),
    ("time-wait", "1s"),
];

/// A daemon with its own folder. Dropping it kills it; the folder stays until
/// the network's is removed, so that it can be started again.
pub struct Daemon {
    /// Its name, hostname and folder name.
    pub name: String,
    /// Its folder.
    pub home: PathBuf,
    /// Its driver socket.
    pub socket: PathBuf,
    /// Its process.
    pub process: Process,
    options: DaemonOptions,
}

impl Daemon {
    /// Starts a daemon below `folder` and waits until it serves its socket; it
    /// need not have joined yet.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(folder: &Path, options: DaemonOptions) -> Result<Self> {
        let home = folder.join(&options.name);
        fs::create_dir_all(&home)?;
        let socket = home.join("pilot.sock");
        let process = launch(&home, &socket, &options)?;
        Ok(Self { name: options.name.clone(), home, socket, process, options })
    }

    /// Starts it again with the same folder, after it has ended.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_again(&mut self) -> Result<()> {
        self.process.kill();
        self.process = launch(&self.home, &self.socket, &self.options)?;
        Ok(())
    }

    /// Changes a setting; it counts from the next start.
    pub fn set(&mut self, key: &str, value: &str) {
        self.options = self.options.clone().set(key, value);
    }

    /// Writes its config file with other lines below the settings, as an editor
    /// does: beside it, then renamed. Plugins take it at once, the rest at the
    /// next start.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn configure(&mut self, yaml: &str) -> Result<()> {
        self.options = self.options.clone().lines(yaml);
        let new = self.home.join("daemon.yaml.new");
        fs::write(&new, self.options.yaml()?)?;
        Ok(fs::rename(new, self.home.join(CONFIG))?)
    }

    /// Asks it to end and waits.
    ///
    /// # Errors
    /// When it does not end in time or not with success.
    pub fn stop(&mut self) -> Result<()> {
        let status = self.process.terminate(STOP_LIMIT)?;
        ensure!(status.success(), "{} ended with {status}: {}", self.name, self.process.log_tail());
        Ok(())
    }

    /// A new client of its socket.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn client(&self) -> Result<Client> {
        Client::connect_to(&self.socket)
            .await
            .with_context(|| format!("{}: {}", self.name, self.process.log_tail()))
    }

    /// What it says of itself.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn info(&self) -> Result<Value> {
        Ok(self.client().await?.info_json().await?)
    }

    /// Waits until it is registered, and returns its node number.
    ///
    /// # Errors
    /// When it is not in time.
    pub async fn joined(&self) -> Result<NodeId> {
        let client = self.client().await?;
        let node = eventually("the daemon to join", async || {
            let info = client.info_json().await.ok()?;
            let up = info["registry"]["state"].as_str() == Some("up")
                && info["hostname"].as_str() == Some(&self.name);
            info["node_id"].as_u64().filter(|n| up && *n > 0)
        })
        .await
        .with_context(|| format!("{}: {}", self.name, self.process.log_tail()))?;
        Ok(NodeId(u32::try_from(node)?))
    }

    /// Its node number.
    ///
    /// # Errors
    /// When it does not answer or has none yet.
    pub async fn node(&self) -> Result<NodeId> {
        let info = self.info().await?;
        let node = info["node_id"].as_u64().filter(|n| *n > 0);
        Ok(NodeId(u32::try_from(node.context("no node number yet")?)?))
    }

    /// Its virtual address, as text.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn address(&self) -> Result<String> {
        let info = self.info().await?;
        Ok(info["address"].as_str().context("no address")?.to_owned())
    }

    /// The registry that it was told.
    pub fn registry(&self) -> &str {
        self.options.get("registry").unwrap_or_default()
    }

    /// Its UDP socket, for those who want to throw things at it.
    ///
    /// # Errors
    /// When the ready line does not say.
    pub fn udp(&self) -> Result<std::net::SocketAddr> {
        Ok(self.process.ready_text("listen")?.parse()?)
    }
}

fn launch(home: &Path, socket: &Path, options: &DaemonOptions) -> Result<Process> {
    let config = home.join(CONFIG);
    fs::write(&config, options.yaml()?)?;
    let mut daemon = command(&options.program)?;
    daemon.envs(options.environment.iter().map(|(name, value)| (name, value)));
    daemon.env("PILOT_HOME", home).arg("-config").arg(&config).arg("-socket").arg(socket);
    Process::start(&options.name, daemon, &home.join("daemon.log"))
}

/// Makes two daemons trust each other, as two people would: both ask.
///
/// # Errors
/// When one of them does not list the other in time.
pub async fn establish_trust(a: &Daemon, b: &Daemon) -> Result<()> {
    let (node_a, node_b) = (a.joined().await?, b.joined().await?);
    let (client_a, client_b) = (a.client().await?, b.client().await?);
    client_a.handshake_request(node_b, "test").await?;
    client_b.handshake_request(node_a, "test").await?;
    for (client, other) in [(&client_a, node_b), (&client_b, node_a)] {
        eventually("both daemons to trust each other", async || {
            let trusted = client.trusted().await.ok()?;
            trusted.iter().any(|t| t.node_id == other).then_some(())
        })
        .await
        .with_context(|| format!("{}\n{}", a.process.log_tail(), b.process.log_tail()))?;
    }
    Ok(())
}
