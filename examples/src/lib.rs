//! What the example programs share: how they are told which daemon to use.

use std::path::PathBuf;
use std::process::ExitCode;

use pilot_sdk::{Client, ConnectError};

/// Flags of every example.
#[derive(Clone, Debug, clap::Args)]
pub struct Daemon {
    /// The daemon's socket; default PILOT_SOCKET, else the configuration's
    #[arg(long, global = true, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

impl Daemon {
    /// Connects to the daemon.
    ///
    /// # Errors
    /// When no daemon answers; the error says on which socket.
    pub async fn connect(&self) -> Result<Client, ConnectError> {
        match &self.socket {
            Some(path) => Client::connect_to(path).await,
            None => Client::connect().await,
        }
    }
}

/// The own address for a ready line, or what stands for it while the registry
/// has not given one.
///
/// # Errors
/// When the daemon has gone.
pub async fn own_address(client: &Client) -> Result<String, pilot_sdk::Error> {
    let info = client.info().await?;
    Ok(if info.node_id.0 == 0 { "(not registered yet)".to_owned() } else { info.address })
}

/// The exit status of a program; a failure is told in one line.
pub fn finish(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}
