//! `_daemon-run`, for `daemon start` alone: leaves the session of whoever
//! started it and becomes the daemon, so that a terminal that closes does not
//! take the daemon with it.

use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::Answer;
use crate::spec::Spec;

pub(crate) const SPEC: Spec = Spec {
    name: "_daemon-run",
    usage: "_daemon-run -- <program> [flags]",
    about: "Become the daemon in a session of its own",
    returns: "nothing",
    flags: &[],
    positionals: (1, usize::MAX),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(_cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let program = args.at(0)?;
    // Refused only to who leads a session already, which is what is wanted.
    let _ = rustix::process::setsid();
    let error = Command::new(program).args(&args.all()[1..]).exec();
    Err(Failure::internal(format!("cannot run {program}")).reason(error))
}
