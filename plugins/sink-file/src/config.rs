//! The configuration.

use std::path::PathBuf;

use pilot_plugin::JsonSchema;
use pilot_plugin::serde::Deserialize;

/// Size of a file unless configured, in bytes.
const MAX_BYTES: u64 = 64 * 1024 * 1024;

/// Old files kept unless configured.
const KEEP: u32 = 5;

/// Most old files that can be kept: each rotation renames all of them.
const MOST_KEPT: u32 = 1000;

/// Configuration of the event sink `sink-file`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(crate = "pilot_plugin::serde")]
#[schemars(crate = "pilot_plugin::schemars")]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Config {
    /// The file that events are appended to. Its folder must exist; the file is
    /// made with mode 0600. Older ones are `PATH.1`, `PATH.2` and so on.
    pub(crate) path: PathBuf,
    /// A file is put aside before it grows beyond this many bytes; 0 for never.
    /// 64 MiB unless configured.
    #[serde(default = "max_bytes")]
    pub(crate) max_bytes: u64,
    /// Old files kept, 1 to 1000; 5 unless configured.
    #[serde(default = "keep")]
    #[schemars(range(min = 1, max = 1000))]
    pub(crate) keep: u32,
    /// When what was written is forced to the disk.
    #[serde(default)]
    pub(crate) fsync: Fsync,
}

/// When what was written is forced to the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(crate = "pilot_plugin::serde")]
#[schemars(crate = "pilot_plugin::schemars")]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Fsync {
    /// Before events count as delivered.
    #[default]
    Batch,
    /// When the system likes: a power failure can lose the last events.
    Never,
}

impl Config {
    /// Checks what the types do not.
    ///
    /// # Errors
    /// The text names the key.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.path.file_name().is_none() {
            return Err(format!("`path`: {:?} is not a file's name", self.path.display()));
        }
        if !(1..=MOST_KEPT).contains(&self.keep) {
            return Err(format!("`keep`: {} is not between 1 and {MOST_KEPT}", self.keep));
        }
        Ok(())
    }
}

fn max_bytes() -> u64 {
    MAX_BYTES
}

fn keep() -> u32 {
    KEEP
}
