//! From a command line to a running daemon and back: what is opened in which
//! order, what is wired to what, and how it ends.

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use pilot_host::Loaders;
use pilot_host::events::Happening;
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{JoinSet, LocalSet};

use crate::config::{Config, Invocation, LogFormat, PROGRAM, RawConfig};
use crate::control::{self, Control, ControlHandle, ControlParts, ControlSettings, Member};
use crate::identity::Identity;
use crate::ipc::IpcListener;
use crate::metrics::{Metrics, MetricsLimits};
use crate::networks::{self, NetworksParts, Permits};
use crate::node::{self, NodeHandle, controller};
use crate::plugins::{DaemonPlatform, EventJournal, PeerBook, PlatformParts, Plugins, Setup};
use crate::state::Store;
use crate::trust::{self, Pins, TrustFile, TrustParts, TrustState};
use crate::workers::{self, LoopPlan, NativeService, Spread};

/// How long the ready line waits for the registry.
const READY_LIMIT: Duration = Duration::from_secs(3);
/// How long streams may take to deliver their data at the end. With leaving the
/// registry and the last writes it stays below the 10 seconds after which
/// `pilotctl daemon stop` kills (protocol page "Programs, flags and the CLI").
const DRAIN_LIMIT: Duration = Duration::from_secs(7);
/// The part of that time which plugins have to finish their streams by
/// themselves, and what they may take beyond it to end.
const PLUGIN_DRAIN: Duration = Duration::from_secs(2);
const PLUGIN_GRACE: Duration = Duration::from_millis(500);
/// Clients of the driver socket at once.
const MAX_CLIENTS: usize = 1024;
/// Lanes of all clients at once, about 1 MiB each.
const MAX_LANES: usize = 64;

/// Services that are compiled in, instead of the plugins that ship with Pilot.
/// No key of the configuration: what is compiled in is what plugins are
/// measured against.
#[derive(Clone, Copy, Debug, Default)]
pub struct Native {
    /// Port 7, if `no-echo` does not switch it off.
    pub echo: bool,
}

/// Runs a daemon until it is told to end.
///
/// # Errors
/// When it cannot start; the error is one line that names what is wrong and
/// what to do.
pub fn run(
    args: impl IntoIterator<Item = String>,
    env: impl Fn(&str) -> Option<String>,
) -> anyhow::Result<()> {
    run_with(args, env, Native::default())
}

/// The same with these services compiled in.
///
/// # Errors
/// As [`run`].
pub fn run_with(
    args: impl IntoIterator<Item = String>,
    env: impl Fn(&str) -> Option<String>,
    native: Native,
) -> anyhow::Result<()> {
    let config = match RawConfig::load(args, env)? {
        Invocation::Run(raw) => Config::try_from(&raw)?,
        Invocation::Print(text) => {
            io::stdout().write_all(text.as_bytes())?;
            return Ok(());
        }
    };
    start_logging(&config);
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the runtime cannot start")?;
    LocalSet::new().block_on(&runtime, serve(config, native))
}

/// What lies on disk, opened and checked.
struct Kept {
    identity: Identity,
    store: Store,
    trust_file: TrustFile,
    trust: TrustState,
    journal: EventJournal,
    /// Held as long as the daemon runs.
    _lock: File,
}

async fn serve(config: Config, native: Native) -> anyhow::Result<()> {
    let mut ending = Ending::new().context("signals cannot be handled")?;
    let hangup = signal(SignalKind::hangup()).context("signals cannot be handled")?;
    // The socket first: a second daemon ends here and touches nothing.
    let listener = IpcListener::bind(&config.socket)?;
    let kept = open(&config)?;
    let metrics = match config.metrics_listen {
        Some(address) => Some(Metrics::bind(address, MetricsLimits::default()).await?),
        None => None,
    };
    let (node, inboxes) = node::channels(Spread::over(config.workers));
    let (control_handle, control_inbox) = control::channel();
    let (trust_handle, trust_inbox) = trust::channel(control_handle.clone());
    let events = kept.journal.events();
    let plugins = Plugins::default();
    let native = native_services(&config, native);
    let native_ports: Vec<u16> = native.iter().map(NativeService::port).collect();
    let setup = Setup::new(&config, std::env::current_exe().ok().as_deref(), &native_ports);
    let member = Member::new(config.registry.clone(), config.registry_pin, kept.identity.clone());
    let permits = Permits::new(node.clone(), kept.trust.trusted().keys().copied());
    let (networks, networks_inbox) = networks::channel(NetworksParts {
        wanted: config.networks.clone(),
        member: member.clone(),
        store: kept.store.clone(),
        permits: permits.clone(),
        node: node.clone(),
        events: events.clone(),
        environment: Arc::new(|name| std::env::var(name).ok()),
        clock: control::unix_now,
        plaintext: config.plaintext,
    });
    let plan = LoopPlan {
        config: core_config(&config),
        identity: kept.identity.clone(),
        trusted: kept.trust.trusted().keys().copied().collect(),
        control: control_handle.clone(),
        trust: trust_handle.clone(),
        networks: networks.clone(),
        native,
        plugins: plugins.clone(),
        events: events.clone(),
        max_clients: MAX_CLIENTS,
        max_lanes: if config.lanes { MAX_LANES } else { 0 },
    };
    let (mut loops, listen) = workers::start(plan, config.listen, listener, &node, inboxes).await?;

    let pins = Pins::default();
    pins.follow(&kept.trust);
    let peers = PeerBook::new(pins.clone(), kept.store.clone());
    let mut tasks = JoinSet::new();
    tasks.spawn(kept.store.clone().keep_written());
    let trust_parts = TrustParts {
        file: kept.trust_file,
        state: kept.trust,
        pins: pins.clone(),
        permits,
        member: member.clone(),
        node: node.clone(),
        control: control_handle.clone(),
        handle: trust_handle.clone(),
        events: events.clone(),
    };
    tasks.spawn(trust::run(trust_parts, trust_inbox));
    tasks.spawn(networks_inbox.run());
    let control = control::spawn(
        ControlParts {
            settings: control_settings(&config, listen),
            member,
            store: kept.store.clone(),
            pins,
            node: node.clone(),
            trust: trust_handle.clone(),
            networks,
            peers: peers.clone(),
            events: events.clone(),
        },
        control_inbox,
    );

    let platform = DaemonPlatform::new(PlatformParts {
        node: node.clone(),
        control: control_handle.clone(),
        trust: trust_handle,
        peers,
        events: events.clone(),
        plugins: plugins.clone(),
        data: config.data.clone(),
    });
    let mut served = Served { listen, metrics: None };
    if let Some(metrics) = metrics {
        let address = metrics.local_addr().context("metrics-listen: the socket has no address")?;
        served.metrics = Some(address);
        tasks.spawn(metrics.serve(node.clone(), plugins.clone()));
    }
    let working = async {
        setup.start(Arc::new(Loaders), kept.journal.clone(), platform, &plugins).await?;
        let version = env!("CARGO_PKG_VERSION").to_owned();
        events.emit(|| Happening::DaemonStarted { version });
        announce(&config, &control_handle, served).await;
        reload_on(hangup, &plugins).await
    };
    let reason = tokio::select! {
        ended = working => match ended? {},
        reason = ending.next() => reason,
        ended = loops.ended() => {
            ended?;
            anyhow::bail!("the loop ended without being asked to");
        }
    };
    events.emit(|| Happening::DaemonStopping { reason: reason.to_owned() });
    let last_streams = end_plugins(&plugins, &mut ending).await;
    loops.settle().await;
    shut_down(&node, &mut ending, last_streams).await;
    // The loop has ended or had its time.
    match tokio::time::timeout(Duration::from_secs(1), loops.finish()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!("{error:#}"),
        Err(_) => tracing::warn!("the loop did not end in time"),
    }
    finish(control, &kept.store).await;
    tasks.shutdown().await;
    kept.journal.close().await;
    tracing::info!("ended");
    Ok(())
}

/// What is compiled in and not switched off.
fn native_services(config: &Config, native: Native) -> Vec<NativeService> {
    let echo = native.echo && config.default_plugins.contains(&"echo");
    if echo { vec![NativeService::Echo] } else { Vec::new() }
}

/// Has plugins finish their streams, as far as that takes no longer than
/// [`PLUGIN_DRAIN`]; a second signal cuts that short. What the streams of the
/// daemon have left of their time is returned.
async fn end_plugins(plugins: &Plugins, ending: &mut Ending) -> Duration {
    let Some(manager) = plugins.manager() else { return DRAIN_LIMIT };
    let start = Instant::now();
    let ended = tokio::time::timeout(PLUGIN_DRAIN + PLUGIN_GRACE, manager.shutdown(PLUGIN_DRAIN));
    tokio::select! {
        ended = ended => {
            if ended.is_err() {
                tracing::warn!("plugins did not end in time");
            }
            DRAIN_LIMIT.saturating_sub(start.elapsed())
        }
        _ = ending.next() => {
            tracing::info!("ending now");
            Duration::ZERO
        }
    }
}

/// Where the daemon is reached.
struct Served {
    listen: SocketAddr,
    metrics: Option<SocketAddr>,
}

fn open(config: &Config) -> anyhow::Result<Kept> {
    crate::durable::make_folder(&config.data).with_context(|| {
        format!("data: cannot make folder {}; choose another", config.data.display())
    })?;
    let identity = Identity::load_or_create(&config.identity)?;
    let lock = lock_identity(&config.identity)?;
    let beside = |name: &str| config.identity.with_file_name(name);
    let store = Store::load(&beside("state.json"))?;
    let trust_file = TrustFile::at(beside("trust.json"));
    let trust = trust_file.load()?.auto_approve(config.trust_auto_approve);
    store.wish(|wishes| {
        if let Some(hostname) = &config.hostname {
            wishes.hostname.clone_from(hostname);
        }
        if let Some(public) = config.public {
            wishes.public = public;
        }
    });
    let journal = EventJournal::open(&config.data.join("events"))?;
    Ok(Kept { identity, store, trust_file, trust, journal, _lock: lock })
}

/// One daemon per identity: two would fight over its address and its files.
fn lock_identity(path: &Path) -> anyhow::Result<File> {
    let file =
        File::open(path).with_context(|| format!("identity: cannot open {}", path.display()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => anyhow::bail!(
            "identity: {} is in use by a running daemon; stop that one or choose another identity \
             and data folder",
            path.display()
        ),
        Err(e) => Err(e).with_context(|| format!("identity: cannot lock {}", path.display())),
    }
}

fn core_config(config: &Config) -> pilot_core::Config {
    let default = pilot_core::Config::default();
    pilot_core::Config {
        max_streams: config.max_streams,
        max_streams_per_port: config.max_streams_per_port,
        syn_rate: config.syn_rate,
        syn_rate_per_node: config.syn_rate_per_node,
        keepalive: config.keepalive,
        idle_timeout: config.idle_timeout,
        time_wait: config.time_wait,
        congestion: controller(config.congestion),
        ..default
    }
}

fn control_settings(config: &Config, listen: SocketAddr) -> ControlSettings {
    ControlSettings {
        registry: config.registry.clone(),
        beacon: config.beacon.clone(),
        listen,
        endpoint: config.endpoint.clone(),
        owner: config.owner.clone(),
        keepalive: config.keepalive,
    }
}

/// Prints the ready line once the registry answered or is known not to.
async fn announce(config: &Config, control: &ControlHandle, served: Served) {
    let known = control.wait_for(|s| s.registered || (!s.up && s.last_error.is_some()));
    // Not known in time is as good as unreachable.
    let _ = tokio::time::timeout(READY_LIMIT, known).await;
    let status = control.status();
    let mut line = json!({
        "ready": PROGRAM,
        "node_id": status.node,
        "address": status.address,
        "socket": config.socket,
        "listen": served.listen.to_string(),
        "registry": if status.up { "up" } else { "unreachable" },
    });
    if let Some(address) = served.metrics {
        line["metrics"] = json!(address.to_string());
    }
    let mut out = io::stdout().lock();
    if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
        tracing::debug!("standard output is closed, the ready line was not read");
    }
}

/// Ends the loop after the data of its streams; a second signal ends it now.
async fn shut_down(node: &NodeHandle, ending: &mut Ending, limit: Duration) {
    tracing::info!("ending: streams have {} ms for their data", limit.as_millis());
    tokio::select! {
        () = node.begin_shutdown(limit) => {}
        _ = ending.next() => {
            tracing::info!("ending now");
            node.begin_shutdown(Duration::ZERO).await;
        }
    }
}

async fn finish(control: Control, store: &Store) {
    control.leave().await;
    let store = store.clone();
    match tokio::task::spawn_blocking(move || store.flush()).await {
        Ok(Ok(())) => {}
        Ok(Err(e)) => tracing::warn!("{e}"),
        Err(e) => tracing::warn!("state: writing was interrupted: {e}"),
    }
}

/// Signals that end the daemon.
struct Ending {
    term: Signal,
    int: Signal,
}

impl Ending {
    fn new() -> io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    /// The name of the next.
    async fn next(&mut self) -> &'static str {
        let name = tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
        };
        tracing::info!("{name}");
        name
    }
}

/// Reloads plugins and scripts at every SIGHUP.
async fn reload_on(mut hangup: Signal, plugins: &Plugins) -> anyhow::Result<Infallible> {
    loop {
        if hangup.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
        tracing::info!("SIGHUP: plugins and scripts are looked at again");
        match plugins.reload().await {
            Ok(report) => tracing::info!(%report, "reloaded"),
            Err(error) => tracing::warn!("{error}"),
        }
    }
}

fn start_logging(config: &Config) {
    let logs = tracing_subscriber::fmt().with_max_level(config.log_level).with_writer(io::stderr);
    // A second initialisation in one process keeps the first; nothing is lost.
    let _ = match config.log_format {
        LogFormat::Text => logs.with_ansi(false).try_init(),
        LogFormat::Json => logs.json().try_init(),
    };
}

/// Clients and the registry are file descriptors: as many as the system lets
/// us have.
fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(e) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!("the limit of open files stays as it is: {e}");
    }
}
