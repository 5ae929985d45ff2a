//! `make bench-peers`: Pilot beside iroh and quinn. What is measured and how is
//! in `pilot_tests::bench`; here is only how these transports are spoken to.

mod iroh;
mod quinn;

use pilot_tests::bench::{Io, Stream};
use tokio::io::{AsyncRead, AsyncWrite};

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    pilot_tests::bench::main_with_peers(&args, &[&iroh::Iroh, &quinn::Quinn])
}

/// Both directions of a stream as one.
fn both(
    receive: impl AsyncRead + Unpin + Send + 'static,
    send: impl AsyncWrite + Unpin + Send + 'static,
) -> Stream {
    let stream: Box<dyn Io> = Box::new(tokio::io::join(receive, send));
    stream
}
