//! The manager's thread.
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Weak};

use super::{Command, Inner, Loader, ManagerError, ManagerOptions, PluginStatus, ReloadReport, Shared, Sinks};
use crate::instance::Observer;
use crate::platform::Platform;

pub(super) struct Worker {
    _observer: Arc<dyn Observer>,
}

pub(super) struct Shown {
    status: PluginStatus,
}

impl Shown {
    pub(super) fn status(&self) -> PluginStatus {
        self.status.clone()
    }
}

impl Worker {
    pub(super) fn new(
        _options: ManagerOptions,
        _loader: Arc<dyn Loader>,
        _sinks: Arc<dyn Sinks>,
        _platform: Arc<dyn Platform>,
        _shared: Arc<Shared>,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, ManagerError> {
        Ok(Self { _observer: observer })
    }

    pub(super) fn run(self, waiting: &Receiver<Command>, _inner: Weak<Inner>, ready: &Sender<()>) {
        let _ = ready.send(());
        while let Ok(command) = waiting.recv() {
            match command {
                Command::Wake => {}
                Command::Reload(reply) => drop(reply.send(ReloadReport::default())),
                Command::Set(_, _, reply) => drop(reply.send(Err("not yet".to_owned()))),
                Command::Shutdown(_, reply) => {
                    let _ = reply.send(());
                    return;
                }
            }
        }
    }
}
