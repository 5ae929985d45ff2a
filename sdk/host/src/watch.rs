//! Tells that something in the watched files and folders may have changed; what
//! it was is found by looking at them. Folders are watched, not files, as
//! editors replace files; and every link on the way counts, as mounted volumes
//! swap a link to put new files in place.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{RecursiveMode, Watcher as _};

/// Links on the way to a file; a path with more is not followed further.
const MAX_LINKS: usize = 40;

/// What is to be watched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Watched {
    /// Anything in these folders counts.
    folders: BTreeSet<PathBuf>,
    /// These paths count.
    names: BTreeSet<PathBuf>,
}

impl Watched {
    /// Counts what happens to a file, to links on the way to it, and to the
    /// first folder on the way that is not there.
    pub(crate) fn file(&mut self, path: &Path) {
        let (names, _) = chain(path);
        self.names.extend(names);
    }

    /// Counts what happens in a folder, and to the way there.
    pub(crate) fn folder(&mut self, path: &Path) {
        let (names, end) = chain(path);
        self.names.extend(names);
        self.folders.extend(end.filter(|end| end.is_dir()));
    }

    /// Whether what happened to `path` counts.
    fn counts(&self, path: &Path) -> bool {
        self.names.contains(path)
            || self.folders.contains(path)
            || path.parent().is_some_and(|parent| self.folders.contains(parent))
    }

    /// Folders to watch, with what tells one from another of the same name.
    fn places(&self) -> BTreeMap<PathBuf, (u64, u64)> {
        let parents = self.names.iter().filter_map(|name| name.parent()).map(Path::to_owned);
        let places = parents.chain(self.folders.iter().cloned());
        let identity = |path: PathBuf| {
            let metadata = std::fs::metadata(&path).ok()?;
            metadata.is_dir().then(|| (path, (metadata.dev(), metadata.ino())))
        };
        places.filter_map(identity).collect()
    }
}

/// The path itself, links on the way to it, and the first place that is not
/// there; and where it ends.
fn chain(path: &Path) -> (BTreeSet<PathBuf>, Option<PathBuf>) {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut todo: VecDeque<OsString> = parts(&absolute);
    let (mut names, mut at) = (BTreeSet::new(), PathBuf::from("/"));
    let mut links = 0;
    while let Some(part) = todo.pop_front() {
        if part == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&part);
        match std::fs::symlink_metadata(&next) {
            Err(_) => {
                names.insert(next);
                return (names, None);
            }
            Ok(metadata) if metadata.is_symlink() && links < MAX_LINKS => {
                links += 1;
                names.insert(next.clone());
                let Ok(target) = std::fs::read_link(&next) else { return (names, None) };
                if target.is_absolute() {
                    at = PathBuf::from("/");
                }
                let rest = std::mem::take(&mut todo);
                todo = parts(&target);
                todo.extend(rest);
            }
            Ok(_) => at = next,
        }
    }
    names.insert(at.clone());
    (names, Some(at))
}

fn parts(path: &Path) -> VecDeque<OsString> {
    let part = |part: Component<'_>| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    };
    path.components().filter_map(part).collect()
}

/// A watch on a set of places.
pub(crate) struct Watch {
    watched: Watched,
    places: BTreeMap<PathBuf, (u64, u64)>,
    watcher: Option<notify::RecommendedWatcher>,
    changed: Arc<dyn Fn() + Send + Sync>,
}

impl Watch {
    /// Nothing yet. `changed` is called, on some thread, when something may
    /// have changed; it must not block.
    pub(crate) fn new(changed: Arc<dyn Fn() + Send + Sync>) -> Self {
        Self { watched: Watched::default(), places: BTreeMap::new(), watcher: None, changed }
    }

    /// Watches this from now on. Tells whether that is something new: then what
    /// happened just before may have been missed, and is to be looked at.
    ///
    /// # Errors
    /// When the system does not let it watch: nothing is watched then.
    pub(crate) fn set(&mut self, watched: Watched) -> Result<bool, String> {
        let places = watched.places();
        if self.watcher.is_some() && watched == self.watched && places == self.places {
            return Ok(false);
        }
        self.watcher = None;
        let (changed, filter) = (Arc::clone(&self.changed), watched.clone());
        let heard = move |event: notify::Result<notify::Event>| match event {
            Ok(event) if !counts(&filter, &event) => {}
            // An error means that something was missed.
            _ => changed(),
        };
        let mut watcher = notify::recommended_watcher(heard)
            .map_err(|error| format!("files cannot be watched: {error}"))?;
        for place in places.keys() {
            watcher
                .watch(place, RecursiveMode::NonRecursive)
                .map_err(|error| format!("{} cannot be watched: {error}", place.display()))?;
        }
        (self.watched, self.places, self.watcher) = (watched, places, Some(watcher));
        Ok(true)
    }
}

fn counts(watched: &Watched, event: &notify::Event) -> bool {
    match event.kind {
        // Looking at a file is no change; closing it after writing is.
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => {}
        EventKind::Access(_) => return false,
        _ => {}
    }
    event.need_rescan()
        || event.paths.is_empty()
        || event.paths.iter().any(|path| watched.counts(path))
}
