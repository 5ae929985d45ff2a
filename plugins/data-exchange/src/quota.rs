//! How much may be kept: bytes in all, bytes of one file, and what has to stay
//! free on the disk.

use std::fs::{self, Metadata};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::save::{SaveError, is_unfinished};

/// Folders are looked through no more often, however many files are refused.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The limits of the configuration.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limits {
    /// Bytes of all finished files and messages; none: the disk is the limit.
    pub(crate) max_bytes: Option<u64>,
    /// Bytes of one file.
    pub(crate) max_file_bytes: Option<u64>,
    /// Bytes that stay free on the disk.
    pub(crate) keep_free_bytes: u64,
}

/// Bytes that may lie in some folders, those on their way included.
pub(crate) struct Quota {
    limits: Limits,
    folders: Vec<PathBuf>,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    /// What lay in the folders when they were last looked at, and came since.
    saved: u64,
    /// When that was, if it was because there was no room.
    looked: Option<Instant>,
    /// Announced and not yet saved.
    coming: u64,
    /// Of what is coming, that which the disk does not hold yet.
    unwritten: u64,
}

impl Quota {
    pub(crate) fn new(limits: Limits, folders: Vec<PathBuf>) -> Arc<Self> {
        let quota = Self { limits, folders, held: Mutex::default() };
        if limits.max_bytes.is_some() {
            quota.held().saved = saved_in(&quota.folders);
        }
        Arc::new(quota)
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets `bytes` aside for a file in `folder`, which exists; `present` of
    /// them are on the disk already.
    pub(crate) fn reserve(
        self: &Arc<Self>,
        folder: &Path,
        bytes: u64,
        present: u64,
    ) -> Result<Reserved, SaveError> {
        let limit = self.limits.max_file_bytes.unwrap_or(u64::MAX);
        if bytes > limit {
            return Err(SaveError::TooLarge { bytes, limit });
        }
        let unwritten = bytes.saturating_sub(present);
        self.check_disk(folder, unwritten)?;
        if let Some(reserved) = self.try_reserve(bytes, unwritten) {
            return Ok(reserved);
        }
        // Files may have been taken away since; a large folder takes a while.
        if self.may_look() {
            let saved = saved_in(&self.folders);
            self.held().saved = saved;
        }
        let limit = self.limits.max_bytes.unwrap_or(u64::MAX);
        self.try_reserve(bytes, unwritten).ok_or(SaveError::Quota { limit })
    }

    /// Whether it is time to look through the folders again.
    fn may_look(&self) -> bool {
        let (mut held, now) = (self.held(), Instant::now());
        let recent = held.looked.is_some_and(|at| now.duration_since(at) < LOOK_EVERY);
        if !recent {
            held.looked = Some(now);
        }
        !recent
    }

    fn check_disk(&self, folder: &Path, bytes: u64) -> Result<(), SaveError> {
        // A file system that cannot say how much is free decides when written.
        let Ok(disk) = rustix::fs::statvfs(folder) else { return Ok(()) };
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        let others = self.held().unwritten;
        let wanted = bytes.saturating_add(others).saturating_add(self.limits.keep_free_bytes);
        if wanted > free { Err(SaveError::DiskFull { bytes }) } else { Ok(()) }
    }

    fn try_reserve(self: &Arc<Self>, bytes: u64, unwritten: u64) -> Option<Reserved> {
        let mut held = self.held();
        let coming = held.coming.checked_add(bytes)?;
        let all = held.saved.checked_add(coming)?;
        if self.limits.max_bytes.is_some_and(|limit| all > limit) {
            return None;
        }
        held.coming = coming;
        held.unwritten = held.unwritten.saturating_add(unwritten);
        Some(Reserved { quota: Arc::clone(self), bytes, unwritten })
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
pub(crate) struct Reserved {
    quota: Arc<Quota>,
    bytes: u64,
    unwritten: u64,
}

impl Reserved {
    /// `bytes` of it are on the disk now.
    pub(crate) fn wrote(&mut self, bytes: u64) {
        let bytes = bytes.min(self.unwritten);
        self.unwritten -= bytes;
        self.quota.held().unwritten -= bytes;
    }

    /// The bytes are in their folder now.
    pub(crate) fn saved(self) {
        self.quota.held().saved += self.bytes;
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut held = self.quota.held();
        held.coming -= self.bytes;
        held.unwritten -= self.unwritten;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(max_bytes: Option<u64>) -> Limits {
        Limits { max_bytes, ..Limits::default() }
    }

    #[test]
    fn what_lies_there_and_what_is_coming_count() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("earlier"), "1234").unwrap();
        fs::write(dir.path().join(".incoming-1-2"), "unfinished files do not count").unwrap();
        let folders = vec![dir.path().to_owned(), dir.path().join("none")];
        let quota = Quota::new(limits(Some(10)), folders);
        let first = quota.reserve(dir.path(), 4, 0).unwrap();
        let refused = |bytes| {
            matches!(quota.reserve(dir.path(), bytes, 0), Err(SaveError::Quota { limit: 10 }))
        };
        assert!(refused(3));
        drop(quota.reserve(dir.path(), 2, 0).unwrap());
        fs::write(dir.path().join("first"), "5678").unwrap();
        first.saved();
        assert!(refused(3));
        // Who takes files away makes room, when it is looked at again.
        fs::remove_file(dir.path().join("first")).unwrap();
        assert!(refused(6));
        quota.held().looked = None;
        quota.reserve(dir.path(), 6, 0).unwrap();
    }

    #[test]
    fn one_file_and_the_disk_have_limits() {
        let dir = tempfile::tempdir().unwrap();
        let quota = Quota::new(Limits { max_file_bytes: Some(5), ..limits(None) }, Vec::new());
        assert!(quota.reserve(dir.path(), 5, 0).is_ok());
        let large = quota.reserve(dir.path(), 6, 0);
        assert!(matches!(large, Err(SaveError::TooLarge { bytes: 6, limit: 5 })));
        let all = quota.reserve(dir.path(), u64::MAX, 0);
        assert!(matches!(all, Err(SaveError::TooLarge { .. })));

        let keep = Limits { keep_free_bytes: u64::MAX / 2, ..limits(None) };
        let full = Quota::new(keep, Vec::new());
        assert!(matches!(full.reserve(dir.path(), 0, 0), Err(SaveError::DiskFull { .. })));
        let huge = Quota::new(limits(None), Vec::new()).reserve(dir.path(), u64::MAX, 0);
        assert!(matches!(huge, Err(SaveError::DiskFull { .. })));
    }

    #[test]
    fn what_is_given_back_is_free_again() {
        let dir = tempfile::tempdir().unwrap();
        let quota = Quota::new(limits(None), Vec::new());
        let mut reserved = quota.reserve(dir.path(), 10, 1).unwrap();
        reserved.wrote(3);
        let held = || {
            let held = quota.held();
            (held.coming, held.unwritten)
        };
        assert_eq!(held(), (10, 6));
        drop(reserved);
        assert_eq!(held(), (0, 0));
    }
}
