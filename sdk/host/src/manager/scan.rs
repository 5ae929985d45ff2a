//! What should run, from configuration and files, and bringing what runs in
//! line with it.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::decide::{Cause, Do};
use super::plugin::{Fingerprint, Plugin, Wanted};
use super::status::{FileKind, PluginReload, ReloadReport, ReloadResult};
use super::worker::Worker;
use crate::events::Happening;
use crate::files;
use crate::settings::{Entry, Settings, merge};
use crate::watch::Watched;

/// Looks again at most so often, when what is to be watched turns out to be
/// something else each time.
const MAX_LOOKS: usize = 4;
/// A file that was changed so lately is hashed each time: its times may not
/// show the next change.
const FRESH: i64 = 2;

/// A file as it was when it was hashed: device, inode, size, times.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Seen {
    identity: (u64, u64, u64, [i64; 4]),
    sha256: String,
}

impl Worker {
    /// Looks at the configuration and at all files, and does what follows.
    /// `again` tries once more what failed, and reports on every plugin.
    pub(super) fn scan(&mut self, cause: Option<Cause>, again: bool) -> ReloadReport {
        let mut wanted = self.look_around();
        let mut report =
            ReloadReport { config_error: self.config_error.clone(), plugins: Vec::new() };
        let known: Vec<String> = self.plugins.keys().cloned().collect();
        for name in known {
            if !wanted.contains_key(&name) {
                report.plugins.extend(self.remove(&name));
            }
        }
        let mut todo = Vec::new();
        for (name, wanted) in std::mem::take(&mut wanted) {
            if let Some((cause, running)) = self.compare(&name, wanted, cause, again, &mut report) {
                todo.push((!running, name, cause));
            }
        }
        // Those that run first: one may give back a port that another wants.
        todo.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        for (_, name, cause) in todo {
            report.plugins.push(self.load(&name, cause));
        }
        self.settle(&mut report);
        if again {
            for (name, plugin) in &self.plugins {
                if !report.plugins.iter().any(|done| done.name == *name) {
                    report.plugins.push(PluginReload {
                        name: name.clone(),
                        result: match plugin.wanted.entry.enabled {
                            true => ReloadResult::Unchanged,
                            false => ReloadResult::Off,
                        },
                        generation: plugin.running.as_ref().map_or(0, |g| g.number),
                        error: None,
                    });
                }
            }
        }
        report
    }

    /// Reads the configuration, watches what it names, and lists what should
    /// run.
    fn look_around(&mut self) -> BTreeMap<String, Wanted> {
        for _ in 0..MAX_LOOKS {
            self.read_config();
            let wanted = self.wanted();
            let Some(watch) = &mut self.watch else { return wanted };
            let mut watched = Watched::default();
            if let Some(file) = &self.options.config_file {
                watched.file(file);
            }
            let settings = &self.settings;
            let folders = settings.plugin_dirs.iter().chain(&settings.script_dirs);
            for folder in folders.chain(&self.options.folders).chain(&self.options.shipped) {
                watched.folder(folder);
            }
            for file in wanted.values().filter_map(|w| w.entry.file.as_ref()) {
                watched.file(file);
            }
            match watch.set(watched) {
                // What happened before it was watched is seen by looking again.
                Ok(true) => {}
                Ok(false) => return wanted,
                Err(problem) => {
                    if self.polled.is_none() {
                        tracing::warn!("{problem}; files are looked at every few seconds instead");
                        self.polled = Some(Instant::now());
                    }
                    return wanted;
                }
            }
            self.polled = None;
        }
        self.wanted()
    }

    fn read_config(&mut self) {
        let Some(file) = self.options.config_file.clone() else { return };
        let refuse = |worker: &mut Self, problem: String| {
            tracing::error!("the configuration is refused, the earlier one stays: {problem}");
            let file = file.display().to_string();
            worker.platform.tell(Happening::ConfigRefused { file, reason: problem.clone() });
            worker.config_error = Some(problem);
        };
        let bytes = match std::fs::read(&file) {
            Ok(bytes) => bytes,
            Err(error) => {
                let problem = format!("config file {} cannot be read: {error}", file.display());
                if self.config_error.as_ref() != Some(&problem) {
                    refuse(self, problem);
                }
                self.config = None;
                return;
            }
        };
        let first = self.config.is_none() && self.config_error.is_none();
        if self.config.as_ref() == Some(&bytes) {
            return;
        }
        let parsed = match std::str::from_utf8(&bytes) {
            Ok(text) => Settings::parse(text, &file).map_err(|error| error.to_string()),
            Err(_) => Err(format!("config file {} is not text in UTF-8", file.display())),
        };
        self.config = Some(bytes);
        match parsed {
            Ok(settings) => {
                self.settings = settings;
                self.config_error = None;
                if !first {
                    tracing::info!(file = %file.display(), "the configuration was read again");
                    let file = file.display().to_string();
                    self.platform.tell(Happening::ConfigReloaded { file });
                }
            }
            Err(problem) => refuse(self, problem),
        }
    }

    /// Everything that should run, or is named although it is off.
    fn wanted(&self) -> BTreeMap<String, Wanted> {
        let mut wanted = BTreeMap::new();
        let settings = &self.settings;
        for (kind, entries) in
            [(FileKind::Library, &settings.plugins), (FileKind::Script, &settings.scripts)]
        {
            for (name, entry) in entries {
                wanted.insert(name.clone(), self.find(name, kind, entry.clone(), true));
            }
        }
        let taken: Vec<PathBuf> = wanted
            .values()
            .filter_map(|w| w.file.as_ref())
            .filter_map(|file| file.canonicalize().ok())
            .collect();
        for (kind, folders) in [
            (FileKind::Library, self.folders(FileKind::Library)),
            (FileKind::Script, self.folders(FileKind::Script)),
        ] {
            for folder in folders {
                let found = files::in_folder(&folder, kind).unwrap_or_else(|error| {
                    tracing::warn!(
                        folder = %folder.display(),
                        "it cannot be read, what was found in it before stays: {error}"
                    );
                    self.found_before(&folder, kind)
                });
                for (name, file) in found {
                    let same = file.canonicalize().is_ok_and(|file| taken.contains(&file));
                    if !same && !wanted.contains_key(&name) {
                        let entry = Entry { file: Some(file), ..Entry::default() };
                        wanted.insert(name.clone(), self.find(&name, kind, entry, false));
                    }
                }
            }
        }
        for name in self.options.defaults.iter().chain(self.set.keys()) {
            if !wanted.contains_key(name) {
                let script = self.locate(name, FileKind::Script).is_some()
                    && self.locate(name, FileKind::Library).is_none();
                let kind = if script { FileKind::Script } else { FileKind::Library };
                let default = self.options.defaults.contains(name);
                let entry = Entry { enabled: default, ..Entry::default() };
                wanted.insert(name.clone(), self.find(name, kind, entry, true));
            }
        }
        for (name, over) in &self.set {
            if let Some(wanted) = wanted.get_mut(name) {
                // It was merged without an error when it was set; with another
                // base there can be none either, as each key stands for itself.
                if let Ok(merged) = merge(&wanted.entry, over, name) {
                    *wanted = self.find(name, wanted.kind, merged, wanted.named);
                }
            }
        }
        wanted
    }

    /// Files that a folder had when it was last read.
    fn found_before(&self, folder: &Path, kind: FileKind) -> Vec<(String, PathBuf)> {
        let of = |(name, plugin): (&String, &Plugin)| {
            let wanted = &plugin.wanted;
            let file = wanted.entry.file.as_ref()?;
            let was = !plugin.gone && !wanted.named && wanted.kind == kind;
            (was && file.parent() == Some(folder)).then(|| (name.clone(), file.clone()))
        };
        self.plugins.iter().filter_map(of).collect()
    }

    /// Whether `over` can be put over the entry of `name`.
    pub(super) fn entry(&self, name: &str, over: &Value) -> Result<(), String> {
        let base = Entry::default();
        merge(&base, over, name).map(drop).map_err(|error| error.to_string())
    }

    fn folders(&self, kind: FileKind) -> Vec<PathBuf> {
        let configured = match kind {
            FileKind::Library => &self.settings.plugin_dirs,
            FileKind::Script => &self.settings.script_dirs,
        };
        configured.iter().chain(&self.options.folders).cloned().collect()
    }

    fn locate(&self, name: &str, kind: FileKind) -> Option<PathBuf> {
        let mut folders = self.folders(kind);
        folders.extend(self.options.shipped.iter().cloned());
        files::find(name, kind, &folders)
    }

    fn find(&self, name: &str, kind: FileKind, entry: Entry, named: bool) -> Wanted {
        let (file, places) = match &entry.file {
            Some(file) => {
                let there = file.symlink_metadata().is_ok();
                (there.then(|| file.clone()), file.display().to_string())
            }
            None => {
                let mut folders = self.folders(kind);
                folders.extend(self.options.shipped.iter().cloned());
                let shown: Vec<_> = folders.iter().map(|f| f.display().to_string()).collect();
                let shown =
                    if shown.is_empty() { "no folder".to_owned() } else { shown.join(", ") };
                (files::find(name, kind, &folders), shown)
            }
        };
        let kind = match file.as_deref().and_then(Path::extension).and_then(|e| e.to_str()) {
            Some("so") => FileKind::Library,
            Some("lua") => FileKind::Script,
            _ => kind,
        };
        let shipped = file.as_ref().is_some_and(|file| {
            self.options.shipped.iter().any(|folder| file.parent() == Some(folder))
        });
        Wanted { kind, entry: Arc::new(entry), file, places, named, shipped }
    }

    /// What is to be done about one plugin: the cause of loading it, and
    /// whether it runs. Switches it off when it should be off.
    fn compare(
        &mut self,
        name: &str,
        wanted: Wanted,
        cause: Option<Cause>,
        again: bool,
        report: &mut ReloadReport,
    ) -> Option<(Cause, bool)> {
        let print = wanted.entry.enabled.then(|| self.fingerprint(&wanted));
        let plugin = self
            .plugins
            .entry(name.to_owned())
            .or_insert_with(|| Plugin::new(name, wanted.clone(), self.past.remove(name)));
        let before = plugin.machine.tried().map(|tried| Arc::clone(&tried.entry));
        plugin.wanted = wanted;
        plugin.gone = false;
        let running = plugin.running.is_some();
        let same = print.as_ref().is_some_and(|print| plugin.machine.tried() == Some(print));
        let cause = cause.unwrap_or(match &before {
            Some(_) if same => Cause::Reload,
            Some(entry) if *entry != plugin.wanted.entry && plugin.wanted.named => Cause::Config,
            Some(_) => Cause::File,
            None if plugin.wanted.named => Cause::Config,
            None => Cause::File,
        });
        if !plugin.wanted.entry.enabled {
            plugin.reason = Some("the configuration switches it off".to_owned());
            plugin.conflict = None;
        }
        match plugin.machine.want(print, again) {
            Do::Nothing => {
                self.show(name);
                None
            }
            Do::Stop => {
                let generation = plugin.running.as_ref().map_or(0, |g| g.number);
                self.stop(name, "the configuration switches it off", self.options.drain);
                tracing::info!(plugin = name, "switched off by the configuration");
                let done = PluginReload {
                    name: name.to_owned(),
                    result: ReloadResult::Off,
                    generation,
                    error: None,
                };
                self.note(name, cause, &done);
                report.plugins.push(done);
                None
            }
            _ => Some((cause, running)),
        }
    }

    /// A plugin that is not wanted any more: it finishes its streams and goes.
    fn remove(&mut self, name: &str) -> Option<PluginReload> {
        let plugin = self.plugins.get_mut(name)?;
        if plugin.gone {
            return None;
        }
        let _ = plugin.machine.want(None, false);
        plugin.gone = true;
        let running = plugin.running.as_ref();
        let generation = running.map_or_else(|| plugin.machine.last(), |g| g.number);
        plugin.reason = Some("its file or entry was removed".to_owned());
        self.stop(name, "it was removed", self.options.drain);
        tracing::info!(plugin = name, generation, "removed");
        self.platform.tell(Happening::PluginRemoved { generation, name: name.to_owned() });
        let done = PluginReload {
            name: name.to_owned(),
            result: ReloadResult::Removed,
            generation,
            error: None,
        };
        self.note(name, Cause::File, &done);
        if self.plugins.get(name).is_some_and(|plugin| plugin.draining.is_empty()) {
            self.forget(name);
        }
        Some(done)
    }

    /// Tries once more what failed for something that another plugin had: that
    /// one may have given it back.
    fn settle(&mut self, report: &mut ReloadReport) {
        for _ in 0..self.plugins.len() {
            let able = |(name, plugin): (&String, &Plugin)| {
                let able = !plugin.gone && !plugin.machine.banned();
                let claims = plugin.conflict.as_ref().filter(|_| able)?;
                self.is_free(name, claims).then(|| name.clone())
            };
            let Some(name) = self.plugins.iter().find_map(able) else { return };
            let done = self.load(&name, Cause::Reload);
            report.plugins.retain(|earlier| earlier.name != name);
            report.plugins.push(done);
        }
    }

    fn fingerprint(&mut self, wanted: &Wanted) -> Fingerprint {
        let keys = Arc::new(self.settings.trusted_keys.clone());
        let entry = Arc::clone(&wanted.entry);
        let path = wanted.file.as_deref();
        let opened = match path {
            Some(path) => files::open(path, wanted.kind).map(|(file, _)| (path, file)),
            None => Err("there is no file".to_owned()),
        };
        // What may not be loaded is not read either: it can be a pipe, or anything.
        let (sha256, signature, refusal) = match opened {
            Ok((path, file)) => {
                let signature = (!keys.is_empty())
                    .then(|| files::signature(path, entry.signature.as_deref()))
                    .flatten();
                (self.hash(path, file, wanted.kind), signature, None)
            }
            Err(refusal) => (None, None, Some(refusal)),
        };
        Fingerprint { sha256, refusal, signature, keys, entry }
    }

    /// The file's hash, from memory when nothing shows that it has changed.
    fn hash(&mut self, path: &Path, file: File, kind: FileKind) -> Option<String> {
        let metadata = file.metadata().ok()?;
        let times =
            [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()];
        let identity = (metadata.dev(), metadata.ino(), metadata.size(), times);
        if let Some(seen) = self.hashes.get(path)
            && seen.identity == identity
        {
            return Some(seen.sha256.clone());
        }
        let sha256 = files::hash(file, kind)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if metadata.ctime().saturating_add(FRESH) < i64::try_from(now).unwrap_or(i64::MAX) {
            // As many as there are files; those that went are few.
            let seen = Seen { identity, sha256: sha256.clone() };
            self.hashes.insert(path.to_owned(), seen);
        }
        Some(sha256)
    }
}
