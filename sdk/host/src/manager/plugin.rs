//! One plugin as the manager's thread knows it, and as others may see it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ed25519_dalek::VerifyingKey;
use pilot_plugin::Manifest;
use serde_json::Value;

use super::decide::Machine;
use super::gate::{Gate, Running};
use super::status::{
    DrainingStatus, FileKind, LastReload, PluginStatus, Provides, ServiceStatus, State,
};
use super::{SinkHandle, lock};
use crate::instance::{Backend, Instance, Stats};
use crate::settings::{Entry, Isolation};

/// Why a plugin is off for good.
pub(super) const BANNED: &str = "too many of its threads are stuck and cannot be ended; it stays \
                                 off until this process is started again";

/// What should run under a name.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) kind: FileKind,
    pub(super) entry: Arc<Entry>,
    /// Its file, if there is one.
    pub(super) file: Option<PathBuf>,
    /// Where it was looked for.
    pub(super) places: String,
    /// Whether the configuration names it.
    pub(super) named: bool,
    /// Whether its file comes with Pilot.
    pub(super) shipped: bool,
}

/// What makes two versions of a plugin different.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Fingerprint {
    pub(super) sha256: Option<String>,
    /// Why the file may not be loaded, if that is so.
    pub(super) refusal: Option<String>,
    pub(super) signature: Option<String>,
    pub(super) keys: Arc<Vec<VerifyingKey>>,
    pub(super) entry: Arc<Entry>,
}

/// An instance and what it was made of.
pub(super) struct Generation {
    pub(super) number: u64,
    pub(super) running: Arc<Running>,
    pub(super) manifest: Manifest,
    pub(super) provides: Provides,
    pub(super) kind: FileKind,
    pub(super) sha256: String,
    pub(super) file: PathBuf,
    pub(super) entry: Arc<Entry>,
}

/// An older generation, and when it must be over.
pub(super) struct Old {
    pub(super) number: u64,
    pub(super) instance: Arc<dyn Instance>,
    pub(super) until: Instant,
}

/// What only one plugin can have.
#[derive(Clone)]
pub(super) struct Claims {
    pub(super) ports: Vec<u16>,
    pub(super) rules: Vec<String>,
}

/// Library files of one plugin that were loaded into this process.
#[derive(Default)]
pub(super) struct Libraries {
    /// Those that are open, by hash: never closed, so never opened twice.
    pub(super) open: HashMap<String, Arc<dyn Backend>>,
    /// Hashes of all that were tried: also one that failed may have been mapped,
    /// and its constructors may have run.
    pub(super) tried: BTreeSet<String>,
}

/// What stays of a plugin whose file or entry was removed, for when it comes
/// back: what it loaded, what is stuck, and how its generations are counted.
pub(super) struct Past {
    machine: Machine<Fingerprint>,
    libraries: Libraries,
}

/// A sink's delivery, shared with those who ask for its status.
pub(super) type Delivery = Arc<Mutex<Option<Box<dyn SinkHandle>>>>;

pub(super) struct Plugin {
    pub(super) name: Arc<str>,
    pub(super) machine: Machine<Fingerprint>,
    pub(super) gate: Arc<Gate>,
    pub(super) wanted: Wanted,
    pub(super) running: Option<Generation>,
    pub(super) draining: Vec<Old>,
    pub(super) libraries: Libraries,
    /// By the name that the journal knows.
    pub(super) sinks: BTreeMap<String, Delivery>,
    pub(super) totals: Totals,
    pub(super) last: Option<LastReload>,
    /// Why it stands as it does.
    pub(super) reason: Option<String>,
    /// Settings that its sinks are attached with.
    pub(super) events: BTreeMap<String, Value>,
    /// What it failed for, as another plugin has some of it.
    pub(super) conflict: Option<Claims>,
    /// What it was when it last ran.
    pub(super) known: Option<(Manifest, Provides)>,
    /// It is not wanted any more and goes when its last stream ends.
    pub(super) gone: bool,
    state: (State, u64),
}

/// What generations that are over have done.
#[derive(Clone, Default)]
pub(super) struct Totals {
    streams: u64,
    errors: u64,
    calls: u64,
    cpu: Duration,
    last_error: Option<String>,
}

impl Totals {
    pub(super) fn add(&mut self, stats: &Stats) {
        self.streams += stats.streams_total;
        self.errors += stats.errors;
        self.calls += stats.calls;
        self.cpu += stats.cpu;
        if stats.last_error.is_some() {
            self.last_error.clone_from(&stats.last_error);
        }
    }
}

impl Plugin {
    /// Nothing runs yet. `past` is what an earlier one of this name left.
    pub(super) fn new(name: &str, wanted: Wanted, past: Option<Past>) -> Self {
        let past = past
            .unwrap_or_else(|| Past { machine: Machine::new(), libraries: Libraries::default() });
        let name: Arc<str> = name.into();
        Self {
            gate: Gate::new(Arc::clone(&name)),
            name,
            reason: past.machine.banned().then(|| BANNED.to_owned()),
            machine: past.machine,
            wanted,
            running: None,
            draining: Vec::new(),
            libraries: past.libraries,
            sinks: BTreeMap::new(),
            totals: Totals::default(),
            last: None,
            events: BTreeMap::new(),
            conflict: None,
            known: None,
            gone: false,
            state: (State::Off, now_ms()),
        }
    }

    /// What is to be kept when it goes.
    pub(super) fn into_past(self) -> Past {
        Past { machine: self.machine, libraries: self.libraries }
    }

    /// What is to be seen of it now. `starting` while it is being started.
    pub(super) fn show(&mut self, starting: bool) -> Shown {
        let state = match self.machine.state() {
            _ if self.gone => State::Draining,
            state if starting && self.running.is_none() && state != State::Running => {
                State::Starting
            }
            state => state,
        };
        if state != self.state.0 {
            self.state = (state, now_ms());
        }
        let (generation, known) = (self.running.as_ref(), self.known.as_ref());
        let base = PluginStatus {
            name: self.name.to_string(),
            kind: self.wanted.kind,
            description: known.map_or_else(String::new, |(m, _)| m.description.clone()),
            provides: known.map_or_else(Provides::default, |(_, provides)| provides.clone()),
            file: generation
                .map(|g| &g.file)
                .or(self.wanted.file.as_ref())
                .map(|file| file.display().to_string()),
            sha256: generation.map(|g| g.sha256.clone()),
            version: known.map(|(manifest, _)| manifest.version.clone()),
            generation: generation.map_or_else(|| self.machine.last(), |g| g.number),
            isolation: generation.map_or(self.wanted.entry.isolation, |g| g.entry.isolation),
            state,
            reason: self.reason.clone(),
            since_ms: self.state.1,
            streams: 0,
            streams_total: 0,
            errors: 0,
            last_error: None,
            cpu_ms: 0,
            calls: 0,
            queue: 0,
            memory: None,
            draining: Vec::new(),
            hung: self.machine.hung(),
            last_reload: self.last.clone(),
            sink_status: BTreeMap::new(),
        };
        Shown {
            base,
            running: generation.map(|g| Arc::clone(&g.running.instance)),
            draining: self
                .draining
                .iter()
                .map(|old| (old.number, Arc::clone(&old.instance)))
                .collect(),
            totals: self.totals.clone(),
            sinks: self.sinks.iter().map(|(n, d)| (n.clone(), Arc::clone(d))).collect(),
        }
    }
}

/// What anybody may see of a plugin, at any time.
pub(super) struct Shown {
    base: PluginStatus,
    running: Option<Arc<dyn Instance>>,
    draining: Vec<(u64, Arc<dyn Instance>)>,
    totals: Totals,
    sinks: Vec<(String, Delivery)>,
}

impl Shown {
    pub(super) fn status(&self) -> PluginStatus {
        let mut status = self.base.clone();
        let mut totals = self.totals.clone();
        for (generation, instance) in &self.draining {
            let stats = instance.stats();
            totals.add(&stats);
            status.streams += stats.streams;
            let generation = *generation;
            status.draining.push(DrainingStatus { generation, streams: stats.streams });
        }
        if let Some(instance) = &self.running {
            let stats = instance.stats();
            totals.add(&stats);
            status.streams += stats.streams;
            status.queue = stats.queue;
            status.memory = stats.memory;
        }
        status.streams_total = totals.streams;
        status.errors = totals.errors;
        status.calls = totals.calls;
        status.cpu_ms = u64::try_from(totals.cpu.as_millis()).unwrap_or(u64::MAX);
        status.last_error = totals.last_error;
        for (name, delivery) in &self.sinks {
            let told = lock(delivery).as_ref().map_or(Value::Null, |handle| handle.status());
            status.sink_status.insert(name.clone(), told);
        }
        status
    }
}

/// What a manifest provides, with these ports.
pub(super) fn provides(manifest: &Manifest, ports: &BTreeMap<String, Vec<u16>>) -> Provides {
    let service = |service: &pilot_plugin::Service| ServiceStatus {
        name: service.name.clone(),
        ports: ports.get(&service.name).cloned().unwrap_or_default(),
        datagrams: service.datagrams,
    };
    Provides {
        services: manifest.services.iter().map(service).collect(),
        rules: manifest.rules.iter().map(|rule| rule.name.clone()).collect(),
        sinks: manifest.sinks.iter().map(|sink| sink.name.clone()).collect(),
    }
}

/// Whether the library stays open when its instance ends.
pub(super) fn stays_open(kind: FileKind, isolation: Isolation) -> bool {
    kind == FileKind::Library && isolation == Isolation::None
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
