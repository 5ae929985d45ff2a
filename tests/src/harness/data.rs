//! Data for tests: seeded, different at every position, hashed on the way.

use anyhow::{Context, Result};
use pilot_sdk::{Client, Stream};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinHandle;

/// Bytes per read and write.
const CHUNK: usize = 64 << 10;

/// An endless sequence that depends on a seed and nowhere repeats.
#[derive(Clone, Debug)]
pub struct Pattern {
    state: u64,
}

impl Pattern {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Self {
        Self { state: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) }
    }

    /// The next eight bytes.
    pub fn word(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// The next `len` bytes; whole words are used up.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.word().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.word() % bound.max(1) as u64).unwrap_or(0)
    }
}

/// Writes `len` bytes of a seed, and returns their SHA-256. The stream is not
/// finished.
///
/// # Errors
/// When writing fails.
pub async fn pour(stream: &mut (impl AsyncWrite + Unpin), seed: u64, len: u64) -> Result<[u8; 32]> {
    let mut pattern = Pattern::new(seed);
    let mut hash = Sha256::new();
    let mut left = len;
    while left > 0 {
        let n = usize::try_from(left).map_or(CHUNK, |l| l.min(CHUNK));
        let bytes = pattern.bytes(n);
        hash.update(&bytes);
        stream.write_all(&bytes).await.with_context(|| format!("{left} of {len} left"))?;
        left -= n as u64;
    }
    stream.flush().await?;
    Ok(hash.finalize().into())
}

/// Reads to the end; how much there was and its SHA-256.
///
/// # Errors
/// When reading fails.
pub async fn drain(stream: &mut (impl AsyncRead + Unpin)) -> Result<(u64, [u8; 32])> {
    let mut buffer = vec![0; CHUNK];
    let mut hash = Sha256::new();
    let mut len = 0;
    loop {
        let n = stream.read(&mut buffer).await.with_context(|| format!("after {len} bytes"))?;
        if n == 0 {
            return Ok((len, hash.finalize().into()));
        }
        hash.update(&buffer[..n]);
        len += n as u64;
    }
}

/// Reads until the end or an error; how much of it is what [`pour`] writes for
/// that seed, whether that was all that came, and how it ended.
pub async fn drain_prefix(
    stream: &mut (impl AsyncRead + Unpin),
    seed: u64,
) -> (u64, bool, Result<(), std::io::Error>) {
    let mut pattern = Pattern::new(seed);
    let mut expected = Vec::new();
    let mut buffer = vec![0; CHUNK];
    let mut len = 0;
    loop {
        let n = match stream.read(&mut buffer).await {
            Ok(0) => return (len, true, Ok(())),
            Ok(n) => n,
            Err(e) => return (len, true, Err(e)),
        };
        while expected.len() < n {
            expected.extend_from_slice(&pattern.bytes(CHUNK));
        }
        if expected[..n] != buffer[..n] {
            return (len, false, Ok(()));
        }
        expected.drain(..n);
        len += n as u64;
    }
}

/// An application that sends back what it gets, on a port of a daemon.
pub struct EchoApp {
    task: JoinHandle<()>,
}

impl EchoApp {
    /// Listens and serves until dropped.
    ///
    /// # Errors
    /// When the port is taken.
    pub async fn start(client: &Client, port: u16) -> Result<Self> {
        let listener = client.listen(port).await?;
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(echo(stream));
            }
        });
        Ok(Self { task })
    }
}

impl Drop for EchoApp {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn echo(mut stream: Stream) {
    let mut buffer = vec![0; CHUNK];
    loop {
        match stream.read(&mut buffer).await {
            // A peer that goes away is its own affair.
            Ok(0) | Err(_) => break,
            Ok(n) => {
                if stream.write_all(&buffer[..n]).await.is_err() {
                    return;
                }
            }
        }
    }
    let _ = stream.shutdown().await;
}

/// Sends seeded data through an echo and compares what comes back.
///
/// # Errors
/// When anything fails or differs.
pub async fn round_trip(stream: Stream, seed: u64, len: u64) -> Result<()> {
    let (mut read, mut write) = tokio::io::split(stream);
    let writer = async {
        let hash = pour(&mut write, seed, len).await?;
        write.shutdown().await?;
        anyhow::Ok(hash)
    };
    let (sent, back) = tokio::join!(writer, drain(&mut read));
    let ((count, hash), sent) = (back.context("reading back")?, sent.context("writing")?);
    anyhow::ensure!(count == len, "{count} of {len} bytes came back");
    anyhow::ensure!(hash == sent, "what came back is not what was sent");
    Ok(())
}
