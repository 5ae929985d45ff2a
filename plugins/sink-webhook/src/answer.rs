//! What an answer means for the events that were posted. No I/O.

use std::time::{Duration, SystemTime};

use hyper::header::{HeaderMap, LOCATION, RETRY_AFTER};
use hyper::{StatusCode, Uri};

use crate::source::Redactor;

/// A receiver cannot ask for a longer pause: it may have meant milliseconds.
pub(crate) const MAX_PAUSE: Duration = Duration::from_secs(3600);

/// Characters of an answer's body that the operator is shown.
pub(crate) const SHOWN: usize = 200;

/// Longest first segment of a path that the operator is shown, in bytes.
const SHOWN_SEGMENT: usize = 8;

/// What to do with the events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// They arrived.
    Accepted,
    /// They did not, and may later.
    Later {
        /// Pause that the receiver asked for.
        after: Option<Duration>,
        /// Whether what we said of ourselves may be the cause.
        credentials: bool,
    },
    /// They did not: the receiver points elsewhere.
    Elsewhere {
        /// Whether the method and body stay the same (307, 308).
        same_request: bool,
    },
    /// They, or one of them, never will.
    Refused,
}

/// The meaning of a status with its headers.
///
/// A status that says that the URL or the credentials are wrong is no judgement
/// on an event: such events wait until the operator has mended it.
pub(crate) fn meaning(status: StatusCode, headers: &HeaderMap, now: SystemTime) -> Meaning {
    let later = |credentials| Meaning::Later { after: pause(headers, now), credentials };
    match status.as_u16() {
        200..300 => Meaning::Accepted,
        307 | 308 => Meaning::Elsewhere { same_request: true },
        300..400 => Meaning::Elsewhere { same_request: false },
        401 | 403 | 407 => later(true),
        // Not found, wrong method, gone; time out, wrong server, too early,
        // wrong protocol, too many.
        404 | 405 | 408 | 410 | 421 | 425 | 426 | 429 => later(false),
        400..500 => Meaning::Refused,
        _ => later(false),
    }
}

/// `Retry-After` in seconds or as a date (RFC 9110, section 10.2.3).
fn pause(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let pause = if value.bytes().all(|b| b.is_ascii_digit()) && !value.is_empty() {
        value.parse().map_or(MAX_PAUSE, Duration::from_secs)
    } else {
        let date = httpdate::parse_http_date(value).ok()?;
        date.duration_since(now).unwrap_or(Duration::ZERO)
    };
    Some(pause.min(MAX_PAUSE))
}

/// An answer for the operator: whose, its status, and how its body begins.
pub(crate) fn describe(
    place: &str,
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
    redact: &Redactor,
) -> String {
    let mut text = format!("{place} answered {status}");
    if status.is_redirection() {
        let to = headers.get(LOCATION).and_then(|value| value.to_str().ok());
        text.push_str(&match to {
            Some(to) => format!(" to {}, and redirects are not followed: correct `url`", bare(to)),
            None => " without a Location: correct `url`".to_owned(),
        });
    }
    // Before it is cut: half a secret would not be found.
    let body = excerpt(&redact.clean(&String::from_utf8_lossy(body)));
    if !body.is_empty() {
        text.push_str(": ");
        text.push_str(&body);
    }
    redact.clean(&text)
}

/// The first characters of a body, on one line.
fn excerpt(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty());
    let line = words.collect::<Vec<_>>().join(" ");
    line.chars().take(SHOWN).collect()
}

/// A location without user, password, query and the end of its path, which may
/// be secret.
fn bare(location: &str) -> String {
    let shown = location.split(['?', '#']).next().unwrap_or_default();
    let shown = match shown.parse::<Uri>() {
        Ok(uri) => match (uri.scheme_str(), uri.authority()) {
            (Some(scheme), Some(authority)) => {
                let host = authority.as_str().rsplit('@').next().unwrap_or_default();
                format!("{scheme}://{host}{}", shown_path(uri.path()))
            }
            _ => shown_path(uri.path()),
        },
        Err(_) => "something that is not a URL".to_owned(),
    };
    shown.chars().take(SHOWN).collect()
}

/// The first segment of a path if it is short: many receivers have a secret
/// behind it.
fn shown_path(path: &str) -> String {
    let (first, rest) = match path.trim_start_matches('/').split_once('/') {
        Some((first, rest)) => (first, Some(rest)),
        None => (path.trim_start_matches('/'), None),
    };
    if first.len() > SHOWN_SEGMENT {
        return "/***".to_owned();
    }
    match rest {
        Some(rest) if !rest.is_empty() => format!("/{first}/***"),
        _ => format!("/{first}"),
    }
}
