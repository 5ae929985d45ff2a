//! Configuration as given: flags over environment over file, texts with the
//! place each came from. Arguments and environment are passed in.
//!
//! A flag takes one or two dashes; `-` and `_` are the same everywhere.
//! Whatever is not known is refused, naming where it stands.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};

use pilot_host::{Settings, SettingsError};

use super::keys::{KEYS, Key, PROGRAM};
use super::networks::{self, WantedNetwork};

/// Where a value was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Default,
    Flag,
    Environment(String),
    File(PathBuf, usize),
}

/// Why the configuration is refused; the text names the place.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A flag that does not exist.
    #[error("unknown flag -{flag}{}; see -help", suggestion(*nearest))]
    UnknownFlag {
        /// As given, without dashes.
        flag: String,
        /// The closest known one.
        nearest: Option<&'static str>,
    },
    /// A word that belongs to no flag.
    #[error("unexpected argument {0:?}; every value needs a flag, see -help")]
    Argument(String),
    /// A flag at the end without its value.
    #[error("flag -{0} needs a value")]
    MissingValue(&'static str),
    /// The file cannot be read.
    #[error("cannot read config file {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not a YAML mapping of keys to values.
    #[error("config file {}: {problem}", path.display())]
    Yaml {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the line.
        problem: String,
    },
    /// A key in the file that does not exist.
    #[error("config file {} line {line}: unknown key {key:?}{}", path.display(), suggestion(*nearest))]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// Line of the key.
        line: usize,
        /// The key.
        key: String,
        /// The closest known one.
        nearest: Option<&'static str>,
    },
    /// What the file says of plugins or scripts is wrong.
    #[error(transparent)]
    Plugins(#[from] SettingsError),
    /// A value that does not parse or is not supported.
    #[error("{place} {problem}")]
    Value {
        /// Flag, variable, or file with line and key.
        place: String,
        /// What is wrong with the value.
        problem: String,
    },
}

fn suggestion(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |n| format!(" (did you mean {n}?)"))
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Invocation {
    /// Run with this configuration.
    Run(RawConfig),
    /// Print this text and end.
    Print(String),
}

/// Values of all keys, not yet parsed.
#[derive(Clone, Debug)]
pub struct RawConfig {
    values: BTreeMap<&'static str, (String, Origin)>,
    home: Option<PathBuf>,
    file: Option<PathBuf>,
    settings: Settings,
    networks: Vec<WantedNetwork>,
}

impl RawConfig {
    /// Collects flags, environment and file.
    ///
    /// # Errors
    /// When a flag or key is unknown or malformed, or the file unreadable.
    pub fn load(
        args: impl IntoIterator<Item = String>,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Invocation, ConfigError> {
        let flags = match parse_flags(args)? {
            Flags::Values(flags) => flags,
            Flags::Print(text) => return Ok(Invocation::Print(text)),
        };
        let mut values: BTreeMap<_, _> =
            KEYS.iter().map(|k| (k.name, (k.default.to_owned(), Origin::Default))).collect();
        let from_env: BTreeMap<_, _> = KEYS
            .iter()
            .filter_map(|k| {
                let name = env_name(k);
                env(&name).map(|v| (k.name, (v, Origin::Environment(name))))
            })
            .collect();
        let file = flags.get("config").or_else(|| from_env.get("config").map(|(path, _)| path));
        let file = file.filter(|path| !path.is_empty()).map(PathBuf::from);
        let mut settings = Settings::default();
        let mut wanted = Vec::new();
        if let Some(path) = &file {
            let text = std::fs::read_to_string(path)
                .map_err(|source| ConfigError::File { path: path.clone(), source })?;
            let (given, networks) = read_file(path, &text)?;
            values.extend(given);
            wanted = networks;
            settings = Settings::parse(&text, path)?;
        }
        values.extend(from_env);
        values.extend(flags.into_iter().map(|(k, v)| (k, (v, Origin::Flag))));
        let home = env("HOME").filter(|h| !h.is_empty()).map(PathBuf::from);
        Ok(Invocation::Run(Self { values, home, file, settings, networks: wanted }))
    }

    /// The trimmed text of a key.
    pub(super) fn text(&self, key: &str) -> &str {
        debug_assert!(self.values.contains_key(key), "{key} is not in the table");
        self.values.get(key).map_or("", |(v, _)| v.trim())
    }

    /// Whether a key was given anywhere.
    pub(super) fn is_given(&self, key: &str) -> bool {
        self.values.get(key).is_some_and(|(_, origin)| *origin != Origin::Default)
    }

    /// The file that was read.
    pub(super) fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// What the file says of plugins and scripts.
    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The networks to join.
    pub(super) fn networks(&self) -> &[WantedNetwork] {
        &self.networks
    }

    /// The user's home folder.
    pub(super) fn home(&self) -> Option<&Path> {
        self.home.as_deref()
    }

    /// An error about the value of `key`, naming where it was given.
    pub(super) fn refuse(&self, key: &str, problem: impl fmt::Display) -> ConfigError {
        let place = match self.values.get(key).map(|(_, origin)| origin) {
            Some(Origin::Environment(name)) => format!("environment variable {name}"),
            Some(Origin::File(path, line)) => {
                format!("config file {} line {line}: key {key:?}", path.display())
            }
            Some(Origin::Default) => format!("key {key:?}"),
            _ => format!("flag -{key}"),
        };
        ConfigError::Value { place, problem: problem.to_string() }
    }
}

fn env_name(key: &Key) -> String {
    match key.name {
        // The folder has the name that other programs know.
        "data" => "PILOT_HOME".to_owned(),
        name => format!("PILOT_{}", name.replace('-', "_").to_uppercase()),
    }
}

fn find(name: &str) -> Option<&'static Key> {
    let name = name.replace('_', "-");
    KEYS.iter().find(|k| k.name == name)
}

/// The known key closest to `name`, if any is close.
fn nearest(name: &str) -> Option<&'static str> {
    let known = KEYS.iter().map(|k| k.name).chain(Settings::KEYS.iter().copied());
    nearest_of(name, known.chain([networks::KEY]))
}

/// The one of `known` closest to `name`, if any is close.
pub(super) fn nearest_of(
    name: &str,
    known: impl Iterator<Item = &'static str>,
) -> Option<&'static str> {
    let name = name.replace('_', "-").to_lowercase();
    let (distance, key) = known.map(|k| (edit_distance(&name, k), k)).min()?;
    (distance <= name.len().max(key.len()) / 2).then_some(key)
}

enum Flags {
    Values(BTreeMap<&'static str, String>),
    Print(String),
}

fn parse_flags(args: impl IntoIterator<Item = String>) -> Result<Flags, ConfigError> {
    let mut flags = BTreeMap::new();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let Some(flag) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) else {
            return Err(ConfigError::Argument(arg));
        };
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        match name {
            "h" | "help" => return Ok(Flags::Print(usage())),
            "V" | "version" => {
                return Ok(Flags::Print(format!("{PROGRAM} {}\n", env!("CARGO_PKG_VERSION"))));
            }
            _ => {}
        }
        let key = find(name).ok_or_else(|| ConfigError::UnknownFlag {
            flag: name.to_owned(),
            nearest: nearest(name),
        })?;
        let value = match value {
            Some(value) => value,
            None if key.switch => "true".to_owned(),
            None => args.next().ok_or(ConfigError::MissingValue(key.name))?,
        };
        flags.insert(key.name, value);
    }
    Ok(Flags::Values(flags))
}

fn usage() -> String {
    let mut text =
        format!("{PROGRAM}: the virtual NIC of an agent's machine\n\nFlags (one or two dashes):\n");
    for key in KEYS {
        let value = if key.switch { "" } else { " VALUE" };
        let default = match key.default {
            "" | "false" => String::new(),
            default => format!(" [{default}]"),
        };
        let flag = format!("-{}{value}", key.name);
        text += &format!("  {flag:<28} {}{default}\n", key.help);
    }
    text + "\nThe same keys stand in the config file, YAML or JSON. A flag beats the environment\n\
            (PILOT_REGISTRY and so on), which beats the file.\n"
}

type FileValues = Vec<(&'static str, (String, Origin))>;

fn read_file(path: &Path, text: &str) -> Result<(FileValues, Vec<WantedNetwork>), ConfigError> {
    let yaml = |problem: String| ConfigError::Yaml { path: path.to_owned(), problem };
    let mapping = match serde_yaml::from_str(text).map_err(|e| yaml(e.to_string()))? {
        serde_yaml::Value::Null => return Ok((Vec::new(), Vec::new())),
        serde_yaml::Value::Mapping(mapping) => mapping,
        _ => return Err(yaml("line 1: expected keys with values, one per line".to_owned())),
    };
    let mut seen = HashSet::new();
    let mut values = Vec::new();
    let mut wanted = Vec::new();
    for (name, value) in mapping {
        let name = scalar(&name).ok_or_else(|| yaml("a key is not a word".to_owned()))?;
        let line = line_of(text, &name);
        // Those are the host's, which looks at what is in them.
        if Settings::KEYS.contains(&name.replace('_', "-").as_str()) {
            continue;
        }
        if name == networks::KEY {
            wanted = networks::parse(&value, text, path)?;
            continue;
        }
        let key = find(&name).ok_or_else(|| ConfigError::UnknownKey {
            path: path.to_owned(),
            line,
            nearest: nearest(&name),
            key: name.clone(),
        })?;
        if key.name == "config" {
            return Err(yaml(format!("line {line}: a file cannot name another config file")));
        }
        if !seen.insert(key.name) {
            return Err(yaml(format!("line {line}: key {name:?} is given twice")));
        }
        let value = scalar(&value).ok_or_else(|| {
            yaml(format!("line {line}: key {name:?} is not a text, number, true or false"))
        })?;
        values.push((key.name, (value, Origin::File(path.to_owned(), line))));
    }
    Ok((values, wanted))
}

fn scalar(value: &serde_yaml::Value) -> Option<String> {
    match value {
        serde_yaml::Value::String(s) => Some(s.clone()),
        serde_yaml::Value::Number(n) => Some(n.to_string()),
        serde_yaml::Value::Bool(b) => Some(b.to_string()),
        _ => None,
    }
}

/// Line, from 1, on which `key` is followed by a colon; 1 when it is written
/// in some way this does not see.
fn line_of(text: &str, key: &str) -> usize {
    let names = |line: &str| {
        line.match_indices(key).any(|(at, _)| {
            let before = line[..at].trim_end_matches(['"', '\'']).trim_end();
            let after = line[at + key.len()..].trim_start_matches(['"', '\'']).trim_start();
            (before.is_empty() || before.ends_with(['{', ','])) && after.starts_with(':')
        })
    };
    text.lines().position(names).unwrap_or(0) + 1
}

/// Levenshtein distance; both texts are short.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, cb) in b.chars().enumerate() {
            let cost = diagonal + usize::from(ca != cb);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row.last().copied().unwrap_or(0)
}
