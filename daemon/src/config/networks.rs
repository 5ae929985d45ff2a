//! The key `networks`: which networks to join, and where the proofs for their
//! rules come from. Only its form is known here.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use pilot_host::Lines;
use pilot_wire::registry::network::NetworkRef;
use serde_yaml::Value;

use super::raw::{ConfigError, nearest_of};

/// The key.
pub(super) const KEY: &str = "networks";
/// Networks in a configuration; more are refused.
const MAX_NETWORKS: usize = 256;
/// Proofs for one network; more are refused.
const MAX_PROOFS: usize = 8;
const KEYS: [&str; 2] = ["name", "proofs"];
const SOURCES: [&str; 4] = ["value", "env", "file", "command"];

/// Whether what the registry says of networks can be changed on the way, and what
/// is done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plaintext {
    /// It cannot: TLS, or the registry is on this machine.
    Fine,
    /// It can, and that is said.
    Warn,
    /// It could, so this node is in no networks.
    Refuse,
}

impl Plaintext {
    /// Why nothing is joined.
    pub const REFUSED: &str = "networks-over-plaintext is refuse, and the registry is spoken to \
                               without TLS; set registry-tls and registry-fingerprint";

    /// What people must know.
    pub const fn warning(self) -> Option<&'static str> {
        match self {
            Self::Fine => None,
            Self::Warn => Some(
                "networks over a plaintext registry: whoever is on the way can add members; set \
                 registry-tls and registry-fingerprint",
            ),
            Self::Refuse => Some(Self::REFUSED),
        }
    }
}

/// A network to join and stay in.
#[derive(Clone, Debug, PartialEq)]
pub struct WantedNetwork {
    /// Which.
    pub network: NetworkRef,
    /// By the name of the rule, where its proof comes from.
    pub proofs: BTreeMap<String, Proof>,
}

/// Where a proof comes from.
#[derive(Clone, PartialEq)]
pub enum Proof {
    /// It stands in the configuration.
    Value(serde_json::Value),
    /// A variable of the environment.
    Env(String),
    /// A file; relative ones count from the folder of the configuration.
    File(PathBuf),
    /// What a program prints: itself and its arguments.
    Command(Vec<String>),
}

/// Nothing that may be secret.
impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(_) => f.write_str("Value(..)"),
            Self::Env(name) => f.debug_tuple("Env").field(name).finish(),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Command(argv) => f.debug_tuple("Command").field(&argv.first()).finish(),
        }
    }
}

struct Place<'a> {
    file: &'a Path,
    lines: Lines,
}

impl Place<'_> {
    fn error(&self, path: &[&str], problem: impl fmt::Display) -> ConfigError {
        let whole: Vec<String> =
            std::iter::once(KEY).chain(path.iter().copied()).map(str::to_owned).collect();
        let line = self.lines.line(&whole).unwrap_or(1);
        let place =
            format!("config file {} line {line}: key {:?}", self.file.display(), whole.join("."));
        ConfigError::Value { place, problem: problem.to_string() }
    }
}

/// Reads the value of the key out of `text`, which came from `file`.
///
/// # Errors
/// When it is malformed; the text names the line.
pub(super) fn parse(
    value: &Value,
    text: &str,
    file: &Path,
) -> Result<Vec<WantedNetwork>, ConfigError> {
    let place = Place { file, lines: Lines::of(text) };
    let list = match value {
        Value::Null => return Ok(Vec::new()),
        Value::Sequence(list) => list,
        _ => return Err(place.error(&[], "is no list; expected entries like - {name: lab}")),
    };
    if list.len() > MAX_NETWORKS {
        return Err(place.error(&[], format!("has more than {MAX_NETWORKS} entries")));
    }
    let mut wanted: Vec<WantedNetwork> = Vec::new();
    for (index, entry) in list.iter().enumerate() {
        let at = index.to_string();
        let network = one(&place, &at, entry)?;
        if wanted.iter().any(|w| w.network == network.network) {
            let problem = format!("names network {} a second time", network.network);
            return Err(place.error(&[&at], problem));
        }
        wanted.push(network);
    }
    Ok(wanted)
}

fn one(place: &Place<'_>, at: &str, entry: &Value) -> Result<WantedNetwork, ConfigError> {
    let Value::Mapping(map) = entry else {
        // A name alone is a network that wants no proof.
        let network = reference(place, &[at], entry)?;
        return Ok(WantedNetwork { network, proofs: BTreeMap::new() });
    };
    let mut network = None;
    let mut proofs = BTreeMap::new();
    for (key, value) in map {
        match known(place, &[at], key, &KEYS)? {
            "name" => network = Some(reference(place, &[at, "name"], value)?),
            _ => proofs = all_proofs(place, at, value)?,
        }
    }
    let network = network.ok_or_else(|| place.error(&[at], "has no name"))?;
    Ok(WantedNetwork { network, proofs })
}

fn reference(place: &Place<'_>, at: &[&str], value: &Value) -> Result<NetworkRef, ConfigError> {
    let number = match value {
        Value::Number(n) => n.as_u64(),
        Value::String(text) if text.bytes().all(|b| b.is_ascii_digit()) => text.parse().ok(),
        Value::String(text) if !text.trim().is_empty() => {
            return Ok(NetworkRef::Name(text.trim().to_owned()));
        }
        _ => None,
    };
    match number.and_then(|n| u16::try_from(n).ok()) {
        Some(id @ 1..) => Ok(NetworkRef::Id(id)),
        _ => Err(place.error(at, "is neither the name of a network nor a number from 1 to 65535")),
    }
}

fn all_proofs(
    place: &Place<'_>,
    at: &str,
    value: &Value,
) -> Result<BTreeMap<String, Proof>, ConfigError> {
    let wrong = |problem: &str| place.error(&[at, "proofs"], problem);
    let map = match value {
        Value::Null => return Ok(BTreeMap::new()),
        Value::Mapping(map) if map.len() <= MAX_PROOFS => map,
        Value::Mapping(_) => return Err(wrong("has more than 8 proofs")),
        _ => return Err(wrong("is no mapping; expected proofs like {token: {file: PATH}}")),
    };
    let mut proofs = BTreeMap::new();
    for (rule, source) in map {
        let Value::String(rule) = rule else {
            return Err(wrong("has a key that is not the name of a rule"));
        };
        proofs.insert(rule.clone(), proof(place, &[at, "proofs", rule], source)?);
    }
    Ok(proofs)
}

fn proof(place: &Place<'_>, at: &[&str], source: &Value) -> Result<Proof, ConfigError> {
    let expected = "needs exactly one of value, env, file, command";
    let Value::Mapping(map) = source else { return Err(place.error(at, expected)) };
    let mut only = map.iter();
    let (Some((key, value)), None) = (only.next(), only.next()) else {
        // A wrong word is a better hint than their number.
        for (key, _) in map {
            known(place, at, key, &SOURCES)?;
        }
        return Err(place.error(at, expected));
    };
    let source = known(place, at, key, &SOURCES)?;
    let at = &[at, &[source]].concat();
    let text = || match value {
        Value::String(text) if !text.trim().is_empty() => Ok(text.trim().to_owned()),
        _ => Err(place.error(at, "is no text")),
    };
    Ok(match source {
        "value" => Proof::Value(
            serde_json::to_value(value).map_err(|_| place.error(at, "cannot be a proof"))?,
        ),
        "env" => Proof::Env(text()?),
        "file" => {
            let folder = place.file.parent().unwrap_or_else(|| Path::new(""));
            Proof::File(folder.join(text()?))
        }
        _ => {
            let word = |value: &Value| match value {
                Value::String(text) => Some(text.clone()),
                Value::Number(n) => Some(n.to_string()),
                _ => None,
            };
            let argv = match value {
                Value::Sequence(list) => list.iter().map(word).collect::<Option<Vec<_>>>(),
                _ => None,
            };
            match argv {
                Some(argv) if argv.first().is_some_and(|a| !a.is_empty()) => Proof::Command(argv),
                _ => {
                    let problem = "is no list of a program and its arguments, as in [cat, PATH]; \
                                   there is no shell";
                    return Err(place.error(at, problem));
                }
            }
        }
    })
}

fn known(
    place: &Place<'_>,
    at: &[&str],
    key: &Value,
    keys: &[&'static str],
) -> Result<&'static str, ConfigError> {
    let Value::String(name) = key else {
        return Err(place.error(at, format!("has a key that is none of {}", keys.join(", "))));
    };
    keys.iter().find(|k| *k == name).copied().ok_or_else(|| {
        let hint = nearest_of(name, keys.iter().copied())
            .map_or_else(String::new, |near| format!(" (did you mean {near}?)"));
        let problem = format!("is unknown{hint}; known are {}", keys.join(", "));
        place.error(&[at, &[name.as_str()]].concat(), problem)
    })
}
