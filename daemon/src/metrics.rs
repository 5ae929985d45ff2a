//! `/metrics` and `/healthz` over HTTP, for a scraper on this machine.
//!
//! It takes snapshots of the loop by the handle that everybody uses, at most
//! one a second however many ask, and writes them off the loop's thread. What a
//! slow or hostile client can hold is a connection slot for a few seconds.

mod families;
#[cfg(test)]
mod tests;
mod text;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body as _, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::Instant;

use crate::node::NodeHandle;
use crate::plugins::Plugins;

/// Streams with series of their own, those that moved the most bytes. The sums
/// count all; so a scrape has at most about 8,000 lines.
const STREAMS: usize = 256;
/// A scrape younger than this is given to whoever asks.
const FRESH: Duration = Duration::from_secs(1);
/// Longest wait for the loop before it counts as stuck.
const LOOP_LIMIT: Duration = Duration::from_secs(2);
/// Bytes of a request's head; a longer one is refused.
const MAX_HEAD: usize = 8 << 10;
/// Pause after the system refused a connection, for lack of descriptors say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What Prometheus calls its text format.
const FORMAT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
const PLAIN: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// The address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error(
    "metrics-listen: cannot bind TCP {address}: {source}; choose another address or port, or stop what uses it"
)]
pub struct MetricsError {
    address: SocketAddr,
    source: io::Error,
}

/// What clients may take.
#[derive(Clone, Copy, Debug)]
pub struct MetricsLimits {
    /// Connections at a time; further ones wait to be accepted.
    pub connections: usize,
    /// Until a request's head is there.
    pub head: Duration,
    /// From accepting a connection to its end.
    pub connection: Duration,
}

impl Default for MetricsLimits {
    fn default() -> Self {
        Self { connections: 32, head: Duration::from_secs(3), connection: Duration::from_secs(10) }
    }
}

/// A bound endpoint.
pub struct Metrics {
    listener: TcpListener,
    limits: MetricsLimits,
}

impl Metrics {
    /// Binds `address`.
    ///
    /// # Errors
    /// When it is taken or not ours.
    pub async fn bind(address: SocketAddr, limits: MetricsLimits) -> Result<Self, MetricsError> {
        let listener =
            TcpListener::bind(address).await.map_err(|source| MetricsError { address, source })?;
        Ok(Self { listener, limits })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// What the system says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves for ever.
    pub async fn serve(self, node: NodeHandle, plugins: Plugins) {
        let Self { listener, limits } = self;
        let slots = Arc::new(Semaphore::new(limits.connections));
        let scrapes = Arc::new(Scrapes { node, plugins, last: Mutex::default() });
        while let Ok(slot) = Arc::clone(&slots).acquire_owned().await {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let scrapes = Arc::clone(&scrapes);
                    tokio::spawn(async move {
                        answer(stream, scrapes, limits).await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "metrics: a connection was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// One request on one connection.
async fn answer(stream: TcpStream, scrapes: Arc<Scrapes>, limits: MetricsLimits) {
    let service = service_fn(|request| {
        let scrapes = Arc::clone(&scrapes);
        async move { Ok::<_, Infallible>(respond(&request, &scrapes).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(MAX_HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(limits.connection, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "metrics: a request failed"),
        Err(_) => tracing::debug!("metrics: a client was too slow"),
    }
}

async fn respond(request: &Request<Incoming>, scrapes: &Scrapes) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    if !matches!(path, "/metrics" | "/healthz") {
        return say(StatusCode::NOT_FOUND, "not found; there are /metrics and /healthz\n");
    }
    if request.method() != Method::GET {
        let mut response = say(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
        return response;
    }
    if !request.body().is_end_stream() {
        return say(StatusCode::PAYLOAD_TOO_LARGE, "a request here has no body\n");
    }
    let Some(text) = scrapes.text().await else {
        return say(StatusCode::SERVICE_UNAVAILABLE, "the daemon's loop does not answer\n");
    };
    if path == "/healthz" {
        return say(StatusCode::OK, "ok\n");
    }
    let mut response = Response::new(Full::new(text));
    response.headers_mut().insert(CONTENT_TYPE, FORMAT);
    response
}

fn say(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, PLAIN);
    response
}

/// The last scrape and where the next comes from.
struct Scrapes {
    node: NodeHandle,
    plugins: Plugins,
    last: Mutex<Option<(Instant, Bytes)>>,
}

impl Scrapes {
    /// The metrics; whoever asks while they are being made waits for the same.
    async fn text(&self) -> Option<Bytes> {
        let mut last = self.last.lock().await;
        if let Some((at, text)) = &*last
            && at.elapsed() < FRESH
        {
            return Some(text.clone());
        }
        let snapshot = tokio::time::timeout(LOOP_LIMIT, self.node.snapshot(STREAMS)).await;
        let snapshot = snapshot.ok().flatten()?;
        let plugins = self.plugins.clone();
        let write = tokio::task::spawn_blocking(move || {
            families::write(&snapshot, &plugins.list(), &plugins.events())
        });
        let text = Bytes::from(write.await.ok()?);
        *last = Some((Instant::now(), text.clone()));
        Some(text)
    }
}
