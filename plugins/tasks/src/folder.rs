//! The folder of task files: `received`, `submitted` and `results`. Everything
//! is written beside its place, synced and put there, so that a crash leaves
//! either nothing or all of it; what is new never replaces what is there.
//!
//! These calls block. One lock makes "read, decide, write" one step.

use std::collections::hash_map::RandomState;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::hash::{BuildHasher, Hasher};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use pilot_plugin::json;
use pilot_plugin::wire::NodeId;
use pilot_plugin::wire::service::tasks::{
    CANCELLED_TEXT, MAX_PAYLOAD, Results, Status, StatusUpdate, TaskFile, TaskId,
};

use crate::desk::{self, Done, EXPIRED_TEXT, Head, Refusal};

/// Longest task file that is read, in bytes: a description and a little more.
const MAX_TASK_FILE: u64 = 2 * MAX_PAYLOAD as u64;

/// Settled tasks that make room in one go when the folder is full.
const PRUNE: usize = 64;

/// Which task files.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Side {
    /// Of tasks submitted to us.
    Received,
    /// Of tasks that we submitted.
    Submitted,
}

/// The folder.
#[derive(Debug)]
pub(crate) struct Folder {
    root: PathBuf,
    lock: Mutex<()>,
}

/// What became of a task that nobody answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unanswered {
    /// It is cancelled now; its submitter's address.
    Cancelled(String),
    /// Somebody did, or it is gone.
    Settled,
}

impl Folder {
    /// Opens it, and makes what is missing.
    ///
    /// # Errors
    /// When a folder cannot be made.
    pub(crate) fn open(root: PathBuf) -> io::Result<Self> {
        for name in ["received", "submitted", "results"] {
            DirBuilder::new().recursive(true).mode(0o700).create(root.join(name))?;
        }
        Ok(Self { root, lock: Mutex::new(()) })
    }

    /// Keeps a new received task.
    ///
    /// # Errors
    /// A text for the submitter.
    pub(crate) fn receive(&self, file: &TaskFile, max: usize) -> Result<(), String> {
        let _lock = self.lock();
        let received = self.root.join("received");
        let mut kept = fs::read_dir(&received).map_or(0, Iterator::count);
        if kept >= max {
            kept -= self.prune(&received);
        }
        if kept >= max {
            return Err(format!("Too many tasks kept: at most {max}"));
        }
        let at = self.path(Side::Received, &file.task_id);
        match create(&at, file.to_text().as_bytes()) {
            Ok(()) => Ok(()),
            Err(why) if why.kind() == io::ErrorKind::AlreadyExists => {
                Err("The task is known already".to_owned())
            }
            Err(why) => Err(format!("The task could not be stored: {}", why.kind())),
        }
    }

    /// Removes the oldest received tasks that nothing will happen to any more,
    /// so that who submits much does not fill the folder for good. Gives how
    /// many.
    fn prune(&self, received: &Path) -> usize {
        let Ok(entries) = fs::read_dir(received) else { return 0 };
        let mut all: Vec<_> = entries
            .flatten()
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .collect();
        all.sort();
        let mut removed = 0;
        for (_, path) in all {
            let id = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".json"));
            let Some(id) = id.and_then(|id| id.parse().ok()) else { continue };
            let read = self.read(Side::Received, &id);
            let settled = read.is_ok_and(|file| file.is_some_and(|file| file.status.is_final()));
            if settled && fs::remove_file(&path).is_ok() {
                removed += 1;
            }
            if removed == PRUNE {
                break;
            }
        }
        removed
    }

    /// Takes a status of a task that we submitted; gives the submitter's address
    /// in its file.
    ///
    /// # Errors
    /// When it does not count.
    pub(crate) fn update(&self, update: &StatusUpdate, node: NodeId) -> Result<String, Refusal> {
        let _lock = self.lock();
        let mut file = self.submitted(&update.task_id)?;
        desk::update(&mut file, update, node)?;
        self.write(Side::Submitted, &file)?;
        Ok(file.from)
    }

    /// Takes the results of a task that we submitted; `max` bytes of results
    /// are kept in all.
    ///
    /// # Errors
    /// When they do not count.
    pub(crate) fn complete(
        &self,
        results: &Results,
        node: NodeId,
        max: u64,
        unix: i64,
    ) -> Result<Done, Refusal> {
        let _lock = self.lock();
        let mut file = self.submitted(&results.task_id)?;
        let done = desk::complete(&mut file, results, node, unix)?;
        let at = self.root.join("results").join(&done.name);
        let kept = size_of_files(&self.root.join("results")).map_err(disk)?;
        match fs::symlink_metadata(&at) {
            // Left by a crash before the task file was written, or somebody's.
            Ok(_) if fs::read(&at).is_ok_and(|there| there == done.contents) => {}
            Ok(_) => return Err(Refusal::Exists(done.name)),
            Err(_) if kept.saturating_add(done.contents.len() as u64) > max => {
                return Err(Refusal::Room(max));
            }
            Err(_) => create(&at, &done.contents).map_err(disk)?,
        }
        self.write(Side::Submitted, &file)?;
        Ok(done)
    }

    /// Cancels a received task that is still new.
    ///
    /// # Errors
    /// When its file cannot be read or written.
    pub(crate) fn cancel(&self, id: &TaskId) -> Result<Unanswered, Refusal> {
        let _lock = self.lock();
        let Some(mut file) = self.read(Side::Received, id).map_err(disk)? else {
            return Ok(Unanswered::Settled);
        };
        if file.status != Status::New {
            return Ok(Unanswered::Settled);
        }
        file.status = Status::Cancelled;
        CANCELLED_TEXT.clone_into(&mut file.status_justification);
        self.write(Side::Received, &file)?;
        Ok(Unanswered::Cancelled(file.from))
    }

    /// Looks at the task at the head of the queue and does what is due; gives
    /// that, and the submitter's address.
    ///
    /// # Errors
    /// When its file cannot be read or written.
    pub(crate) fn head(
        &self,
        id: &TaskId,
        since: i64,
        unix: i64,
    ) -> Result<(Head, String), Refusal> {
        let _lock = self.lock();
        let file = self.read(Side::Received, id).map_err(disk)?;
        let due = desk::head(file.as_ref(), since, unix);
        let Some(mut file) = file else { return Ok((due, String::new())) };
        match due {
            Head::Stage => {
                file.staged_at = pilot_plugin::wire::service::rfc3339::format(since);
                self.write(Side::Received, &file)?;
            }
            Head::Expire => {
                file.status = Status::Expired;
                EXPIRED_TEXT.clone_into(&mut file.status_justification);
                self.write(Side::Received, &file)?;
            }
            Head::Stay | Head::Leave => {}
        }
        Ok((due, file.from))
    }

    /// Received tasks that are still new, with the moment when they are to be
    /// cancelled.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub(crate) fn unanswered(&self) -> io::Result<Vec<(TaskId, i64)>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(self.root.join("received"))? {
            let name = entry?.file_name();
            let id = name.to_str().and_then(|name| name.strip_suffix(".json")?.parse().ok());
            let Some(id) = id else { continue };
            // One that cannot be read is somebody's to look at, not ours to stop for.
            let Ok(Some(file)) = self.read(Side::Received, &id) else { continue };
            if file.status == Status::New {
                all.push((id, desk::cancel_at(&file)));
            }
        }
        Ok(all)
    }

    /// The file of a task.
    ///
    /// # Errors
    /// When it cannot be read or is none.
    pub(crate) fn read(&self, side: Side, id: &TaskId) -> io::Result<Option<TaskFile>> {
        let at = self.path(side, id);
        let file = match File::open(&at) {
            Ok(file) => file,
            Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(why) => return Err(why),
        };
        let mut text = Vec::new();
        file.take(MAX_TASK_FILE).read_to_end(&mut text)?;
        Ok(Some(json::from_slice(&text)?))
    }

    fn submitted(&self, id: &TaskId) -> Result<TaskFile, Refusal> {
        let file = self.read(Side::Submitted, id).map_err(disk)?;
        file.filter(|file| file.task_id == *id).ok_or_else(|| Refusal::Unknown(id.clone()))
    }

    fn write(&self, side: Side, file: &TaskFile) -> Result<(), Refusal> {
        replace(&self.path(side, &file.task_id), file.to_text().as_bytes()).map_err(disk)
    }

    fn path(&self, side: Side, id: &TaskId) -> PathBuf {
        let name = match side {
            Side::Received => "received",
            Side::Submitted => "submitted",
        };
        self.root.join(name).join(format!("{id}.json"))
    }

    fn lock(&self) -> impl Drop {
        // The lock guards files, which a panic leaves whole.
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes a file that is not there yet.
fn create(at: &Path, contents: &[u8]) -> io::Result<()> {
    let beside = write_beside(at, contents)?;
    // Unlike renaming, this fails where something is.
    let linked = fs::hard_link(&beside, at);
    fs::remove_file(&beside)?;
    linked?;
    sync_folder(at)
}

/// Makes a file, or replaces it.
fn replace(at: &Path, contents: &[u8]) -> io::Result<()> {
    let beside = write_beside(at, contents)?;
    if let Err(why) = fs::rename(&beside, at) {
        fs::remove_file(&beside)?;
        return Err(why);
    }
    sync_folder(at)
}

fn write_beside(at: &Path, contents: &[u8]) -> io::Result<PathBuf> {
    // Random, since an earlier generation of the plugin may be writing too.
    let random = RandomState::new().build_hasher().finish();
    let beside = at.with_file_name(format!(".{random:016x}.new"));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    let written = file.write_all(contents).and_then(|()| file.sync_all());
    if let Err(why) = written {
        fs::remove_file(&beside)?;
        return Err(why);
    }
    Ok(beside)
}

fn sync_folder(of: &Path) -> io::Result<()> {
    of.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

fn size_of_files(folder: &Path) -> io::Result<u64> {
    fs::read_dir(folder)?.try_fold(0u64, |sum, entry| {
        // A file that has just gone counts for nothing.
        Ok(sum.saturating_add(entry?.metadata().map_or(0, |about| about.len())))
    })
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn disk(why: io::Error) -> Refusal {
    Refusal::Disk(format!("the task's files cannot be used: {why}"))
}
