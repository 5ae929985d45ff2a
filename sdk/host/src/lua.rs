//! Scripts: a Lua file that is one service, one join rule or one event sink.
//!
//! A script runs in virtual machines (Luau) that have no way out but the
//! functions of [`api`], a limit of memory, and a limit of processor time that
//! the script cannot swallow. Each machine lives on a thread of its own; what
//! waits there (a read, a request, a pause) lets other streams go on.
//!
//! `docs/LUA.md` is the author's side of this.

mod answer;
mod api;
mod declaration;
mod error;
mod gauge;
mod guard;
mod instance;
mod link;
mod live;
mod value;
mod vm;
mod worker;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use pilot_plugin::Manifest;
use serde_json::Value as Json;

use crate::instance::{Backend, Context, Instance, Limits, StartError};
use declaration::Declaration;
use error::ScriptError;
use gauge::Gauge;
use instance::ScriptInstance;
use live::Live;
use vm::Vm;

/// Longest script.
const MAX_SOURCE: usize = 4 << 20;
/// Stack of a thread that runs scripts: the machine may nest 200 calls from C.
const STACK: usize = 8 << 20;

/// Processor time for evaluating a script to learn what it declares.
const PROBE: Duration = Duration::from_secs(2);

/// Why a file is no script that can run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LuaError {
    /// It cannot be read.
    #[error("{}: cannot be read: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// It is not Lua source text.
    #[error("{name}: {reason}")]
    NotSource {
        /// The file's name.
        name: String,
        /// What it is instead.
        reason: String,
    },
    /// It does not compile, or fails while it is loaded.
    #[error("{message}{}{traceback}", if traceback.is_empty() { "" } else { "\n" })]
    Failed {
        /// File, line and what is wrong.
        message: String,
        /// Where it was, outermost last; may be empty.
        traceback: String,
    },
    /// The table it returns does not say what is needed.
    #[error("{place}: {reason}")]
    Declaration {
        /// File, and line where it is known.
        place: String,
        /// What is wrong and what would be right.
        reason: String,
    },
}

/// Opens the script in `path`: evaluates it once, in a machine that is thrown
/// away, to learn what it declares. Blocks for as long as that takes.
///
/// # Errors
/// When it cannot be read, is no Lua source, fails, or declares what cannot be.
pub fn open_lua(path: &Path) -> Result<Arc<dyn Backend>, LuaError> {
    let read = |e: std::io::Error| LuaError::Read { path: path.into(), reason: e.to_string() };
    let name = path
        .file_name()
        .map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned());
    let mut source = Vec::new();
    let file = fs::File::open(path).map_err(read)?;
    file.take(MAX_SOURCE as u64 + 1).read_to_end(&mut source).map_err(read)?;
    open_lua_source(&name, &source)
}

/// Opens a script that is at hand as text. `name` is the name of its file, for
/// messages and for the name it has unless it says otherwise.
///
/// # Errors
/// As [`open_lua`].
pub fn open_lua_source(name: &str, source: &[u8]) -> Result<Arc<dyn Backend>, LuaError> {
    let not_source = |reason: String| LuaError::NotSource { name: name.to_owned(), reason };
    if source.len() > MAX_SOURCE {
        return Err(not_source(format!("longer than {MAX_SOURCE} bytes")));
    }
    // Compiled chunks begin with a version, which is a control character.
    if source.first().is_some_and(|b| *b < b' ' && !b.is_ascii_whitespace()) {
        return Err(not_source(
            "this is compiled bytecode or another binary file; scripts are Lua source text".into(),
        ));
    }
    if std::str::from_utf8(source).is_err() {
        return Err(not_source("this is not UTF-8 text; scripts are Lua source text".into()));
    }
    let script = Arc::new(Source { name: name.to_owned(), text: source.to_vec() });
    let limits = Limits { start: PROBE, ..Limits::default() };
    let probe = Arc::clone(&script);
    // On a thread of its own, for the stack: the caller's may be small.
    let probed = thread::Builder::new()
        .name("lua-probe".into())
        .stack_size(STACK)
        .spawn(move || {
            let live = Live::probe(probe, &limits);
            Vm::load(&live, Arc::new(Gauge::default()), &Json::Object(serde_json::Map::new()))
                .map(|(_, declaration)| declaration)
        })
        .map_err(|e| not_source(format!("no thread to evaluate it: {e}")))?
        .join();
    match probed {
        Ok(Ok(declaration)) => Ok(Arc::new(Script { source: script, declaration })),
        Ok(Err(error)) => Err(error.into_lua_error(name)),
        Err(_) => Err(not_source("evaluating it broke the interpreter".into())),
    }
}

/// The text of a script.
#[derive(Debug)]
pub(crate) struct Source {
    /// File name, as in messages.
    pub(crate) name: String,
    pub(crate) text: Vec<u8>,
}

impl Source {
    /// The line on which `key` is given a value, as far as text tells.
    fn line_of(&self, key: &str) -> Option<usize> {
        let text = std::str::from_utf8(&self.text).ok()?;
        text.lines().position(|line| {
            line.match_indices(key).any(|(at, _)| {
                let before = line[..at].chars().next_back();
                let after = line[at + key.len()..].trim_start();
                before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != '.')
                    && after.starts_with('=')
                    && !after.starts_with("==")
            })
        })
    }

    /// File and line of `key`, for messages.
    fn place_of(&self, key: &str) -> String {
        match self.line_of(key) {
            Some(line) => format!("{}:{}", self.name, line + 1),
            None => self.name.clone(),
        }
    }
}

struct Script {
    source: Arc<Source>,
    declaration: Declaration,
}

impl Backend for Script {
    fn manifest(&self) -> &Manifest {
        &self.declaration.manifest
    }

    fn start(&self, config: &Json, context: Context) -> Result<Arc<dyn Instance>, StartError> {
        let live = Arc::new(Live::new(Arc::clone(&self.source), context));
        ScriptInstance::start(&live, self.declaration.kind, config)
            .map(|instance| Arc::new(instance) as Arc<dyn Instance>)
    }
}

impl From<ScriptError> for StartError {
    fn from(error: ScriptError) -> Self {
        Self::Refused(error.to_string())
    }
}
