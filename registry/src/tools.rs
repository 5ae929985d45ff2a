//! Sub-commands of the `pilot-registry` program: what is done with a state file
//! while nobody, or somebody else, serves it.
//!
//! A first argument without a dash selects one, an entry of [`TOOLS`]; without
//! one the program serves.

pub mod audit;
mod backup;
mod check;
mod export;
mod import;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use pilot_beacon::settings::{Invocation, Key, Program, Settings};

use crate::state::Table;
use crate::store::{RestoreError, Summary};

/// One sub-command.
#[derive(Clone, Copy, Debug)]
pub struct Tool {
    /// Its word.
    pub name: &'static str,
    /// One sentence.
    pub about: &'static str,
    /// Does it with the arguments after the word.
    pub run: fn(Vec<String>) -> ExitCode,
}

/// All there are.
pub const TOOLS: &[Tool] = &[check::TOOL, backup::TOOL, export::TOOL, import::TOOL, AUDIT];

const AUDIT: Tool = Tool {
    name: "audit",
    about: "Verifies or exports the audit log, lists its heads and its key.",
    run: |args| audit::run(args),
};

const ENVIRONMENT: &str = "PILOT_REGISTRY_";
const STORE: Key = Key::value("store", "", "state file");

/// Does what the arguments (without the program's name) say, if they begin with
/// a word. Errors are one line on standard error, and a status that is not 0.
pub fn run_if_asked(args: &[String]) -> Option<ExitCode> {
    let (name, rest) = args.split_first().filter(|(name, _)| !name.starts_with('-'))?;
    if name == "help" {
        return Some(finish(name, Ok(overview())));
    }
    let Some(tool) = TOOLS.iter().find(|tool| tool.name == name) else {
        let names: Vec<_> = TOOLS.iter().map(|tool| tool.name).collect();
        let unknown = anyhow::anyhow!(
            "there is no such sub-command; there are {}; without one the registry is started",
            names.join(", ")
        );
        return Some(finish(name, Err(unknown)));
    };
    Some((tool.run)(rest.to_vec()))
}

/// Runs one whose arguments are the flags of `program`; prints what it returns.
fn with_flags(
    program: &Program,
    args: Vec<String>,
    run: impl FnOnce(&Settings) -> anyhow::Result<String>,
) -> ExitCode {
    let env = |name: &str| std::env::var_os(name).map(|v| v.to_string_lossy().into_owned());
    let done = match Settings::load(program, args, env) {
        Ok(Invocation::Run(settings)) => run(&settings),
        Ok(Invocation::Print(text)) => Ok(text),
        Err(e) => Err(e.into()),
    };
    finish(program.name, done)
}

fn finish(name: &str, done: anyhow::Result<String>) -> ExitCode {
    let printed = done.and_then(|text| Ok(std::io::stdout().write_all(text.as_bytes())?));
    match printed {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("pilot-registry {name}: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// One line for each sub-command.
pub fn overview() -> String {
    let mut text =
        "Sub-commands (each with -help); without one the registry is started:\n".to_owned();
    for tool in TOOLS {
        text += &format!("  {:<14} {}\n", tool.name, tool.about);
    }
    text
}

/// A file that has to be named.
fn path(settings: &Settings, key: &str) -> anyhow::Result<PathBuf> {
    match settings.text(key) {
        "" => anyhow::bail!("-{key} FILE is missing; see -help"),
        text => Ok(PathBuf::from(text)),
    }
}

/// An error that names the file.
fn naming(path: &Path, e: RestoreError) -> anyhow::Error {
    match e {
        RestoreError::Store(e) => e.into(),
        other => anyhow::Error::new(other).context(format!(
            "state file {}: not a sound registry state; restore a backup",
            path.display()
        )),
    }
}

/// What a file holds, in one line.
fn describe(summary: &Summary) -> String {
    let rows = summary.rows.iter().filter(|(table, _)| *table != Table::Meta);
    let rows: Vec<_> = rows
        .filter(|(_, rows)| *rows > 0)
        .map(|(table, rows)| format!("{} {rows}", format!("{table:?}").to_lowercase()))
        .collect();
    let rows = if rows.is_empty() { "no rows".to_owned() } else { rows.join(", ") };
    format!(
        "checkpoint of {} commands ({rows}), {} commands after it",
        summary.checkpoint, summary.commands
    )
}
