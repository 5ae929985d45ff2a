//! A file of lines that survives crashes, full disks, and being moved away.
//!
//! What is not reported as written is taken back, so that it can come again
//! without being there twice.

use std::ffi::OsString;
use std::fmt::Display;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use pilot_plugin::json;
use pilot_plugin::serde::de::IgnoredAny;

use crate::config::{Config, Fsync};

/// Events can hold whom a node talks to: for its owner alone.
const MODE: u32 = 0o600;

/// Step in which the end of the last whole line is looked for, in bytes.
const STEP: u64 = 64 * 1024;

/// A last line without an end is not read beyond this, in bytes. No event is
/// as long.
const MAX_TAIL: u64 = 16 * 1024 * 1024;

/// The file, and how it is kept.
pub(crate) struct EventFile {
    path: PathBuf,
    max_bytes: u64,
    keep: u32,
    sync: bool,
    open: Option<File>,
}

/// Some events were not written.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// How many were, from the beginning.
    pub(crate) accepted: usize,
    /// Names the path.
    pub(crate) reason: String,
}

impl EventFile {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            path: config.path.clone(),
            max_bytes: config.max_bytes,
            keep: config.keep,
            sync: config.fsync == Fsync::Batch,
            open: None,
        }
    }

    /// Whether events could be written. Changes nothing but that there is a
    /// file: an earlier generation may be writing to it.
    ///
    /// # Errors
    /// The text names the path.
    pub(crate) fn probe(&mut self) -> Result<(), String> {
        self.create().map(drop).map_err(|why| self.say("open", &why))
    }

    /// Appends events, each as `encode` writes it.
    ///
    /// # Errors
    /// How many were written before something failed, and what.
    pub(crate) fn append(
        &mut self,
        events: &[&str],
        encode: impl Fn(&str, &mut Vec<u8>),
    ) -> Result<(), Failure> {
        let mut accepted = 0;
        while accepted < events.len() {
            match self.append_some(&events[accepted..], &encode) {
                Ok(count) => accepted += count,
                Err(reason) => {
                    // Opened anew, its end is looked at.
                    self.open = None;
                    return Err(Failure { accepted, reason });
                }
            }
        }
        Ok(())
    }

    /// Appends as many as the file has room for, at least one; all or nothing.
    fn append_some(
        &mut self,
        events: &[&str],
        encode: &impl Fn(&str, &mut Vec<u8>),
    ) -> Result<usize, String> {
        let file = self.lock()?;
        let size = file.metadata().map_err(|why| self.say("look at", &why))?.len();
        let mut bytes = Vec::new();
        let mut count = 0;
        for event in events {
            let before = bytes.len();
            encode(event, &mut bytes);
            let grown = size.saturating_add(bytes.len() as u64);
            // One that is longer than a file may be has a file for itself.
            if self.max_bytes != 0 && grown > self.max_bytes && size + before as u64 > 0 {
                bytes.truncate(before);
                break;
            }
            count += 1;
        }
        if count == 0 {
            // The lock is on the file, wherever it is called to.
            self.rotate().map_err(|why| self.say("rotate", &why))?;
            return self.append_some(events, encode);
        }
        let sync = self.sync;
        let written = (&file).write_all(&bytes);
        let written = written.and_then(|()| if sync { file.sync_data() } else { Ok(()) });
        let written = written.map_err(|why| {
            // Should this fail as well the next opening cuts off half a line,
            // and whole ones come twice.
            let _ = file.set_len(size);
            self.say("write to", &why)
        });
        let unlocked = file.unlock();
        self.open = Some(file);
        written?;
        unlocked.map_err(|why| self.say("unlock", &why))?;
        Ok(count)
    }

    /// The file at the path, locked against other generations and processes
    /// that would write between our lines, and ending with a whole line.
    fn lock(&mut self) -> Result<File, String> {
        let (file, fresh) = match self.open.take() {
            Some(file) if self.is_at_path(&file) => (file, false),
            // Moved away or deleted by somebody who wants a new one.
            _ => (self.create().map_err(|why| self.say("open", &why))?, true),
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(format!("{}: another process writes to it", self.path.display()));
            }
            Err(TryLockError::Error(why)) => return Err(self.say("lock", &why)),
        }
        // Another generation may have rotated between opening and locking.
        if !self.is_at_path(&file) {
            return self.lock();
        }
        if fresh {
            repair(&file).map_err(|why| self.say("repair", &why))?;
        }
        Ok(file)
    }

    fn is_at_path(&self, file: &File) -> bool {
        let (Ok(ours), Ok(there)) = (file.metadata(), self.path.metadata()) else { return false };
        (ours.dev(), ours.ino()) == (there.dev(), there.ino())
    }

    fn create(&self) -> io::Result<File> {
        let mut options = OpenOptions::new();
        let file = options.read(true).append(true).create(true).mode(MODE).open(&self.path)?;
        // A pipe or a device has no end to repair, and cannot be rotated.
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        if self.sync {
            self.sync_folder()?;
        }
        Ok(file)
    }

    /// Puts the file aside; the oldest one is gone.
    fn rotate(&self) -> io::Result<()> {
        for number in (0..self.keep).rev() {
            match std::fs::rename(self.old(number), self.old(number + 1)) {
                Err(why) if why.kind() != io::ErrorKind::NotFound => return Err(why),
                _ => {}
            }
        }
        if self.sync { self.sync_folder() } else { Ok(()) }
    }

    /// Path of an older file; 0 is the one written to.
    fn old(&self, number: u32) -> PathBuf {
        if number == 0 {
            return self.path.clone();
        }
        let mut name = OsString::from(&self.path);
        name.push(format!(".{number}"));
        PathBuf::from(name)
    }

    /// A name in a folder is durable once the folder is.
    fn sync_folder(&self) -> io::Result<()> {
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }

    fn say(&self, what: &str, why: &dyn Display) -> String {
        format!("cannot {what} {}: {why}", self.path.display())
    }
}

/// Makes the file end with a whole line. Half an event, left by a crash, was
/// never reported as written and is cut off; anything else gets its line's end.
fn repair(mut file: &File) -> io::Result<()> {
    let size = file.metadata()?.len();
    let mut start = size;
    let mut tail = Vec::new();
    loop {
        if start == 0 || size - start > MAX_TAIL {
            break;
        }
        let step = STEP.min(start);
        start -= step;
        // At most `STEP`.
        let mut block = vec![0; step as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut block)?;
        if let Some(end) = block.iter().rposition(|byte| *byte == b'\n') {
            start += end as u64 + 1;
            block.drain(..=end);
            block.append(&mut tail);
            tail = block;
            break;
        }
        block.append(&mut tail);
        tail = block;
    }
    if tail.is_empty() {
        return Ok(());
    }
    let whole = json::from_slice::<IgnoredAny>(&tail).is_ok();
    if whole || tail.first() != Some(&b'{') {
        return file.write_all(b"\n");
    }
    file.set_len(start)
}
