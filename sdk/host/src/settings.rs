//! The keys about plugins and scripts in the configuration of the process: read
//! from its YAML file, checked, and turned into types. Keys of others in the
//! same file are left alone. Knows nothing of files of plugins, nor of what
//! runs.

mod entry;
mod lines;
mod values;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use ed25519_dalek::VerifyingKey;
use serde_json::Value;

pub use entry::{Entry, Isolation, Ports};
pub(crate) use entry::{is_name, merge};
pub use lines::Lines;
pub(crate) use values::nearest;

use values::{kind_of, normal, paths, verifying_key};

/// What the configuration says about plugins and scripts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// Plugins by name.
    pub plugins: BTreeMap<String, Entry>,
    /// Scripts by name; no name is in both.
    pub scripts: BTreeMap<String, Entry>,
    /// Watched folders of libraries. Relative ones count from the file's folder.
    pub plugin_dirs: Vec<PathBuf>,
    /// Watched folders of scripts.
    pub script_dirs: Vec<PathBuf>,
    /// Ed25519 keys of which one must have signed a file; empty for no such
    /// rule. A file that comes with Pilot needs a signature as well, unless its
    /// entry pins its `sha256`.
    pub trusted_keys: Vec<VerifyingKey>,
}

/// What is wrong in the configuration, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingsError {
    /// The file.
    pub file: PathBuf,
    /// Line, from 1; none for an entry that was set at run time.
    pub line: Option<usize>,
    /// Path of the key, as in `plugins.echo.limits.streams`; empty for the file
    /// as a whole.
    pub key: String,
    /// What is wrong, and what to do.
    pub problem: String,
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "config file {} line {line}: ", self.file.display())?,
            None => write!(f, "set at run time: ")?,
        }
        if !self.key.is_empty() {
            write!(f, "key {:?}: ", self.key)?;
        }
        f.write_str(&self.problem)
    }
}

impl std::error::Error for SettingsError {}

impl Settings {
    /// Keys at the top of the file that are read here; `_` counts as `-`.
    pub const KEYS: &'static [&'static str] =
        &["plugins", "scripts", "plugin-dirs", "script-dirs", "trusted-keys"];

    /// Reads its own keys out of `text`, which came from `file`, and ignores
    /// the others.
    ///
    /// # Errors
    /// When the text is no YAML mapping or one of the keys is wrong: with file,
    /// line, path of the key and, for an unknown key, the nearest known one.
    pub fn parse(text: &str, file: &Path) -> Result<Self, SettingsError> {
        let place = Place { file, lines: &Lines::of(text) };
        let tree = values::tree(text).map_err(|(line, problem)| SettingsError {
            file: file.to_owned(),
            line: Some(line),
            key: String::new(),
            problem,
        })?;
        let mut settings = Self::default();
        let top = match &tree {
            Value::Null => return Ok(settings),
            Value::Object(top) => top,
            other => {
                let problem = format!("keys with values are expected, not {}", kind_of(other));
                return Err(place.error(&[], problem));
            }
        };
        let folder = file.parent().unwrap_or_else(|| Path::new(""));
        let mut seen: BTreeMap<String, &str> = BTreeMap::new();
        for (name, value) in top {
            let key = normal(name);
            if !Self::KEYS.contains(&key.as_str()) {
                continue;
            }
            let path = [name.clone()];
            if let Some(first) = seen.insert(key.clone(), name) {
                return Err(place.error(&path, format!("it is there already, as {first:?}")));
            }
            match key.as_str() {
                "plugins" => settings.plugins = entry::entries(&place, &path, value, folder)?,
                "scripts" => settings.scripts = entry::entries(&place, &path, value, folder)?,
                "plugin-dirs" => settings.plugin_dirs = paths(&place, &path, value, folder)?,
                "script-dirs" => settings.script_dirs = paths(&place, &path, value, folder)?,
                _ => {
                    settings.trusted_keys =
                        values::list(&place, &path, value, |place, path, value| {
                            verifying_key(value).map_err(|problem| place.error(path, problem))
                        })?;
                }
            }
        }
        if let Some(name) = settings.scripts.keys().find(|n| settings.plugins.contains_key(*n)) {
            let problem = "a plugin has this name already; rename one of the two".to_owned();
            return Err(place.error(&["scripts".to_owned(), name.clone()], problem));
        }
        Ok(settings)
    }
}

/// Where values stand, for errors.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) file: &'a Path,
    pub(crate) lines: &'a Lines,
}

impl Place<'_> {
    pub(crate) fn error(&self, path: &[String], problem: impl Into<String>) -> SettingsError {
        SettingsError {
            file: self.file.to_owned(),
            line: self.lines.line(path),
            key: path.join("."),
            problem: problem.into(),
        }
    }
}
