//! Where a POST goes: the URL and the proxy, parsed once.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::Uri;
use hyper::header::HeaderValue;
use hyper::http::uri::PathAndQuery;

/// A URL to post to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Target {
    pub(crate) tls: bool,
    /// Without the brackets of an IPv6 address.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// As in the URL, for the `Host` header.
    pub(crate) authority: HeaderValue,
    pub(crate) path: PathAndQuery,
}

impl Target {
    /// Parses a URL. The error does not repeat it: it may be a secret.
    pub(crate) fn parse(url: &str) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|why| format!("it is not a URL ({why})"))?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err("it must begin with http:// or https://".to_owned()),
        };
        let authority = uri.authority().ok_or("it has no host")?;
        if authority.as_str().contains('@') {
            return Err("it holds a user or password; use `bearer` or `headers`".to_owned());
        }
        let host = plain_host(authority.host());
        if host.is_empty() {
            return Err("it has no host".to_owned());
        }
        Ok(Self {
            tls,
            host,
            port: authority.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            authority: HeaderValue::from_str(authority.as_str())
                .map_err(|_| "its host is not text")?,
            path: uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/")),
        })
    }

    /// Host and port, with the brackets of an IPv6 address.
    pub(crate) fn place(&self) -> String {
        place(&self.host, self.port)
    }

    /// Where a `Location` leads, when that is the same scheme, host and port.
    pub(crate) fn same_origin(&self, location: &str) -> Option<Self> {
        if location.starts_with('/') && !location.starts_with("//") {
            let path = location.split('#').next().unwrap_or_default().parse().ok()?;
            return Some(Self { path, ..self.clone() });
        }
        let other = Self::parse(location).ok()?;
        let same = (other.tls, other.port) == (self.tls, self.port)
            && other.host.eq_ignore_ascii_case(&self.host);
        same.then_some(other)
    }
}

/// A proxy that speaks HTTP.
#[derive(Clone)]
pub(crate) struct Proxy {
    pub(crate) host: String,
    pub(crate) port: u16,
    /// `Proxy-Authorization`.
    pub(crate) authorization: Option<HeaderValue>,
    /// User and password, to be kept out of texts.
    pub(crate) secrets: Vec<String>,
}

impl Proxy {
    /// Parses `http://[USER:PASSWORD@]HOST:PORT`.
    pub(crate) fn parse(url: &str) -> Result<Self, String> {
        const FORM: &str = "it must be http://[USER:PASSWORD@]HOST:PORT";
        let rest = url.strip_prefix("http://").ok_or(FORM)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (user, place) = match rest.rsplit_once('@') {
            Some((user, place)) => (Some(user), place),
            None => (None, rest),
        };
        let authority: hyper::http::uri::Authority = place.parse().map_err(|_| FORM)?;
        let host = plain_host(authority.host());
        let port = authority.port_u16().ok_or("it has no port")?;
        if host.is_empty() {
            return Err(FORM.to_owned());
        }
        let Some(user) = user else {
            return Ok(Self { host, port, authorization: None, secrets: Vec::new() });
        };
        let (name, password) = user.split_once(':').unwrap_or((user, ""));
        let (name, password) = (unescape(name)?, unescape(password)?);
        let encoded = STANDARD.encode(format!("{name}:{password}"));
        let mut authorization = HeaderValue::from_str(&format!("Basic {encoded}"))
            .map_err(|_| "its user is not text")?;
        authorization.set_sensitive(true);
        Ok(Self {
            host,
            port,
            authorization: Some(authorization),
            secrets: vec![password, encoded],
        })
    }

    /// Host and port.
    pub(crate) fn place(&self) -> String {
        place(&self.host, self.port)
    }
}

/// Whether `host` is to be reached without the proxy.
pub(crate) fn bypasses(host: &str, no_proxy: &[String]) -> bool {
    let host = host.to_ascii_lowercase();
    no_proxy.iter().any(|entry| {
        let entry = entry.trim().to_ascii_lowercase();
        match entry.strip_prefix('.') {
            Some(domain) => host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.')),
            None => entry == "*" || plain_host(&entry) == host,
        }
    })
}

fn place(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn plain_host(host: &str) -> String {
    host.trim_start_matches('[').trim_end_matches(']').to_owned()
}

/// Resolves `%XX`.
fn unescape(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let value = after
            .get(..2)
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok())
            .ok_or("its user or password has a % that is not followed by two digits")?;
        bytes.push(value);
        rest = &after[2..];
    }
    String::from_utf8(bytes).map_err(|_| "its user or password is not UTF-8".to_owned())
}
