//! The command line of Pilot: finds the command, runs it, prints its answer.
//!
//! Exit status: 0 success, 1 failure, 2 wrong usage (no command, or one that
//! does not exist).

mod args;
mod command;
mod cx;
mod failure;
mod fleet;
mod help;
mod home;
mod nameserver;
mod output;
mod peer;
mod process;
mod progress;
mod registry;
mod secure;
mod spec;
mod tasks;

use std::process::ExitCode;

use args::{Args, Line};
use cx::Cx;
use failure::Failure;
use output::{Answer, Output};
use spec::Lookup;

fn main() -> ExitCode {
    let words: Vec<String> =
        std::env::args_os().skip(1).map(|w| w.to_string_lossy().into_owned()).collect();
    let json = args::json_asked(&words);
    let line = match Line::split(words) {
        Ok(line) => line,
        Err(failure) => return Output::new(json).failure(&failure),
    };
    let out = Output::new(line.json);
    match prepare(&line, &out) {
        Ok(Next::Run(spec, args)) => run(&line, out, spec, &args),
        Ok(Next::Print(text)) => out.raw(&text),
        Err(Stop::Usage) => {
            eprint!("{}", help::overview());
            ExitCode::from(2)
        }
        Err(Stop::Failed(failure)) => out.failure(&failure),
    }
}

enum Next {
    Run(&'static spec::Spec, Args),
    Print(String),
}

enum Stop {
    /// Usage on standard error, exit status 2.
    Usage,
    Failed(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

fn prepare(line: &Line, out: &Output) -> Result<Next, Stop> {
    if line.version {
        return Ok(Next::Print(format!("pilotctl {}\n", env!("CARGO_PKG_VERSION"))));
    }
    let mut words = line.words.as_slice();
    let wants_help = line.help || words.first().is_some_and(|w| w == "help");
    if words.first().is_some_and(|w| w == "help") {
        words = &words[1..];
    }
    if words.is_empty() {
        return if wants_help { Ok(Next::Print(help::overview())) } else { Err(Stop::Usage) };
    }
    match spec::find(words) {
        Lookup::Found(spec, _) if wants_help => Ok(Next::Print(help::of(spec))),
        Lookup::Found(spec, used) => Ok(Next::Run(spec, Args::parse(spec, &words[used..])?)),
        Lookup::Group(group) if wants_help => Ok(Next::Print(help::of_group(group))),
        Lookup::Group(group) => Err(help::missing_subcommand(group).into()),
        Lookup::UnknownIn(group, name) => Err(help::unknown_subcommand(group, name).into()),
        // Standard output stays empty, so that only --json asks for JSON here.
        Lookup::Unknown(_) if !out.json_asked => {
            eprintln!("{}", help::unknown_command(&words[0]).text());
            Err(Stop::Usage)
        }
        Lookup::Unknown(name) => Err(help::unknown_command(name).into()),
    }
}

fn run(line: &Line, out: Output, spec: &'static spec::Spec, args: &Args) -> ExitCode {
    let cx = match Cx::new(out, line.socket.clone()) {
        Ok(cx) => cx,
        Err((out, failure)) => return out.failure(&failure),
    };
    let runtime =
        match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
            Ok(runtime) => runtime,
            Err(e) => return cx.out.failure(&Failure::internal(format!("cannot start: {e}"))),
        };
    let result: Result<Answer, Failure> = runtime.block_on((spec.run)(&cx, args));
    // Whatever still waits, standard input for instance, waits no longer.
    runtime.shutdown_background();
    match result {
        Ok(answer) => cx.out.answer(&answer),
        Err(failure) => cx.out.failure(&failure),
    }
}
