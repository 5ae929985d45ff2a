//! Brings up a new generation beside the one that runs, and has it take over
//! when all has gone well. Whatever fails leaves everything as it was.

use std::collections::BTreeMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context as TaskContext, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use pilot_plugin::Manifest;
use serde_json::Value;

use super::decide::Cause;
use super::gate::{self, PortSlot, Running};
use super::plugin::{Claims, Delivery, Generation, Wanted, provides, stays_open};
use super::status::{PluginReload, ReloadResult};
use super::worker::Worker;
use super::{Rule, lock};
use crate::events::Happening;
use crate::files::{self, Demands};
use crate::instance::{Backend, Context, StartError};
use crate::schema;
use crate::settings::{Entry, Ports, nearest};

/// Time that the process has to open a port.
const LISTEN: Duration = Duration::from_secs(10);
/// What a loader says of a library that does not come back: its thread is left
/// behind and cannot be ended.
const STUCK: &str = "does not finish loading";

/// Why a generation did not come up.
struct Failed {
    text: String,
    /// Another plugin has some of what it wants.
    conflict: Option<Claims>,
    /// The generation whose thread did not come back, and cannot be ended.
    stuck: Option<u64>,
}

impl From<String> for Failed {
    fn from(text: String) -> Self {
        Self { text, conflict: None, stuck: None }
    }
}

enum Up {
    Unchanged,
    Took(Box<Generation>),
}

impl Worker {
    /// Loads what is wanted under `name`, and tells what came of it.
    pub(super) fn load(&mut self, name: &str, cause: Cause) -> PluginReload {
        let mut done = PluginReload {
            name: name.to_owned(),
            result: ReloadResult::Failed,
            generation: 0,
            error: None,
        };
        let Some(plugin) = self.plugins.get_mut(name) else { return done };
        plugin.machine.trying();
        let shown = plugin.show(true);
        lock(&self.shared.shown).insert(name.to_owned(), shown);
        let began = Instant::now();
        let up = self.bring_up(name, cause);
        let now = Instant::now();
        let drain = self.options.drain;
        let Some(plugin) = self.plugins.get_mut(name) else { return done };
        plugin.conflict = match &up {
            Err(failed) => failed.conflict.clone(),
            Ok(_) => None,
        };
        let stuck = up.as_ref().err().and_then(|failed| failed.stuck);
        let event = match up {
            Ok(Up::Unchanged) => {
                plugin.machine.unchanged();
                plugin.reason = None;
                done.generation = plugin.running.as_ref().map_or(0, |g| g.number);
                done.result = ReloadResult::Unchanged;
                None
            }
            Ok(Up::Took(new)) => {
                plugin.machine.succeeded(now, new.number);
                plugin.reason = None;
                done.generation = new.number;
                done.result = ReloadResult::Started;
                let (file, sha256) = (new.file.display().to_string(), new.sha256.clone());
                plugin.known = Some((new.manifest.clone(), new.provides.clone()));
                let (generation, version) = (new.number, new.manifest.version.clone());
                let before = plugin.running.replace(*new);
                let previous = before.as_ref().map(|before| before.number);
                if let Some(before) = before {
                    done.result = ReloadResult::Reloaded;
                    Self::drain(plugin, &before, drain);
                    if !stays_open(before.kind, before.entry.isolation) && before.sha256 != sha256 {
                        self.cache.forget(name, before.kind, &before.sha256);
                    }
                }
                tracing::info!(
                    plugin = name,
                    generation = done.generation,
                    file,
                    sha256,
                    cause = cause.text(),
                    ms = now.saturating_duration_since(began).as_millis(),
                    "running"
                );
                let name = name.to_owned();
                Some(match previous {
                    Some(previous) => Happening::PluginReloaded {
                        file,
                        generation,
                        name,
                        previous,
                        sha256,
                        version,
                    },
                    None => Happening::PluginLoaded { file, generation, name, sha256, version },
                })
            }
            Err(failed) => {
                let retry = plugin.machine.failed(now, cause);
                let lost = plugin.running.take_if(|_| retry.is_some());
                if let Some(lost) = lost {
                    Self::drain(plugin, &lost, drain);
                }
                let running = plugin.running.as_ref();
                done.generation = running.map_or_else(|| plugin.machine.last(), |g| g.number);
                if running.is_some() {
                    done.result = ReloadResult::Kept;
                    tracing::error!(
                        plugin = name,
                        "not reloaded, the earlier one goes on: {}",
                        failed.text
                    );
                } else {
                    plugin.gate.close(&failed.text);
                    plugin.reason = Some(failed.text.clone());
                    tracing::error!(plugin = name, "not loaded: {}", failed.text);
                }
                done.error = Some(failed.text.clone());
                Some(Happening::PluginReloadFailed {
                    file: plugin.wanted.file.as_ref().map(|file| file.display().to_string()),
                    generation: plugin.running.as_ref().map(|running| running.number),
                    name: name.to_owned(),
                    reason: failed.text,
                })
            }
        };
        self.note(name, cause, &done);
        if let Some(event) = event {
            self.platform.tell(event);
        }
        if let Some(plugin) = self.plugins.get_mut(name)
            && let Some(number) = stuck
        {
            let what = plugin.machine.stuck(number);
            self.act(name, what, cause);
            self.show(name);
        }
        done
    }

    fn bring_up(&mut self, name: &str, cause: Cause) -> Result<Up, Failed> {
        let Some(plugin) = self.plugins.get(name) else {
            return Err(format!("there is no plugin {name:?}").into());
        };
        let wanted = plugin.wanted.clone();
        let Some(file) = wanted.file.clone() else {
            return Err(format!(
                "there is no file for it (looked in {}); put it there or name it with the key file",
                wanted.places
            )
            .into());
        };
        let entry = &wanted.entry;
        let demands = Demands {
            sha256: entry.sha256.as_deref(),
            signature: entry.signature.as_deref(),
            keys: &self.settings.trusted_keys,
            shipped: wanted.shipped,
        };
        let checked = files::check(&file, wanted.kind, &demands)?;
        if let Some(running) = &plugin.running
            && !cause.is_trouble()
            && running.sha256 == checked.sha256
            && running.entry == *entry
        {
            return Ok(Up::Unchanged);
        }
        let made = self.make(name, file, &wanted, &checked);
        if made.is_err() {
            self.forget_copy(name, &wanted, &checked.sha256);
        }
        made
    }

    /// Removes the copy of a version that failed, unless something has it open.
    fn forget_copy(&self, name: &str, wanted: &Wanted, sha256: &str) {
        let Some(plugin) = self.plugins.get(name) else { return };
        let runs = plugin.running.as_ref().is_some_and(|running| running.sha256 == sha256);
        if !runs && !plugin.libraries.tried.contains(sha256) {
            self.cache.forget(name, wanted.kind, sha256);
        }
    }

    /// Makes a generation of a file that was checked, and has it take over.
    fn make(
        &mut self,
        name: &str,
        file: PathBuf,
        wanted: &Wanted,
        checked: &files::Checked,
    ) -> Result<Up, Failed> {
        let entry = &wanted.entry;
        let backend = self.open(name, &file, checked)?;
        let manifest = backend.manifest().clone();
        let config = schema::check(name, manifest.config_schema.as_ref(), entry)?;
        let mut by_service = ports(&manifest, entry)?;
        if let Some(why) = self.options.no_ports {
            without_ports(name, why, &manifest)?;
            by_service.values_mut().for_each(Vec::clear);
        }
        let sinks = sink_names(name, &manifest);
        self.free(name, &by_service, &manifest)?;
        let mut granted = entry.grants.clone();
        if wanted.shipped {
            granted.extend(manifest.needs.iter().cloned());
        } else if let Some(missing) =
            manifest.needs.iter().find(|need| !granted.iter().any(|g| g == *need || g == "*"))
        {
            tracing::warn!(
                plugin = name,
                "it calls {missing}, which is denied until its entry has it under grants"
            );
        }
        let Some(plugin) = self.plugins.get_mut(name) else {
            return Err(format!("there is no plugin {name:?}").into());
        };
        let number = plugin.machine.generation();
        let context = Context {
            name: Arc::clone(&plugin.name),
            generation: number,
            platform: Arc::clone(&self.platform),
            store: self.stores.of(name),
            observer: Arc::clone(&self.observer),
            limits: entry.limits.clone(),
            granted: granted.into(),
        };
        let stays = stays_open(wanted.kind, entry.isolation);
        let instance = guard(|| backend.start(&config, context))?.map_err(|error| Failed {
            // Only a thread of this process is left behind: a child is killed, and
            // a script stops by itself.
            stuck: (stays && matches!(error, StartError::Timeout(_))).then_some(number),
            ..Failed::from(error.to_string())
        })?;
        let datagrams =
            |service: &str| manifest.services.iter().any(|s| s.name == service && s.datagrams);
        let all = by_service
            .iter()
            .flat_map(|(service, ports)| ports.iter().map(|p| (*p, datagrams(service))))
            .collect();
        let generation = Generation {
            number,
            provides: provides(&manifest, &by_service),
            running: Arc::new(Running { instance, ports: all }),
            manifest,
            kind: wanted.kind,
            sha256: checked.sha256.clone(),
            file,
            entry: Arc::clone(entry),
        };
        match self.take_over(name, &generation, &sinks) {
            Ok(()) => Ok(Up::Took(Box::new(generation))),
            Err(text) => {
                generation.running.instance.drain(Duration::ZERO);
                Err(text.into())
            }
        }
    }

    /// Opens a private copy of the file, or finds it open already.
    fn open(
        &mut self,
        name: &str,
        file: &Path,
        checked: &files::Checked,
    ) -> Result<Arc<dyn Backend>, Failed> {
        let Some(plugin) = self.plugins.get_mut(name) else {
            return Err(format!("there is no plugin {name:?}").into());
        };
        let (kind, entry) = (plugin.wanted.kind, Arc::clone(&plugin.wanted.entry));
        let stays = stays_open(kind, entry.isolation);
        let libraries = &mut plugin.libraries;
        if stays && let Some(backend) = libraries.open.get(&checked.sha256) {
            return Ok(Arc::clone(backend));
        }
        let is_new = !libraries.tried.contains(&checked.sha256);
        if stays && is_new && libraries.tried.len() >= self.options.generations {
            return Err(format!(
                "{} different files have been loaded for it, and none can be unloaded: restart \
                 this process to load {}",
                libraries.tried.len(),
                file.display()
            )
            .into());
        }
        let copy = self.cache.copy(name, kind, checked)?;
        if stays {
            libraries.tried.insert(checked.sha256.clone());
        }
        let loader = &self.loader;
        let backend = guard(|| loader.open(kind, &copy, entry.isolation, &entry.limits))
            .flatten()
            .map_err(|problem| Failed {
                stuck: (stays && problem.contains(STUCK)).then(|| plugin.machine.generation()),
                ..Failed::from(format!("{} cannot be loaded: {problem}", file.display()))
            })?;
        if stays {
            plugin.libraries.open.insert(checked.sha256.clone(), Arc::clone(&backend));
        }
        Ok(backend)
    }

    /// Whether nobody else has any of this.
    pub(super) fn is_free(&self, name: &str, claims: &Claims) -> bool {
        let rules = self.shared.rules.load();
        let port = |port: &u16| self.ports.get(port).is_some_and(|owner| &**owner != name);
        let rule = |rule: &String| rules.get(rule).is_some_and(|other| &*other.plugin != name);
        !claims.ports.iter().any(port) && !claims.rules.iter().any(rule)
    }

    /// Refuses ports and rules that another plugin has.
    fn free(
        &self,
        name: &str,
        by_service: &BTreeMap<String, Vec<u16>>,
        manifest: &Manifest,
    ) -> Result<(), Failed> {
        let taken = |what: String, owner: &str| Failed {
            text: format!(
                "{what} is taken: plugin {owner} has it already, so plugin {name} does not get \
                 it; change one of the two"
            ),
            conflict: Some(Claims {
                ports: by_service.values().flatten().copied().collect(),
                rules: manifest.rules.iter().map(|rule| rule.name.clone()).collect(),
            }),
            stuck: None,
        };
        let mut seen = Vec::new();
        for (service, ports) in by_service {
            for port in ports {
                if seen.contains(port) {
                    let text = format!("port {port} is given twice, also to service {service:?}");
                    return Err(text.into());
                }
                seen.push(*port);
                if let Some(owner) = self.ports.get(port).filter(|owner| &***owner != name) {
                    return Err(taken(format!("port {port}"), owner));
                }
            }
        }
        let rules = self.shared.rules.load();
        for rule in &manifest.rules {
            if let Some(other) = rules.get(&rule.name).filter(|other| &*other.plugin != name) {
                return Err(taken(format!("the join rule {:?}", rule.name), &other.plugin));
            }
        }
        Ok(())
    }

    /// Opens new ports, attaches new sinks, swaps, and gives back what the new
    /// generation does not want. What fails is undone.
    fn take_over(
        &mut self,
        name: &str,
        new: &Generation,
        sinks: &BTreeMap<String, String>,
    ) -> Result<(), String> {
        let opened = self.open_ports(name, new)?;
        if let Err(problem) = self.attach(name, new, sinks) {
            self.close_ports(&opened);
            return Err(problem);
        }
        let Some(plugin) = self.plugins.get_mut(name) else {
            self.close_ports(&opened);
            return Err(format!("there is no plugin {name:?}"));
        };
        plugin.gate.swap(Arc::clone(&new.running));
        let gone: Vec<String> =
            plugin.sinks.keys().filter(|n| !sinks.contains_key(*n)).cloned().collect();
        for sink in gone {
            let delivery = plugin.sinks.remove(&sink);
            if let Some(handle) = delivery.and_then(|delivery| lock(&delivery).take()) {
                handle.detach();
            }
        }
        let rule = Rule {
            plugin: Arc::clone(&plugin.name),
            gate: Arc::clone(&plugin.gate),
            limit: new.entry.limits.validate,
        };
        let mut rules = BTreeMap::clone(&self.shared.rules.load());
        rules.retain(|_, rule| &*rule.plugin != name);
        rules.extend(new.manifest.rules.iter().map(|r| (r.name.clone(), rule.clone())));
        self.shared.rules.store(Arc::new(rules));
        let unused = |(port, owner): (&u16, &Arc<str>)| {
            (&**owner == name && !new.running.ports.contains_key(port)).then_some(*port)
        };
        let unused: Vec<u16> = self.ports.iter().filter_map(unused).collect();
        self.close_ports(&unused);
        Ok(())
    }

    fn open_ports(&mut self, name: &str, new: &Generation) -> Result<Vec<u16>, String> {
        let mut opened = Vec::new();
        for port in new.running.ports.keys() {
            if self.ports.contains_key(port) {
                continue;
            }
            let Some(plugin) = self.plugins.get(name) else { continue };
            let slot = PortSlot::new(*port, &plugin.gate);
            let answer = wait(self.platform.listen(*port, slot), LISTEN);
            let problem = match answer {
                Some(Ok(())) => {
                    self.ports.insert(*port, Arc::clone(&plugin.name));
                    opened.push(*port);
                    continue;
                }
                Some(Err(problem)) => problem,
                None => {
                    // It may still come; then nobody wants it.
                    self.platform.unlisten(*port);
                    format!("no answer within {} s", LISTEN.as_secs())
                }
            };
            self.close_ports(&opened);
            return Err(format!("port {port} cannot be opened: {problem}"));
        }
        Ok(opened)
    }

    fn close_ports(&mut self, ports: &[u16]) {
        for port in ports {
            self.platform.unlisten(*port);
            self.ports.remove(port);
        }
    }

    /// Has the journal deliver to the sinks. Those that are attached already
    /// stay so, with their settings changed when those did.
    fn attach(
        &mut self,
        name: &str,
        new: &Generation,
        sinks: &BTreeMap<String, String>,
    ) -> Result<(), String> {
        let Some(plugin) = self.plugins.get_mut(name) else { return Ok(()) };
        let settings: BTreeMap<String, Value> = sinks
            .iter()
            .map(|(sink, in_manifest)| (sink.clone(), events(new, in_manifest)))
            .collect();
        let mut added: Vec<String> = Vec::new();
        let mut replaced: Vec<String> = Vec::new();
        plugin.gate.stage(Some(Arc::clone(&new.running)));
        let mut result = Ok(());
        for (sink, in_manifest) in sinks {
            let deliver = gate::deliver(&plugin.gate, in_manifest);
            let events = &settings[sink];
            let one = match plugin.sinks.get(sink) {
                Some(_) if plugin.events.get(sink) == Some(events) => Ok(()),
                Some(delivery) => match lock(delivery).as_mut() {
                    Some(handle) => {
                        replaced.push(sink.clone());
                        handle.replace(events, deliver)
                    }
                    None => Ok(()),
                },
                None => self.journal.attach(sink, events, deliver).map(|handle| {
                    let delivery: Delivery = Arc::new(Mutex::new(Some(handle)));
                    plugin.sinks.insert(sink.clone(), delivery);
                    added.push(sink.clone());
                }),
            };
            if let Err(problem) = one {
                result = Err(format!("the settings of sink {sink:?} (key events): {problem}"));
                break;
            }
        }
        if result.is_ok() {
            plugin.events = settings;
        } else {
            plugin.gate.stage(None);
            for sink in added {
                let delivery = plugin.sinks.remove(&sink);
                if let Some(handle) = delivery.and_then(|delivery| lock(&delivery).take()) {
                    handle.detach();
                }
            }
            for sink in replaced {
                let deliver = gate::deliver(&plugin.gate, sinks.get(&sink).unwrap_or(&sink));
                let old = plugin.events.get(&sink).cloned().unwrap_or_default();
                let again = |delivery: &Delivery| {
                    lock(delivery).as_mut().map(|handle| handle.replace(&old, deliver))
                };
                if let Some(Err(problem)) = plugin.sinks.get(&sink).and_then(again) {
                    tracing::error!(plugin = name, sink, "its earlier settings: {problem}");
                }
            }
        }
        result
    }
}

/// Ports by service, from the manifest and what the entry says instead.
fn ports(manifest: &Manifest, entry: &Entry) -> Result<BTreeMap<String, Vec<u16>>, String> {
    let mut ports: BTreeMap<String, Vec<u16>> =
        manifest.services.iter().map(|s| (s.name.clone(), s.ports.clone())).collect();
    match &entry.ports {
        None => {}
        Some(Ports::Only(list)) => match manifest.services.as_slice() {
            [only] => {
                ports.insert(only.name.clone(), list.clone());
            }
            [] => return Err("it has no service, so the key ports makes no sense".to_owned()),
            several => {
                let names: Vec<_> = several.iter().map(|s| s.name.as_str()).collect();
                return Err(format!(
                    "it has several services ({}): write the key ports as a map from service to \
                     list",
                    names.join(", ")
                ));
            }
        },
        Some(Ports::Services(map)) => {
            for (service, list) in map {
                let Some(ports) = ports.get_mut(service) else {
                    let known = manifest.services.iter().map(|s| s.name.as_str());
                    let hint = nearest(service, known)
                        .map_or_else(String::new, |n| format!(" (did you mean {n}?)"));
                    return Err(format!("it has no service {service:?}{hint}; see the key ports"));
                };
                ports.clone_from(list);
            }
        }
    }
    Ok(ports)
}

/// Says that services are not served here.
fn without_ports(name: &str, why: &str, manifest: &Manifest) -> Result<(), String> {
    let services: Vec<_> = manifest.services.iter().map(|s| s.name.as_str()).collect();
    let services = services.join(", ");
    if manifest.rules.is_empty() && manifest.sinks.is_empty() {
        return Err(format!(
            "it provides nothing but services ({services}), and {why}: take it away here, or run \
             it in a daemon"
        ));
    }
    if !services.is_empty() {
        tracing::info!(plugin = name, services, "its services are not served here: {why}");
    }
    Ok(())
}

/// Settings of a sink for the journal: those of the entry, with the largest
/// batch that the manifest wants where the entry does not say.
fn events(new: &Generation, sink: &str) -> Value {
    let wish = new.manifest.sinks.iter().find(|s| s.name == sink).map_or(0, |s| s.max_batch);
    let mut events = new.entry.events.clone();
    if wish > 0 && (events.is_null() || events.is_object()) && events.get("batch").is_none() {
        events["batch"] = Value::from(wish);
    }
    events
}

/// Names of its sinks for the journal, unique in the process, and those of the
/// manifest.
fn sink_names(name: &str, manifest: &Manifest) -> BTreeMap<String, String> {
    match manifest.sinks.as_slice() {
        [only] => BTreeMap::from([(name.to_owned(), only.name.clone())]),
        several => several.iter().map(|s| (format!("{name}.{}", s.name), s.name.clone())).collect(),
    }
}

/// Keeps this thread from ending when a file makes what opens it panic.
fn guard<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    // What the call leaves half done is its own, and is dropped.
    std::panic::catch_unwind(AssertUnwindSafe(call)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        format!("loading it panicked: {}", text.unwrap_or_else(|| "no reason".to_owned()))
    })
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for a future on this thread, for `limit` at the most.
fn wait<T>(future: impl Future<Output = T>, limit: Duration) -> Option<T> {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut cx = TaskContext::from_waker(&waker);
    let until = Instant::now() + limit;
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut cx) {
            return Some(value);
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        std::thread::park_timeout(left);
    }
}

#[cfg(test)]
mod tests {
    use super::STUCK;
    use crate::native::OpenError;

    #[test]
    fn a_library_that_hangs_is_told_by_its_text() {
        let hangs = OpenError::Hangs { path: "x.so".into() };
        assert!(hangs.to_string().contains(STUCK));
    }
}
