//! What the client needs, made of the configuration and of the files and
//! variables that it names.

use std::time::Duration;

use hyper::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderName,
    HeaderValue, TRANSFER_ENCODING, USER_AGENT,
};

use crate::config::{Config, Redirects};
use crate::format::Format;
use crate::sign::Signer;
use crate::source::{Environment, Redactor, Source};
use crate::target::{Proxy, Target, bypasses};
use crate::tls::Secure;

/// Time for one POST as published (protocol page "Services", section 10).
const TIMEOUT: Duration = Duration::from_secs(5);

/// `webhook-id`: names what is posted.
pub(crate) const ID: HeaderName = HeaderName::from_static("webhook-id");
/// `webhook-timestamp`: when it is posted, in seconds since 1970.
pub(crate) const TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
/// `webhook-signature`: see [`Signer`].
pub(crate) const SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// Set by the client itself.
const OWN: [HeaderName; 7] =
    [HOST, CONTENT_LENGTH, TRANSFER_ENCODING, CONNECTION, ID, TIMESTAMP, SIGNATURE];

/// Headers whose names have one of these are taken for secrets.
const SECRET_NAMES: [&str; 5] = ["auth", "token", "key", "secret", "cookie"];

/// A segment of a URL's path with more bytes is taken for a secret.
const LONG_SEGMENT: usize = 8;

/// Checked settings of a sink with a URL.
pub(crate) struct Settings {
    pub(crate) target: Target,
    pub(crate) format: Format,
    pub(crate) timeout: Duration,
    /// Of every POST.
    pub(crate) headers: HeaderMap,
    pub(crate) signer: Signer,
    /// Absent for a host that is reached without.
    pub(crate) proxy: Option<Proxy>,
    pub(crate) redirects: Redirects,
    /// For an `https` URL.
    pub(crate) secure: Option<Secure>,
    pub(crate) redact: Redactor,
}

impl Settings {
    /// Checks the configuration and reads what it names; `None` without a URL.
    ///
    /// # Errors
    /// The text names the key and the file, and no secret.
    pub(crate) fn resolve(
        config: &Config,
        environment: Environment<'_>,
    ) -> Result<Option<Self>, String> {
        let Some(written) = &config.url else { return Ok(None) };
        let url = written.read("url", environment)?;
        if url.is_empty() {
            return Ok(None);
        }
        let target = Target::parse(&url).map_err(|why| format!("`url`: {why}"))?;
        let mut redact = Redactor::default();
        if written.is_apart() {
            redact.add(&url);
            redact.add(target.path.as_str());
        }
        // Also where the URL is in the configuration itself.
        for secret in secret_parts(&target) {
            redact.add(secret);
        }
        let headers = headers(config, environment, &mut redact)?;

        let mut signer = Signer::default();
        for secret in config.secret.iter().flat_map(|secrets| secrets.list()) {
            let secret = secret.read("secret", environment)?;
            signer.add(&secret).map_err(|why| format!("`secret`: {why}"))?;
            redact.add(&secret);
        }

        let proxy = proxy(config, environment, &mut redact)?;
        let proxy = proxy.filter(|_| !bypasses(&target.host, &config.no_proxy));
        let secure = match (&config.tls, target.tls) {
            (None, false) => None,
            (tls, true) => Some(Secure::new(&tls.clone().unwrap_or_default(), &target)?),
            (Some(_), false) => {
                return Err("`tls` is set, but `url` does not begin with https://".to_owned());
            }
        };
        Ok(Some(Self {
            target,
            format: Format::new(config.mode, config.format),
            timeout: config.timeout.map_or(TIMEOUT, |timeout| timeout.0),
            headers,
            signer,
            proxy,
            redirects: config.follow_redirects,
            secure,
            redact,
        }))
    }
}

/// What of a URL may be secret wherever it is written: its path behind the
/// first segment, that too when it is long, and the query.
fn secret_parts(target: &Target) -> Vec<&str> {
    let (path, query) = (target.path.path(), target.path.query());
    let behind = path.trim_start_matches('/');
    let (first, rest) = behind.split_once('/').unwrap_or((behind, ""));
    let mut parts = vec![rest];
    parts.extend(query);
    // A receiver may repeat one of them alone.
    parts.extend(std::iter::once(first).chain(rest.split('/')).filter(|p| p.len() > LONG_SEGMENT));
    parts
}

fn headers(
    config: &Config,
    environment: Environment<'_>,
    redact: &mut Redactor,
) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    let agent = concat!("pilot-sink-webhook/", env!("CARGO_PKG_VERSION"));
    headers.insert(USER_AGENT, HeaderValue::from_static(agent));
    headers.insert(CONTENT_TYPE, Format::new(config.mode, config.format).content_type());
    for (name, source) in &config.headers {
        let key = format!("headers.{name}");
        let header: HeaderName =
            name.parse().map_err(|_| format!("`{key}`: this is not a header's name"))?;
        if OWN.contains(&header) {
            return Err(format!("`{key}`: this header is set by the sink itself"));
        }
        let text = source.read(&key, environment)?;
        let mut value = HeaderValue::from_str(&text)
            .map_err(|_| format!("`{key}`: the value has characters that a header cannot have"))?;
        let secret = source.is_apart() || SECRET_NAMES.iter().any(|n| header.as_str().contains(n));
        if secret {
            value.set_sensitive(true);
            redact.add(&text);
            // The part after `Bearer` or `Basic`.
            if let Some((_, credentials)) = text.split_once(' ') {
                redact.add(credentials);
            }
        }
        headers.insert(header, value);
    }
    if let Some(bearer) = &config.bearer {
        if headers.contains_key(AUTHORIZATION) {
            return Err("`bearer` and `headers.authorization` exclude each other".to_owned());
        }
        let token = bearer.read("bearer", environment)?;
        let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|_| "`bearer`: the token has characters that a header cannot have")?;
        value.set_sensitive(true);
        redact.add(&token);
        headers.insert(AUTHORIZATION, value);
    }
    Ok(headers)
}

fn proxy(
    config: &Config,
    environment: Environment<'_>,
    redact: &mut Redactor,
) -> Result<Option<Proxy>, String> {
    let read = |source: &Source| source.read("proxy", environment);
    let url = config.proxy.as_ref().map(read).transpose()?;
    let Some(url) = url.filter(|url| !url.is_empty()) else { return Ok(None) };
    let proxy = Proxy::parse(&url).map_err(|why| format!("`proxy`: {why}"))?;
    for secret in &proxy.secrets {
        redact.add(secret);
    }
    Ok(Some(proxy))
}
