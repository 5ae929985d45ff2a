//! An HTTP server with hyper on a virtual port: a page, and `/status` as JSON.
//!
//! Nothing listens on TCP: only peers that the daemon lets through reach it.

use std::convert::Infallible;

use bytes::Bytes;
use clap::Parser;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use pilot_examples::{Daemon, own_address};
use pilot_sdk::{Client, SocketAddress};

#[derive(Parser)]
#[command(about = "An HTTP server on a virtual port")]
struct Options {
    #[command(flatten)]
    daemon: Daemon,
    /// Virtual port to listen on
    #[arg(long, default_value_t = 80)]
    port: u16,
}

#[tokio::main]
async fn main() -> std::process::ExitCode {
    pilot_examples::finish(run(Options::parse()).await)
}

async fn run(options: Options) -> anyhow::Result<()> {
    let client = options.daemon.connect().await?;
    let listener = client.listen(options.port).await?;
    println!("serving HTTP on {}:{}", own_address(&client).await?, options.port);
    loop {
        let (stream, peer) = listener.accept().await?;
        let client = client.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| answer(client.clone(), peer, request));
            // With a timer, a peer that never finishes its headers is cut off.
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(e) = served {
                eprintln!("{peer}: {e}");
            }
        });
    }
}

async fn answer(
    client: Client,
    peer: SocketAddress,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, kind, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/") => (StatusCode::OK, "text/html; charset=utf-8", page(peer)),
        (&Method::GET, "/status") => match client.info().await {
            Ok(info) => {
                let status = serde_json::json!({
                    "address": info.address,
                    "hostname": info.hostname,
                    "uptime_secs": info.uptime_secs,
                    "you": peer.to_string(),
                });
                (StatusCode::OK, "application/json", status.to_string())
            }
            Err(e) => (StatusCode::SERVICE_UNAVAILABLE, "text/plain", e.to_string()),
        },
        (_, "/" | "/status") => {
            (StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET\n".to_owned())
        }
        _ => (StatusCode::NOT_FOUND, "text/plain", "not found\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    Ok(response)
}

fn page(peer: SocketAddress) -> String {
    format!(
        "<!doctype html>\n<title>Pilot</title>\n<h1>Hello, {peer}</h1>\n\
         <p>This page came over an encrypted tunnel between two agents.\n\
         <p>See also <a href=\"/status\">/status</a>.\n"
    )
}
