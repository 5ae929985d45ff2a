//! Port 80: HTTP/1.1 over the stream (protocol page "Services", section 9).
//!
//! - `GET /`: `index.html` of the folder if there is one, else a page that
//!   shows the node. The page is always at `/status`, and what it shows as JSON
//!   at `/status.json`. Peers are counted; with `show-peers: true` they are
//!   listed too, without their endpoints.
//! - Everything else comes from `folder`, if it is set: content types, ETag,
//!   Last-Modified, ranges, `index.html`; a list of a folder's files only with
//!   `listing: true`. Names that begin with a dot do not exist, nor does what
//!   is behind a symbolic link.
//!
//! ```yaml
//! folder: /srv/www
//! ```
//!
//! Bounds: 16 KiB and 64 fields of headers (431), 64 KiB of a request's body,
//! which nothing here reads (413), `max-streams` streams at once (503); a
//! request has `request-seconds` (30) to come whole, and a reader that takes
//! nothing for `stall-seconds` (60) is let go. A file is read in pieces of 256 KiB.
#![forbid(unsafe_code)]

mod body;
mod condition;
mod files;
mod io;
mod page;
mod watch;

use std::cell::Cell;
use std::convert::Infallible;
use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use pilot_plugin::json::{Value, json};
use pilot_plugin::serde::Deserialize;
use pilot_plugin::{Error, Host, JsonSchema, Level, Manifest, Peer, Plugin, Stream};

use body::Body;
use condition::Outcome;
use files::{Found, Lookup};
use io::Io;
use watch::{Patience, Watch};

/// Bytes of a request's line and headers.
const MAX_HEAD: usize = 16 << 10;
/// Header fields of a request.
const MAX_FIELDS: usize = 64;
/// Bytes of a body that a request may carry; nothing here reads it.
const MAX_BODY: u64 = 64 << 10;

/// The configuration of the HTTP port.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(crate = "pilot_plugin::serde", rename_all = "kebab-case", deny_unknown_fields, default)]
#[schemars(crate = "pilot_plugin::schemars")]
struct Config {
    /// Folder that is served; none unless set.
    folder: Option<PathBuf>,
    /// Answers for a folder without `index.html` with a list of its files.
    listing: bool,
    /// Lists peers in the status, instead of counting them.
    show_peers: bool,
    /// Streams at once; more are answered 503.
    max_streams: usize,
    /// Seconds for a request to come whole, from the end of the one before.
    request_seconds: u32,
    /// Seconds after which a reader that takes nothing is let go.
    stall_seconds: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            folder: None,
            listing: false,
            show_peers: false,
            max_streams: 128,
            request_seconds: 30,
            stall_seconds: 60,
        }
    }
}

struct Http {
    server: Rc<Server>,
    streams: Rc<Cell<usize>>,
}

struct Server {
    host: Host,
    config: Config,
}

impl Plugin for Http {
    type Config = Config;

    fn manifest() -> Manifest {
        Manifest::new("http", env!("CARGO_PKG_VERSION"))
            .describe("a folder, the node's status, and a page that shows it")
            .service("http", &[80])
            .needs("node.status")
            .needs("node.peers")
            .needs("plugins.list")
    }

    fn start(host: Host, config: Config) -> Result<Self, Error> {
        if let Some(folder) = &config.folder
            && !folder.is_dir()
        {
            let text = format!("`folder`: {} is not a folder", folder.display());
            return Err(Error::new(text));
        }
        Ok(Self { server: Rc::new(Server { host, config }), streams: Rc::default() })
    }

    async fn serve(&self, mut stream: Stream, peer: Peer) -> Result<(), Error> {
        let host = &self.server.host;
        if self.streams.get() >= self.server.config.max_streams {
            stream
                .send(
                    "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\n\
                         retry-after: 5\r\ncontent-length: 0\r\n\r\n",
                )
                .await?;
            return Ok(());
        }
        self.streams.set(self.streams.get() + 1);
        let _counted = Counted(Rc::clone(&self.streams));
        let watch = Watch::new(Patience {
            request: Duration::from_secs(self.server.config.request_seconds.into()),
            stall: Duration::from_secs(self.server.config.stall_seconds.into()),
        });
        let service = service_fn(|request: Request<Incoming>| {
            let (server, watch) = (Rc::clone(&self.server), Rc::clone(&watch));
            async move {
                watch.answering();
                let mut response = server.answer(&request).await;
                response.body_mut().tell(watch);
                Ok::<_, Infallible>(response)
            }
        });
        let connection = http1::Builder::new()
            .max_buf_size(MAX_HEAD)
            .max_headers(MAX_FIELDS)
            .half_close(true)
            .serve_connection(Io::new(stream, Rc::clone(&watch)), service);
        let (mut connection, mut late) = (pin!(connection), pin!(watch.late(host)));
        let served = std::future::poll_fn(|cx| match connection.as_mut().poll(cx) {
            Poll::Ready(served) => Poll::Ready(Some(served)),
            Poll::Pending => late.as_mut().poll(cx).map(|()| None),
        });
        match served.await {
            Some(Ok(())) => Ok(()),
            // What the peer did wrong it has been told, or it is gone.
            Some(Err(e)) => {
                host.log(Level::Debug, format!("{}: {e}", peer.address));
                if e.is_parse() || e.is_incomplete_message() { Ok(()) } else { Err(e.into()) }
            }
            None => Err(Error::new("the peer took too long")),
        }
    }
}

impl Server {
    async fn answer(&self, request: &Request<Incoming>) -> Response<Body> {
        use hyper::body::Body as _;
        if request.body().size_hint().lower() > MAX_BODY {
            return told(StatusCode::PAYLOAD_TOO_LARGE, "This server takes no uploads.");
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = told(StatusCode::METHOD_NOT_ALLOWED, "Only GET and HEAD are known.");
            set(&mut response, header::ALLOW, "GET, HEAD");
            return response;
        }
        let head = request.method() == Method::HEAD;
        let path = request.uri().path();
        let mut response = match path {
            "/status.json" => json_response(&self.status().await),
            "/status" => html_response(page::render(&self.status().await)),
            _ => self.file(path, request.headers()).await,
        };
        if path == "/" && response.status() == StatusCode::NOT_FOUND {
            response = html_response(page::render(&self.status().await));
        }
        if head {
            response.body_mut().clear();
        }
        response
    }

    async fn status(&self) -> Value {
        let (node, plugins) = (self.ask("node.status").await, self.ask("plugins.list").await);
        let peers = match self.config.show_peers {
            true => Some(self.ask("node.peers").await),
            false => None,
        };
        page::status(&node, &plugins, peers.as_ref())
    }

    /// What the host says; nothing when it cannot.
    async fn ask(&self, method: &str) -> Value {
        self.host.call(method, json!({})).await.unwrap_or_else(|e| {
            self.host.log(Level::Warn, format!("status: {e}"));
            Value::Null
        })
    }

    async fn file(&self, path: &str, headers: &HeaderMap) -> Response<Body> {
        let (Some(root), Some(parts)) = (self.config.folder.clone(), files::parts(path)) else {
            return not_found();
        };
        let (slash, listing) = (path.ends_with('/'), self.config.listing);
        let looked = self.host.blocking(move || files::look(&root, &parts, slash, listing)).await;
        match looked {
            Ok(Ok(Lookup::File(found))) => self.found(found, headers),
            Ok(Ok(Lookup::Folder)) => moved(path),
            Ok(Ok(Lookup::List(names))) => html_response(page::list(path, &names)),
            Ok(Ok(Lookup::Nothing)) => not_found(),
            Ok(Err(e)) => self.failed(path, &e.to_string()),
            Err(e) => self.failed(path, &e.to_string()),
        }
    }

    fn failed(&self, path: &str, why: &str) -> Response<Body> {
        self.host.log(Level::Warn, format!("{path:?}: {why}"));
        told(StatusCode::INTERNAL_SERVER_ERROR, "The file cannot be read.")
    }

    fn found(&self, found: Found, headers: &HeaderMap) -> Response<Body> {
        let (etag, modified) = (found.etag(), found.last_modified());
        let outcome = condition::judge(headers, &etag, found.modified, found.len);
        let (status, from, len) = match outcome {
            Outcome::Whole => (StatusCode::OK, 0, found.len),
            Outcome::Part { from, len } => (StatusCode::PARTIAL_CONTENT, from, len),
            Outcome::NotModified => (StatusCode::NOT_MODIFIED, 0, 0),
            Outcome::OutOfRange => {
                let mut response = told(StatusCode::RANGE_NOT_SATISFIABLE, "No such range.");
                set(&mut response, header::CONTENT_RANGE, &format!("bytes */{}", found.len));
                return response;
            }
        };
        let body = match status {
            StatusCode::NOT_MODIFIED => Body::empty(),
            _ => Body::file(self.host.clone(), Arc::new(found.file), from, len),
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        harden(&mut response);
        set(&mut response, header::ETAG, &etag);
        set(&mut response, header::LAST_MODIFIED, &modified);
        set(&mut response, header::ACCEPT_RANGES, "bytes");
        if status != StatusCode::NOT_MODIFIED {
            set(&mut response, header::CONTENT_TYPE, found.content_type);
            set(&mut response, header::CONTENT_LENGTH, &len.to_string());
        }
        if status == StatusCode::PARTIAL_CONTENT {
            let last = from + len - 1;
            let range = format!("bytes {from}-{last}/{}", found.len);
            set(&mut response, header::CONTENT_RANGE, &range);
        }
        response
    }
}

/// One stream less when it is dropped.
struct Counted(Rc<Cell<usize>>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

fn set(response: &mut Response<Body>, name: header::HeaderName, value: &str) {
    // What has no place in a header is left out.
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

/// A content type is what it says.
fn harden(response: &mut Response<Body>) {
    set(response, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
}

fn full(status: StatusCode, content_type: &str, text: String) -> Response<Body> {
    let len = text.len();
    let mut response = Response::new(Body::full(Bytes::from(text)));
    *response.status_mut() = status;
    harden(&mut response);
    set(&mut response, header::CONTENT_TYPE, content_type);
    // Stays when the body is left out for HEAD.
    set(&mut response, header::CONTENT_LENGTH, &len.to_string());
    response
}

fn told(status: StatusCode, text: &str) -> Response<Body> {
    full(status, "text/plain; charset=utf-8", format!("{text}\n"))
}

fn not_found() -> Response<Body> {
    told(StatusCode::NOT_FOUND, "There is nothing here.")
}

fn moved(path: &str) -> Response<Body> {
    let mut response = told(StatusCode::MOVED_PERMANENTLY, "This is a folder.");
    // More than one slash at the front would name another host.
    let to = format!("/{}/", path.trim_matches('/'));
    set(&mut response, header::LOCATION, &to);
    response
}

fn json_response(value: &Value) -> Response<Body> {
    let mut response = full(StatusCode::OK, "application/json", format!("{value:#}\n"));
    set(&mut response, header::CACHE_CONTROL, "no-store");
    response
}

fn html_response(html: String) -> Response<Body> {
    let mut response = full(StatusCode::OK, "text/html; charset=utf-8", html);
    let policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'";
    set(&mut response, header::CONTENT_SECURITY_POLICY, policy);
    set(&mut response, header::CACHE_CONTROL, "no-store");
    response
}

pilot_plugin::export_plugin!(Http);
