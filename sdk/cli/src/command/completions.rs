//! `completions`: a script that completes commands and flags in a shell.

use clap::{Arg, ArgAction, Command};
use clap_complete::Shell;
use serde_json::json;

use super::COMMANDS;
use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::help::shown;
use crate::output::Answer;
use crate::spec::{Spec, nearest};

pub(crate) const SPEC: Spec = Spec {
    name: "completions",
    usage: "completions <bash|zsh|fish>",
    about: "Print a completion script for a shell",
    returns: "shell, script",
    flags: &[],
    positionals: (1, 1),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(_cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let name = args.at(0)?;
    let shell = match name {
        "bash" => Shell::Bash,
        "zsh" => Shell::Zsh,
        "fish" => Shell::Fish,
        _ => {
            let failure = Failure::invalid(format!("no completions for {name:?}"));
            let known = nearest(name, ["bash", "zsh", "fish"].into_iter());
            return Err(match known {
                Some(known) => failure.hint(format!("did you mean {known}?")),
                None => failure.hint("available: bash, zsh, fish"),
            });
        }
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut tree(), "pilotctl", &mut script);
    let script = String::from_utf8(script)
        .map_err(|e| Failure::internal("the script is not UTF-8").reason(e))?;
    Ok(Answer::raw(json!({"shell": name, "script": script}), script))
}

/// The command table in the form that makes completion scripts.
fn tree() -> Command {
    let mut root = Command::new("pilotctl")
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).global(true))
        .arg(Arg::new("socket").long("socket").value_name("path").global(true));
    for spec in COMMANDS.iter().filter(|s| shown(s)) {
        root = insert(root, spec.name, spec);
    }
    root
}

/// Puts a command below its groups.
fn insert(parent: Command, path: &'static str, spec: &'static Spec) -> Command {
    let Some((group, rest)) = path.split_once(' ') else {
        return parent.subcommand(leaf(spec, path));
    };
    if parent.find_subcommand(group).is_some() {
        parent.mut_subcommand(group, |g| insert(g, rest, spec))
    } else {
        parent.subcommand(insert(Command::new(group), rest, spec))
    }
}

fn leaf(spec: &'static Spec, name: &'static str) -> Command {
    let flags = spec.flags.iter().filter(|f| f.name != "socket").map(|f| {
        let arg = Arg::new(f.name).long(f.name).help(f.about);
        match f.value {
            Some(value) => arg.value_name(value),
            None => arg.action(ArgAction::SetTrue),
        }
    });
    Command::new(name).about(spec.about).args(flags)
}
