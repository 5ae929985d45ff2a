//! Looks at everything in a state file.

use pilot_beacon::settings::{Program, Settings};

use super::{ENVIRONMENT, STORE, Tool, describe, naming, path, with_flags};
use crate::store::{Reader, StoreError};

const PROGRAM: Program = Program {
    name: "check",
    about: "Checks a state file: structure, check sums, cross-references. Changes nothing.",
    env_prefix: ENVIRONMENT,
    keys: &[STORE],
    nested: &[],
};

pub(super) const TOOL: Tool =
    Tool { name: PROGRAM.name, about: PROGRAM.about, run: |args| with_flags(&PROGRAM, args, run) };

fn run(settings: &Settings) -> anyhow::Result<String> {
    let file = path(settings, "store")?;
    let reader = Reader::exclusive(&file).map_err(|e| match e {
        StoreError::InUse(_) => anyhow::anyhow!(
            "state file {}: in use by a registry; make a backup of it (pilot-registry backup) \
             and check that, or stop the registry first",
            file.display()
        ),
        other => other.into(),
    })?;
    reader.structure()?;
    let (state, summary) = reader.state().map_err(|e| naming(&file, e))?;
    Ok(format!(
        "{}: sound\n{}\n{} nodes registered, {} keys, {} trust pairs, {} networks\n",
        file.display(),
        describe(&summary),
        state.len(),
        state.keys(),
        state.trust_pairs(),
        state.networks().count(),
    ))
}
