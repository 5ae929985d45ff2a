//! What came of a file whose stream broke: kept for its sender to continue,
//! for a bounded time and up to a bounded sum, under a name that only the same
//! sender, file name, size and hash lead to.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use pilot_plugin::wire::service::data_exchange::{FileOffer, HASH_LEN, hash_to_hex};
use rustix::fs::{FlockOperation, OFlags, flock};
use sha2::{Digest, Sha256};

use crate::save::{SaveError, UNFINISHED, failed, is_unfinished};

/// Bytes read at once for hashing.
const READ: usize = 256 << 10;
/// Times that a file which is removed while it is opened is opened again.
const OPEN_ATTEMPTS: usize = 8;

/// Names a file that may be continued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key(String);

impl Key {
    /// For what `sender` (node and identity) offers with this hash.
    pub(crate) fn new(sender: &str, offer: &FileOffer, hash: &[u8; HASH_LEN]) -> Self {
        let mut all = Sha256::new();
        for part in [sender.as_bytes(), offer.name.as_bytes(), &offer.size.to_be_bytes(), hash] {
            all.update((part.len() as u64).to_be_bytes());
            all.update(part);
        }
        Self(hash_to_hex(&all.finalize().into()))
    }

    fn path(&self, folder: &Path) -> PathBuf {
        folder.join(format!("{UNFINISHED}{}", self.0))
    }
}

/// How long and how much is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keep {
    /// Since the last byte came.
    pub(crate) time: Duration,
    /// Bytes of all; the oldest go first.
    pub(crate) bytes: u64,
}

/// Opens and locks the file of `key`, made if it is missing; `None` while
/// somebody else writes to it.
pub(crate) fn open(folder: &Path, key: &Key) -> Result<Option<(File, PathBuf)>, SaveError> {
    let path = key.path(folder);
    for _ in 0..OPEN_ATTEMPTS {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(no_follow())
            .open(&path)
            .map_err(failed("create file"))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(None);
        }
        if is_at(&file, &path) {
            return Ok(Some((file, path)));
        }
    }
    Ok(None)
}

/// Hashes what is in a file and leaves it positioned behind; empties it
/// instead when it is not to be continued or is not a beginning of `size`
/// bytes.
pub(crate) fn hash(mut file: &File, resume: bool, size: u64) -> Result<(Sha256, u64), SaveError> {
    let len = file.metadata().map_err(failed("read"))?.len();
    if !resume || len > size {
        file.set_len(0).map_err(failed("write"))?;
        file.seek(SeekFrom::Start(0)).map_err(failed("write"))?;
        return Ok((Sha256::new(), 0));
    }
    let (mut hasher, mut got) = (Sha256::new(), 0);
    let mut part = vec![0; READ];
    loop {
        match file.read(&mut part).map_err(failed("read"))? {
            0 => return Ok((hasher, got)),
            n => {
                hasher.update(&part[..n]);
                got += n as u64;
            }
        }
    }
}

/// Removes what was left unfinished and cannot be continued, what is too old,
/// and the oldest of what is too much. Gives the number of files removed.
/// Failures do no harm: the next sweep tries again.
pub(crate) fn sweep(folder: &Path, now: SystemTime, keep: Keep) -> usize {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let mut kept = Vec::new();
    let mut removed = 0;
    for entry in entries.flatten().filter(|entry| is_unfinished(&entry.file_name())) {
        let path = entry.path();
        let opened = OpenOptions::new().read(true).custom_flags(no_follow()).open(&path);
        let Ok(file) = opened else { continue };
        // Whoever writes to it holds the lock.
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() || !is_at(&file, &path) {
            continue;
        }
        let Ok(meta) = file.metadata() else { continue };
        let changed = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        let age = now.duration_since(changed).unwrap_or_default();
        if meta.len() == 0 || age > keep.time || !is_keyed(&path) {
            removed += usize::from(fs::remove_file(&path).is_ok());
        } else {
            kept.push((changed, meta.len(), path));
        }
    }
    // The newest first.
    kept.sort_by(|a, b| b.cmp(a));
    let mut sum = 0u64;
    for (_, len, path) in kept {
        sum = sum.saturating_add(len);
        if sum > keep.bytes {
            sum -= len;
            removed += usize::from(remove_idle(&path));
        }
    }
    removed
}

/// Removes a file unless somebody has begun to write to it.
fn remove_idle(path: &Path) -> bool {
    let Ok(file) = OpenOptions::new().read(true).custom_flags(no_follow()).open(path) else {
        return false;
    };
    flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
        && is_at(&file, path)
        && fs::remove_file(path).is_ok()
}

/// Whether the name is that of a [`Key`].
fn is_keyed(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    let key = name.strip_prefix(UNFINISHED.as_bytes()).unwrap_or_default();
    key.len() == 2 * HASH_LEN && key.iter().all(u8::is_ascii_hexdigit)
}

/// Whether `path` still leads to `file`.
fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(a), Ok(b)) = (file.metadata(), fs::symlink_metadata(path)) else { return false };
    a.dev() == b.dev() && a.ino() == b.ino()
}

#[expect(clippy::cast_possible_wrap, reason = "the flag is a small number")]
fn no_follow() -> i32 {
    OFlags::NOFOLLOW.bits() as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: Keep = Keep { time: Duration::from_secs(3600), bytes: 100 };

    fn key(n: u8) -> Key {
        Key::new("1", &FileOffer::new("a", 5), &[n; 32])
    }

    #[test]
    fn a_key_is_of_one_sender_name_size_and_hash() {
        let base = Key::new("1", &FileOffer::new("a", 5), &[1; 32]);
        assert_eq!(base, key(1));
        for other in [
            Key::new("2", &FileOffer::new("a", 5), &[1; 32]),
            Key::new("1", &FileOffer::new("b", 5), &[1; 32]),
            Key::new("1", &FileOffer::new("a", 6), &[1; 32]),
            Key::new("1", &FileOffer::new("a", 5), &[2; 32]),
            Key::new("1a", &FileOffer::new("", 5), &[1; 32]),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn one_writer_at_a_time_and_no_sweep_under_it() {
        let dir = tempfile::tempdir().unwrap();
        let held = open(dir.path(), &key(1)).unwrap().unwrap();
        assert!(open(dir.path(), &key(1)).unwrap().is_none());
        assert!(open(dir.path(), &key(2)).unwrap().is_some());
        let later = SystemTime::now() + KEEP.time * 2;
        // Only the other one, which nobody holds and which is empty.
        assert_eq!(sweep(dir.path(), later, KEEP), 1);
        drop(held);
        assert!(open(dir.path(), &key(1)).unwrap().is_some());
    }

    #[test]
    fn the_old_the_many_and_the_nameless_go() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".incoming-1-2"), "x").unwrap();
        fs::write(dir.path().join("kept"), "x").unwrap();
        let now = SystemTime::now();
        for n in 0..5u8 {
            let path = key(n).path(dir.path());
            fs::write(&path, vec![n; 30]).unwrap();
            let age = Duration::from_secs(u64::from(n) * 1000);
            File::open(&path).unwrap().set_modified(now - age).unwrap();
        }
        // One too old, one too many, one without a key.
        assert_eq!(sweep(dir.path(), now, KEEP), 3);
        for n in 0..3 {
            assert!(key(n).path(dir.path()).exists(), "{n}");
        }
        assert!(dir.path().join("kept").exists());
        assert_eq!(sweep(dir.path(), now + Duration::from_secs(10_000), KEEP), 3);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_symlink_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        fs::write(&target, "precious").unwrap();
        std::os::unix::fs::symlink(&target, key(1).path(dir.path())).unwrap();
        assert!(open(dir.path(), &key(1)).is_err());
        sweep(dir.path(), SystemTime::now(), KEEP);
        assert_eq!(fs::read(&target).unwrap(), b"precious");
    }
}
