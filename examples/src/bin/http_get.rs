//! Fetches a page from an agent with hyper: `http_get agent-b:80/`.

use std::io::Write;

use anyhow::{Context, ensure};
use bytes::Bytes;
use clap::Parser;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper_util::rt::TokioIo;
use pilot_examples::Daemon;

#[derive(Parser)]
#[command(about = "Fetches a page from an agent")]
struct Options {
    #[command(flatten)]
    daemon: Daemon,
    /// Virtual port, where the URL has none
    #[arg(long, default_value_t = 80)]
    port: u16,
    /// `AGENT[:PORT][/PATH]`, where AGENT is a hostname, an address or a node
    /// number
    url: String,
}

#[tokio::main]
async fn main() -> std::process::ExitCode {
    pilot_examples::finish(run(Options::parse()).await)
}

async fn run(options: Options) -> anyhow::Result<()> {
    let (target, path) = split(&options.url, options.port);
    let client = options.daemon.connect().await?;
    let stream = client.dial(&target).await.with_context(|| format!("cannot reach {target}"))?;
    // To hyper, a Pilot stream is a connection like any other.
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let request = Request::get(path).header(HOST, &target).body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let mut body = response.into_body();
    let mut out = std::io::stdout().lock();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            out.write_all(&data)?;
        }
    }
    out.flush()?;
    drop(sender);
    driver.await??;
    ensure!(status.is_success(), "{target} answered {status}");
    Ok(())
}

/// What to dial, and which path to ask for.
fn split(url: &str, port: u16) -> (String, String) {
    let url = url.strip_prefix("http://").unwrap_or(url);
    let (agent, path) = match url.find('/') {
        Some(at) => url.split_at(at),
        None => (url, "/"),
    };
    let has_port = agent.parse::<pilot_sdk::Target>().is_ok();
    let target = if has_port { agent.to_owned() } else { format!("{agent}:{port}") };
    (target, path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn urls() {
        for (url, target, path) in [
            ("agent-b:80/", "agent-b:80", "/"),
            ("agent-b", "agent-b:80", "/"),
            ("http://agent-b:8080/a/b?c", "agent-b:8080", "/a/b?c"),
            ("0:0000.0000.0002/status", "0:0000.0000.0002:80", "/status"),
            ("2:81", "2:81", "/"),
        ] {
            assert_eq!(split(url, 80), (target.to_owned(), path.to_owned()), "{url}");
        }
    }
}
