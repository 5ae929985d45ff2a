//! Files that come from peers: written under a temporary name while they are
//! hashed, and placed under a name of their own that nothing else has.
//!
//! Everything here blocks, and runs on the threads for that. A file on its way
//! is locked, so that another generation or process does not take it for one
//! that was left.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pilot_plugin::wire::service::data_exchange::Have;
use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use sha2::{Digest, Sha256};

use crate::partial::{self, Key};
use crate::quota::{Quota, Reserved};
use crate::stamp::Stamp;

/// Bytes gathered for one write to the disk.
const WRITE: usize = 256 << 10;
/// Longest part of a peer's file name that is kept, in bytes: with the time
/// and a number it fits the 255 bytes a file system gives.
const MAX_NAME: usize = 180;
/// Longest extension kept, in bytes.
const MAX_EXTENSION: usize = 32;
/// Names tried before giving up.
const NAME_ATTEMPTS: u32 = 10_000;
/// How temporary names begin.
pub(crate) const UNFINISHED: &str = ".incoming-";

/// Why something was not saved. The text goes to the peer, so it names no
/// local path.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SaveError {
    /// The configured limit of all files is reached.
    #[error("the receiver's limit of {limit} bytes is reached")]
    Quota { limit: u64 },
    /// The configured limit of one file is exceeded.
    #[error("{bytes} bytes are more than the receiver takes in one file ({limit})")]
    TooLarge { bytes: u64, limit: u64 },
    /// The disk has too little room.
    #[error("the receiver's disk has no room for {bytes} bytes")]
    DiskFull { bytes: u64 },
    /// More or fewer bytes came than were announced.
    #[error("{got} bytes came, {announced} were announced")]
    Size { got: u64, announced: u64 },
    /// The contents are not what the sender hashed.
    #[error("SHA-256 mismatch: the contents were damaged on the way")]
    Hash,
    /// The end names another hash than the offer did.
    #[error("the SHA-256 at the end is not that of the offer")]
    OtherHash,
    /// The file system refused.
    #[error("{action}: {source}")]
    Io { action: &'static str, source: io::Error },
}

pub(crate) fn failed(action: &'static str) -> impl FnOnce(io::Error) -> SaveError {
    move |source| SaveError::Io { action, source }
}

/// What becomes of an unfinished file when it is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Remove,
    /// The sender may continue it.
    Keep,
    Placed,
}

/// A locked file under a temporary name.
struct Unfinished {
    file: BufWriter<File>,
    path: PathBuf,
    hasher: Sha256,
    fate: Fate,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let kept = self.fate == Fate::Keep && self.file.flush().is_ok();
        if !kept && self.fate != Fate::Placed {
            // The next sweep tries again.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A file on its way to a folder. Removed when it is dropped unplaced, unless
/// its sender may continue it.
pub(crate) struct Incoming {
    folder: PathBuf,
    announced: u64,
    got: u64,
    reserved: Reserved,
    file: Unfinished,
}

impl Incoming {
    /// Opens a file of `announced` bytes below `folder`, which is made if it
    /// is missing, with mode 0700.
    pub(crate) fn create(
        folder: &Path,
        quota: &Arc<Quota>,
        announced: u64,
    ) -> Result<Self, SaveError> {
        make_folder(folder)?;
        let reserved = quota.reserve(folder, announced, 0)?;
        let (file, path) = temporary(folder)?;
        Ok(Self {
            folder: folder.to_owned(),
            announced,
            got: 0,
            reserved,
            file: unfinished(file, path, Fate::Remove),
        })
    }

    /// Opens a file that its sender can name again: what is there of it is
    /// kept when `resume` is set, and a break keeps what came. While the same
    /// file comes on another stream it is one that cannot be continued.
    pub(crate) fn create_named(
        folder: &Path,
        quota: &Arc<Quota>,
        announced: u64,
        key: &Key,
        resume: bool,
    ) -> Result<(Self, Option<Have>), SaveError> {
        make_folder(folder)?;
        let Some((file, path)) = partial::open(folder, key)? else {
            return Ok((Self::create(folder, quota, announced)?, None));
        };
        let mut file = unfinished(file, path, Fate::Keep);
        let got;
        (file.hasher, got) = partial::hash(file.file.get_ref(), resume, announced)?;
        let reserved = match quota.reserve(folder, announced, got) {
            Ok(reserved) => reserved,
            Err(e) => {
                if got == 0 {
                    file.fate = Fate::Remove;
                }
                return Err(e);
            }
        };
        let have = Have { bytes: got, sha256: file.hasher.clone().finalize().into() };
        let incoming = Self { folder: folder.to_owned(), announced, got, reserved, file };
        Ok((incoming, (got > 0).then_some(have)))
    }

    /// Takes the next bytes. After an error the file is not kept.
    pub(crate) fn write(&mut self, data: &[u8]) -> Result<(), SaveError> {
        self.got += data.len() as u64;
        if self.got > self.announced {
            self.file.fate = Fate::Remove;
            return Err(SaveError::Size { got: self.got, announced: self.announced });
        }
        self.file.hasher.update(data);
        if let Err(e) = self.file.file.write_all(data) {
            self.file.fate = Fate::Remove;
            return Err(failed("write")(e));
        }
        self.reserved.wrote(data.len() as u64);
        Ok(())
    }

    /// Throws away what came.
    pub(crate) fn discard(mut self) {
        self.file.fate = Fate::Remove;
    }

    /// Whether a part would stay for its sender to continue.
    pub(crate) fn is_kept(&self) -> bool {
        self.file.fate == Fate::Keep
    }

    /// Puts the whole file in its folder under a name made from the peer's
    /// `name` and the time; checks the SHA-256 if there is one.
    pub(crate) fn place(self, name: &str, hash: Option<&[u8]>) -> Result<PathBuf, SaveError> {
        let (stem, extension) = split_name(name);
        self.place_at(&stem, Stamp::now(), &extension, hash)
    }

    /// The same with the parts of the name as they are.
    pub(crate) fn place_at(
        mut self,
        stem: &str,
        stamp: Stamp,
        extension: &str,
        hash: Option<&[u8]>,
    ) -> Result<PathBuf, SaveError> {
        // What fails here is not kept.
        self.file.fate = Fate::Remove;
        if self.got != self.announced {
            return Err(SaveError::Size { got: self.got, announced: self.announced });
        }
        let found = std::mem::take(&mut self.file.hasher).finalize();
        if hash.is_some_and(|hash| hash != found.as_slice()) {
            return Err(SaveError::Hash);
        }
        self.file.file.flush().map_err(failed("write"))?;
        self.file.file.get_ref().sync_all().map_err(failed("sync"))?;
        let path = name_it(&self.file.path, &self.folder, stem, stamp, extension)?;
        self.file.fate = Fate::Placed;
        // Only then is the new name there after a power failure.
        let synced = File::open(&self.folder).and_then(|folder| folder.sync_all());
        if let Err(e) = synced {
            self.reserved.saved();
            return Err(failed("sync")(e));
        }
        self.reserved.saved();
        Ok(path)
    }
}

fn unfinished(file: File, path: PathBuf, fate: Fate) -> Unfinished {
    Unfinished { file: BufWriter::with_capacity(WRITE, file), path, hasher: Sha256::new(), fate }
}

fn make_folder(folder: &Path) -> Result<(), SaveError> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed("make folder"))
}

/// A new locked file. Other generations and processes count for themselves, so
/// a number may be taken.
fn temporary(folder: &Path) -> Result<(File, PathBuf), SaveError> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    for _ in 0..NAME_ATTEMPTS {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!("{UNFINISHED}{}-{number}", std::process::id()));
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
            // A sweep that came between has it, and removes it.
            Ok(file) if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() => {}
            Ok(file) => return Ok((file, path)),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(failed("create file")(e)),
        }
    }
    Err(failed("create file")(io::ErrorKind::AlreadyExists.into()))
}

/// Whether a file of this name is one on its way.
pub(crate) fn is_unfinished(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(UNFINISHED.as_bytes())
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
    use crate::quota::Limits;

    fn no_limits() -> Arc<Quota> {
        Quota::new(Limits::default(), Vec::new())
    }

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

    proptest::proptest! {
        #[test]
        fn no_name_leaves_its_folder(name in "(\\PC|[./\\\\\0\n]){0,300}") {
            let (stem, extension) = split_name(&name);
            let whole = format!("{stem}{extension}");
            proptest::prop_assert!(!whole.contains(['/', '\\', '\0']) && !whole.starts_with('.'));
            proptest::prop_assert!(!stem.is_empty() && whole.len() <= MAX_NAME + MAX_EXTENSION);
        }
    }

    #[test]
    fn a_file_appears_only_when_it_is_whole_and_right() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("received");
        let quota = no_limits();
        let contents: Vec<u8> = (0..3_000_000u32).map(|i| (i * 7) as u8).collect();
        let hash = Sha256::digest(&contents);

        let mut incoming = Incoming::create(&folder, &quota, 3_000_000).unwrap();
        for part in contents.chunks(70_000) {
            incoming.write(part).unwrap();
        }
        let path = incoming.place("a/b.bin", Some(&hash)).unwrap();
        assert_eq!(fs::read(&path).unwrap(), contents);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);

        let mut wrong = Incoming::create(&folder, &quota, 3).unwrap();
        wrong.write(b"abc").unwrap();
        assert!(matches!(wrong.place("x", Some(&hash)), Err(SaveError::Hash)));
        let short = Incoming::create(&folder, &quota, 3).unwrap();
        assert!(matches!(short.place("x", None), Err(SaveError::Size { got: 0, .. })));
        let mut long = Incoming::create(&folder, &quota, 3).unwrap();
        assert!(long.write(b"abcd").is_err());
        drop(long);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }

    #[test]
    fn equal_names_at_the_same_moment_stay_apart() {
        let dir = tempfile::tempdir().unwrap();
        let (quota, stamp) = (no_limits(), Stamp::now());
        let mut paths = Vec::new();
        for i in 0..5u8 {
            let mut incoming = Incoming::create(dir.path(), &quota, 1).unwrap();
            incoming.write(&[i]).unwrap();
            paths.push(incoming.place_at("TEXT", stamp, ".json", None).unwrap());
        }
        for (i, path) in paths.iter().enumerate() {
            assert_eq!(fs::read(path).unwrap(), [i as u8]);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 5);
    }
}
