//! Files that come from peers: written under a temporary name while they are
//! hashed, and placed under a name of their own that nothing else has.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use tokio::task::{JoinHandle, spawn_blocking};

use super::stamp::Stamp;

/// Bytes gathered for one round of hashing and writing. A file holds at most
/// two rounds in memory: one that is written, one that is gathered.
const ROUND: usize = 1 << 20;
/// Longest part of a peer's file name that is kept, in bytes: with the time
/// and a number it fits the 255 bytes a file system gives.
const MAX_NAME: usize = 180;
/// Longest extension kept, in bytes.
const MAX_EXTENSION: usize = 32;
/// Names tried before giving up.
const NAME_ATTEMPTS: u32 = 10_000;
/// How temporary names begin.
const UNFINISHED: &str = ".incoming-";

/// Why something was not saved. The text goes to the peer, so it names no
/// local path.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SaveError {
    /// The configured limit is reached.
    #[error("the receiver's limit of {limit} bytes is reached")]
    Quota {
        /// The limit.
        limit: u64,
    },
    /// More or fewer bytes came than were announced.
    #[error("{got} bytes came, {announced} were announced")]
    Size {
        /// What came.
        got: u64,
        /// What was announced.
        announced: u64,
    },
    /// The contents are not what the sender hashed.
    #[error("SHA-256 mismatch: the contents were damaged on the way")]
    Hash,
    /// The file system refused.
    #[error("{action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> SaveError {
    move |source| SaveError::Io { action, source }
}

/// Bytes that may lie in some folders, those on their way included.
pub(crate) struct Quota {
    limit: Option<u64>,
    folders: Vec<PathBuf>,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    /// What lay in the folders when they were last looked at, and came since.
    saved: u64,
    /// Announced and not yet saved.
    coming: u64,
}

impl Quota {
    pub(crate) fn new(limit: Option<u64>, folders: Vec<PathBuf>) -> Arc<Self> {
        let quota = Self { limit, folders, held: Mutex::default() };
        if limit.is_some() {
            quota.held().saved = saved_in(&quota.folders);
        }
        Arc::new(quota)
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn reserve(self: &Arc<Self>, bytes: u64) -> Result<Reserved, SaveError> {
        if let Some(reserved) = self.try_reserve(bytes) {
            return Ok(reserved);
        }
        // Files may have been taken away since.
        let quota = Arc::clone(self);
        blocking(move || {
            let saved = saved_in(&quota.folders);
            quota.held().saved = saved;
            let limit = quota.limit.unwrap_or(u64::MAX);
            quota.try_reserve(bytes).ok_or(SaveError::Quota { limit })
        })
        .await
    }

    fn try_reserve(self: &Arc<Self>, bytes: u64) -> Option<Reserved> {
        let mut held = self.held();
        let coming = held.coming.checked_add(bytes)?;
        let all = held.saved.checked_add(coming)?;
        if self.limit.is_some_and(|limit| all > limit) {
            return None;
        }
        held.coming = coming;
        Some(Reserved { quota: Arc::clone(self), bytes })
    }
}

/// Bytes of the finished files in `folders`; what cannot be read counts as
/// nothing.
fn saved_in(folders: &[PathBuf]) -> u64 {
    let entries = folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
    let finished = entries.filter(|entry| !is_unfinished(&entry.file_name()));
    finished
        .filter_map(|entry| entry.metadata().ok())
        .filter(Metadata::is_file)
        .map(|m| m.len())
        .sum()
}

/// Gives its bytes back when it is dropped.
struct Reserved {
    quota: Arc<Quota>,
    bytes: u64,
}

impl Reserved {
    /// The bytes are in their folder now.
    fn saved(self) {
        self.quota.held().saved += self.bytes;
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.quota.held().coming -= self.bytes;
    }
}

/// The file behind an [`Incoming`]; removed when it is dropped unplaced.
struct Unfinished {
    file: Arc<File>,
    path: PathBuf,
    hasher: Sha256,
    placed: bool,
}

impl Unfinished {
    /// Checks the contents, brings them to disk and lets `name` rename them.
    fn place(
        mut self,
        hash: Option<&[u8]>,
        name: impl FnOnce(&Path) -> Result<PathBuf, SaveError>,
    ) -> Result<PathBuf, SaveError> {
        let found = std::mem::take(&mut self.hasher).finalize();
        if hash.is_some_and(|hash| hash != found.as_slice()) {
            return Err(SaveError::Hash);
        }
        self.file.sync_all().map_err(failed("sync"))?;
        let path = name(&self.path)?;
        self.placed = true;
        Ok(path)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if self.placed {
            return;
        }
        let (file, path) = (Arc::clone(&self.file), std::mem::take(&mut self.path));
        let remove = move || {
            // The next start tries again.
            let _ = fs::remove_file(path);
            drop(file);
        };
        // To give a large file's space back takes longer than the loop may wait.
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

/// A file on its way to a folder.
pub(crate) struct Incoming {
    folder: PathBuf,
    announced: u64,
    got: u64,
    reserved: Reserved,
    /// Gathered and not yet given to a blocking thread; below [`ROUND`].
    gathered: Vec<Bytes>,
    gathered_len: usize,
    writing: Writing,
}

enum Writing {
    Idle(Unfinished),
    Busy(JoinHandle<Result<Unfinished, SaveError>>),
    /// A write failed, or is being given on.
    Gone,
}

impl Incoming {
    /// Opens a file of `announced` bytes below `folder`, which is made if it
    /// is missing, with mode 0700.
    pub(crate) async fn create(
        folder: &Path,
        quota: &Arc<Quota>,
        announced: u64,
    ) -> Result<Self, SaveError> {
        let reserved = quota.reserve(announced).await?;
        let folder = folder.to_owned();
        let unfinished = {
            let folder = folder.clone();
            blocking(move || open(&folder)).await?
        };
        Ok(Self {
            folder,
            announced,
            got: 0,
            reserved,
            gathered: Vec::new(),
            gathered_len: 0,
            writing: Writing::Idle(unfinished),
        })
    }

    /// Takes the next bytes. Waits while an earlier round is being written.
    pub(crate) async fn write(&mut self, data: Bytes) -> Result<(), SaveError> {
        self.got += data.len() as u64;
        if self.got > self.announced {
            return Err(SaveError::Size { got: self.got, announced: self.announced });
        }
        self.gathered_len += data.len();
        self.gathered.push(data);
        if self.gathered_len >= ROUND { self.start_round().await } else { Ok(()) }
    }

    async fn start_round(&mut self) -> Result<(), SaveError> {
        let mut unfinished = self.idle().await?;
        let gathered = std::mem::take(&mut self.gathered);
        self.gathered_len = 0;
        self.writing = Writing::Busy(spawn_blocking(move || {
            for data in gathered {
                unfinished.hasher.update(&data);
                unfinished.file.write_all(&data).map_err(failed("write"))?;
            }
            Ok(unfinished)
        }));
        Ok(())
    }

    /// The file, once nothing is being written.
    async fn idle(&mut self) -> Result<Unfinished, SaveError> {
        match std::mem::replace(&mut self.writing, Writing::Gone) {
            Writing::Idle(unfinished) => Ok(unfinished),
            Writing::Busy(round) => {
                round.await.map_err(|e| failed("write")(io::Error::other(e)))?
            }
            Writing::Gone => Err(failed("write")(io::Error::other("an earlier write failed"))),
        }
    }

    /// Puts the whole file in its folder under a name made from the peer's
    /// `name` and the time; checks the SHA-256 if there is one.
    pub(crate) async fn place(self, name: &str, hash: Option<&[u8]>) -> Result<PathBuf, SaveError> {
        let (stem, extension) = split_name(name);
        self.place_at(stem, Stamp::now(), extension, hash).await
    }

    /// The same with the parts of the name as they are.
    pub(crate) async fn place_at(
        mut self,
        stem: String,
        stamp: Stamp,
        extension: String,
        hash: Option<&[u8]>,
    ) -> Result<PathBuf, SaveError> {
        if self.got != self.announced {
            return Err(SaveError::Size { got: self.got, announced: self.announced });
        }
        self.start_round().await?;
        let unfinished = self.idle().await?;
        let hash = hash.map(<[u8]>::to_vec);
        let folder = self.folder;
        let path = blocking(move || {
            unfinished
                .place(hash.as_deref(), |from| name_it(from, &folder, &stem, stamp, &extension))
        })
        .await?;
        self.reserved.saved();
        Ok(path)
    }
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SaveError> + Send + 'static,
) -> Result<T, SaveError> {
    spawn_blocking(work).await.map_err(|e| failed("save")(io::Error::other(e)))?
}

fn open(folder: &Path) -> Result<Unfinished, SaveError> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed("make folder"))?;
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = folder.join(format!("{UNFINISHED}{}-{number}", std::process::id()));
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .map_err(failed("create file"))?;
    Ok(Unfinished { file: Arc::new(file), path, hasher: Sha256::new(), placed: false })
}

fn is_unfinished(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(UNFINISHED.as_bytes())
}

/// Removes what an earlier run left unfinished. Failures do no harm.
pub(crate) fn remove_unfinished(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if is_unfinished(&entry.file_name()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Renames `from` to the first free name in `folder`.
fn name_it(
    from: &Path,
    folder: &Path,
    stem: &str,
    stamp: Stamp,
    extension: &str,
) -> Result<PathBuf, SaveError> {
    let mut number = OsString::new();
    for attempt in 1..NAME_ATTEMPTS {
        let mut name = OsString::from(format!("{stem}-{stamp}"));
        name.push(&number);
        name.push(extension);
        let path = folder.join(name);
        match rename_new(from, &path) {
            Ok(()) => return Ok(path),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                number = format!("-{attempt}").into();
            }
            Err(e) => return Err(failed("name file")(e)),
        }
    }
    Err(failed("name file")(io::ErrorKind::AlreadyExists.into()))
}

/// Renames without ever replacing anything.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::io::Errno;
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
            // A file system without that flag: a second link never replaces.
            fs::hard_link(from, to)?;
            fs::remove_file(from)
        }
        result => result.map_err(io::Error::from),
    }
}

/// Stem and extension of the last component of a peer's file name, without
/// what could hide it or lead elsewhere.
fn split_name(name: &str) -> (String, String) {
    let last = name.rsplit(['/', '\\']).find(|part| !part.is_empty()).unwrap_or_default();
    let clean: String = last.chars().filter(|c| !c.is_control()).collect();
    let clean = clean.trim().trim_start_matches('.');
    let (stem, extension) = match clean.rfind('.') {
        Some(dot) if dot > 0 && clean.len() - dot <= MAX_EXTENSION => clean.split_at(dot),
        _ => (clean, ""),
    };
    let stem = cut(stem, MAX_NAME);
    let stem = if stem.is_empty() { "file" } else { stem };
    (stem.to_owned(), extension.to_owned())
}

fn cut(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn names_keep_one_harmless_component() {
        let check = |name: &str, stem: &str, extension: &str| {
            assert_eq!(split_name(name), (stem.to_owned(), extension.to_owned()), "{name:?}");
        };
        check("report.txt", "report", ".txt");
        check("../../etc/passwd", "passwd", "");
        check("C:\\temp\\x.tar.gz", "x.tar", ".gz");
        check("..", "file", "");
        check(".bashrc", "bashrc", "");
        check("/", "file", "");
        check("a\0b\n.sh", "ab", ".sh");
        check("dir/", "dir", "");
        check("x.", "x", ".");
        let (stem, extension) = split_name(&format!("{}.pdf", "ü".repeat(300)));
        assert!(stem.len() <= MAX_NAME && !stem.is_empty());
        assert_eq!(extension, ".pdf");
        let (stem, extension) = split_name(&format!("a.{}", "b".repeat(400)));
        assert!(stem.len() <= MAX_NAME && extension.is_empty());
    }

    #[tokio::test]
    async fn a_file_appears_only_when_it_is_whole_and_right() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("received");
        let quota = Quota::new(None, Vec::new());
        let contents: Vec<u8> = (0..3_000_000u32).map(|i| (i * 7) as u8).collect();
        let hash = Sha256::digest(&contents);

        let mut incoming = Incoming::create(&folder, &quota, 3_000_000).await.unwrap();
        for part in contents.chunks(70_000) {
            incoming.write(Bytes::copy_from_slice(part)).await.unwrap();
        }
        let path = incoming.place("a/b.bin", Some(&hash)).await.unwrap();
        assert_eq!(fs::read(&path).unwrap(), contents);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);

        let mut wrong = Incoming::create(&folder, &quota, 3).await.unwrap();
        wrong.write(Bytes::from_static(b"abc")).await.unwrap();
        assert!(matches!(wrong.place("x", Some(&hash)).await, Err(SaveError::Hash)));
        let short = Incoming::create(&folder, &quota, 3).await.unwrap();
        assert!(matches!(short.place("x", None).await, Err(SaveError::Size { got: 0, .. })));
        let mut long = Incoming::create(&folder, &quota, 3).await.unwrap();
        assert!(long.write(Bytes::from_static(b"abcd")).await.is_err());
        drop(long);
        settled(&folder, 1).await;
        let held = quota.held();
        assert_eq!((held.saved, held.coming), (3_000_000, 0));
    }

    #[tokio::test]
    async fn equal_names_at_the_same_moment_stay_apart() {
        let dir = tempfile::tempdir().unwrap();
        let quota = Quota::new(None, Vec::new());
        let stamp = Stamp::now();
        let mut paths = Vec::new();
        for i in 0..5u8 {
            let mut incoming = Incoming::create(dir.path(), &quota, 1).await.unwrap();
            incoming.write(vec![i].into()).await.unwrap();
            let path = incoming.place_at("TEXT".into(), stamp, ".json".into(), None).await;
            paths.push(path.unwrap());
        }
        for (i, path) in paths.iter().enumerate() {
            assert_eq!(fs::read(path).unwrap(), [i as u8]);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 5);
    }

    /// Waits until `folder` has `files` files: unfinished ones go beside.
    async fn settled(folder: &Path, files: usize) {
        let all = async {
            while fs::read_dir(folder).unwrap().count() != files {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(10), all).await.unwrap();
    }

    #[tokio::test]
    async fn the_quota_counts_what_lies_there_and_what_is_coming() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("earlier"), "1234").unwrap();
        fs::write(dir.path().join(".incoming-1-2"), "unfinished files do not count").unwrap();
        let quota = Quota::new(Some(10), vec![dir.path().to_owned(), dir.path().join("none")]);
        let mut first = Incoming::create(dir.path(), &quota, 4).await.unwrap();
        let second = Incoming::create(dir.path(), &quota, 3).await;
        assert!(matches!(second, Err(SaveError::Quota { limit: 10 })));
        let huge = Incoming::create(dir.path(), &quota, u64::MAX).await;
        assert!(matches!(huge, Err(SaveError::Quota { limit: 10 })));
        drop(Incoming::create(dir.path(), &quota, 2).await.unwrap());
        first.write(Bytes::from_static(b"5678")).await.unwrap();
        let first = first.place("first", None).await.unwrap();
        assert!(Incoming::create(dir.path(), &quota, 3).await.is_err());
        // Who takes files away makes room.
        fs::remove_file(first).unwrap();
        Incoming::create(dir.path(), &quota, 6).await.unwrap();
    }

    #[test]
    fn unfinished_files_of_an_earlier_run_go() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".incoming-1-2"), "x").unwrap();
        fs::write(dir.path().join("kept"), "x").unwrap();
        remove_unfinished(dir.path());
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().flatten().collect();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].file_name(), "kept");
    }
}
