//! The table that a script returns: what it is, and its functions.

use mlua::{Function, Lua, Table, Value};
use pilot_plugin::{Manifest, Rule, Service, Sink};

use super::Source;
use super::error::ScriptError;
use super::value::to_json;

/// What a script may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Service,
    Rule,
    Sink,
}

/// What a script declares of itself.
#[derive(Clone, Debug)]
pub(super) struct Declaration {
    pub(super) kind: Kind,
    pub(super) manifest: Manifest,
}

/// Its functions.
#[derive(Clone, Debug, Default)]
pub(super) struct Functions {
    pub(super) serve: Option<Function>,
    pub(super) datagram: Option<Function>,
    pub(super) validate: Option<Function>,
    pub(super) deliver: Option<Function>,
}

/// Keys for every kind.
const COMMON: &[&str] = &["kind", "name", "version", "description", "needs", "config_schema"];
/// Most ports of a service.
const MAX_PORTS: usize = 64;

impl Kind {
    /// Keys beside the common ones.
    const fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Service => &["port", "ports", "datagrams", "serve", "datagram"],
            Self::Rule => &["validate"],
            Self::Sink => &["deliver", "max_batch"],
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Rule => "rule",
            Self::Sink => "sink",
        }
    }
}

/// Reads what a script returned.
pub(super) fn read(
    lua: &Lua,
    returned: &Value,
    source: &Source,
) -> Result<(Declaration, Functions), ScriptError> {
    let Value::Table(table) = returned else {
        return Err(ScriptError::declaration(
            &source.name,
            format_args!(
                "it returns {}; a script ends with `return {{ kind = \"service\", ... }}`",
                match returned {
                    Value::Nil => "nothing".to_owned(),
                    other => format!("a {}", other.type_name()),
                }
            ),
        ));
    };
    Reader { lua, table, source }.read()
}

struct Reader<'a> {
    lua: &'a Lua,
    table: &'a Table,
    source: &'a Source,
}

impl Reader<'_> {
    fn read(&self) -> Result<(Declaration, Functions), ScriptError> {
        let kind = self.kind()?;
        self.refuse_unknown(kind)?;
        let name = self.name()?;
        let mut manifest = Manifest::new(&name, &self.text("version")?.unwrap_or("0".into()));
        manifest.description = self.text("description")?.unwrap_or_default();
        manifest.needs = self.needs()?;
        manifest.config_schema = self.schema()?;
        let mut functions = Functions::default();
        match kind {
            Kind::Service => {
                functions.serve = self.function("serve")?;
                functions.datagram = self.function("datagram")?;
                if functions.serve.is_none() && functions.datagram.is_none() {
                    return Err(self.wrong(
                        "kind",
                        "a service needs `serve = function(stream, peer) ... end`, or `datagram`",
                    ));
                }
                let datagrams = self.flag("datagrams")?.unwrap_or(functions.datagram.is_some());
                if datagrams && functions.datagram.is_none() {
                    return Err(self.wrong(
                        "datagrams",
                        "`datagrams = true` needs `datagram = function(data, peer, port) ... end`",
                    ));
                }
                let ports = self.ports()?;
                manifest.services.push(Service { name, ports, datagrams });
            }
            Kind::Rule => {
                functions.validate = Some(self.needed("validate", kind, "request")?);
                manifest.rules.push(Rule { name });
            }
            Kind::Sink => {
                functions.deliver = Some(self.needed("deliver", kind, "events")?);
                let max_batch = self.number("max_batch", 1, 100_000)?.unwrap_or(0);
                manifest.sinks.push(Sink { name, max_batch });
            }
        }
        Ok((Declaration { kind, manifest }, functions))
    }

    fn kind(&self) -> Result<Kind, ScriptError> {
        let Some(text) = self.text("kind")? else {
            return Err(ScriptError::declaration(
                &self.source.name,
                "the table it returns has no `kind`: \"service\", \"rule\" or \"sink\"",
            ));
        };
        [Kind::Service, Kind::Rule, Kind::Sink]
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| {
                let known = ["service", "rule", "sink"];
                let hint = match nearest(&text, known.into_iter()) {
                    Some(near) => format!("; did you mean {near:?}?"),
                    None => ": it is \"service\", \"rule\" or \"sink\"".to_owned(),
                };
                self.wrong("kind", &format!("there is no kind {text:?}{hint}"))
            })
    }

    fn refuse_unknown(&self, kind: Kind) -> Result<(), ScriptError> {
        let known = || COMMON.iter().chain(kind.keys()).copied();
        for pair in self.table.pairs::<Value, Value>() {
            let Ok((key, _)) = pair else { continue };
            let Value::String(key) = key else {
                return Err(ScriptError::declaration(
                    &self.source.name,
                    format_args!(
                        "the table it returns has a {} as key; keys are names",
                        key.type_name()
                    ),
                ));
            };
            let key = key.to_string_lossy();
            if known().any(|k| k == key) {
                continue;
            }
            let hint = match nearest(&key, known()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => {
                    format!("a {} has: {}", kind.name(), known().collect::<Vec<_>>().join(", "))
                }
            };
            return Err(self.wrong(&key, &format!("unknown key `{key}`; {hint}")));
        }
        Ok(())
    }

    /// The declared name, else the file's, as a manifest has it.
    fn name(&self) -> Result<String, ScriptError> {
        let fits = |name: &str| {
            (1..=64).contains(&name.len())
                && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        if let Some(name) = self.text("name")? {
            return if fits(&name) {
                Ok(name)
            } else {
                Err(self.wrong(
                    "name",
                    &format!("{name:?} is no name: 1 to 64 lower-case letters, digits and hyphens"),
                ))
            };
        }
        let stem = self.source.name.rsplit_once('.').map_or(&*self.source.name, |(stem, _)| stem);
        let name = stem.to_ascii_lowercase().replace(['_', ' ', '.'], "-");
        if fits(&name) {
            return Ok(name);
        }
        Err(ScriptError::declaration(
            &self.source.name,
            "its file name makes no name (lower-case letters, digits and hyphens); \
             add `name = \"...\"`",
        ))
    }

    fn ports(&self) -> Result<Vec<u16>, ScriptError> {
        let one = self.number("port", 0, 65_535)?;
        let Some(list) = self.get("ports") else {
            // Bounded above.
            return Ok(one.map(|port| port as u16).into_iter().collect());
        };
        if one.is_some() {
            return Err(self.wrong("ports", "either `port` or `ports`, not both"));
        }
        let wrong =
            || self.wrong("ports", "`ports` is a list of numbers from 0 to 65535: `{ 80, 8080 }`");
        let Value::Table(list) = list else { return Err(wrong()) };
        let ports: Vec<u16> =
            list.sequence_values::<u16>().collect::<mlua::Result<_>>().map_err(|_| wrong())?;
        if ports.is_empty()
            || ports.len() > MAX_PORTS
            || ports.len() != list.pairs::<Value, Value>().count()
        {
            return Err(wrong());
        }
        Ok(ports)
    }

    fn needs(&self) -> Result<Vec<String>, ScriptError> {
        let wrong = || {
            self.wrong("needs", "`needs` is a list of texts: `{ \"dial\", \"http:example.com\" }`")
        };
        match self.get("needs") {
            None => Ok(Vec::new()),
            Some(Value::Table(list)) => {
                let needs: Vec<Value> =
                    list.sequence_values().collect::<mlua::Result<_>>().map_err(|_| wrong())?;
                needs
                    .into_iter()
                    .map(|need| match need {
                        Value::String(text) => Ok(text.to_string_lossy()),
                        _ => Err(wrong()),
                    })
                    .collect()
            }
            Some(_) => Err(wrong()),
        }
    }

    fn schema(&self) -> Result<Option<serde_json::Value>, ScriptError> {
        let Some(value) = self.get("config_schema") else { return Ok(None) };
        if !value.is_table() {
            return Err(self.wrong("config_schema", "`config_schema` is a table: JSON Schema"));
        }
        let wrong =
            |reason: String| self.wrong("config_schema", &format!("`config_schema`: {reason}"));
        let schema = to_json(self.lua, &value)
            .map_err(|e| wrong(super::error::caught(&e, &self.source.name)))?;
        jsonschema::validator_for(&schema).map_err(|e| wrong(format!("no JSON Schema: {e}")))?;
        Ok(Some(schema))
    }

    fn needed(&self, key: &str, kind: Kind, argument: &str) -> Result<Function, ScriptError> {
        self.function(key)?.ok_or_else(|| {
            let kind = kind.name();
            self.wrong("kind", &format!("a {kind} needs `{key} = function({argument}) ... end`"))
        })
    }

    fn function(&self, key: &str) -> Result<Option<Function>, ScriptError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Function(function)) => Ok(Some(function)),
            Some(other) => {
                let kind = other.type_name();
                Err(self.wrong(key, &format!("`{key}` is a function, here it is a {kind}")))
            }
        }
    }

    fn text(&self, key: &str) -> Result<Option<String>, ScriptError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.to_string_lossy())),
            Some(other) => {
                let kind = other.type_name();
                Err(self.wrong(key, &format!("`{key}` is a text, here it is a {kind}")))
            }
        }
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, ScriptError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Boolean(flag)) => Ok(Some(flag)),
            Some(_) => Err(self.wrong(key, &format!("`{key}` is true or false"))),
        }
    }

    fn number(&self, key: &str, least: usize, most: usize) -> Result<Option<usize>, ScriptError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Integer(n))
                if usize::try_from(n).is_ok_and(|n| (least..=most).contains(&n)) =>
            {
                Ok(usize::try_from(n).ok())
            }
            Some(_) => Err(self.wrong(key, &format!("`{key}` is a number from {least} to {most}"))),
        }
    }

    fn get(&self, key: &str) -> Option<Value> {
        self.table.raw_get::<Value>(key).ok().filter(|value| !value.is_nil())
    }

    fn wrong(&self, key: &str, reason: &str) -> ScriptError {
        ScriptError::declaration(&self.source.place_of(key), reason)
    }
}

/// The known word that a mistyped one most likely means: at most two edits
/// away, or one for short words.
fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let limit = if word.chars().count() <= 3 { 1 } else { 2 };
    known.map(|k| (distance(word, k), k)).filter(|(d, _)| *d <= limit).min().map(|(_, k)| k)
}

/// Insertions, deletions, replacements and swaps of neighbours.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}
