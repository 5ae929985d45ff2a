//! The `pilot-rendezvous` program: registry and beacon in one process.

use std::process::ExitCode;

use pilot_beacon::program::{self, Ready};
use pilot_beacon::{Beacon, config as beacon_config};
use pilot_registry::{Config, Registry, config};

fn main() -> ExitCode {
    program::run(&config::RENDEZVOUS, |settings| async move {
        let registry_config = Config::for_rendezvous(&settings)?;
        let beacon_addr = settings.address("beacon-addr")?;
        let beacon = Beacon::bind(beacon_config::Config::at(beacon_addr)).await?;
        let registry = Registry::start(registry_config).await?;
        // Before the ready line: who reads it may send a signal at once.
        let shutdown = program::shutdown()?;
        registry.plugins().reload_on_hangup()?;
        registry.reload().on_hangup(|| {
            let loaded = program::load(&config::RENDEZVOUS)?;
            Ok(loaded.settings().map(|settings| Config::for_rendezvous(&settings)).transpose()?)
        })?;
        let ready = Ready::new(config::RENDEZVOUS.name)
            .addr("registry_addr", registry.local_addr())
            .addr("beacon_addr", beacon.local_addr());
        registry.describe(ready).print()?;
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let beacon = tokio::spawn(beacon.run(async {
            // Ends as well when the registry is gone and dropped its end.
            let _ = stopped.await;
        }));
        let ended = registry.run(shutdown).await;
        drop(stop);
        beacon.await?;
        Ok(ended?)
    })
}
