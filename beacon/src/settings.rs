//! Flags over environment over file, for programs whose configuration is a
//! flat list of keys. Arguments and environment are passed in.
//!
//! A flag takes one or two dashes; in files and flags `-` and `_` are the
//! same. Whatever cannot be understood is refused, naming where it stands.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// One key of a program.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Name with dashes.
    pub name: &'static str,
    /// Text that stands in when nothing is given.
    pub default: &'static str,
    /// One line for people.
    pub help: &'static str,
    /// Whether the flag alone means `true`.
    pub switch: bool,
}

impl Key {
    /// A key with a value.
    pub const fn value(name: &'static str, default: &'static str, help: &'static str) -> Self {
        Self { name, default, help, switch: false }
    }

    /// A boolean key, off by default.
    pub const fn switch(name: &'static str, help: &'static str) -> Self {
        Self { name, default: "false", help, switch: true }
    }
}

/// Keys that every program has.
const COMMON: &[Key] = &[
    Key::value("config", "", "YAML or JSON file with these keys"),
    Key::value("log-level", "info", "debug, info, warn or error"),
    Key::value("log-format", "text", "text or json, to standard error"),
];

/// A program and its keys.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// Name of the binary.
    pub name: &'static str,
    /// One sentence.
    pub about: &'static str,
    /// Prefix of its environment variables.
    pub env_prefix: &'static str,
    /// Its own keys.
    pub keys: &'static [Key],
    /// Keys of the file alone whose values have keys of their own, names with
    /// dashes. They are left to whoever knows them: [`Settings::file`].
    pub nested: &'static [&'static str],
}

impl Program {
    fn all(&self) -> impl Iterator<Item = &'static Key> + use<> {
        self.keys.iter().chain(COMMON)
    }

    fn find(&self, name: &str) -> Option<&'static Key> {
        let name = name.replace('_', "-");
        self.all().find(|k| k.name == name)
    }

    fn env_name(&self, key: &Key) -> String {
        format!("{}{}", self.env_prefix, key.name.replace('-', "_").to_uppercase())
    }

    /// The known key closest to `name`, if any is close; in a file that may be
    /// a nested one.
    fn nearest(&self, name: &str, in_file: bool) -> Option<&'static str> {
        let name = name.replace('_', "-").to_lowercase();
        let nested = self.nested.iter().copied().filter(|_| in_file);
        let known = self.all().map(|k| k.name).chain(nested);
        let (distance, key) = known.map(|k| (edit_distance(&name, k), k)).min()?;
        (distance <= name.len().max(key.len()) / 2).then_some(key)
    }

    fn usage(&self) -> String {
        let mut text = format!("{}: {}\n\nFlags (one or two dashes):\n", self.name, self.about);
        for key in self.all() {
            let value = if key.switch { "" } else { " VALUE" };
            let default = match key.default {
                "" | "false" => String::new(),
                default => format!(" [{default}]"),
            };
            let flag = format!("-{}{value}", key.name);
            text += &format!("  {flag:<26} {}{default}\n", key.help);
        }
        text + &format!(
            "\nA flag beats the environment ({}...), which beats the file.\n",
            self.env_name(self.keys.first().unwrap_or(&COMMON[0]))
        )
    }
}

/// Where a value was given.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Origin {
    Default,
    Flag,
    Environment(String),
    File(PathBuf, usize),
}

/// Why the configuration is refused; the text names the place.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
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
    /// The file is not a YAML mapping.
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
    /// A value that does not parse or is not supported.
    #[error("{place} {problem}")]
    Value {
        /// Flag, variable or file, line and key.
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
    /// Run with these settings.
    Run(Settings),
    /// Print this text and end.
    Print(String),
}

impl Invocation {
    /// The settings, unless something is only printed.
    pub fn settings(self) -> Option<Settings> {
        match self {
            Self::Run(settings) => Some(settings),
            Self::Print(_) => None,
        }
    }
}

/// Values of all keys of a program, not yet parsed.
#[derive(Clone, Debug)]
pub struct Settings {
    values: BTreeMap<&'static str, (String, Origin)>,
    file: Option<(PathBuf, String)>,
}

impl Settings {
    /// Collects flags, environment and file.
    ///
    /// # Errors
    /// When a flag or key is unknown or malformed, or the file unreadable.
    pub fn load(
        program: &Program,
        args: impl IntoIterator<Item = String>,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Invocation, SettingsError> {
        let mut values: BTreeMap<_, _> =
            program.all().map(|k| (k.name, (k.default.to_owned(), Origin::Default))).collect();
        let flags = match parse_flags(program, args)? {
            Flags::Values(flags) => flags,
            Flags::Print(text) => return Ok(Invocation::Print(text)),
        };
        let from_env: Vec<_> = program
            .all()
            .filter_map(|k| {
                let name = program.env_name(k);
                env(&name).map(|v| (k.name, (v, Origin::Environment(name))))
            })
            .collect();
        let file = flags
            .get("config")
            .or_else(|| from_env.iter().find(|(k, _)| *k == "config").map(|(_, (v, _))| v))
            .filter(|path| !path.is_empty());
        let file = match file {
            Some(path) => {
                let path = PathBuf::from(path);
                let text = std::fs::read_to_string(&path)
                    .map_err(|source| SettingsError::File { path: path.clone(), source })?;
                values.extend(read_file(program, &path, &text)?);
                Some((path, text))
            }
            None => None,
        };
        values.extend(from_env);
        values.extend(flags.into_iter().map(|(k, v)| (k, (v, Origin::Flag))));
        Ok(Invocation::Run(Self { values, file }))
    }

    /// The file that was read, and its text.
    pub fn file(&self) -> Option<(&Path, &str)> {
        self.file.as_ref().map(|(path, text)| (path.as_path(), text.as_str()))
    }

    /// The text of a key; empty for one that the program does not have.
    pub fn text(&self, key: &str) -> &str {
        self.values.get(key).map_or("", |(v, _)| v)
    }

    /// Comma separated values, trimmed, empty ones left out.
    pub fn list(&self, key: &str) -> Vec<String> {
        self.text(key)
            .split(',')
            .map(str::trim)
            .filter(|v| !v.is_empty())
            .map(str::to_owned)
            .collect()
    }

    /// Parses a value; `expected` says what it should be.
    ///
    /// # Errors
    /// When it does not parse; the error names its place.
    pub fn parse<T: FromStr>(&self, key: &str, expected: &str) -> Result<T, SettingsError> {
        let text = self.text(key);
        text.trim()
            .parse()
            .map_err(|_| self.refuse(key, format!("is {text:?}, expected {expected}")))
    }

    /// Parses a boolean: true, false, 1, 0, yes, no, on, off.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn flag(&self, key: &str) -> Result<bool, SettingsError> {
        let text = self.text(key);
        match text.trim().to_lowercase().as_str() {
            "true" | "t" | "1" | "yes" | "on" => Ok(true),
            "false" | "f" | "0" | "no" | "off" => Ok(false),
            _ => Err(self.refuse(key, format!("is {text:?}, expected true or false"))),
        }
    }

    /// A host:port; `:PORT` is allowed.
    ///
    /// # Errors
    /// When the form is wrong or the port is not a number.
    pub fn address(&self, key: &str) -> Result<String, SettingsError> {
        let text = self.text(key).trim();
        let good = text.rsplit_once(':').is_some_and(|(host, port)| {
            let v6 = host.starts_with('[') && host.ends_with(']');
            port.parse::<u16>().is_ok() && (v6 || !host.contains([':', ' ']))
        });
        if good {
            Ok(text.to_owned())
        } else {
            let problem = format!("is {text:?}, expected host:port, for example 127.0.0.1:9000");
            Err(self.refuse(key, problem))
        }
    }

    /// A host:port, or nothing.
    ///
    /// # Errors
    /// When it is neither.
    pub fn optional_address(&self, key: &str) -> Result<Option<String>, SettingsError> {
        if self.text(key).trim().is_empty() {
            return Ok(None);
        }
        self.address(key).map(Some)
    }

    /// An error about the value of `key`, naming where it was given.
    pub fn refuse(&self, key: &str, problem: impl fmt::Display) -> SettingsError {
        let place = match self.values.get(key).map(|(_, origin)| origin) {
            Some(Origin::Environment(name)) => format!("environment variable {name}"),
            Some(Origin::File(path, line)) => {
                format!("config file {} line {line}: key {key:?}", path.display())
            }
            _ => format!("flag -{key}"),
        };
        SettingsError::Value { place, problem: problem.to_string() }
    }
}

enum Flags {
    Values(BTreeMap<&'static str, String>),
    Print(String),
}

fn parse_flags(
    program: &Program,
    args: impl IntoIterator<Item = String>,
) -> Result<Flags, SettingsError> {
    let mut flags = BTreeMap::new();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let Some(flag) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) else {
            return Err(SettingsError::Argument(arg));
        };
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        match name {
            "h" | "help" => return Ok(Flags::Print(program.usage())),
            "version" | "V" => {
                let version = env!("CARGO_PKG_VERSION");
                return Ok(Flags::Print(format!("{} {version}\n", program.name)));
            }
            _ => {}
        }
        let key = program.find(name).ok_or_else(|| SettingsError::UnknownFlag {
            flag: name.to_owned(),
            nearest: program.nearest(name, false),
        })?;
        let value = match value {
            Some(value) => value,
            None if key.switch => "true".to_owned(),
            None => args.next().ok_or(SettingsError::MissingValue(key.name))?,
        };
        flags.insert(key.name, value);
    }
    Ok(Flags::Values(flags))
}

type FileValues = Vec<(&'static str, (String, Origin))>;

fn read_file(program: &Program, path: &Path, text: &str) -> Result<FileValues, SettingsError> {
    let yaml = |problem: String| SettingsError::Yaml { path: path.to_owned(), problem };
    let mapping = match serde_yaml::from_str(text).map_err(|e| yaml(e.to_string()))? {
        serde_yaml::Value::Null => return Ok(Vec::new()),
        serde_yaml::Value::Mapping(mapping) => mapping,
        _ => return Err(yaml("expected keys with values, one per line".to_owned())),
    };
    let mut values = Vec::new();
    for (name, value) in mapping {
        let name = scalar(&name).ok_or_else(|| yaml("a key is not a word".to_owned()))?;
        let line = line_of(text, &name);
        if program.nested.contains(&name.replace('_', "-").as_str()) {
            continue;
        }
        let key = program.find(&name).ok_or_else(|| SettingsError::UnknownKey {
            path: path.to_owned(),
            line,
            nearest: program.nearest(&name, true),
            key: name.clone(),
        })?;
        if key.name == "config" {
            return Err(yaml(format!("line {line}: a file cannot name another config file")));
        }
        let value = match &value {
            serde_yaml::Value::Sequence(items) => {
                items.iter().map(scalar).collect::<Option<Vec<_>>>().map(|v| v.join(","))
            }
            value => scalar(value),
        };
        let value = value.ok_or_else(|| {
            yaml(format!("line {line}: key {name:?} is not a text, number, true or false"))
        })?;
        values.push((key.name, (value, Origin::File(path.to_owned(), line))));
    }
    Ok(values)
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

#[cfg(test)]
mod tests {
    use super::*;

    const PROGRAM: Program = Program {
        name: "pilot-test",
        about: "Tests.",
        env_prefix: "PILOT_TEST_",
        keys: &[
            Key::value("addr", "127.0.0.1:1", "where"),
            Key::value("register-rate", "10", "how many"),
            Key::switch("tls", "on"),
        ],
        nested: &["plugin-dirs"],
    };

    fn load(args: &[&str], env: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        let env = |n: &str| env.iter().find(|(k, _)| *k == n).map(|(_, v)| (*v).to_owned());
        match Settings::load(&PROGRAM, args.iter().map(|a| (*a).to_owned()), env)? {
            Invocation::Run(settings) => Ok(settings),
            Invocation::Print(text) => panic!("{text}"),
        }
    }

    fn file(text: &str) -> (tempfile::TempDir, String) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.yaml");
        std::fs::write(&path, text).unwrap();
        (dir, path.to_str().unwrap().to_owned())
    }

    #[test]
    fn flag_beats_environment_beats_file() {
        let (_dir, path) = file("addr: 1.1.1.1:1\nregister_rate: 3\ntls: yes\n");
        let s = load(&["-config", &path], &[]).unwrap();
        assert_eq!(
            (s.text("addr"), s.parse::<u32>("register-rate", "").unwrap()),
            ("1.1.1.1:1", 3)
        );
        assert!(s.flag("tls").unwrap());
        let env = [("PILOT_TEST_ADDR", "2.2.2.2:2"), ("PILOT_TEST_CONFIG", path.as_str())];
        let s = load(&[], &env).unwrap();
        assert_eq!((s.text("addr"), s.text("register-rate")), ("2.2.2.2:2", "3"));
        let s = load(&["--addr=3.3.3.3:3", "-tls=false"], &env).unwrap();
        assert_eq!(s.address("addr").unwrap(), "3.3.3.3:3");
        assert!(!s.flag("tls").unwrap());
        assert!(load(&["-tls"], &[]).unwrap().flag("tls").unwrap());
    }

    #[test]
    fn refusals_name_the_place() {
        let refused = |args: &[&str]| load(args, &[]).unwrap_err().to_string();
        assert!(refused(&["-adr", "x"]).contains("did you mean addr?"));
        assert!(refused(&["addr"]).contains("unexpected argument"));
        assert!(refused(&["-addr"]).contains("needs a value"));
        assert!(refused(&["-config", "/nonexistent/c.yaml"]).contains("/nonexistent/c.yaml"));
        let (_dir, path) = file("addr: 1.1.1.1:1\n\nregster-rate: 3\n");
        let text = refused(&["-config", &path]);
        assert!(text.contains("line 3") && text.contains("did you mean register-rate?"), "{text}");
        let (_dir, path) = file("{\"addr\": \"1.1.1.1:1\",\n \"tls\": \"maybe\"}");
        let text = load(&["-config", &path], &[]).unwrap().flag("tls").unwrap_err().to_string();
        assert!(text.contains("line 2") && text.contains("\"tls\""), "{text}");
        let (_dir, path) = file("addr: 1.1.1.1:1\nplugin-dir: [x]\n");
        let text = refused(&["-config", &path]);
        assert!(text.contains("line 2") && text.contains("did you mean plugin-dirs?"), "{text}");
        assert!(refused(&["-plugin-dirs", "x"]).contains("unknown flag"));
        let (_dir, path) = file("addr: [a: b]\n");
        assert!(refused(&["-config", &path]).contains("line 1"));
        let (_dir, path) = file("addr: \"unclosed\n");
        assert!(refused(&["-config", &path]).contains("line"));
        let s = load(&["-register-rate", "many"], &[]).unwrap();
        let text = s.parse::<u32>("register-rate", "a number").unwrap_err().to_string();
        assert_eq!(text, "flag -register-rate is \"many\", expected a number");
        for bad in ["9000", "a b:1", "::1:5", "x:99999"] {
            let s = load(&["-addr", bad], &[]).unwrap();
            assert!(s.address("addr").is_err(), "{bad}");
        }
    }

    #[test]
    fn nested_keys_are_left_to_others() {
        let text = "plugin_dirs:\n  - {a: [1, 2]}\naddr: 1.1.1.1:1\n";
        let (_dir, path) = file(text);
        let s = load(&["-config", &path], &[]).unwrap();
        assert_eq!((s.text("addr"), s.text("plugin-dirs")), ("1.1.1.1:1", ""));
        assert_eq!(s.file(), Some((Path::new(&path), text)));
        assert_eq!(load(&[], &[]).unwrap().file(), None);
    }

    #[test]
    fn help_lists_every_key() {
        let args = ["--help".to_owned()];
        let Ok(Invocation::Print(text)) = Settings::load(&PROGRAM, args, |_| None) else {
            panic!()
        };
        for key in PROGRAM.all() {
            assert!(text.contains(key.name), "{}", key.name);
        }
    }
}
