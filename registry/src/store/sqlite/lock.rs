//! One registry for each state file: a lock on a file of its own beside it,
//! since SQLite's lets other processes read (a backup) and write.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::store::StoreError;

/// A process that the holder starts has the lock as well, until it runs a
/// program of its own; so it is tried so often, with so long a pause.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(30);

/// `path` with something after its name.
pub(crate) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(ending);
    name.into()
}

/// Held for as long as it lives; the system drops it with the process.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of the state file at `path`, which has no links in it.
    ///
    /// # Errors
    /// When another process has it, or its file cannot be made.
    pub(super) fn take(path: &Path) -> Result<Self, StoreError> {
        let name = beside(path, ".lock");
        let unwritable = |e: std::io::Error| StoreError::Unwritable {
            path: path.to_owned(),
            source: format!("its lock {}: {e}", name.display()).into(),
        };
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(&name).map_err(unwritable)?;
        for left in (0..TRIES).rev() {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if left > 0 => std::thread::sleep(PAUSE),
                Err(TryLockError::WouldBlock) => return Err(StoreError::InUse(path.to_owned())),
                Err(TryLockError::Error(e)) => return Err(unwritable(e)),
            }
        }
        // For people who wonder who it is; nothing depends on it.
        let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        Ok(Self { _file: file })
    }
}
