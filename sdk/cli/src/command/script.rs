//! `script check` and `script run`: try a script without a daemon. Scripts are
//! run by `pilot-plugin-host`, which lies beside this program and becomes this
//! process, so that its output and exit status are ours.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::Answer;
use crate::spec::{Flag, Spec};

pub(crate) const CHECK: Spec = Spec {
    name: "script check",
    usage: "script check <file> [--config <json>]",
    about: "Say what a Lua script is, or what is wrong with it and where",
    returns: "the script's manifest: name, version, services, rules, sinks, needs, config_schema",
    flags: &[CONFIG],
    positionals: (1, 1),
    run: |cx, args| Box::pin(become_host(cx, "check", args)),
};

pub(crate) const RUN: Spec = Spec {
    name: "script run",
    usage: "script run <file> --input <text|@file> [--config <json>] [--peer <address>] [--grant <names>]",
    about: "Try a Lua script on an input: a stream's bytes, a join request or events",
    returns: "output, verdict or delivery; events",
    flags: &[
        Flag::value("input", "text|@file", "what the peer sends, a join request or events in JSON"),
        CONFIG,
        Flag::value("peer", "address", "who the peer is"),
        Flag::value("grant", "names", "what the script may use, with commas between"),
        Flag::value("timeout", "seconds", "how long it may take, default 30"),
    ],
    positionals: (1, 1),
    run: |cx, args| Box::pin(become_host(cx, "run", args)),
};

const CONFIG: Flag = Flag::value("config", "json", "the script's configuration");
/// The program that runs scripts.
const HOST: &str = "pilot-plugin-host";

async fn become_host(cx: &Cx, what: &str, args: &Args) -> Result<Answer, Failure> {
    let program = find_host()?;
    let mut command = Command::new(&program);
    command.args(["script", what, args.at(0)?]);
    for flag in ["input", "config", "peer", "grant", "timeout"] {
        if let Some(value) = args.value(flag) {
            command.arg(format!("--{flag}={value}"));
        }
    }
    if cx.out.json_asked {
        command.arg("--json");
    }
    let error = command.exec();
    Err(Failure::internal(format!("cannot run {}", program.display())).reason(error))
}

fn find_host() -> Result<PathBuf, Failure> {
    let beside = std::env::current_exe().ok().and_then(|p| Some(p.parent()?.join(HOST)));
    beside.filter(|path| path.is_file()).ok_or_else(|| {
        Failure::not_found(format!("{HOST}, which runs scripts, is not beside pilotctl"))
            .hint("install it there, or build it with: cargo build --release -p pilot-host")
    })
}
