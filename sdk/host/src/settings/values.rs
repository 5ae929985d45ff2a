//! Values of the configuration: from YAML, and from text to types.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::VerifyingKey;
use serde_json::{Map, Value};

use super::{Place, SettingsError};

/// Nesting of a value; one that goes deeper is refused.
const MAX_DEPTH: usize = 64;

/// The text as a JSON value, or the line and what is wrong there.
pub(super) fn tree(text: &str) -> Result<Value, (usize, String)> {
    let value: serde_yaml::Value = serde_yaml::from_str(text).map_err(|error| {
        let line = error.location().map_or(1, |at| at.line());
        (line, format!("this is not YAML: {error}"))
    })?;
    json(value, 0).map_err(|problem| (1, problem))
}

fn json(value: serde_yaml::Value, depth: usize) -> Result<Value, String> {
    use serde_yaml::Value as Yaml;
    if depth > MAX_DEPTH {
        return Err(format!("values are nested deeper than {MAX_DEPTH}"));
    }
    Ok(match value {
        Yaml::Null => Value::Null,
        Yaml::Bool(value) => Value::Bool(value),
        Yaml::String(text) => Value::String(text),
        Yaml::Number(n) => match (n.as_u64(), n.as_i64(), n.as_f64()) {
            (Some(n), _, _) => Value::from(n),
            (_, Some(n), _) => Value::from(n),
            (_, _, Some(n)) if n.is_finite() => Value::from(n),
            _ => return Err(format!("{n} is not a number that can be used")),
        },
        Yaml::Sequence(list) => {
            Value::Array(list.into_iter().map(|v| json(v, depth + 1)).collect::<Result<_, _>>()?)
        }
        Yaml::Mapping(map) => {
            let mut object = Map::new();
            for (key, value) in map {
                let key = match json(key, depth + 1)? {
                    Value::String(text) => text,
                    key @ (Value::Number(_) | Value::Bool(_)) => key.to_string(),
                    key => return Err(format!("a key must be a text, not {}", kind_of(&key))),
                };
                object.insert(key, json(value, depth + 1)?);
            }
            Value::Object(object)
        }
        Yaml::Tagged(tagged) => return Err(format!("the tag {} is not known here", tagged.tag)),
    })
}

/// Keys with `_` are the same as with `-`.
pub(super) fn normal(key: &str) -> String {
    key.replace('_', "-")
}

/// What a person calls this.
pub(super) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "keys with values",
    }
}

/// A list, each item read by `item`.
pub(super) fn list<T>(
    place: &Place<'_>,
    path: &[String],
    value: &Value,
    item: impl Fn(&Place<'_>, &[String], &Value) -> Result<T, SettingsError>,
) -> Result<Vec<T>, SettingsError> {
    let items = match value {
        Value::Array(items) => items,
        Value::Null => return Ok(Vec::new()),
        other => {
            let problem = format!("a list is expected, as in [a, b], not {}", kind_of(other));
            return Err(place.error(path, problem));
        }
    };
    let each = |(index, value): (usize, &Value)| {
        let mut path = path.to_vec();
        path.push(index.to_string());
        item(place, &path, value)
    };
    items.iter().enumerate().map(each).collect()
}

/// A list of folders; relative ones are in `folder`.
pub(super) fn paths(
    place: &Place<'_>,
    path: &[String],
    value: &Value,
    folder: &Path,
) -> Result<Vec<PathBuf>, SettingsError> {
    list(place, path, value, |place, path, value| match value.as_str() {
        Some(text) if !text.is_empty() => Ok(folder.join(text)),
        _ => Err(place.error(path, format!("a path is expected, not {}", kind_of(value)))),
    })
}

/// A duration: `250ms`, `5s`, `2m`, `1h`; a number alone means seconds.
pub(super) fn duration(value: &Value) -> Result<Duration, String> {
    let wrong = || format!("a duration is expected, as in 5s or 250ms, not {value}");
    let seconds = match value {
        Value::Number(n) => n.as_f64().ok_or_else(wrong)?,
        Value::String(text) => {
            let text = text.trim();
            let at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
            let unit = match &text[at..] {
                "ms" => 0.001,
                "s" | "" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return Err(wrong()),
            };
            text[..at].trim().parse::<f64>().map_err(|_| wrong())? * unit
        }
        _ => return Err(wrong()),
    };
    match Duration::try_from_secs_f64(seconds) {
        Ok(time) if time >= Duration::from_millis(1) && time <= Duration::from_secs(86_400) => {
            Ok(time)
        }
        _ => Err(format!("a duration is between 1ms and 24h, not {value}")),
    }
}

/// Bytes: `64M`, `1G`, `65536`; K, M and G are powers of 1024.
pub(super) fn bytes(value: &Value) -> Result<u64, String> {
    let wrong = || format!("a size is expected, as in 64M, not {value}");
    match value {
        Value::Number(n) => n.as_u64().ok_or_else(wrong),
        Value::String(text) => {
            let text = text.trim();
            let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
            let shift = match text[at..].trim() {
                "" | "B" => 0,
                "K" | "KB" | "KiB" => 10,
                "M" | "MB" | "MiB" => 20,
                "G" | "GB" | "GiB" => 30,
                _ => return Err(wrong()),
            };
            let number: u64 = text[..at].parse().map_err(|_| wrong())?;
            number.checked_mul(1 << shift).ok_or_else(wrong)
        }
        _ => Err(wrong()),
    }
}

/// A whole number from 1 to `most`.
pub(super) fn count(value: &Value, most: u64) -> Result<u64, String> {
    match value.as_u64() {
        Some(n) if (1..=most).contains(&n) => Ok(n),
        _ => Err(format!("a number from 1 to {most} is expected, not {value}")),
    }
}

/// A share of one core: `0.5` or `50%`.
pub(super) fn share(value: &Value) -> Result<f64, String> {
    let share = match value {
        Value::Number(n) => n.as_f64(),
        Value::String(text) => {
            text.trim().strip_suffix('%').and_then(|n| n.parse::<f64>().ok()).map(|n| n / 100.0)
        }
        _ => None,
    };
    share
        .filter(|s| *s > 0.0 && *s <= 1024.0)
        .ok_or_else(|| format!("a share of one core is expected, as in 0.5 or 50%, not {value}"))
}

/// An Ed25519 public key in base64.
pub(super) fn verifying_key(value: &Value) -> Result<VerifyingKey, String> {
    let wrong = || "an Ed25519 public key is expected: 32 bytes in base64".to_owned();
    let bytes = STANDARD.decode(value.as_str().ok_or_else(wrong)?.trim()).map_err(|_| wrong())?;
    VerifyingKey::from_bytes(&bytes.try_into().map_err(|_| wrong())?).map_err(|_| wrong())
}

/// The known name closest to `name`, if any is close.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name = normal(name).to_lowercase();
    let distance = |k: &'a str| (edit_distance(&name, k), k);
    let (distance, key) = known.into_iter().map(distance).min()?;
    (distance <= name.len().max(key.len()) / 2).then_some(key)
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
