//! `context`: everything a program needs to use this one.

use serde_json::{Map, Value, json};

use super::COMMANDS;
use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::help::{self, ENVIRONMENT, ERROR_CODES, GLOBAL_FLAGS};
use crate::output::Answer;
use crate::spec::Spec;

pub(crate) const SPEC: Spec = Spec {
    name: "context",
    usage: "context",
    about: "Describe every command, for programs",
    returns: "version, commands (args, description, returns), error_codes, global_flags, environment, config_file",
    flags: &[],
    positionals: (0, 0),
    run: |cx, args| Box::pin(run(cx, args)),
};

/// Version of this document, as published.
const VERSION: &str = "1.2";

async fn run(cx: &Cx, _args: &Args) -> Result<Answer, Failure> {
    let commands: Map<String, Value> = COMMANDS
        .iter()
        .filter(|s| help::shown(s))
        .map(|spec| {
            let args = spec.usage.strip_prefix(spec.name).unwrap_or(spec.usage).trim();
            let flags: Map<String, Value> =
                spec.flags.iter().map(|f| (format!("--{}", f.name), json!(f.about))).collect();
            let entry = json!({
                "args": args,
                "description": spec.about,
                "returns": spec.returns,
                "flags": flags,
            });
            (spec.name.to_owned(), entry)
        })
        .collect();
    let data = json!({
        "version": VERSION,
        "commands": commands,
        "error_codes": map(ERROR_CODES),
        "global_flags": map(GLOBAL_FLAGS),
        "environment": map(ENVIRONMENT),
        "config_file": cx.home.config_path(),
    });
    Ok(Answer::new(data, help::overview()))
}

fn map(entries: &[(&str, &str)]) -> Map<String, Value> {
    entries.iter().map(|(name, about)| ((*name).to_owned(), json!(about))).collect()
}
