//! Copies a file from one agent to another and proves that it arrived whole.
//!
//! The receiver runs `file_copy receive --dir inbox`, the sender
//! `file_copy send agent-b:1100 report.pdf`. On the stream: name length (2),
//! name, size (8), contents; back come the SHA-256 of what was written.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::{Parser, Subcommand};
use pilot_examples::{Daemon, own_address};
use pilot_sdk::{Client, Stream};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[derive(Parser)]
#[command(about = "Copies a file from one agent to another")]
struct Options {
    #[command(flatten)]
    daemon: Daemon,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Take files that peers send
    Receive {
        /// Virtual port to listen on
        #[arg(long, default_value_t = 1100)]
        port: u16,
        /// Where to put them
        #[arg(long, default_value = ".")]
        dir: PathBuf,
    },
    /// Send a file
    Send {
        /// AGENT:PORT, like agent-b:1100
        target: String,
        /// The file
        path: PathBuf,
    },
}

/// Bytes that are read, hashed and written at once.
const BLOCK: usize = 256 * 1024;
/// Bytes of a SHA-256.
const HASH_LEN: usize = 32;

#[tokio::main]
async fn main() -> std::process::ExitCode {
    pilot_examples::finish(run(Options::parse()).await)
}

async fn run(options: Options) -> anyhow::Result<()> {
    let client = options.daemon.connect().await?;
    match options.command {
        Command::Receive { port, dir } => receive(&client, port, &dir).await,
        Command::Send { target, path } => send(&client, &target, &path).await,
    }
}

async fn send(client: &Client, target: &str, path: &Path) -> anyhow::Result<()> {
    let shown = path.display();
    let mut file =
        tokio::fs::File::open(path).await.with_context(|| format!("cannot open {shown}"))?;
    let size = file.metadata().await?.len();
    let name = path.file_name().context("the path has no file name")?.to_string_lossy();
    let name_len = u16::try_from(name.len()).context("the name is too long")?;
    let mut stream = client.dial(target).await.with_context(|| format!("cannot reach {target}"))?;
    let start = Instant::now();
    stream.write_u16(name_len).await?;
    stream.write_all(name.as_bytes()).await?;
    stream.write_u64(size).await?;
    let mut hasher = Sha256::new();
    let mut block = vec![0; BLOCK];
    let mut sent = 0;
    loop {
        let n = file.read(&mut block).await?;
        if n == 0 {
            break;
        }
        hasher.update(&block[..n]);
        stream.write_all(&block[..n]).await?;
        sent += n as u64;
    }
    ensure!(sent == size, "{shown} changed while it was sent");
    // Nothing more comes from us; the answer can still come to us.
    stream.flush().await?;
    let mut theirs = [0; HASH_LEN];
    stream.read_exact(&mut theirs).await.with_context(|| format!("{target} did not confirm"))?;
    ensure!(theirs[..] == hasher.finalize()[..], "the file arrived damaged");
    let seconds = start.elapsed().as_secs_f64();
    println!("{shown}: {size} bytes in {seconds:.2} s, {}", hex(&theirs));
    Ok(())
}

async fn receive(client: &Client, port: u16, dir: &Path) -> anyhow::Result<()> {
    tokio::fs::create_dir_all(dir)
        .await
        .with_context(|| format!("cannot create {}", dir.display()))?;
    let listener = client.listen(port).await?;
    println!("taking files on {}:{port}", own_address(client).await?);
    loop {
        let (stream, peer) = listener.accept().await?;
        let dir = dir.to_owned();
        tokio::spawn(async move {
            match take(stream, &dir).await {
                Ok((path, hash)) => println!("{peer}: {} {}", path.display(), hex(&hash)),
                Err(e) => eprintln!("{peer}: {e:#}"),
            }
        });
    }
}

/// Takes one file; it gets its name when it is whole.
async fn take(mut stream: Stream, dir: &Path) -> anyhow::Result<(PathBuf, [u8; HASH_LEN])> {
    let mut name = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut name).await?;
    let name = String::from_utf8(name).context("the name is not UTF-8")?;
    // Whatever path a peer sends, only its last part counts.
    let name = Path::new(&name).file_name().context("the name is empty")?;
    let path = dir.join(name);
    let mut left = stream.read_u64().await?;
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    let mut hasher = Sha256::new();
    while left > 0 {
        // Received bytes as they are, without a copy.
        let chunk = stream.read_chunk().await?.context("the file broke off")?;
        ensure!(chunk.len() as u64 <= left, "more came than was announced");
        hasher.update(&chunk);
        tokio::task::block_in_place(|| file.write_all(&chunk))?;
        left -= chunk.len() as u64;
    }
    let hash: [u8; HASH_LEN] = hasher.finalize().into();
    // An existing file is not replaced.
    tokio::task::block_in_place(|| file.persist_noclobber(&path))
        .with_context(|| format!("cannot save {}", path.display()))?;
    stream.write_all(&hash).await?;
    stream.shutdown().await?;
    Ok((path, hash))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
