//! Listening, connections, the reaper, and an orderly end. The administration
//! has a port of its own.

mod files;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use pilot_beacon::program::Ready;
use pilot_beacon::server::listen_candidates;
use pilot_host::events::Happening;
use pilot_wire::NodeId;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use crate::admin;
use crate::admins::Admins;
use crate::audit::{Audit, AuditError, Retention};
use crate::config::Config;
use crate::connection::{Shared, serve, unix_now};
use crate::denials::{Denials, Teller};
use crate::limits::{Place, Places};
use crate::metrics::Metrics;
use crate::plugins::{HostError, Plugins};
use crate::push::Hub;
use crate::reload::Reload;
use crate::service::Service;
use crate::state::{Command, Op};
use crate::store::{self, CommandLog, MemoryLog, RestoreError, SqliteLog, StoreError};
use crate::tls::{Door, Identity};
use crate::writer::{Followers, Thread, Writer, WriterError};

/// Connections get so long to send their last answers.
const END_LIMIT: Duration = Duration::from_secs(5);
/// Nodes looked at for one command that removes the silent ones among them.
const REAP_STEP: usize = 4096;
/// A look that comes later than this, in seconds, says that the machine slept or
/// that the clock was set: then nobody can be blamed for silence.
const REAP_LATE: u64 = 30;
/// Most commands in a row that end what has expired.
const MAX_EXPIRE: usize = 64;
/// Time between looks for what has expired.
const EXPIRE_INTERVAL: Duration = Duration::from_millis(500);
/// Connections that may wait to be accepted, as far as the system allows. With
/// the usual 128 a fleet that comes back at once is let in at 128 a second: who
/// finds no room tries again a second later.
const BACKLOG: u32 = 4096;
/// Pause after a failed accept, which is about lack of file handles.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why a registry does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be listened on.
    #[error("{key} {addr}: cannot listen: {source}; choose another address with -{key}")]
    Listen {
        /// Which setting.
        key: &'static str,
        /// Its value.
        addr: String,
        /// Why.
        source: io::Error,
    },
    /// The state file cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The state file contradicts itself.
    #[error("state file {}: {source}; restore a backup, or move it away to start empty", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: RestoreError,
    },
    /// The certificate cannot be used.
    #[error("tls: {0}")]
    Tls(#[from] pilot_tls::TlsError),
    /// The audit log cannot be used.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// The system gives no thread.
    #[error("cannot start the writer thread: {0}")]
    Thread(io::Error),
    /// Plugins are configured and cannot be hosted.
    #[error(transparent)]
    Plugins(#[from] HostError),
}

/// Why a registry ends by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It can change its state no more.
    #[error("the registry has stopped serving")]
    Writer(#[from] WriterError),
}

/// A registry that listens and has its state, but does not answer yet.
#[derive(Debug)]
pub struct Registry {
    listener: TcpListener,
    local: SocketAddr,
    door: Option<Arc<Door>>,
    admin: Option<Admin>,
    service: Arc<Service>,
    writer: Writer,
    thread: Thread,
    hub: Hub,
    places: Arc<Places>,
    plugins: Plugins,
    config: Config,
    reload: Arc<Reload>,
}

/// The port of the administration.
#[derive(Debug)]
struct Admin {
    listener: TcpListener,
    local: SocketAddr,
    door: Option<Arc<Door>>,
}

impl Registry {
    /// Binds the address, restores the state, and begins to start plugins.
    ///
    /// # Errors
    /// When the address, the state file or the folder of plugins cannot be used.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let (listener, local) = listen(config.addr_key, &config.addr).await?;
        let identity = Identity::open(&config)?.map(Arc::new);
        let door = |client_ca| {
            let door = identity.as_ref().map(|i| Door::new(Arc::clone(i), client_ca));
            Ok::<_, StartError>(door.transpose()?.map(Arc::new))
        };
        let admin = match &config.http {
            None => None,
            Some(addr) => {
                let (listener, local) = listen("http", addr).await?;
                let door = door(config.admin_ca.as_deref())?;
                if door.is_none() && admin::is_exposed(local) {
                    tracing::warn!(
                        "the administration at {local} is plain HTTP: whoever is on the way reads \
                         the admin token; set tls, or let http be a loopback address"
                    );
                }
                Some(Admin { listener, local, door })
            }
        };
        let door = door(None)?;
        if door.is_none() && admin::is_exposed(local) {
            tracing::warn!(
                "the registry at {local} is served without TLS: requests on sessions, admin \
                 tokens and proofs for joins can be read and changed on the way; set tls, or let \
                 {} be a loopback address",
                config.addr_key
            );
        }
        let mut log: Box<dyn CommandLog> = match &config.store {
            Some(path) => {
                let log = SqliteLog::open(path).map_err(|e| state_error(&config, e))?;
                Box::new(log)
            }
            None => {
                tracing::warn!("no -store is set: the state is lost when the registry ends");
                Box::new(MemoryLog)
            }
        };
        let retention = Retention { age: config.audit_age, bytes: config.audit_bytes };
        let audit = Audit::open(config.store.as_deref(), retention)?;
        let state = store::restore(log.as_mut(), &audit).map_err(|e| state_error(&config, e))?;
        state.touch_all(unix_now());
        let hub = Hub::at(state.applied());
        tracing::info!(%local, nodes = state.len(), "registry serves");
        if let Some(identity) = &identity {
            tracing::info!("TLS certificate fingerprint {}", identity.fingerprint());
        }
        if let Some(admin) = &admin {
            tracing::info!(local = %admin.local, "administration serves");
        }
        let metrics = Arc::new(Metrics::default());
        let state = Arc::new(RwLock::new(state));
        let (plugins, events) = Plugins::start(&config, Arc::clone(&state)).await?;
        audit.follow(events.clone());
        let (writer, thread) = Writer::start(
            Arc::clone(&state),
            log,
            Followers {
                audit: audit.clone(),
                hub: hub.clone(),
                events: events.clone(),
                metrics: Arc::clone(&metrics),
            },
        )
        .map_err(StartError::Thread)?;
        let admins = Admins::by_token(config.admin_token.as_deref());
        let service = Service::new(state, config.register_rate, config.owner_recovery)
            .with_admins(admins, config.any_node_makes_networks)
            .with_metrics(metrics)
            .with_rules(Arc::new(plugins.clone()))
            .with_events(events)
            .with_audit(audit);
        let service = Arc::new(service);
        let places = Places::new(files::connections(config.max_connections));
        let doors = door.iter().chain(admin.iter().filter_map(|a| a.door.as_ref()));
        let reload = Reload {
            service: Arc::clone(&service),
            places: Arc::clone(&places),
            identity,
            doors: doors.cloned().collect(),
            config: std::sync::Mutex::new(config.clone()),
        };
        Ok(Self {
            listener,
            local,
            door,
            admin,
            service,
            writer,
            thread,
            hub,
            places,
            plugins,
            config,
            reload: Arc::new(reload),
        })
    }

    /// What judges requests.
    pub const fn service(&self) -> &Arc<Service> {
        &self.service
    }

    /// What is hosted.
    pub const fn plugins(&self) -> &Plugins {
        &self.plugins
    }

    /// Who has a session.
    pub const fn hub(&self) -> &Hub {
        &self.hub
    }

    /// Where it listens.
    pub const fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Where the administration listens.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(|admin| admin.local)
    }

    /// Adds what whoever starts the registry may want to know.
    #[must_use]
    pub fn describe(&self, mut ready: Ready) -> Ready {
        if let Some(addr) = self.admin_addr() {
            ready = ready.addr("http", addr);
        }
        if let Some(fingerprint) = self.fingerprint() {
            ready = ready.text("fingerprint", fingerprint.to_string());
        }
        ready
    }

    /// What clients pin, where TLS is served.
    pub fn fingerprint(&self) -> Option<pilot_tls::Pin> {
        self.reload.fingerprint()
    }

    /// Takes another configuration, as far as it can be taken while running.
    pub const fn reload(&self) -> &Arc<Reload> {
        &self.reload
    }

    /// Serves until `shutdown` completes; returns when the state is closed.
    ///
    /// # Errors
    /// When the state can no longer be changed. It has stopped serving then.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
        let Self {
            listener,
            local,
            door,
            admin,
            service,
            writer,
            mut thread,
            hub,
            places,
            plugins,
            config,
            reload,
        } = self;
        let events = service.events().clone();
        let audit = service.audit().clone();
        let (denials, teller) = Denials::new(events.clone());
        let (end_telling, telling) = tell_denials(teller, &writer);
        let (stop, stopped) = watch::channel(false);
        let administration = admin.map(|Admin { listener, door, .. }| {
            let site = admin::Site::new(
                Arc::clone(&service),
                writer.clone(),
                hub.clone(),
                denials.clone(),
                plugins.clone(),
                stopped.clone(),
            );
            tokio::spawn(admin::run(listener, site, door))
        });
        let shared = Shared::new(Arc::clone(&service), writer.clone(), hub, denials, config.idle);
        let shared = Arc::new(shared);
        let mut connections = JoinSet::new();
        let accept = async {
            loop {
                tokio::select! {
                    accepted = listener.accept() => match accepted {
                        // Without a place a newcomer is closed at once.
                        Ok((stream, source)) => match places.take(source.ip()) {
                            Ok(place) => {
                                // Costs latency only if it fails.
                                let _ = stream.set_nodelay(true);
                                let (shared, stopped) = (Arc::clone(&shared), stopped.clone());
                                let (door, service) = (door.clone(), Arc::clone(&service));
                                let serve =
                                    connection(stream, source, place, door, service, shared, stopped);
                                connections.spawn(serve);
                            }
                            Err(e) => {
                                service.metrics().connections.refused.fetch_add(1, Relaxed);
                                tracing::debug!("connection refused: {e}");
                                events.refused(e.code(), source, e);
                            }
                        },
                        Err(e) => {
                            tracing::warn!("accept: {e}");
                            tokio::time::sleep(ACCEPT_PAUSE).await;
                        }
                    },
                    Some(_) = connections.join_next() => {}
                }
            }
        };
        let started = async {
            // Nobody waits for plugins but who joins.
            plugins.ready().await;
            plugins.warn_of_missing();
            events.emit(|| Happening::RegistryStarted {
                listen: local.to_string(),
                nodes: service.state().len() as u64,
                version: env!("CARGO_PKG_VERSION").to_owned(),
            });
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = accept => {}
            () = reap(&service, &writer, &config) => {}
            () = expire(&service, &writer) => {}
            () = started => {}
            () = thread.ended() => tracing::error!("the state can no longer be changed, ending"),
            () = shutdown => {}
        }
        events.emit(|| Happening::RegistryStopping);
        drop(listener);
        // Nobody listens any more only when all connections are gone already.
        let _ = stop.send(true);
        let end = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(END_LIMIT, end).await.is_err() {
            tracing::warn!("connections still open are cut off");
        }
        connections.shutdown().await;
        if let Some(administration) = administration
            && let Err(e) = administration.await
        {
            tracing::error!("the administration failed: {e}");
        }
        let _ = end_telling.send(());
        if telling.await.is_err() {
            tracing::error!("the task that tells of refusals failed");
        }
        drop((writer, service, shared, reload));
        let closed = tokio::task::spawn_blocking(move || {
            let ended = thread.join();
            audit.close();
            ended
        })
        .await;
        plugins.shutdown().await;
        events.close().await;
        tracing::info!("registry ended");
        match closed {
            Ok(ended) => Ok(ended?),
            Err(e) => Err(WriterError::Panicked(e.to_string()).into()),
        }
    }
}

/// Serves one accepted connection, with TLS where there is a door.
async fn connection(
    stream: TcpStream,
    source: SocketAddr,
    place: Place,
    door: Option<Arc<Door>>,
    service: Arc<Service>,
    shared: Arc<Shared>,
    stopped: watch::Receiver<bool>,
) {
    let counts = &service.metrics().connections;
    counts.accepted.fetch_add(1, Relaxed);
    let _open = Open::new(&counts.open);
    let Some(door) = door else {
        return serve(stream, source, place, shared, stopped).await;
    };
    let mut ended = stopped.clone();
    // Boxed, as nobody needs its room once it is done.
    let opening = Box::pin(door.open(stream));
    let opened = tokio::select! {
        opened = opening => opened,
        _ = ended.wait_for(|ended| *ended) => return,
    };
    match opened {
        Ok(stream) => Box::pin(serve(stream, source, place, shared, stopped)).await,
        Err(refused) => {
            counts.failed_handshakes.fetch_add(1, Relaxed);
            door.log(source, &refused);
            service.events().refused("tls", source, &refused);
        }
    }
}

/// Tells the audit log of refusals until told to end.
fn tell_denials(
    teller: Teller,
    writer: &Writer,
) -> (oneshot::Sender<()>, tokio::task::JoinHandle<()>) {
    let (end, ended) = oneshot::channel();
    (end, tokio::spawn(teller.run(writer.clone(), ended)))
}

/// How many connections are allowed of `asked`.
pub(crate) fn connections(asked: usize) -> usize {
    files::connections(asked)
}

/// Counts as open until it is dropped, also where the task is ended from outside.
struct Open<'a>(&'a std::sync::atomic::AtomicU64);

impl<'a> Open<'a> {
    fn new(count: &'a std::sync::atomic::AtomicU64) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Removes nodes that were silent for too long, for ever. A heartbeat that
/// arrives between the look and the removal is answered and lost; the node
/// registers again when its next one fails.
async fn reap(service: &Service, writer: &Writer, config: &Config) {
    let mut interval = tokio::time::interval(config.reap_interval);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut looked = unix_now();
    loop {
        interval.tick().await;
        let now = unix_now();
        if is_late(looked, now, config.reap_interval) {
            tracing::warn!(
                "the clock went on by {} s since silent nodes were looked for: all nodes get \
                 their whole time again",
                now - looked
            );
            service.state().touch_all(now);
        } else {
            remove_silent(service, writer, now, config.node_ttl).await;
        }
        looked = unix_now();
    }
}

/// Whether more time has passed since the last look than there is between two.
fn is_late(looked: u64, now: u64, interval: Duration) -> bool {
    now.saturating_sub(looked) > interval.as_secs().saturating_add(REAP_LATE)
}

/// In steps, between which whoever wants to change the state has a turn.
async fn remove_silent(service: &Service, writer: &Writer, now: u64, ttl: Duration) {
    let before = now.saturating_sub(ttl.as_secs());
    let mut after = NodeId(0);
    let mut removed = 0;
    loop {
        let (silent, next) = service.state().silent_among(after, REAP_STEP, before);
        let count = silent.len();
        if count > 0 {
            let reap = Command::own(now, Op::Reap { silent });
            let outcomes = writer.submit(vec![reap]).await;
            if let Some(Err(refusal)) = outcomes.first() {
                tracing::warn!("silent nodes stay until the next try: {refusal}");
                break;
            }
            removed += count;
        }
        let Some(next) = next else { break };
        after = next;
        tokio::task::yield_now().await;
    }
    if removed > 0 {
        tracing::info!(nodes = removed, "silent nodes removed");
    }
}

/// Ends memberships, tokens and invitations whose time has come, at most a
/// second late; when very many end at once, as fast as they can be written.
async fn expire(service: &Service, writer: &Writer) {
    let mut interval = tokio::time::interval(EXPIRE_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        for _ in 0..MAX_EXPIRE {
            let now = unix_now();
            if service.state().next_end().is_none_or(|next| next > now) {
                break;
            }
            let outcomes = writer.submit(vec![Command::own(now, Op::Expire {})]).await;
            if let Some(Err(refusal)) = outcomes.first() {
                tracing::warn!("what has expired stays until the next try: {refusal}");
                break;
            }
        }
    }
}

async fn listen(key: &'static str, addr: &str) -> Result<(TcpListener, SocketAddr), StartError> {
    let refused = |source| StartError::Listen { key, addr: addr.to_owned(), source };
    let mut failed = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for candidate in listen_candidates(addr).await.map_err(refused)? {
        match listen_on(candidate).and_then(|l| l.local_addr().map(|local| (l, local))) {
            Ok(listening) => return Ok(listening),
            Err(e) => failed = e,
        }
    }
    Err(refused(failed))
}

fn listen_on(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // As usual for a server on Unix: else it could not start again at once.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

fn state_error(config: &Config, e: RestoreError) -> StartError {
    match e {
        RestoreError::Store(e) => StartError::Store(e),
        RestoreError::Audit(e) => StartError::Audit(e),
        source => StartError::State { path: config.store.clone().unwrap_or_default(), source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_is_late_after_a_sleep_of_the_machine_only() {
        let minute = Duration::from_secs(60);
        assert!(!is_late(1000, 1060, minute) && !is_late(1000, 1090, minute));
        assert!(is_late(1000, 1091, minute));
        // The clock was set back.
        assert!(!is_late(1000, 10, minute));
        assert!(!is_late(1000, 1000, Duration::from_millis(100)));
    }
}
