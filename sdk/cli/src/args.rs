//! The published option syntax: `--key=value`, or `--key value` if the next
//! word does not start with `--`; `--json` anywhere on the line.
//!
//! Two rules are stricter than published, where a flag without a value takes
//! the value `true`: a flag that needs a value must get one, and a boolean
//! flag takes the next word only if that is `true`, `false`, `1` or `0`.

use std::collections::HashMap;
use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use crate::failure::Failure;
use crate::spec::{Flag, Lookup, Spec, find, nearest};

/// Longest time that is waited: ten years, which every clock can add.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// A command line without the global flags.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Line {
    pub(crate) json: Option<bool>,
    pub(crate) help: bool,
    pub(crate) version: bool,
    pub(crate) socket: Option<String>,
    /// The command and what follows.
    pub(crate) words: Vec<String>,
}

impl Line {
    pub(crate) fn split(words: Vec<String>) -> Result<Self, Failure> {
        let mut line = Self::default();
        let mut rest = words.into_iter().peekable();
        while let Some(word) = rest.next() {
            if word == "--" {
                line.words.push(word);
                line.words.extend(rest);
                break;
            }
            let (name, value) = split_flag(&word);
            match (name, value) {
                (None, _) if wants_value(&line.words) => line.words.push(word),
                (Some("json"), None) => line.json = Some(true),
                (Some("json"), Some(value)) => line.json = Some(boolean("json", value)?),
                (Some("help"), None) => line.help = true,
                (Some("version"), None) => line.version = true,
                (Some("socket"), Some(value)) => line.socket = Some(value.to_owned()),
                (Some("socket"), None) => {
                    let value = rest.next_if(|w| !w.starts_with("--"));
                    line.socket = Some(value.ok_or_else(|| needs_value("socket", "path"))?);
                }
                _ if word == "-h" => line.help = true,
                _ if word == "-V" && line.words.is_empty() => line.version = true,
                (Some(name), _) if line.words.is_empty() => {
                    return Err(Failure::invalid(format!(
                        "unknown flag --{name} before the command"
                    ))
                    .hint("write: pilotctl <command> [flags]"));
                }
                _ => line.words.push(word),
            }
        }
        Ok(line)
    }
}

/// What follows a command, checked against its flags.
#[derive(Debug, Default)]
pub(crate) struct Args {
    positionals: Vec<String>,
    /// In the order of the line, for those that may be given more than once.
    flags: HashMap<&'static str, Vec<String>>,
    usage: &'static str,
}

impl Args {
    pub(crate) fn parse(spec: &'static Spec, words: &[String]) -> Result<Self, Failure> {
        let mut args = Self { usage: spec.usage, ..Self::default() };
        let mut rest = words.iter().peekable();
        while let Some(word) = rest.next() {
            if word == "--" {
                args.positionals.extend(rest.cloned());
                break;
            }
            let (Some(name), value) = split_flag(word) else {
                args.positionals.push(word.clone());
                continue;
            };
            let flag = spec.flag(name).ok_or_else(|| unknown_flag(spec, name))?;
            let value = match (value, flag.value) {
                (Some(value), _) => value.to_owned(),
                (None, Some(what)) => rest
                    .next_if(|w| !w.starts_with("--"))
                    .cloned()
                    .ok_or_else(|| needs_value(name, what))?,
                (None, None) => rest
                    .next_if(|w| matches!(w.as_str(), "true" | "false" | "1" | "0"))
                    .cloned()
                    .unwrap_or_default(),
            };
            if flag.value.is_none() {
                boolean(name, &value)?;
            }
            args.flags.entry(flag.name).or_default().push(value);
        }
        let (min, max) = spec.positionals;
        if args.positionals.len() < min {
            return Err(args.usage());
        }
        if let Some(extra) = args.positionals.get(max) {
            // Where secrets are taken, this may be one.
            let shown = match spec.flags.iter().any(|f| f.name.ends_with("token")) {
                true => "one argument too many".to_owned(),
                false => format!("unexpected argument {extra:?}"),
            };
            return Err(args.usage().reason(shown));
        }
        Ok(args)
    }

    /// The failure that shows how the command is used.
    pub(crate) fn usage(&self) -> Failure {
        Failure::invalid(format!("usage: pilotctl {}", self.usage))
    }

    pub(crate) fn get(&self, index: usize) -> Option<&str> {
        self.positionals.get(index).map(String::as_str)
    }

    /// A positional that [`Spec::positionals`] makes sure is there.
    pub(crate) fn at(&self, index: usize) -> Result<&str, Failure> {
        self.get(index).ok_or_else(|| self.usage())
    }

    pub(crate) fn all(&self) -> &[String] {
        &self.positionals
    }

    /// The value of a flag; the last one if it was given more than once.
    pub(crate) fn value(&self, flag: &str) -> Option<&str> {
        self.values(flag).last().map(String::as_str)
    }

    /// Every value of a flag that may be given more than once.
    pub(crate) fn values(&self, flag: &str) -> &[String] {
        self.flags.get(flag).map_or(&[], Vec::as_slice)
    }

    /// Whether a boolean flag is set: present, and not `false`.
    pub(crate) fn is_set(&self, flag: &str) -> bool {
        self.value(flag).is_some_and(|v| matches!(v, "" | "true" | "1"))
    }

    pub(crate) fn number<T: FromStr<Err: Display>>(
        &self,
        flag: &str,
    ) -> Result<Option<T>, Failure> {
        self.value(flag).map(|text| number(&format!("--{flag}"), text)).transpose()
    }

    pub(crate) fn duration(&self, flag: &str, default: Duration) -> Result<Duration, Failure> {
        match self.value(flag) {
            Some(text) => duration(text).map(|d| d.min(LONGEST)).ok_or_else(|| {
                Failure::invalid(format!("invalid --{flag} {text:?}"))
                    .hint("write a duration like 30s, 2m, 12h, 7d, 500ms, or a number of seconds")
            }),
            None => Ok(default),
        }
    }
}

/// Whether the last of these words is a flag whose value comes next.
fn wants_value(words: &[String]) -> bool {
    let Some((Some(name), None)) = words.last().map(|w| split_flag(w)) else { return false };
    match find(words) {
        Lookup::Found(spec, _) => spec.flag(name).is_some_and(|flag| flag.value.is_some()),
        _ => false,
    }
}

/// What `--json` says on a line that cannot be read otherwise.
pub(crate) fn json_asked(words: &[String]) -> Option<bool> {
    let before = words.iter().take_while(|w| *w != "--");
    let says = |w: &String| matches!(w.as_str(), "--json" | "--json=" | "--json=true" | "--json=1");
    before.into_iter().any(says).then_some(true)
}

/// A number, or the failure that names what it should have been.
pub(crate) fn number<T: FromStr<Err: Display>>(what: &str, text: &str) -> Result<T, Failure> {
    text.parse().map_err(|e| Failure::invalid(format!("invalid {what} {text:?}")).reason(e))
}

/// Name and value of `--name[=value]`.
fn split_flag(word: &str) -> (Option<&str>, Option<&str>) {
    match word.strip_prefix("--").filter(|rest| !rest.is_empty()) {
        Some(rest) => match rest.split_once('=') {
            Some((name, value)) => (Some(name), Some(value)),
            None => (Some(rest), None),
        },
        None => (None, None),
    }
}

fn boolean(name: &str, value: &str) -> Result<bool, Failure> {
    match value {
        "" | "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(Failure::invalid(format!("invalid --{name} {value:?}"))
            .hint(format!("write --{name}, --{name}=true or --{name}=false"))),
    }
}

fn needs_value(name: &str, what: &str) -> Failure {
    Failure::invalid(format!("--{name} needs a value: --{name} <{what}>"))
        .hint(format!("a value that starts with -- is written --{name}=VALUE"))
}

fn unknown_flag(spec: &Spec, name: &str) -> Failure {
    let failure = Failure::invalid(format!("unknown flag --{name} of {}", spec.name));
    match nearest(name, spec.flags.iter().map(|f: &Flag| f.name)) {
        Some(known) => failure.hint(format!("did you mean --{known}?")),
        None => failure.hint(format!("usage: pilotctl {}", spec.usage)),
    }
}

/// Go's form (`1h30m`, `1.5s`, `500ms`, `2us`, `3ns`), also with days (`7d`), or
/// a number of seconds.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let value: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "d" => 86_400.0,
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        rest = &rest[end..];
        total = total.checked_add(Duration::try_from_secs_f64(value * unit).ok()?)?;
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests;
