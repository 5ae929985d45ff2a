//! What runs beside a daemon: `child` hosts one plugin in a process of its own.

use std::process::ExitCode;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("child") => match pilot_host::run_child() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("pilot-plugin-host: {error}");
                ExitCode::FAILURE
            }
        },
        _ => {
            eprintln!("pilot-plugin-host: started by a daemon or registry, not by hand");
            ExitCode::FAILURE
        }
    }
}
