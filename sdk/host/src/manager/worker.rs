//! The manager's thread: takes commands, incidents and changes in turn, looks
//! at every instance once a second, and does what `decide` says.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::decide::{Cause, Do, Trouble};
use super::plugin::{BANNED, Generation, Old, Past, Plugin, now_ms};
use super::scan::Seen;
use super::status::{LastReload, PluginReload, ReloadResult};
use super::{Command, Inner, Loader, ManagerError, ManagerOptions, Shared, Sinks, lock};
use crate::events::Happening;
use crate::files::Cache;
use crate::instance::{Incident, Observer};
use crate::platform::Platform;
use crate::settings::Settings;
use crate::store::Stores;
use crate::watch::Watch;

/// Time between two looks at the instances.
const TICK: Duration = Duration::from_secs(1);
/// Quiet time after a change before it is looked at: an editor or a copy makes
/// several.
const QUIET: Duration = Duration::from_millis(200);
/// A change is looked at after this time also when there is no quiet.
const MOST_QUIET: Duration = Duration::from_secs(2);
/// Time between two looks at the files where the system does not let them be
/// watched.
const POLL: Duration = Duration::from_secs(5);
/// Time beyond its deadline that an instance has to end; then it counts as hung.
const GRACE: Duration = Duration::from_secs(5);
/// Older generations of one plugin that may be finishing; beyond it the oldest
/// is ended at once.
const MAX_DRAINING: usize = 256;

pub(super) struct Worker {
    pub(super) options: ManagerOptions,
    pub(super) loader: Arc<dyn Loader>,
    pub(super) journal: Arc<dyn Sinks>,
    pub(super) platform: Arc<dyn Platform>,
    pub(super) shared: Arc<Shared>,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) stores: Stores,
    pub(super) cache: Cache,
    pub(super) settings: Settings,
    /// What the configuration's file was when it was last read.
    pub(super) config: Option<Vec<u8>>,
    /// Why that was refused.
    pub(super) config_error: Option<String>,
    /// Entries set at run time.
    pub(super) set: BTreeMap<String, Value>,
    pub(super) plugins: BTreeMap<String, Plugin>,
    /// What is left of those that went: as many as there were names that ran.
    pub(super) past: BTreeMap<String, Past>,
    /// Who has which port.
    pub(super) ports: BTreeMap<u16, Arc<str>>,
    pub(super) hashes: HashMap<PathBuf, Seen>,
    pub(super) watch: Option<Watch>,
    /// Looks at files by itself, as they cannot be watched.
    pub(super) polled: Option<Instant>,
}

impl Worker {
    pub(super) fn new(
        options: ManagerOptions,
        loader: Arc<dyn Loader>,
        journal: Arc<dyn Sinks>,
        platform: Arc<dyn Platform>,
        shared: Arc<Shared>,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, ManagerError> {
        let data = |path: PathBuf, problem: String| ManagerError::Data { path, problem };
        std::fs::create_dir_all(&options.data)
            .map_err(|error| data(options.data.clone(), error.to_string()))?;
        let folder = options.data.join("plugin-cache");
        let cache =
            Cache::open(&folder).map_err(|error| data(folder.clone(), error.to_string()))?;
        let file = options.data.join("plugins.db");
        let stores = Stores::open(&file).map_err(|problem| data(file.clone(), problem))?;
        Ok(Self {
            settings: options.settings.clone(),
            options,
            loader,
            journal,
            platform,
            shared,
            observer,
            stores,
            cache,
            config: None,
            config_error: None,
            set: BTreeMap::new(),
            plugins: BTreeMap::new(),
            past: BTreeMap::new(),
            ports: BTreeMap::new(),
            hashes: HashMap::new(),
            watch: None,
            polled: None,
        })
    }

    pub(super) fn run(mut self, waiting: &Receiver<Command>, inner: Weak<Inner>) {
        if self.options.watch {
            let changed = move || {
                if let Some(inner) = inner.upgrade() {
                    inner.changed();
                }
            };
            self.watch = Some(Watch::new(Arc::new(changed)));
        }
        self.scan(Some(Cause::Start), false);
        let mut next = Instant::now() + TICK;
        loop {
            let now = Instant::now();
            let due = *lock(&self.shared.changed);
            let due = due.map(|(first, last)| (last + QUIET).min(first + MOST_QUIET));
            let until = due.map_or(next, |due| due.min(next));
            match waiting.recv_timeout(until.saturating_duration_since(now)) {
                Ok(Command::Wake) | Err(RecvTimeoutError::Timeout) => {}
                // Nobody may be waiting for an answer; that is their choice.
                Ok(Command::Ready(reply)) => drop(reply.send(())),
                Ok(Command::Reload(reply)) => drop(reply.send(self.scan(None, true))),
                Ok(Command::Set(name, entry, reply)) => {
                    drop(reply.send(self.set_entry(&name, entry)));
                }
                Ok(Command::Shutdown(drain, reply)) => {
                    self.shutdown(drain);
                    let _ = reply.send(());
                    return;
                }
                Err(RecvTimeoutError::Disconnected) => return self.shutdown(Duration::ZERO),
            }
            self.incidents();
            if due.is_some_and(|due| due <= Instant::now()) {
                *lock(&self.shared.changed) = None;
                self.scan(None, false);
            }
            let now = Instant::now();
            if now >= next {
                next = now + TICK;
                self.tick(now);
            }
        }
    }

    /// Does what the machine of `name` says.
    pub(super) fn act(&mut self, name: &str, what: Do, cause: Cause) -> Option<PluginReload> {
        match what {
            Do::Nothing => None,
            Do::Load => Some(self.load(name, cause)),
            Do::Replace(cause) => Some(self.load(name, cause)),
            Do::Stop => {
                self.stop(name, "it was removed or switched off", self.options.drain);
                None
            }
            Do::SwitchOff(until) => {
                let wait = until.saturating_duration_since(Instant::now()).as_secs_f64();
                let reason = format!(
                    "it failed several times within a minute and is tried again after {wait:.0} s"
                );
                self.switch_off(name, &reason);
                None
            }
            Do::Ban => {
                self.switch_off(name, BANNED);
                None
            }
        }
    }

    /// Incidents that came in.
    fn incidents(&mut self) {
        let incidents = std::mem::take(&mut *lock(&self.shared.incidents));
        for ((name, generation), (incident, at)) in incidents {
            let (trouble, text) = match incident {
                Incident::Panicked { callback, text } => {
                    (Trouble::Panicked, format!("{callback} panicked: {text}"))
                }
                Incident::Hung { callback } => {
                    (Trouble::Hung, format!("{callback} takes too long"))
                }
                Incident::Died { text } => (Trouble::Died, text),
                // Counted by the instance.
                Incident::Failed { .. } => continue,
            };
            self.trouble(&name, generation, trouble, &text, at);
        }
    }

    fn trouble(&mut self, name: &str, generation: u64, trouble: Trouble, text: &str, at: Instant) {
        let Some(plugin) = self.plugins.get_mut(name) else { return };
        let was = plugin.machine.current() == Some(generation);
        let stuck = plugin.machine.hung();
        let what = plugin.machine.trouble(at, generation, trouble);
        let news = was || plugin.machine.hung() > stuck;
        let why = match trouble {
            Trouble::Panicked => "it panicked and is being replaced",
            Trouble::Hung => "it hangs and is being replaced",
            Trouble::Died => "it died and is being replaced",
        };
        if trouble != Trouble::Panicked {
            if was {
                plugin.gate.close(why);
            }
            // What it knew of streams is lost; it is not waited for.
            plugin.draining.retain(|old| {
                let lost = old.number == generation;
                if lost {
                    plugin.totals.add(&old.instance.stats());
                }
                !lost
            });
            if was && let Some(running) = plugin.running.take() {
                plugin.totals.add(&running.running.instance.stats());
                running.running.instance.drain(Duration::ZERO);
            }
        }
        if news {
            plugin.reason = Some(text.to_owned());
            tracing::error!(plugin = name, generation, "{text}");
            let (name, reason) = (name.to_owned(), text.to_owned());
            self.platform.tell(match trouble {
                Trouble::Panicked => Happening::PluginPanicked { generation, name, reason },
                Trouble::Hung => Happening::PluginHung { generation, name, reason },
                Trouble::Died => Happening::PluginDied { generation, name, reason },
            });
        }
        self.act(name, what, Cause::Died);
        self.show(name);
    }

    /// A second has passed.
    fn tick(&mut self, now: Instant) {
        if self.polled.is_some_and(|at| now.saturating_duration_since(at) >= POLL) {
            self.polled = Some(now);
            self.scan(None, false);
        }
        let names: Vec<String> = self.plugins.keys().cloned().collect();
        for name in names {
            self.look(&name, now);
            self.finish(&name, now);
            let Some(plugin) = self.plugins.get_mut(&name) else { continue };
            let what = plugin.machine.tick(now);
            self.act(&name, what, Cause::BackOff);
        }
    }

    /// Looks at the generation that runs.
    fn look(&mut self, name: &str, now: Instant) {
        let Some(plugin) = self.plugins.get_mut(name) else { return };
        let Some(running) = &plugin.running else { return };
        let (number, limits) = (running.number, running.entry.limits.clone());
        let stats = running.running.instance.stats();
        if stats.ended {
            let text = stats.last_error.unwrap_or_else(|| "it ended by itself".to_owned());
            return self.trouble(name, number, Trouble::Died, &text, now);
        }
        if let Some((callback, since)) = stats.running
            && now.saturating_duration_since(since) > limits.callback
        {
            let text = format!("{callback} takes longer than {} ms", limits.callback.as_millis());
            return self.trouble(name, number, Trouble::Hung, &text, now);
        }
        let budget = (limits.cpu, limits.queue);
        let Some(over) = plugin.machine.sample(now, stats.cpu, stats.queue, budget) else { return };
        if over.is_empty() {
            plugin.gate.hold(None);
            plugin.reason = None;
            tracing::info!(plugin = name, "it is within its budget again and gets new streams");
        } else {
            plugin.gate.hold(Some(format!("it is over its budget: {over}")));
            plugin.reason = Some(over.clone());
            tracing::warn!(plugin = name, "over its budget, no new streams: {over}");
            self.platform.tell(Happening::PluginOverBudget {
                generation: number,
                name: name.to_owned(),
                reason: over,
            });
        }
        self.show(name);
    }

    /// Lets go of older generations that are over.
    fn finish(&mut self, name: &str, now: Instant) {
        let Some(plugin) = self.plugins.get_mut(name) else { return };
        let (mut late, before) = (Vec::new(), plugin.draining.len());
        plugin.draining.retain(|old| {
            let stats = old.instance.stats();
            let is_late = !stats.ended && now >= old.until + GRACE;
            if is_late {
                late.push(old.number);
            } else if stats.ended {
                plugin.totals.add(&stats);
            }
            !stats.ended
        });
        let changed = plugin.draining.len() != before;
        if plugin.gone && plugin.draining.is_empty() {
            return self.forget(name);
        }
        for number in late {
            let text = "it did not end at its drain deadline";
            self.trouble(name, number, Trouble::Hung, text, now);
        }
        if changed {
            self.show(name);
        }
    }

    /// Nothing of a plugin runs any more, and it is not wanted.
    pub(super) fn forget(&mut self, name: &str) {
        lock(&self.shared.shown).remove(name);
        if let Some(plugin) = self.plugins.remove(name)
            && plugin.machine.last() > 0
        {
            self.past.insert(name.to_owned(), plugin.into_past());
        }
    }

    /// Has a generation finish its streams.
    pub(super) fn drain(plugin: &mut Plugin, generation: &Generation, drain: Duration) {
        let instance = Arc::clone(&generation.running.instance);
        instance.drain(drain);
        let until = Instant::now() + drain;
        plugin.draining.push(Old { number: generation.number, instance, until });
        let beyond = plugin.draining.len().saturating_sub(MAX_DRAINING);
        for oldest in plugin.draining.iter_mut().take(beyond) {
            oldest.instance.drain(Duration::ZERO);
            oldest.until = oldest.until.min(Instant::now());
        }
    }

    /// Takes a plugin out of service.
    pub(super) fn stop(&mut self, name: &str, reason: &str, drain: Duration) {
        let Some(plugin) = self.plugins.get_mut(name) else { return };
        plugin.gate.close(reason);
        for delivery in std::mem::take(&mut plugin.sinks).into_values() {
            if let Some(handle) = lock(&delivery).take() {
                handle.detach();
            }
        }
        if let Some(running) = plugin.running.take() {
            Self::drain(plugin, &running, drain);
        }
        let ports: Vec<u16> =
            self.ports.iter().filter(|(_, owner)| &***owner == name).map(|(p, _)| *p).collect();
        for port in ports {
            self.platform.unlisten(port);
            self.ports.remove(&port);
        }
        let rules = self.shared.rules.load();
        if rules.values().any(|rule| &*rule.plugin == name) {
            let mut rest = BTreeMap::clone(&rules);
            rest.retain(|_, rule| &*rule.plugin != name);
            self.shared.rules.store(Arc::new(rest));
        }
    }

    /// Nothing runs for a while; its ports, rules and sinks stay its own.
    fn switch_off(&mut self, name: &str, reason: &str) {
        let Some(plugin) = self.plugins.get_mut(name) else { return };
        plugin.gate.close(reason);
        let why = plugin.reason.take().map_or_else(String::new, |why| format!(" ({why})"));
        let reason = format!("{reason}{why}");
        let generation = plugin.machine.last();
        if let Some(running) = plugin.running.take() {
            Self::drain(plugin, &running, self.options.drain);
        }
        plugin.reason = Some(reason.clone());
        tracing::error!(plugin = name, "switched off: {reason}");
        let off = Happening::PluginSwitchedOff { generation, name: name.to_owned(), reason };
        self.platform.tell(off);
        self.show(name);
    }

    /// Ends everything.
    fn shutdown(&mut self, drain: Duration) {
        self.watch = None;
        let names: Vec<String> = self.plugins.keys().cloned().collect();
        for name in &names {
            if let Some(plugin) = self.plugins.get_mut(name) {
                let _ = plugin.machine.want(None, false);
            }
            self.stop(name, "this process is ending", drain);
            for old in self.plugins.get(name).into_iter().flat_map(|p| &p.draining) {
                old.instance.drain(drain);
            }
        }
        let until = Instant::now() + drain + TICK;
        let over = |plugin: &Plugin| plugin.draining.iter().all(|old| old.instance.stats().ended);
        while !self.plugins.values().all(over) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        for name in names {
            if let Some(plugin) = self.plugins.get_mut(&name) {
                plugin.reason = Some("this process is ending".to_owned());
            }
            self.show(&name);
        }
    }

    /// Puts something over a configured entry, or takes it back.
    fn set_entry(&mut self, name: &str, entry: Option<Value>) -> Result<PluginReload, String> {
        if let Some(entry) = &entry {
            self.entry(name, entry)?;
        }
        let before = match entry {
            Some(entry) => self.set.insert(name.to_owned(), entry),
            None => self.set.remove(name),
        };
        let report = self.scan(Some(Cause::Set), false);
        let mut done = report.plugins.into_iter().rfind(|p| p.name == name);
        let unchanged = || {
            let plugin = self.plugins.get(name)?;
            Some(PluginReload {
                name: name.to_owned(),
                result: ReloadResult::Unchanged,
                generation: plugin.running.as_ref().map_or(0, |g| g.number),
                error: None,
            })
        };
        done = done.or_else(unchanged);
        match done {
            Some(done) if done.error.is_none() => Ok(done),
            done => {
                match before {
                    Some(before) => self.set.insert(name.to_owned(), before),
                    None => self.set.remove(name),
                };
                self.scan(Some(Cause::Set), false);
                let missing = || format!("there is no plugin or script {name:?}");
                Err(done.and_then(|done| done.error).unwrap_or_else(missing))
            }
        }
    }

    /// Notes what came of a load, shows it, and tells.
    pub(super) fn note(&mut self, name: &str, cause: Cause, done: &PluginReload) {
        if let Some(plugin) = self.plugins.get_mut(name) {
            plugin.last = Some(LastReload {
                at_ms: now_ms(),
                cause: cause.text().to_owned(),
                result: done.result,
                error: done.error.clone(),
            });
        }
        self.show(name);
    }

    /// Has others see how a plugin stands.
    pub(super) fn show(&mut self, name: &str) {
        if let Some(plugin) = self.plugins.get_mut(name) {
            let shown = plugin.show(false);
            lock(&self.shared.shown).insert(name.to_owned(), shown);
        }
    }
}
