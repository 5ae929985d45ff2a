//! The `pilot-beacon` program.

use std::process::ExitCode;

use pilot_beacon::program::{self, Ready};
use pilot_beacon::{Beacon, Config, config};

fn main() -> ExitCode {
    program::run(&config::PROGRAM, |settings| async move {
        let beacon = Beacon::bind(Config::try_from(&settings)?).await?;
        // Before the ready line: who reads it may send a signal at once.
        let shutdown = program::shutdown()?;
        Ready::new(config::PROGRAM.name).addr("addr", beacon.local_addr()).print()?;
        beacon.run(shutdown).await;
        Ok(())
    })
}
