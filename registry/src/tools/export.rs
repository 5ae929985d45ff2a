//! Writes the published JSON of a state file.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use pilot_beacon::settings::{Key, Program, Settings};

use super::{ENVIRONMENT, STORE, Tool, naming, path, with_flags};
use crate::connection::unix_now;
use crate::published;
use crate::state::State;
use crate::store::Reader;

const PROGRAM: Program = Program {
    name: "export",
    about: "Writes a state file as published JSON, also while a registry runs on it.",
    env_prefix: ENVIRONMENT,
    keys: &[STORE, Key::value("to", "", "JSON file to write; replaced as a whole")],
    nested: &[],
};

pub(super) const TOOL: Tool =
    Tool { name: PROGRAM.name, about: PROGRAM.about, run: |args| with_flags(&PROGRAM, args, run) };

fn run(settings: &Settings) -> anyhow::Result<String> {
    let (from, to) = (path(settings, "store")?, path(settings, "to")?);
    let (state, _) = Reader::open(&from)?.state().map_err(|e| naming(&from, e))?;
    if let (Ok(a), Ok(b)) = (from.canonicalize(), to.canonicalize())
        && a == b
    {
        anyhow::bail!("-to {}: it is the state file; choose another", to.display());
    }
    write(&state, &to).with_context(|| format!("-to {}: cannot be written", to.display()))?;
    Ok(format!("{}: {} nodes, {} keys\n", to.display(), state.len(), state.keys()))
}

/// All or nothing, readable by its owner alone.
fn write(state: &State, to: &Path) -> anyhow::Result<()> {
    let mut part = to.as_os_str().to_owned();
    part.push(format!(".{}.part", std::process::id()));
    let written = (|| {
        let file = File::options().write(true).create_new(true).mode(0o600).open(&part)?;
        let mut out = BufWriter::new(file);
        published::write(state, unix_now(), &mut out)?;
        out.write_all(b"\n")?;
        out.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
        std::fs::rename(&part, to)?;
        let folder = to.parent().filter(|p| !p.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
        Ok(())
    })();
    if written.is_err() {
        // What is left of it is of no use to anybody; it may not be there.
        let _ = std::fs::remove_file(&part);
    }
    written
}
