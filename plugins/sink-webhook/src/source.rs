//! Values that may be secret: where they come from, and how they are kept out
//! of what a person sees.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use pilot_plugin::JsonSchema;
use pilot_plugin::serde::Deserialize;

/// A file with a secret is not longer than this, in bytes.
const MAX_FILE: u64 = 64 * 1024;

/// Shorter values are not looked for in texts: they would be found by chance.
const MIN_REDACTED: usize = 4;

/// A text, or where it is found. Files and variables are read when the sink
/// starts, on each reload, and again after a POST that found no connection or
/// whose credentials were refused.
#[derive(Clone, Deserialize, JsonSchema)]
#[serde(crate = "pilot_plugin::serde")]
#[schemars(crate = "pilot_plugin::schemars")]
#[serde(untagged)]
pub(crate) enum Source {
    /// The value itself.
    Text(String),
    /// In a file.
    File(FromFile),
    /// In a variable of the environment.
    Env(FromEnv),
}

/// The content of a file, without the end of its last line.
#[derive(Clone, Deserialize, JsonSchema)]
#[serde(crate = "pilot_plugin::serde")]
#[schemars(crate = "pilot_plugin::schemars")]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct FromFile {
    /// Path of the file.
    pub(crate) from_file: PathBuf,
}

/// The value of a variable.
#[derive(Clone, Deserialize, JsonSchema)]
#[serde(crate = "pilot_plugin::serde")]
#[schemars(crate = "pilot_plugin::schemars")]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct FromEnv {
    /// Name of the variable.
    pub(crate) from_env: String,
}

/// Looks up a variable of the environment.
pub(crate) type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Source {
    /// The value.
    ///
    /// # Errors
    /// When the file cannot be read, the variable is not set, or either is
    /// empty; the text names `key`, and never the value.
    pub(crate) fn read(&self, key: &str, environment: Environment<'_>) -> Result<String, String> {
        let (text, place) = match self {
            Self::Text(text) => return Ok(text.clone()),
            Self::File(FromFile { from_file }) => {
                let place = from_file.display().to_string();
                let mut text = String::new();
                let read = File::open(from_file)
                    .and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text));
                read.map_err(|why| format!("`{key}`: cannot read {place}: {why}"))?;
                if text.len() as u64 > MAX_FILE {
                    return Err(format!("`{key}`: {place} has more than {MAX_FILE} bytes"));
                }
                (text, place)
            }
            Self::Env(FromEnv { from_env }) => {
                let text = environment(from_env).ok_or_else(|| {
                    format!("`{key}`: the environment variable {from_env} is not set")
                })?;
                (text, format!("the environment variable {from_env}"))
            }
        };
        let text = text.trim_end_matches(['\r', '\n']);
        if text.is_empty() {
            return Err(format!("`{key}`: {place} is empty"));
        }
        Ok(text.to_owned())
    }

    /// Whether the value is kept apart from the configuration.
    pub(crate) fn is_apart(&self) -> bool {
        !matches!(self, Self::Text(_))
    }
}

/// Takes secrets out of texts for a person: a receiver may well answer with
/// what it was sent.
#[derive(Default)]
pub(crate) struct Redactor {
    secrets: Vec<String>,
}

impl Redactor {
    pub(crate) fn add(&mut self, secret: &str) {
        if secret.len() >= MIN_REDACTED {
            self.secrets.push(secret.to_owned());
            // The longest first, should one be part of another.
            self.secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        }
    }

    pub(crate) fn clean(&self, text: &str) -> String {
        self.secrets.iter().fold(text.to_owned(), |text, secret| text.replace(secret, "***"))
    }
}
