//! `http`: requests to hosts that the configuration names. Answers are whole
//! and bounded; a redirect is an answer like others, so nothing leads to a
//! host that was not granted.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Body as _;
use hyper::{Method, Request, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use mlua::{Error, Lua, LuaString, Table, Value};
use tokio::sync::Semaphore;

use super::{Api, Outcome, refused};
use crate::lua::live::Charge;

/// Largest body of an answer; a larger one is a failure.
const MAX_BODY: usize = 8 << 20;
/// Requests under way at a time, of one machine; more wait.
const MAX_REQUESTS: usize = 64;
/// Seconds for a request with its answer, unless told otherwise.
const TIMEOUT: f64 = 30.0;
/// Most seconds for a request with its answer.
const MAX_TIMEOUT: f64 = 300.0;
/// Headers that are the client's own.
const OWN: &[&str] = &["host", "content-length", "transfer-encoding", "connection"];

type HttpClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// One per machine: its connections belong to the machine's thread.
struct Http {
    api: Api,
    client: OnceLock<HttpClient>,
    slots: Semaphore,
}

pub(super) fn install(lua: &Lua, api: &Api) -> mlua::Result<()> {
    let http = Arc::new(Http {
        api: api.clone(),
        client: OnceLock::new(),
        slots: Semaphore::new(MAX_REQUESTS),
    });
    let table = lua.create_table()?;
    let own = Arc::clone(&http);
    table.set(
        "request",
        lua.create_async_function(move |lua, options: Table| {
            let http = Arc::clone(&own);
            async move { http.request(&lua, "GET", None, None, Some(options)).await }
        })?,
    )?;
    let own = Arc::clone(&http);
    table.set(
        "get",
        lua.create_async_function(move |lua, (url, options): (String, Option<Table>)| {
            let http = Arc::clone(&own);
            async move { http.request(&lua, "GET", Some(url), None, options).await }
        })?,
    )?;
    table.set(
        "post",
        lua.create_async_function(
            move |lua, (url, body, options): (String, LuaString, Option<Table>)| {
                let http = Arc::clone(&http);
                async move { http.request(&lua, "POST", Some(url), Some(body), options).await }
            },
        )?,
    )?;
    lua.globals().set("http", table)
}

impl Http {
    async fn request(
        &self,
        lua: &Lua,
        method: &str,
        url: Option<String>,
        body: Option<LuaString>,
        options: Option<Table>,
    ) -> Outcome {
        self.api.context("http")?;
        let timeout = seconds(options.as_ref())?;
        let deadline = tokio::time::Instant::now() + timeout;
        // Nothing is copied out of the machine for those that wait for their turn.
        let _slot = match tokio::time::timeout_at(deadline, self.slots.acquire()).await {
            Ok(slot) => slot.map_err(Error::external)?,
            Err(_) => return refused(format!("no answer within {} s", timeout.as_secs_f64())),
        };
        let request = self.prepare(method, url, body, options)?;
        let mut charge = Charge::of(&self.api.live.held);
        charge.add(request.body().size_hint().exact().map_or(0, |n| n.try_into().unwrap_or(0)));
        if let Some(reason) = charge.exceeded() {
            return refused(reason);
        }
        let client = match self.client() {
            Ok(client) => client,
            Err(reason) => return refused(reason),
        };
        let exchange = async {
            let response = client.request(request).await.map_err(|e| causes(&e))?;
            let (head, body) = response.into_parts();
            let mut body = Limited::new(body, MAX_BODY);
            let mut whole = Vec::new();
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|e| format!("the answer could not be read: {e}"))?;
                if let Ok(data) = frame.into_data() {
                    charge.add(data.len());
                    if let Some(reason) = charge.exceeded() {
                        return Err(reason);
                    }
                    whole.extend_from_slice(&data);
                }
            }
            Ok::<_, String>((head, whole))
        };
        let (head, body) = match tokio::time::timeout_at(deadline, exchange).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(reason)) => return refused(reason),
            Err(_) => return refused(format!("no answer within {} s", timeout.as_secs_f64())),
        };
        let answer = lua.create_table()?;
        answer.raw_set("status", head.status.as_u16())?;
        answer.raw_set("body", lua.create_string(&body)?)?;
        let headers = lua.create_table()?;
        for name in head.headers.keys() {
            let values: Vec<&[u8]> =
                head.headers.get_all(name).iter().map(|value| value.as_bytes()).collect();
            headers.raw_set(name.as_str(), lua.create_string(values.join(&b", "[..]))?)?;
        }
        answer.raw_set("headers", headers)?;
        Ok((Value::Table(answer), None))
    }

    fn prepare(
        &self,
        method: &str,
        url: Option<String>,
        body: Option<LuaString>,
        options: Option<Table>,
    ) -> mlua::Result<Request<Full<Bytes>>> {
        let mut method = method.to_owned();
        let mut url = url;
        let mut body = body;
        let mut headers = None;
        if let Some(options) = options {
            for pair in options.pairs::<String, Value>() {
                let (key, value) = pair?;
                match (key.as_str(), value) {
                    ("method", Value::String(text)) => method = text.to_string_lossy(),
                    ("url", Value::String(text)) => url = Some(text.to_string_lossy()),
                    ("body", Value::String(text)) => body = Some(text),
                    ("headers", Value::Table(table)) => headers = Some(table),
                    ("timeout", Value::Integer(_) | Value::Number(_)) => {}
                    (key @ ("method" | "url" | "body" | "headers" | "timeout"), value) => {
                        let kind = value.type_name();
                        return Err(wrong(format!("`{key}` cannot be a {kind}")));
                    }
                    (key, _) => {
                        return Err(wrong(format!(
                            "unknown key `{key}`; it may have method, url, headers, body, timeout"
                        )));
                    }
                }
            }
        }
        let url = url.ok_or_else(|| wrong("`url` is missing".into()))?;
        let uri: Uri = url.parse().map_err(|e| wrong(format!("{url:?} is no URL: {e}")))?;
        self.may_reach(&uri, &url)?;
        let method = Method::from_bytes(method.as_bytes())
            .map_err(|_| wrong(format!("{method:?} is no method")))?;
        let mut request = Request::builder().method(method).uri(uri);
        let mut agent = false;
        if let Some(headers) = headers {
            for pair in headers.pairs::<String, String>() {
                let (name, value) = pair?;
                // They say where the body ends, and to whom this goes.
                if let Some(own) = OWN.iter().find(|own| name.eq_ignore_ascii_case(own)) {
                    return Err(wrong(format!("the header `{own}` cannot be set by a script")));
                }
                agent |= name.eq_ignore_ascii_case("user-agent");
                request = request.header(name, value);
            }
        }
        if !agent {
            request =
                request.header("user-agent", concat!("pilot-script/", env!("CARGO_PKG_VERSION")));
        }
        let body = body.map_or_else(Bytes::new, |body| Bytes::copy_from_slice(&body.as_bytes()));
        request.body(Full::new(body)).map_err(|e| wrong(e.to_string()))
    }

    /// Whether a grant `http:HOST` or `http:HOST:PORT` names where this goes.
    fn may_reach(&self, uri: &Uri, url: &str) -> mlua::Result<()> {
        let default = match uri.scheme_str() {
            Some("http") => 80,
            Some("https") => 443,
            _ => {
                return Err(Error::runtime(format!(
                    "http: {url:?} does not begin with http:// or https://"
                )));
            }
        };
        let host = uri.host().unwrap_or_default().to_ascii_lowercase();
        let port = uri.port_u16().unwrap_or(default);
        let with_port = format!("{host}:{port}");
        let named =
            self.api.live.grants().iter().filter_map(|grant| grant.strip_prefix("http:")).any(
                |name| name.eq_ignore_ascii_case(&host) || name.eq_ignore_ascii_case(&with_port),
            );
        if named && !host.is_empty() {
            return Ok(());
        }
        Err(Error::runtime(format!(
            "http: the configuration of {:?} grants neither \"http:{host}\" nor \"http:{with_port}\"",
            self.api.live.name()
        )))
    }

    fn client(&self) -> Result<&HttpClient, String> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls()?)
            .https_or_http()
            .enable_http1()
            .build();
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(8)
            .build(connector);
        Ok(self.client.get_or_init(|| client))
    }
}

fn wrong(reason: String) -> Error {
    Error::runtime(format!("http: {reason}"))
}

/// How long a request with its answer may take. A value of another type is
/// refused with the other options.
fn seconds(options: Option<&Table>) -> mlua::Result<Duration> {
    let timeout = match options.map(|options| options.raw_get::<Value>("timeout")).transpose()? {
        #[expect(clippy::cast_precision_loss, reason = "seconds")]
        Some(Value::Integer(seconds)) => seconds as f64,
        Some(Value::Number(seconds)) => seconds,
        _ => TIMEOUT,
    };
    if !(0.001..=MAX_TIMEOUT).contains(&timeout) {
        return Err(wrong(format!("`timeout` is up to {MAX_TIMEOUT} seconds")));
    }
    Ok(Duration::from_secs_f64(timeout))
}

/// The system's roots, read when the first script needs them.
fn tls() -> Result<rustls::ClientConfig, String> {
    static ROOTS: OnceLock<Arc<rustls::RootCertStore>> = OnceLock::new();
    let roots = ROOTS.get_or_init(|| {
        let mut roots = rustls::RootCertStore::empty();
        // What cannot be read is missing, and hosts under it are refused.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Arc::new(roots)
    });
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(Arc::clone(roots))
        .with_no_client_auth();
    Ok(config)
}

/// An error with what caused it, which is where the reason is.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
