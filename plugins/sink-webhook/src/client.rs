//! Posts one body: connection, redirects, signature, and the answer.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{HOST, HeaderValue, LOCATION, PROXY_AUTHORIZATION};
use hyper::http::response::Parts;
use hyper::{Request, Uri};

use crate::answer::{Meaning, describe, meaning};
use crate::config::Redirects;
use crate::connect::{self, Connection};
use crate::deliver::{Post, Posted};
use crate::settings::{ID, SIGNATURE, Settings, TIMESTAMP};
use crate::target::Target;

/// Bytes of an answer's body that are kept, for the operator.
const KEPT_BODY: usize = 4 * 1024;

/// Bytes of an answer's body that are read so that the connection can be used
/// again; with more it is closed.
const MAX_BODY: usize = 256 * 1024;

/// Redirects followed for one POST.
const MAX_REDIRECTS: usize = 3;

/// Posts bodies one after another, on one connection while that lasts.
pub(crate) struct Client {
    settings: Arc<Settings>,
    connection: Option<Connection>,
    /// The last POST failed in a way that other credentials could mend.
    suspect: bool,
}

impl Client {
    pub(crate) fn new(settings: Settings) -> Self {
        Self { settings: Arc::new(settings), connection: None, suspect: false }
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Whether files should be read again before the next POST.
    pub(crate) fn is_suspect(&self) -> bool {
        self.suspect
    }

    /// Posts as these say from now on.
    pub(crate) fn renew(&mut self, settings: Settings) {
        *self = Self::new(settings);
    }

    async fn try_post(&mut self, id: &str, body: Bytes) -> Posted {
        let settings = Arc::clone(&self.settings);
        let mut target = settings.target.clone();
        for followed in 0..=MAX_REDIRECTS {
            let request = request(&settings, &target, id, body.clone());
            let (parts, start) = match self.exchange(&settings, request).await {
                Ok(answer) => answer,
                Err(reason) => {
                    self.suspect = true;
                    return Posted::Later { after: None, reason };
                }
            };
            let tell = || {
                let place = settings.target.place();
                describe(&place, parts.status, &parts.headers, &start, &settings.redact)
            };
            match meaning(parts.status, &parts.headers, SystemTime::now()) {
                Meaning::Accepted => return Posted::Accepted,
                Meaning::Later { after, credentials } => {
                    self.suspect = credentials;
                    return Posted::Later { after, reason: tell() };
                }
                Meaning::Refused => return Posted::Refused { reason: tell() },
                Meaning::Elsewhere { same_request } => {
                    let location = parts.headers.get(LOCATION).and_then(|to| to.to_str().ok());
                    let next = location
                        .filter(|_| same_request && settings.redirects == Redirects::SameOrigin)
                        .and_then(|to| target.same_origin(to))
                        .filter(|_| followed < MAX_REDIRECTS);
                    match next {
                        Some(next) => target = next,
                        None => return Posted::Later { after: None, reason: tell() },
                    }
                }
            }
        }
        // The last turn of the loop returns.
        Posted::Later { after: None, reason: "too many redirects".to_owned() }
    }

    /// One request and its answer, with the beginning of the answer's body.
    async fn exchange(
        &mut self,
        settings: &Settings,
        request: Request<Full<Bytes>>,
    ) -> Result<(Parts, Vec<u8>), String> {
        let place = settings.target.place();
        let failed = |why: hyper::Error| format!("{place}: {}", explain(&why));
        // Taken: whoever gives up in the middle leaves no half-used connection.
        let used = match self.connection.take() {
            Some(mut used) => used.sender.ready().await.is_ok().then_some(used),
            None => None,
        };
        let mut connection = match used {
            Some(used) => used,
            None => connect::open(settings).await?,
        };
        let answer = match connection.sender.try_send_request(request).await {
            Ok(answer) => answer,
            Err(mut why) => match why.take_message() {
                // The receiver closed a connection at rest, and has seen
                // nothing of the request.
                Some(request) => {
                    connection = connect::open(settings).await?;
                    connection.sender.send_request(request).await.map_err(failed)?
                }
                None => return Err(failed(why.into_error())),
            },
        };
        let (parts, body) = answer.into_parts();
        let (start, whole) = read(body).await.map_err(|why| {
            format!("{place} broke off its answer {}: {}", parts.status, explain(&why))
        })?;
        if whole {
            self.connection = Some(connection);
        }
        Ok((parts, start))
    }
}

impl Post for Client {
    async fn post(&mut self, id: &str, body: Bytes) -> Posted {
        self.suspect = false;
        let limit = self.settings.timeout;
        let posted = tokio::time::timeout(limit, self.try_post(id, body)).await;
        match posted {
            Ok(Posted::Later { after, reason }) => {
                Posted::Later { after, reason: self.settings.redact.clean(&reason) }
            }
            Ok(posted) => posted,
            Err(_) => {
                let place = self.settings.target.place();
                let reason = format!("{place} did not answer within {limit:?} (`timeout`)");
                Posted::Later { after: None, reason }
            }
        }
    }
}

fn request(settings: &Settings, target: &Target, id: &str, body: Bytes) -> Request<Full<Bytes>> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.unwrap_or(Duration::ZERO).as_secs();
    let signature = settings.signer.sign(id, now, &body);

    let mut request = Request::new(Full::new(body));
    *request.method_mut() = hyper::Method::POST;
    *request.uri_mut() = Uri::from(target.path.clone());
    let headers = request.headers_mut();
    headers.clone_from(&settings.headers);
    headers.insert(HOST, target.authority.clone());
    headers.insert(TIMESTAMP, HeaderValue::from(now));
    if let Ok(id) = HeaderValue::from_str(id) {
        headers.insert(ID, id);
    }
    if let Some(signature) = signature {
        headers.insert(SIGNATURE, signature);
    }
    if let Some(proxy) = settings.proxy.as_ref().filter(|_| !target.tls) {
        if let Some(authorization) = &proxy.authorization {
            headers.insert(PROXY_AUTHORIZATION, authorization.clone());
        }
        // A proxy is told the whole URL (RFC 9112, section 3.2.2).
        let whole = Uri::builder()
            .scheme("http")
            .authority(target.authority.as_bytes())
            .path_and_query(target.path.clone())
            .build();
        if let Ok(whole) = whole {
            *request.uri_mut() = whole;
        }
    }
    request
}

/// Reads a body: its beginning, and whether that was read to the end.
async fn read(mut body: Incoming) -> Result<(Vec<u8>, bool), hyper::Error> {
    let (mut start, mut size) = (Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        size += data.len();
        let wanted = data.len().min(KEPT_BODY - start.len());
        start.extend_from_slice(&data[..wanted]);
        if size > MAX_BODY {
            return Ok((start, false));
        }
    }
    Ok((start, true))
}

/// An error with its causes.
pub(crate) fn explain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Many errors already end with their cause.
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
