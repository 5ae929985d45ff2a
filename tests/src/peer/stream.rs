//! A stream as the application of a published peer sees it.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use pilot_wire::SocketAddress;
use tokio::sync::{mpsc, oneshot};

use super::node::Command;
use super::receive::{End, Inbox};

/// One stream. Dropping it does not close it, as an idle application would not.
pub struct Stream {
    pub(super) id: u64,
    pub(super) remote: SocketAddress,
    pub(super) local_port: u16,
    pub(super) inbox: Arc<Inbox>,
    pub(super) commands: mpsc::Sender<Command>,
}

impl Stream {
    /// The other end.
    pub fn remote(&self) -> SocketAddress {
        self.remote
    }

    /// Our port.
    pub fn local_port(&self) -> u16 {
        self.local_port
    }

    /// The next received segment; `None` after a FIN from either side.
    ///
    /// # Errors
    /// When the stream was reset.
    pub async fn read(&self) -> Result<Option<Vec<u8>>> {
        match self.inbox.read().await {
            Ok(segment) => Ok(Some(segment)),
            Err(End::Finished) => Ok(None),
            Err(End::Reset) => anyhow::bail!("connection reset"),
        }
    }

    /// Exactly `len` bytes; segments must end there.
    ///
    /// # Errors
    /// When the stream ends before, or a segment goes beyond.
    pub async fn read_exact(&self, len: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let segment = self.read().await?;
            let got = bytes.len();
            bytes.extend(segment.with_context(|| format!("ended after {got} of {len} bytes"))?);
        }
        ensure!(bytes.len() == len, "{} bytes instead of {len}", bytes.len());
        Ok(bytes)
    }

    /// Everything until the end.
    ///
    /// # Errors
    /// When the stream was reset.
    pub async fn read_to_end(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while let Some(segment) = self.read().await? {
            bytes.extend(segment);
        }
        Ok(bytes)
    }

    /// Writes all; returns when all but a rest below one segment has left.
    ///
    /// # Errors
    /// When the stream is not established any more.
    pub async fn write(&self, data: &[u8]) -> Result<()> {
        // In pieces, so that what waits in the loop stays small.
        for piece in data.chunks(256 * 1024) {
            let (done, written) = oneshot::channel();
            let command = Command::Write { id: self.id, data: piece.to_vec(), done };
            self.commands.send(command).await.ok().context("the published peer has stopped")?;
            ensure!(written.await.unwrap_or(false), "send: connection not established");
        }
        Ok(())
    }

    /// Closes: one FIN, and nothing is sent again afterwards.
    pub async fn close(&self) {
        let _ = self.commands.send(Command::Close { id: self.id }).await;
    }
}
