//! Sends back every byte that peers send to a port.
//!
//! Try it: run this beside one agent, and beside another
//! `pilotctl connect <agent> 7000 --message hello`.

use clap::Parser;
use pilot_examples::{Daemon, own_address};
use pilot_sdk::Stream;
use tokio::io::AsyncWriteExt;

#[derive(Parser)]
#[command(about = "Sends back every byte that peers send to a port")]
struct Options {
    #[command(flatten)]
    daemon: Daemon,
    /// Virtual port to listen on
    #[arg(long, default_value_t = 7000)]
    port: u16,
}

#[tokio::main]
async fn main() -> std::process::ExitCode {
    pilot_examples::finish(run(Options::parse()).await)
}

async fn run(options: Options) -> anyhow::Result<()> {
    let client = options.daemon.connect().await?;
    let listener = client.listen(options.port).await?;
    println!("echoing on {}:{}", own_address(&client).await?, options.port);
    loop {
        // Fails only when the daemon has gone.
        let (stream, peer) = listener.accept().await?;
        tokio::spawn(async move {
            match echo(stream).await {
                Ok(bytes) => eprintln!("{peer}: {bytes} bytes"),
                Err(e) => eprintln!("{peer}: {e}"),
            }
        });
    }
}

async fn echo(stream: Stream) -> std::io::Result<u64> {
    let (mut from, mut to) = stream.into_split();
    // A stream is AsyncRead and AsyncWrite: everything of tokio's works on it.
    // Nothing piles up here either: when the peer does not read, writing
    // waits, so this does not read, so the peer's writing waits.
    let bytes = tokio::io::copy(&mut from, &mut to).await?;
    // The peer has ended its side; this ends ours, after the last byte.
    to.shutdown().await?;
    Ok(bytes)
}
