//! The `pilot-registry` program: serves, or does what a sub-command says.

use std::process::ExitCode;

use pilot_beacon::program::{self, Ready};
use pilot_registry::{Config, Registry, config, tools};

fn main() -> ExitCode {
    let args: Vec<_> =
        std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned()).collect();
    let asks_help = args.iter().any(|a| matches!(a.trim_start_matches('-'), "help" | "h"));
    if let Some(code) = tools::run_if_asked(&args) {
        return code;
    }
    let code = program::run(&config::REGISTRY, |settings| async move {
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
        Ok(registry.run(shutdown).await?)
    });
    if asks_help && code == ExitCode::SUCCESS {
        print!("\n{}", tools::overview());
    }
    code
}
