//! Texts that tell how to use the program, all from the command table.

use std::fmt::Write;

use crate::command::COMMANDS;
use crate::failure::Failure;
use crate::spec::{Spec, members, nearest};

/// Flags that every command takes, with what they do.
pub(crate) const GLOBAL_FLAGS: &[(&str, &str)] = &[
    (
        "--json",
        "print one JSON object (also when standard output is no terminal; --json=false for text)",
    ),
    ("--socket <path>", "the daemon's socket"),
    ("--help", "show help"),
    ("--version", "show the version"),
];

/// Environment variables, with what they do.
pub(crate) const ENVIRONMENT: &[(&str, &str)] = &[
    ("PILOT_SOCKET", "the daemon's socket; before the configuration's socket and /tmp/pilot.sock"),
    ("PILOT_REGISTRY", "the registry; before the configuration's registry and 127.0.0.1:9000"),
    (
        "PILOT_ADMIN_TOKEN",
        "makes an administrator of the registry, which is then asked directly, not by the daemon",
    ),
    ("PILOT_HOME", "folder of configuration, identity, logs and received files; default ~/.pilot"),
    ("NO_COLOR", "no colour"),
];

/// Error codes of JSON errors, with what they mean.
pub(crate) const ERROR_CODES: &[(&str, &str)] = &[
    ("invalid_argument", "the command line is wrong"),
    ("not_found", "no such node, hostname or file"),
    ("already_exists", "the daemon runs already"),
    ("admin_only", "the registry wants an administrator's token"),
    ("bad_admin_token", "the registry knows no such administrator's token"),
    ("unknown_network", "the registry has no such network"),
    ("network_exists", "the registry has a network of this name"),
    ("not_owner", "the registry wants the network's owner or an administrator"),
    ("not_member", "the node is not in the network"),
    ("not_admitted", "the network's rules did not let the node in"),
    ("token_gone", "the join token is used up, expired or revoked"),
    ("invitation_gone", "the invitation was used, declined or taken back, or has expired"),
    ("revoked", "an administrator has revoked the node's key"),
    ("not_running", "the daemon does not run"),
    ("connection_failed", "the daemon, the registry or the peer refused or cannot be reached"),
    ("timeout", "no answer in time"),
    ("invalid_state", "the task is in another status"),
    ("expired", "the task was not answered in time"),
    ("internal", "anything else"),
];

/// Usage of the whole program.
pub(crate) fn overview() -> String {
    let mut text = String::from(
        "usage: pilotctl [--json] [--socket <path>] <command> [arguments]\n\ncommands:\n",
    );
    let width = COMMANDS.iter().filter(|s| shown(s)).map(|s| s.name.len()).max().unwrap_or(0);
    for spec in COMMANDS.iter().filter(|s| shown(s)) {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {:width$}  {}", spec.name, spec.about);
    }
    text.push_str("\nflags of every command:\n");
    list(&mut text, GLOBAL_FLAGS);
    text.push_str("\nenvironment:\n");
    list(&mut text, ENVIRONMENT);
    text.push_str(
        "\nexit status: 0 success, 1 failure, 2 no or an unknown command\n\
         targets: an address (0:0000.0000.0002), a node number (2) or a hostname (agent-b)\n",
    );
    text
}

/// Help of one command.
pub(crate) fn of(spec: &Spec) -> String {
    let mut text = format!("usage: pilotctl {}\n\n{}\n", spec.usage, spec.about);
    if !spec.flags.is_empty() {
        text.push_str("\nflags:\n");
        let flags: Vec<(String, &str)> = spec
            .flags
            .iter()
            .map(|f| match f.value {
                Some(value) => (format!("--{} <{value}>", f.name), f.about),
                None => (format!("--{}", f.name), f.about),
            })
            .collect();
        let flags: Vec<(&str, &str)> = flags.iter().map(|(f, a)| (f.as_str(), *a)).collect();
        list(&mut text, &flags);
    }
    let _ = write!(text, "\nJSON data: {}\nexit status: 0 success, 1 failure\n", spec.returns);
    text
}

/// Help of a group of commands.
pub(crate) fn of_group(group: &str) -> String {
    let specs = COMMANDS.iter().filter(|s| s.within(group).is_some() && shown(s));
    specs.map(|s| format!("usage: pilotctl {}\n  {}\n", s.usage, s.about)).collect()
}

pub(crate) fn missing_subcommand(group: &str) -> Failure {
    Failure::invalid("missing subcommand")
        .hint(format!("available: pilotctl {group} {}", members(group).join(" | ")))
}

pub(crate) fn unknown_subcommand(group: &str, name: &str) -> Failure {
    Failure::invalid(format!("unknown {group} subcommand: {name}"))
        .hint(format!("available: {}", members(group).join(", ")))
}

pub(crate) fn unknown_command(name: &str) -> Failure {
    let failure = Failure::invalid(format!("unknown command: {name}"))
        .hint("run 'pilotctl context' for the full command list");
    match nearest(name, COMMANDS.iter().filter(|s| shown(s)).map(|s| s.name)) {
        Some(known) => failure.reason(format!("did you mean {known}?")),
        None => failure,
    }
}

/// Commands for the program's own use begin with an underscore.
pub(crate) fn shown(spec: &Spec) -> bool {
    !spec.name.starts_with('_')
}

fn list(text: &mut String, entries: &[(&str, &str)]) {
    let width = entries.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, about) in entries {
        let _ = writeln!(text, "  {name:width$}  {about}");
    }
}
