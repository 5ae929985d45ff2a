//! The program beside the daemon: `child` hosts one plugin in a process of its
//! own, `script` tries a script without a daemon.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    let mode = words.next().map(|word| word.to_string_lossy().into_owned());
    match mode.as_deref() {
        Some("child") => match pilot_host::run_child() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("pilot-plugin-host: {error}");
                ExitCode::FAILURE
            }
        },
        Some("script") => {
            let words = words.map(|word| word.to_string_lossy().into_owned()).collect();
            pilot_host::script_tool::main(words)
        }
        _ => {
            eprintln!(
                "usage: pilot-plugin-host script check|run FILE ...\n\
                 (`child` is for a daemon or registry alone)"
            );
            ExitCode::from(2)
        }
    }
}
