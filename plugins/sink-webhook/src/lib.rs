//! Event sink: posts events to a URL, in order, signed when there is a secret.
//!
//! The host keeps the events until they are taken, retries with back-off and
//! writes dead letters; this only posts, and says of each batch how many
//! events arrived.
#![forbid(unsafe_code)]

mod answer;
mod client;
mod config;
mod connect;
mod deliver;
mod format;
mod settings;
mod sign;
mod source;
mod target;
#[cfg(test)]
mod tests;
mod tls;
mod worker;

use pilot_plugin::{Batch, Delivery, Error, Host, Manifest, Plugin};

use crate::config::Config;
use crate::settings::Settings;
use crate::worker::Worker;

/// Events in one batch at the most: a body of about 200 KB, below the 1 MB
/// that many receivers take.
const MAX_BATCH: usize = 1000;

struct Webhook {
    /// Absent without a URL.
    worker: Option<Worker>,
}

impl Plugin for Webhook {
    type Config = Config;

    fn manifest() -> Manifest {
        let mut manifest = Manifest::new("sink-webhook", env!("CARGO_PKG_VERSION"))
            .describe("posts events to a URL")
            .sink("webhook");
        for sink in &mut manifest.sinks {
            sink.max_batch = MAX_BATCH;
        }
        manifest
    }

    fn start(_: Host, config: Config) -> Result<Self, Error> {
        let settings = Settings::resolve(&config, &environment).map_err(Error::new)?;
        let worker = settings.map(|settings| Worker::start(config, settings)).transpose()?;
        Ok(Self { worker })
    }

    async fn deliver(&self, batch: Batch) -> Result<Delivery, Error> {
        match &self.worker {
            Some(worker) => Ok(worker.deliver(batch.lines).await),
            None => Ok(Delivery::retry("no url: set `url` of sink-webhook, or remove the sink")),
        }
    }
}

pilot_plugin::export_plugin!(Webhook);

/// A variable of the host's environment.
fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
