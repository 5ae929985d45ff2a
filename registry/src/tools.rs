//! Sub-commands of the `pilot-registry` program: what is done with a state file
//! while nobody, or somebody else, serves it.
//!
//! A first argument without a dash selects one; without any the program serves.
//! Each is one entry of [`TOOLS`], of one word or more.

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
    /// Its words, with one blank between, and its flags.
    pub program: Program,
    /// Does it; returns the lines to print.
    pub run: fn(&Settings) -> anyhow::Result<String>,
}

/// All there are.
pub const TOOLS: &[Tool] = &[check::TOOL, backup::TOOL, export::TOOL, import::TOOL];

const ENVIRONMENT: &str = "PILOT_REGISTRY_";
const STORE: Key = Key::value("store", "", "state file");

/// Does what the arguments (without the program's name) say, if they begin with
/// a word. Errors are one line on standard error, and a status that is not 0.
pub fn run_if_asked(args: impl IntoIterator<Item = String>) -> Option<ExitCode> {
    let args: Vec<_> = args.into_iter().collect();
    let words = args.iter().take_while(|arg| !arg.starts_with('-')).count();
    if words == 0 {
        return None;
    }
    let name = args[..words].join(" ");
    let env = |name: &str| std::env::var_os(name).map(|v| v.to_string_lossy().into_owned());
    let rest = args[words..].to_vec();
    Some(match invoke(&name, rest, env) {
        Ok(text) => match std::io::stdout().write_all(text.as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Err(e) => {
            eprintln!("pilot-registry {name}: {e:#}");
            ExitCode::FAILURE
        }
    })
}

fn invoke(
    name: &str,
    args: Vec<String>,
    env: impl Fn(&str) -> Option<String>,
) -> anyhow::Result<String> {
    if name == "help" {
        return Ok(overview());
    }
    let Some(tool) = TOOLS.iter().find(|tool| tool.program.name == name) else {
        let names: Vec<_> = TOOLS.iter().map(|tool| tool.program.name).collect();
        anyhow::bail!(
            "there is no such sub-command; there are {}; without one the registry is started",
            names.join(", ")
        );
    };
    match Settings::load(&tool.program, args, env)? {
        Invocation::Run(settings) => (tool.run)(&settings),
        Invocation::Print(text) => Ok(text),
    }
}

/// One line for each sub-command.
pub fn overview() -> String {
    let mut text =
        "Sub-commands (each with -help); without one the registry is started:\n".to_owned();
    for tool in TOOLS {
        text += &format!("  {:<14} {}\n", tool.program.name, tool.program.about);
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
