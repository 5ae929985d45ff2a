//! The Pilot home (`PILOT_HOME`, else `~/.pilot`) and the configuration in it.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::failure::Failure;

/// Files of one user.
#[derive(Clone, Debug)]
pub(crate) struct Home {
    pub(crate) dir: PathBuf,
}

impl Home {
    pub(crate) fn find() -> Result<Self, Failure> {
        let var = |name| std::env::var_os(name).filter(|v| !v.is_empty());
        let dir = match (var("PILOT_HOME"), var("HOME")) {
            (Some(dir), _) => PathBuf::from(dir),
            (None, Some(home)) => Path::new(&home).join(".pilot"),
            (None, None) => {
                return Err(Failure::invalid("neither PILOT_HOME nor HOME is set")
                    .hint("set PILOT_HOME to a folder for Pilot's files"));
            }
        };
        Ok(Self { dir })
    }

    pub(crate) fn config_path(&self) -> PathBuf {
        self.dir.join("config.json")
    }

    pub(crate) fn pid_path(&self) -> PathBuf {
        self.dir.join("pilot.pid")
    }

    pub(crate) fn log_path(&self) -> PathBuf {
        self.dir.join("pilot.log")
    }

    /// The lock that whoever starts a daemon holds until it answers; `None`
    /// while somebody else holds it.
    pub(crate) fn lock_start(&self) -> Result<Option<fs::File>, Failure> {
        let path = self.dir.join("start.lock");
        let failed =
            |e: io::Error| Failure::internal(format!("cannot lock {}", path.display())).reason(e);
        let file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(e)) => Err(failed(e)),
        }
    }

    pub(crate) fn identity_path(&self) -> PathBuf {
        self.dir.join("identity.key")
    }

    /// Makes the folder, for this user alone.
    pub(crate) fn create(&self) -> Result<(), Failure> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir).map_err(|e| {
            Failure::internal(format!("cannot create {}", self.dir.display()))
                .reason(e)
                .hint("set PILOT_HOME to a folder that can be written to")
        })
    }

    /// The configuration; empty if there is none.
    pub(crate) fn config(&self) -> Result<Map<String, Value>, Failure> {
        let path = self.config_path();
        let failed = |reason: String| {
            Failure::invalid(format!("cannot read {}", path.display()))
                .reason(reason)
                .hint("correct the file, or move it away, then: pilotctl init")
        };
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Map::new()),
            Err(e) => return Err(failed(e.to_string())),
        };
        serde_json::from_slice(&text).map_err(|e| failed(e.to_string()))
    }

    pub(crate) fn save_config(&self, config: &Map<String, Value>) -> Result<(), Failure> {
        self.create()?;
        let text = serde_json::to_string_pretty(config)
            .map_err(|e| Failure::internal(format!("cannot write the configuration: {e}")))?;
        self.write(&self.config_path(), format!("{text}\n").as_bytes(), 0o644)
    }

    /// Replaces a file as a whole: never half written, also on a crash.
    pub(crate) fn write(&self, path: &Path, content: &[u8], mode: u32) -> Result<(), Failure> {
        let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
        let write = || {
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(mode)
                .open(&temporary)?;
            file.write_all(content)?;
            file.sync_all()?;
            fs::rename(&temporary, path)
        };
        write().map_err(|e| {
            // What remains is a temporary file; the failure is told anyway.
            let _ = fs::remove_file(&temporary);
            Failure::internal(format!("cannot write {}", path.display())).reason(e)
        })
    }
}

/// A text value of the configuration; an empty one counts as none.
pub(crate) fn text(config: &Map<String, Value>, key: &str) -> Option<String> {
    config.get(key).and_then(Value::as_str).filter(|s| !s.is_empty()).map(str::to_owned)
}
