//! The `pilot-registry` program.

use std::process::ExitCode;

use pilot_beacon::program::{self, Ready};
use pilot_registry::{Config, Registry, config};

fn main() -> ExitCode {
    program::run(&config::REGISTRY, |settings| async move {
        let registry = Registry::start(Config::try_from(&settings)?).await?;
        // Before the ready line: who reads it may send a signal at once.
        let shutdown = program::shutdown()?;
        registry.plugins().reload_on_hangup()?;
        registry.reload().on_hangup(|| {
            let loaded = program::load(&config::REGISTRY)?;
            Ok(loaded.settings().map(|settings| Config::try_from(&settings)).transpose()?)
        })?;
        let ready = Ready::new(config::REGISTRY.name).addr("addr", registry.local_addr());
        registry.describe(ready).print()?;
        registry.run(shutdown).await;
        Ok(())
    })
}
