//! Listening, connections, the reaper, and an orderly end.

mod files;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use pilot_beacon::server::listen_candidates;
use pilot_host::events::Happening;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use crate::admins::Admins;
use crate::audit::{Audit, AuditError, Retention};
use crate::config::Config;
use crate::connection::{Shared, serve, unix_now};
use crate::denials::{Denials, Teller};
use crate::limits::Places;
use crate::plugins::{HostError, Plugins};
use crate::push::Hub;
use crate::service::{Service, next_expiry};
use crate::state::{Command, Op};
use crate::store::{self, CommandLog, MemoryLog, RestoreError, SqliteLog, StoreError};
use crate::writer::{Followers, Thread, Writer, WriterError};

/// Connections get so long to send their last answers.
const END_LIMIT: Duration = Duration::from_secs(5);
/// Nodes removed per command.
const REAP_CHUNK: usize = 4096;
/// Time between looks for what has expired.
const EXPIRE_INTERVAL: Duration = Duration::from_millis(500);
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
    service: Arc<Service>,
    writer: Writer,
    thread: Thread,
    hub: Hub,
    plugins: Plugins,
    config: Config,
}

impl Registry {
    /// Binds the address, restores the state, and begins to start plugins.
    ///
    /// # Errors
    /// When the address, the state file or the folder of plugins cannot be used.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let listener = listen(&config).await?;
        let local = listener.local_addr().map_err(|e| listen_error(&config, e))?;
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
        let state = Arc::new(RwLock::new(state));
        let (plugins, events) = Plugins::start(&config, Arc::clone(&state)).await?;
        audit.follow(events.clone());
        let (writer, thread) = Writer::start(
            Arc::clone(&state),
            log,
            Followers { audit: audit.clone(), hub: hub.clone(), events: events.clone() },
        )
        .map_err(StartError::Thread)?;
        let admins = Admins::by_token(config.admin_token.as_deref());
        let service = Service::new(state, config.register_rate, config.owner_recovery)
            .with_admins(admins, config.any_node_makes_networks)
            .with_rules(Arc::new(plugins.clone()))
            .with_events(events)
            .with_audit(audit);
        let service = Arc::new(service);
        Ok(Self { listener, local, service, writer, thread, hub, plugins, config })
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

    /// Serves until `shutdown` completes; returns when the state is closed.
    ///
    /// # Errors
    /// When the state can no longer be changed. It has stopped serving then.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
        let Self { listener, local, service, writer, mut thread, hub, plugins, config } = self;
        let events = service.events().clone();
        let (denials, teller) = Denials::new(events.clone());
        let (end_telling, telling) = tell_denials(teller, &writer);
        let shared = Shared::new(Arc::clone(&service), writer.clone(), hub, denials, config.idle);
        let shared = Arc::new(shared);
        let places = Places::new(files::connections(config.max_connections));
        let audit = service.audit().clone();
        let (stop, stopped) = watch::channel(false);
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
                                connections.spawn(serve(stream, source, place, shared, stopped));
                            }
                            Err(e) => {
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
        let _ = end_telling.send(());
        if telling.await.is_err() {
            tracing::error!("the task that tells of refusals failed");
        }
        drop((writer, service, shared));
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

/// Tells the audit log of refusals until told to end.
fn tell_denials(
    teller: Teller,
    writer: &Writer,
) -> (oneshot::Sender<()>, tokio::task::JoinHandle<()>) {
    let (end, ended) = oneshot::channel();
    (end, tokio::spawn(teller.run(writer.clone(), ended)))
}

/// Removes nodes that were silent for too long, for ever. A heartbeat that
/// arrives between the look and the removal is answered and lost; the node
/// registers again when its next one fails.
async fn reap(service: &Service, writer: &Writer, config: &Config) {
    let mut interval = tokio::time::interval(config.reap_interval);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let now = unix_now();
        let silent = service.state().silent_since(now.saturating_sub(config.node_ttl.as_secs()));
        for chunk in silent.chunks(REAP_CHUNK) {
            tracing::info!(nodes = chunk.len(), "silent nodes removed");
            let op = Op::Reap { silent: chunk.to_vec() };
            writer.submit(vec![Command::own(now, op)]).await;
        }
    }
}

/// Ends memberships, tokens and invitations whose time has come, at most a
/// second late.
async fn expire(service: &Service, writer: &Writer) {
    let mut interval = tokio::time::interval(EXPIRE_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let now = unix_now();
        let due = next_expiry(&service.state()).is_some_and(|next| next <= now);
        if due {
            let outcomes = writer.submit(vec![Command::own(now, Op::Expire {})]).await;
            if let Some(Err(refusal)) = outcomes.first() {
                tracing::warn!("what has expired stays until the next try: {refusal}");
            }
        }
    }
}

async fn listen(config: &Config) -> Result<TcpListener, StartError> {
    let candidates = listen_candidates(&config.addr).await.map_err(|e| listen_error(config, e))?;
    TcpListener::bind(candidates.as_slice()).await.map_err(|e| listen_error(config, e))
}

fn state_error(config: &Config, e: RestoreError) -> StartError {
    match e {
        RestoreError::Store(e) => StartError::Store(e),
        RestoreError::Audit(e) => StartError::Audit(e),
        source => StartError::State { path: config.store.clone().unwrap_or_default(), source },
    }
}

fn listen_error(config: &Config, source: io::Error) -> StartError {
    StartError::Listen { key: config.addr_key, addr: config.addr.clone(), source }
}
