//! The program beside the daemon that tries scripts without one. What it does
//! is its first argument.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    let mode = words.next().map(|word| word.to_string_lossy().into_owned());
    match mode.as_deref() {
        Some("script") => {
            let words = words.map(|word| word.to_string_lossy().into_owned()).collect();
            pilot_host::script_tool::main(words)
        }
        _ => {
            eprintln!("usage: pilot-plugin-host script check|run FILE ...");
            ExitCode::from(2)
        }
    }
}
