//! Makes a state file of a published JSON file.

use std::path::Path;

use anyhow::Context as _;
use pilot_beacon::settings::{Key, Program, Settings};

use super::{ENVIRONMENT, Tool, naming, path, with_flags};
use crate::connection::unix_now;
use crate::published::{self, Reading};
use crate::state::{Command, Imported, Op, State};
use crate::store::{self, CommandLog as _, SqliteLog, StoreError};

const PROGRAM: Program = Program {
    name: "import",
    about: "Makes a new state file of the published registry's JSON file.",
    env_prefix: ENVIRONMENT,
    keys: &[
        Key::value("store", "", "state file to make; there must be none"),
        Key::value("from", "", "JSON file of the published registry"),
    ],
    nested: &[],
};

pub(super) const TOOL: Tool =
    Tool { name: PROGRAM.name, about: PROGRAM.about, run: |args| with_flags(&PROGRAM, args, run) };

/// Records in an import up to which it stands in the log as one command, from
/// which the audit log makes its record; a larger one is written as rows alone.
const MAX_LOGGED: usize = 250_000;

fn run(settings: &Settings) -> anyhow::Result<String> {
    let (from, to) = (path(settings, "from")?, path(settings, "store")?);
    if to.symlink_metadata().is_ok() {
        anyhow::bail!("-store {}: there is such a file; an import makes a new one", to.display());
    }
    let text = std::fs::read(&from)
        .with_context(|| format!("-from {}: cannot be read", from.display()))?;
    let Reading { imported, absent, notes } =
        published::read(&text).with_context(|| format!("-from {}", from.display()))?;
    drop(text);
    let records = imported.nodes.len() + imported.keys.len() + imported.trust.len();
    // Tried on nothing first: what is refused leaves no file.
    let at = unix_now();
    let command = Command::own(at, Op::Import(Box::new(imported)));
    let mut state = State::default();
    state.track_dirty(true);
    state.apply(&command).map_err(|e| anyhow::anyhow!("-from {}: {e}", from.display()))?;
    make(&to, &command, records > MAX_LOGGED).map_err(|e| naming(&to, e))?;
    let mut out = format!(
        "{}: {} nodes registered, {} keys, {} trust pairs\n",
        to.display(),
        state.len(),
        state.keys(),
        state.trust_pairs()
    );
    if !absent.is_empty() {
        out += &format!(
            "{} nodes without a usable real_addr keep number and key, and are not registered now\n",
            absent.len()
        );
    }
    for note in notes {
        out += &format!("left out: {note}\n");
    }
    Ok(out)
}

/// Makes the file beside its place and puts it there when it is whole: half a
/// file would be taken for a whole one.
fn make(to: &Path, command: &Command, as_rows: bool) -> Result<(), store::RestoreError> {
    let part = store::beside(&store::resolve(to)?, &format!(".{}.part", std::process::id()));
    if part.symlink_metadata().is_ok() {
        let there = "there is such a file, of a process that is gone; remove it";
        return Err(StoreError::Unwritable { path: part, source: there.into() }.into());
    }
    let made = write(&part, command, as_rows).and_then(|()| Ok(store::install(&part, to)?));
    // Another name of the file that is made, or of no use to anybody. Of the
    // file itself nothing is removed, nor its lock: it may be another's.
    for ending in ["", "-wal", "-shm", ".lock", ".new"] {
        let _ = std::fs::remove_file(store::beside(&part, ending));
    }
    made
}

fn write(to: &Path, command: &Command, as_rows: bool) -> Result<(), store::RestoreError> {
    let mut log = SqliteLog::open(to)?;
    let mut state = store::restore(&mut log, &Default::default())?;
    let command = std::slice::from_ref(command);
    if as_rows {
        let first = Command::own(command[0].at, Op::Import(Box::<Imported>::default()));
        // The rows are what this command made; it is in the log for its number.
        log.append(1, &[first])?;
        let _ = state.apply(&command[0]);
        log.checkpoint(1, &state.take_dirty())?;
    } else {
        log.append(1, command)?;
    }
    Ok(())
}
