//! Copies a state file that may be in use.

use pilot_beacon::settings::{Key, Program, Settings};

use super::{ENVIRONMENT, STORE, Tool, describe, naming, path, with_flags};
use crate::store::backup;

const PROGRAM: Program = Program {
    name: "backup",
    about: "Copies a state file as it is at one moment, also while a registry runs on it.",
    env_prefix: ENVIRONMENT,
    keys: &[STORE, Key::value("to", "", "new file for the copy, which is checked")],
    nested: &[],
};

pub(super) const TOOL: Tool =
    Tool { name: PROGRAM.name, about: PROGRAM.about, run: |args| with_flags(&PROGRAM, args, run) };

fn run(settings: &Settings) -> anyhow::Result<String> {
    let (from, to) = (path(settings, "store")?, path(settings, "to")?);
    let summary = backup(&from, &to).map_err(|e| naming(&from, e))?;
    Ok(format!("{}: complete and sound\n{}\n", to.display(), describe(&summary)))
}
