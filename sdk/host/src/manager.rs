//! What runs: the manager starts plugins and scripts, replaces them when their
//! file or configuration changes, watches over them, and says how they stand.
//!
//! All its work is done on one thread, `plugins`, one thing at a time: what is
//! to be done is decided in `decide`, which has no clock and no files, and done
//! in `worker`. [`Manager`] is a handle to it; none of its methods blocks.
//! Streams, questions and batches do not pass that thread: they go through a
//! `gate`, of which there is one per plugin and which is where a new generation
//! takes over.

mod deadlines;
mod decide;
mod gate;
mod load;
mod plugin;
mod scan;
mod status;
mod worker;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use pilot_plugin::{Batch, Delivery, JoinRequest, Verdict};
use serde_json::Value;
use tokio::sync::oneshot;

use crate::instance::{Backend, BoxFuture, Failure, Incident, Limits, Observer};
use crate::platform::Platform;
use crate::settings::{Isolation, Settings};
pub use status::{
    DrainingStatus, FileKind, LastReload, PluginReload, PluginStatus, Provides, ReloadReport,
    ReloadResult, ServiceStatus, State,
};

use deadlines::Deadlines;
use gate::Gate;
use plugin::Shown;
use worker::Worker;

/// Commands waiting for the manager's thread; one more is answered at once with
/// an error.
const MAX_COMMANDS: usize = 256;
/// Incidents waiting, one per generation; more are found by looking at the
/// instances every second.
const MAX_INCIDENTS: usize = 4096;

/// Opens files of plugins.
pub trait Loader: Send + Sync {
    /// Opens a file that was checked and copied to a private place. May block.
    ///
    /// # Errors
    /// A text that says what is wrong with it.
    fn open(
        &self,
        kind: FileKind,
        path: &Path,
        isolation: Isolation,
        limits: &Limits,
    ) -> Result<Arc<dyn Backend>, String>;
}

/// Gives a batch to whatever generation of a sink runs now.
pub type Deliver = Arc<dyn Fn(Batch) -> BoxFuture<Result<Delivery, Failure>> + Send + Sync>;

/// Keeps events until sinks have them.
pub trait Sinks: Send + Sync {
    /// Has the events of this node delivered to `sink`, from where it was left
    /// when it was known before. `settings` are those of the plugin's `events`
    /// key, or null.
    ///
    /// # Errors
    /// A text that says what is wrong with the settings.
    fn attach(
        &self,
        sink: &str,
        settings: &Value,
        deliver: Deliver,
    ) -> Result<Box<dyn SinkHandle>, String>;
}

/// A sink that is being delivered to.
pub trait SinkHandle: Send {
    /// Goes on with other settings.
    ///
    /// # Errors
    /// A text that says what is wrong with the settings; the earlier ones stay.
    fn replace(&mut self, settings: &Value, deliver: Deliver) -> Result<(), String>;

    /// Delivers nothing more. What was not delivered is kept.
    fn detach(self: Box<Self>);

    /// How it stands.
    fn status(&self) -> Value;
}

/// What a manager is started with.
#[derive(Clone, Debug)]
pub struct ManagerOptions {
    /// What the configuration says.
    pub settings: Settings,
    /// The configuration's file: watched, and read again when it changes.
    pub config_file: Option<PathBuf>,
    /// Folder of its state: `plugins.db`, and private copies of files in
    /// `plugin-cache`.
    pub data: PathBuf,
    /// Folders with the plugins and scripts that come with Pilot.
    pub shipped: Vec<PathBuf>,
    /// Names of shipped plugins that run without being named in the
    /// configuration; an entry with `enabled: false` switches one off.
    pub defaults: Vec<String>,
    /// Folders of plugins and scripts that are watched beside those of the
    /// settings.
    pub folders: Vec<PathBuf>,
    /// Time that the streams of an older generation have.
    pub drain: Duration,
    /// Different library files that are loaded for one plugin, as none is ever
    /// unloaded; one more is refused until a restart.
    pub generations: usize,
    /// Whether files and folders are watched.
    pub watch: bool,
    /// Why this process has no virtual ports, as in "a registry has no ports":
    /// plugins run for their rules and sinks, their services are listed without
    /// ports, and one that has nothing else is refused. `None`: it has ports.
    pub no_ports: Option<&'static str>,
}

impl ManagerOptions {
    /// Nothing configured, state in `data`, a drain of 30 s, 256 library files
    /// per plugin, files watched, ports to serve.
    pub fn new(data: impl Into<PathBuf>) -> Self {
        Self {
            settings: Settings::default(),
            config_file: None,
            data: data.into(),
            shipped: Vec::new(),
            defaults: Vec::new(),
            folders: Vec::new(),
            drain: Duration::from_secs(30),
            generations: 256,
            watch: true,
            no_ports: None,
        }
    }

    /// Where shipped plugins are: beside `program`, in `plugins` below it, and
    /// where packages install them.
    pub fn beside(program: &Path) -> Vec<PathBuf> {
        let Some(folder) = program.parent() else { return Vec::new() };
        let mut folders = vec![folder.to_owned(), folder.join("plugins")];
        if let Some(above) = folder.parent() {
            folders.push(above.join("lib/pilot/plugins"));
        }
        folders
    }
}

/// Why there is no manager.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// Its folder cannot be used.
    #[error("the folder of plugin state {} cannot be used: {problem}", path.display())]
    Data {
        /// The folder or file.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// The system gives it no thread.
    #[error("no thread for plugins: {0}")]
    Thread(std::io::Error),
}

/// Handle to what runs. When the last one is dropped, everything ends at once;
/// [`Manager::shutdown`] is the orderly way.
#[derive(Clone)]
pub struct Manager {
    inner: Arc<Inner>,
}

/// What the handle, the thread and the observers share.
struct Inner {
    commands: SyncSender<Command>,
    shared: Arc<Shared>,
}

/// State that is read outside the manager's thread.
struct Shared {
    shown: Mutex<BTreeMap<String, Shown>>,
    rules: ArcSwap<BTreeMap<String, Rule>>,
    incidents: Mutex<BTreeMap<(String, u64), (Incident, Instant)>>,
    /// First and last change seen by the watcher since the last scan.
    changed: Mutex<Option<(Instant, Instant)>>,
    deadlines: Deadlines,
}

/// A join rule and who answers for it.
#[derive(Clone)]
struct Rule {
    plugin: Arc<str>,
    gate: Arc<Gate>,
    limit: Duration,
}

enum Command {
    /// Look at what is waiting.
    Wake,
    Ready(oneshot::Sender<()>),
    Reload(oneshot::Sender<ReloadReport>),
    Set(String, Option<Value>, oneshot::Sender<Result<PluginReload, String>>),
    Shutdown(Duration, oneshot::Sender<()>),
}

impl Manager {
    /// Begins to start what is configured, and does not wait for it
    /// ([`Manager::ready`] does), as ports are opened by a process that may not
    /// be running yet. A plugin that fails is listed with its reason and keeps
    /// nothing else from starting.
    ///
    /// # Errors
    /// When the data folder cannot be used, or the system gives no thread.
    pub fn start(
        options: ManagerOptions,
        loader: Arc<dyn Loader>,
        sinks: Arc<dyn Sinks>,
        platform: Arc<dyn Platform>,
    ) -> Result<Self, ManagerError> {
        let (commands, waiting) = sync_channel(MAX_COMMANDS);
        let shared = Arc::new(Shared {
            shown: Mutex::default(),
            rules: ArcSwap::default(),
            incidents: Mutex::default(),
            changed: Mutex::default(),
            deadlines: Deadlines::start().map_err(ManagerError::Thread)?,
        });
        let inner = Arc::new(Inner { commands, shared: Arc::clone(&shared) });
        let observer: Arc<dyn Observer> = Arc::new(Reporter(Arc::downgrade(&inner)));
        let worker = Worker::new(options, loader, sinks, platform, shared, observer)?;
        let weak = Arc::downgrade(&inner);
        std::thread::Builder::new()
            .name("plugins".to_owned())
            .spawn(move || worker.run(&waiting, weak))
            .map_err(ManagerError::Thread)?;
        Ok(Self { inner })
    }

    /// Answers when each plugin that was configured at the start runs or has
    /// failed.
    pub fn ready(&self) -> BoxFuture<()> {
        let (reply, answer) = oneshot::channel();
        // When the queue is full, or the thread has ended, there is nothing to
        // wait for.
        let _ = self.inner.commands.try_send(Command::Ready(reply));
        Box::pin(async move { answer.await.unwrap_or_default() })
    }

    /// Looks at the configuration and at all files, and brings what runs in
    /// line; also tries again what has failed or is backing off.
    pub fn reload(&self) -> BoxFuture<ReloadReport> {
        let (reply, answer) = oneshot::channel();
        let sent = self.inner.commands.try_send(Command::Reload(reply)).is_ok();
        Box::pin(async move {
            match answer.await {
                Ok(report) => report,
                Err(_) => ReloadReport {
                    config_error: Some(not_done(sent).to_owned()),
                    ..ReloadReport::default()
                },
            }
        })
    }

    /// Puts `entry` (keys as in the configuration; those inside `config` one by
    /// one) over the configured entry of `name`, until it is cleared or the
    /// process ends, and applies it.
    ///
    /// The error says what is wrong with the entry, or why the plugin does not
    /// run with it; the entry is kept only when it does.
    pub fn set_entry(&self, name: &str, entry: Value) -> BoxFuture<Result<PluginReload, String>> {
        self.set(name, Some(entry))
    }

    /// Takes back what [`Manager::set_entry`] did.
    pub fn clear_entry(&self, name: &str) -> BoxFuture<Result<PluginReload, String>> {
        self.set(name, None)
    }

    fn set(&self, name: &str, entry: Option<Value>) -> BoxFuture<Result<PluginReload, String>> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Set(name.to_owned(), entry, reply);
        let sent = self.inner.commands.try_send(command).is_ok();
        Box::pin(async move { answer.await.unwrap_or_else(|_| Err(not_done(sent).to_owned())) })
    }

    /// How every plugin stands, by name.
    pub fn list(&self) -> Vec<PluginStatus> {
        lock(&self.inner.shared.shown).values().map(Shown::status).collect()
    }

    /// How one plugin stands.
    pub fn status(&self, name: &str) -> Option<PluginStatus> {
        lock(&self.inner.shared.shown).get(name).map(Shown::status)
    }

    /// Asks a join rule. What is not a verdict in time (no such rule, a failure,
    /// a panic, a rule that is off) denies, with a reason that names the rule.
    pub fn validate(&self, request: JoinRequest) -> BoxFuture<Verdict> {
        let shared = Arc::clone(&self.inner.shared);
        Box::pin(async move {
            let name = request.rule.clone();
            let Some(rule) = shared.rules.load().get(&name).cloned() else {
                return Verdict::deny(format!("no plugin provides the join rule {name:?}"));
            };
            let answer = match rule.gate.instance() {
                Ok(instance) => instance.validate(request),
                Err(reason) => {
                    return Verdict::deny(format!("join rule {name:?}: {reason}"));
                }
            };
            match shared.deadlines.within(rule.limit, answer).await {
                Some(Ok(verdict)) => verdict,
                Some(Err(failure)) => Verdict::deny(format!(
                    "join rule {name:?} of plugin {} gave no verdict: {failure}",
                    rule.plugin
                )),
                None => Verdict::deny(format!(
                    "join rule {name:?} of plugin {} gave no verdict within {} ms",
                    rule.plugin,
                    rule.limit.as_millis()
                )),
            }
        })
    }

    /// Names of the join rules that can be asked for.
    pub fn rules(&self) -> Vec<String> {
        self.inner.shared.rules.load().keys().cloned().collect()
    }

    /// Ends everything: ports are given back, streams have `drain` to finish.
    /// Answers when all is over.
    pub fn shutdown(&self, drain: Duration) -> BoxFuture<()> {
        let (reply, answer) = oneshot::channel();
        let inner = Arc::clone(&self.inner);
        Box::pin(async move {
            let mut command = Command::Shutdown(drain, reply);
            // The queue is full for a moment at the most, as each command in it
            // is answered in turn; an ended manager has nothing left to end.
            for _ in 0..MAX_COMMANDS {
                match inner.commands.try_send(command) {
                    Ok(()) => break,
                    Err(std::sync::mpsc::TrySendError::Full(again)) => {
                        command = again;
                        inner.shared.deadlines.sleep(Duration::from_millis(20)).await;
                    }
                    Err(std::sync::mpsc::TrySendError::Disconnected(_)) => return,
                }
            }
            drop(inner);
            // An error means that the thread has ended.
            let _ = answer.await;
        })
    }
}

fn not_done(sent: bool) -> &'static str {
    if sent { "plugins are shutting down" } else { "too many commands wait; try again" }
}

/// Takes what instances report to the manager's thread.
struct Reporter(Weak<Inner>);

impl Observer for Reporter {
    fn incident(&self, name: &str, generation: u64, incident: Incident) {
        if let Incident::Failed { text } = &incident {
            // Counted by the instance; nothing is to be done.
            tracing::warn!(plugin = name, generation, "{text}");
            return;
        }
        let Some(inner) = self.0.upgrade() else { return };
        {
            let mut incidents = lock(&inner.shared.incidents);
            if incidents.len() < MAX_INCIDENTS {
                let key = (name.to_owned(), generation);
                incidents.entry(key).or_insert((incident, Instant::now()));
            }
        }
        inner.wake();
    }
}

impl Inner {
    /// Has the thread look; when its queue is full it looks anyway.
    fn wake(&self) {
        let _ = self.commands.try_send(Command::Wake);
    }

    /// Something in the watched files has changed.
    fn changed(&self) {
        let now = Instant::now();
        let first = {
            let mut changed = lock(&self.shared.changed);
            let first = changed.is_none();
            let since = changed.map_or(now, |(since, _)| since);
            *changed = Some((since, now));
            first
        };
        if first {
            self.wake();
        }
    }
}

/// Locks, also after a panic of another holder: what is kept here is replaced
/// as a whole, so it is never half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
