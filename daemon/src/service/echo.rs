//! Port 7: sends back every byte, in order, without a copy.

use std::future::Future;
use std::io;
use std::pin::Pin;

use tokio::io::AsyncWriteExt;

use super::{LocalStream, Service};

/// The port of the echo service.
const PORT: u16 = 7;

/// The echo service. What it may hold is bounded by the stream's queues.
#[derive(Clone, Copy, Debug, Default)]
pub struct Echo;

impl Service for Echo {
    fn name(&self) -> &'static str {
        "echo"
    }

    fn port(&self) -> u16 {
        PORT
    }

    fn serve(&self, mut stream: LocalStream) -> Pin<Box<dyn Future<Output = io::Result<()>>>> {
        Box::pin(async move {
            while let Some(data) = stream.read_bytes().await? {
                stream.write_bytes(data).await?;
            }
            stream.shutdown().await
        })
    }
}
