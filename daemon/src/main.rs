//! The `pilot-daemon` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args = std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned());
    let env = |name: &str| std::env::var_os(name).map(|v| v.to_string_lossy().into_owned());
    match pilot_daemon::run::run(args, env) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{}: {e:#}", pilot_daemon::config::PROGRAM);
            ExitCode::FAILURE
        }
    }
}
