//! Event sink: JSON lines in a file, rotated by size.
//!
//! Files block, so this works on the threads that the plugin kit has for that.
#![forbid(unsafe_code)]

mod config;
mod file;
mod format;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};

use pilot_plugin::{Batch, Delivery, Error, Host, Manifest, Plugin};

use crate::config::Config;
use crate::file::EventFile;
use crate::format::encode;

struct FileSink {
    host: Host,
    file: Arc<Mutex<EventFile>>,
}

impl Plugin for FileSink {
    type Config = Config;

    fn manifest() -> Manifest {
        Manifest::new("sink-file", env!("CARGO_PKG_VERSION"))
            .describe("appends events to a file as JSON lines")
            .sink("file")
    }

    fn start(host: Host, config: Config) -> Result<Self, Error> {
        config.check().map_err(Error::new)?;
        let mut file = EventFile::new(&config);
        // Now, so that a wrong path is an error of the configuration.
        file.probe().map_err(Error::new)?;
        Ok(Self { host, file: Arc::new(Mutex::new(file)) })
    }

    async fn deliver(&self, batch: Batch) -> Result<Delivery, Error> {
        let file = Arc::clone(&self.file);
        self.host.blocking(move || write(&file, &batch)).await
    }
}

pilot_plugin::export_plugin!(FileSink);

fn write(file: &Mutex<EventFile>, batch: &Batch) -> Delivery {
    let events: Vec<&str> = batch.json().collect();
    // A panic in between leaves nothing that opening does not repair.
    let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
    match file.append(&events, encode) {
        Ok(()) => Delivery::Ack,
        Err(failure) => {
            Delivery::Retry { accepted: failure.accepted, after_ms: None, reason: failure.reason }
        }
    }
}
