//! What every command is given: how to print, where files are, which daemon
//! and which registry.

use std::path::PathBuf;
use std::time::Duration;

use pilot_sdk::Client;
use serde_json::{Map, Value};
use tokio::time::timeout;

use crate::failure::Failure;
use crate::home::{self, Home};
use crate::output::Output;

/// Where the registry is unless something says otherwise.
pub(crate) const DEFAULT_REGISTRY: &str = "127.0.0.1:9000";
/// Where the beacon is unless something says otherwise.
pub(crate) const DEFAULT_BEACON: &str = "127.0.0.1:9001";
/// How long a daemon may take to say that it is there.
const PROBE: Duration = Duration::from_secs(2);

/// The surroundings of a command.
pub(crate) struct Cx {
    pub(crate) out: Output,
    pub(crate) home: Home,
    /// From `--socket`.
    pub(crate) socket_flag: Option<String>,
}

impl Cx {
    pub(crate) fn new(out: Output, socket_flag: Option<String>) -> Result<Self, (Output, Failure)> {
        match Home::find() {
            Ok(home) => Ok(Self { out, home, socket_flag }),
            Err(failure) => Err((out, failure)),
        }
    }

    /// The daemon's socket: flag, `PILOT_SOCKET`, configuration, default.
    pub(crate) fn socket(&self) -> Result<PathBuf, Failure> {
        match &self.socket_flag {
            Some(path) => Ok(path.into()),
            None => Ok(pilot_sdk::socket_path(|name| std::env::var_os(name))?),
        }
    }

    /// The registry: `PILOT_REGISTRY`, configuration, default.
    pub(crate) fn registry(&self) -> Result<String, Failure> {
        if let Ok(address) = std::env::var("PILOT_REGISTRY")
            && !address.is_empty()
        {
            return Ok(address);
        }
        let config = self.home.config()?;
        Ok(home::text(&config, "registry").unwrap_or_else(|| DEFAULT_REGISTRY.to_owned()))
    }

    /// A connection to the daemon.
    pub(crate) async fn client(&self) -> Result<Client, Failure> {
        Ok(Client::connect_to(self.socket()?).await?)
    }

    /// What the daemon says of itself, if it answers.
    pub(crate) async fn probe(&self) -> Option<Map<String, Value>> {
        let socket = self.socket().ok()?;
        let ask = async { Client::connect_to(socket).await.ok()?.info_json().await.ok() };
        match timeout(PROBE, ask).await {
            Ok(Some(Value::Object(info))) => Some(info),
            _ => None,
        }
    }
}
