//! One entry under `plugins` or `scripts`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::lines::Lines;
use super::values::{bytes, count, duration, kind_of, list, nearest, normal, share};
use super::{Place, SettingsError};
use crate::instance::Limits;

/// What the configuration says about one plugin or script.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Whether it runs.
    pub enabled: bool,
    /// Its file; found by name in the folders when not given.
    pub file: Option<PathBuf>,
    /// SHA-256 that the file must have, lower-case hex.
    pub sha256: Option<String>,
    /// Ed25519 signature over the file's bytes, base64.
    pub signature: Option<String>,
    /// Where it runs.
    pub isolation: Isolation,
    /// Ports instead of those in the manifest.
    pub ports: Option<Ports>,
    /// Host methods it may call, `dial`, `http:HOST`, or `*` for all.
    pub grants: Vec<String>,
    /// What it may use.
    pub limits: Limits,
    /// Settings of its sinks, passed on as they are.
    pub events: Value,
    /// Its own configuration, checked with the schema of its manifest.
    pub config: Value,
    /// Where the parts of `config` stand.
    pub config_lines: Lines,
    /// File that the entry came from; empty when it came from none.
    pub origin: PathBuf,
}

impl Default for Entry {
    fn default() -> Self {
        Self {
            enabled: true,
            file: None,
            sha256: None,
            signature: None,
            isolation: Isolation::None,
            ports: None,
            grants: Vec::new(),
            limits: Limits::default(),
            events: Value::Null,
            config: Value::Null,
            config_lines: Lines::default(),
            origin: PathBuf::new(),
        }
    }
}

/// Where a plugin runs.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// In this process.
    #[default]
    None,
    /// In a child process of its own.
    Process,
}

/// Ports of the services of a plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    /// Of its only service.
    Only(Vec<u16>),
    /// By the service's name; one that is not named has those of the manifest.
    Services(BTreeMap<String, Vec<u16>>),
}

const KEYS: &[&str] = &[
    "enabled",
    "file",
    "sha256",
    "signature",
    "isolation",
    "ports",
    "grants",
    "limits",
    "events",
    "config",
];

const LIMITS: &[&str] =
    &["streams", "queue", "start", "callback", "validate", "deliver", "cpu", "memory", "events"];

/// Most streams and messages that may be allowed.
const MOST: u64 = 1 << 24;

/// Reads the map of entries.
pub(super) fn entries(
    place: &Place<'_>,
    path: &[String],
    value: &Value,
    folder: &Path,
) -> Result<BTreeMap<String, Entry>, SettingsError> {
    let map = object(place, path, value, "names with their settings")?;
    let mut entries = BTreeMap::new();
    for (name, value) in map {
        let path = [path, std::slice::from_ref(name)].concat();
        let name = normal(name);
        if !is_name(&name) {
            let problem = "a name has up to 64 small letters, digits and hyphens";
            return Err(place.error(&path, problem));
        }
        let entry = entry(place, &path, value, folder)?;
        if entries.insert(name, entry).is_some() {
            return Err(place.error(&path, "this name is there already"));
        }
    }
    Ok(entries)
}

/// Whether a plugin may have this name.
pub(crate) fn is_name(name: &str) -> bool {
    let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=64).contains(&name.len()) && !name.starts_with('-') && name.bytes().all(fine)
}

/// `base` with what `over` (an entry as JSON) says instead; the keys inside
/// `config` are put over one by one.
pub(crate) fn merge(base: &Entry, over: &Value, name: &str) -> Result<Entry, SettingsError> {
    let lines = Lines::default();
    let place = Place { file: Path::new(""), lines: &lines };
    let path = ["plugins".to_owned(), name.to_owned()];
    let new = entry(&place, &path, over, Path::new(""))?;
    let mut merged = base.clone();
    let keys = over.as_object().into_iter().flatten().map(|(key, _)| normal(key));
    for key in keys {
        match key.as_str() {
            "enabled" => merged.enabled = new.enabled,
            "file" => merged.file.clone_from(&new.file),
            "sha256" => merged.sha256.clone_from(&new.sha256),
            "signature" => merged.signature.clone_from(&new.signature),
            "isolation" => merged.isolation = new.isolation,
            "ports" => merged.ports.clone_from(&new.ports),
            "grants" => merged.grants.clone_from(&new.grants),
            "limits" => merged.limits = new.limits.clone(),
            "events" => merged.events = new.events.clone(),
            _ => match (&mut merged.config, &new.config) {
                (Value::Object(old), Value::Object(new)) => {
                    old.extend(new.iter().map(|(k, v)| (k.clone(), v.clone())));
                }
                (old, new) => *old = new.clone(),
            },
        }
    }
    Ok(merged)
}

fn entry(
    place: &Place<'_>,
    path: &[String],
    value: &Value,
    folder: &Path,
) -> Result<Entry, SettingsError> {
    let mut entry = Entry { origin: place.file.to_owned(), ..Entry::default() };
    let mut seen = Vec::new();
    for (name, value) in object(place, path, value, "settings")? {
        let at = [path, std::slice::from_ref(name)].concat();
        let key = known(place, &at, name, KEYS)?;
        if seen.contains(&key) {
            return Err(place.error(&at, "it is there already"));
        }
        seen.push(key);
        let wrong = |problem: String| place.error(&at, problem);
        match key {
            "enabled" => {
                entry.enabled = value.as_bool().ok_or_else(|| {
                    wrong(format!("true or false is expected, not {}", kind_of(value)))
                })?;
            }
            "file" => entry.file = Some(folder.join(text(place, &at, value)?)),
            "sha256" => {
                let text = text(place, &at, value)?.to_lowercase();
                if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return Err(wrong("a SHA-256 is expected: 64 hex digits".to_owned()));
                }
                entry.sha256 = Some(text);
            }
            "signature" => entry.signature = Some(text(place, &at, value)?.to_owned()),
            "isolation" => {
                entry.isolation = match text(place, &at, value)? {
                    "none" => Isolation::None,
                    "process" => Isolation::Process,
                    other => {
                        return Err(wrong(format!("none or process is expected, not {other:?}")));
                    }
                };
            }
            "ports" => entry.ports = Some(ports(place, &at, value)?),
            "grants" => {
                entry.grants = list(place, &at, value, |place, path, value| {
                    Ok(text(place, path, value)?.to_owned())
                })?;
            }
            "limits" => entry.limits = limits(place, &at, value)?,
            "events" => entry.events = value.clone(),
            _ => {
                entry.config = value.clone();
                entry.config_lines = place.lines.below(&at);
            }
        }
    }
    Ok(entry)
}

fn limits(place: &Place<'_>, path: &[String], value: &Value) -> Result<Limits, SettingsError> {
    let mut limits = Limits::default();
    for (name, value) in object(place, path, value, "limits")? {
        let at = [path, std::slice::from_ref(name)].concat();
        let wrong = |problem: String| place.error(&at, problem);
        let number = |most: u64| count(value, most).map_err(wrong);
        match known(place, &at, name, LIMITS)? {
            "streams" => limits.streams = usize::try_from(number(MOST)?).unwrap_or(usize::MAX),
            "queue" => limits.queue = usize::try_from(number(MOST)?).unwrap_or(usize::MAX),
            "events" => limits.events = u32::try_from(number(MOST)?).unwrap_or(u32::MAX),
            "start" => limits.start = duration(value).map_err(wrong)?,
            "callback" => limits.callback = duration(value).map_err(wrong)?,
            "validate" => limits.validate = duration(value).map_err(wrong)?,
            "deliver" => limits.deliver = duration(value).map_err(wrong)?,
            "cpu" => limits.cpu = share(value).map_err(wrong)?,
            _ => limits.memory = bytes(value).map_err(wrong)?,
        }
    }
    Ok(limits)
}

fn ports(place: &Place<'_>, path: &[String], value: &Value) -> Result<Ports, SettingsError> {
    let port = |place: &Place<'_>, path: &[String], value: &Value| {
        value.as_u64().and_then(|n| u16::try_from(n).ok()).ok_or_else(|| {
            place.error(path, format!("a port is a number up to 65535, not {value}"))
        })
    };
    match value {
        Value::Object(map) => {
            let one = |(name, value): (&String, &Value)| {
                let at = [path, std::slice::from_ref(name)].concat();
                Ok((name.clone(), list(place, &at, value, port)?))
            };
            Ok(Ports::Services(map.iter().map(one).collect::<Result<_, _>>()?))
        }
        value => Ok(Ports::Only(list(place, path, value, port)?)),
    }
}

fn object<'v>(
    place: &Place<'_>,
    path: &[String],
    value: &'v Value,
    what: &str,
) -> Result<impl Iterator<Item = (&'v String, &'v Value)>, SettingsError> {
    static NONE: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);
    match value {
        Value::Object(map) => Ok(map.iter()),
        Value::Null => Ok(NONE.iter()),
        other => Err(place.error(path, format!("{what} are expected, not {}", kind_of(other)))),
    }
}

fn known(
    place: &Place<'_>,
    path: &[String],
    name: &str,
    keys: &[&'static str],
) -> Result<&'static str, SettingsError> {
    let key = normal(name);
    keys.iter().find(|k| **k == key).copied().ok_or_else(|| {
        let hint = nearest(name, keys.iter().copied())
            .map_or_else(String::new, |key| format!(" (did you mean {key}?)"));
        place.error(path, format!("unknown key{hint}; known are {}", keys.join(", ")))
    })
}

fn text<'v>(
    place: &Place<'_>,
    path: &[String],
    value: &'v Value,
) -> Result<&'v str, SettingsError> {
    match value.as_str().map(str::trim) {
        Some(text) if !text.is_empty() => Ok(text),
        _ => Err(place.error(path, format!("a text is expected, not {}", kind_of(value)))),
    }
}
