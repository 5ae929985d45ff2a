//! Who asks: anybody, or an administrator. An administrator shows the admin
//! token, or a certificate of the administrators' CA.
//!
//! Bound: [`FAILURES`] wrong tokens a minute and source address; then no token
//! of that address is looked at for a while.

use std::sync::{Mutex, PoisonError};

use hyper::StatusCode;
use hyper::header::{AUTHORIZATION, HeaderMap};
use pilot_tls::{CertificateDer, Pin, common_name};

use super::answer::Problem;
use super::{Peer, Site};
use crate::connection::unix_now;
use crate::limits::RateLimit;
use crate::state::Refusal;

/// Wrong tokens a minute and source address.
const FAILURES: u32 = 10;
/// Longest name of a certificate, in characters.
const MAX_NAME: usize = 64;

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Nobody in particular.
    Anybody,
    /// An administrator, by name.
    Admin(String),
}

impl Access {
    pub(super) const fn is_admin(&self) -> bool {
        matches!(self, Self::Admin(_))
    }

    /// The administrator's name.
    ///
    /// # Errors
    /// When it is anybody.
    pub(super) fn admin(&self) -> Result<&str, Problem> {
        match self {
            Self::Admin(name) => Ok(name),
            Self::Anybody => Err(Problem::new(
                StatusCode::UNAUTHORIZED,
                "admin_only",
                "this is for administrators",
                "send the registry's admin token as: Authorization: Bearer TOKEN",
            )),
        }
    }
}

/// Wrong tokens by source.
#[derive(Debug)]
pub(super) struct Failures(Mutex<RateLimit>);

impl Default for Failures {
    fn default() -> Self {
        Self(Mutex::new(RateLimit::new(FAILURES)))
    }
}

/// Finds out who asks. Showing a wrong token is an error, even where none is
/// needed.
pub(super) fn access(
    site: &Site,
    peer: &Peer,
    headers: &HeaderMap,
    path: &str,
) -> Result<Access, Problem> {
    let Some(shown) = headers.get(AUTHORIZATION) else {
        return Ok(peer.name.clone().map_or(Access::Anybody, Access::Admin));
    };
    let now = unix_now();
    let failures = || site.failures.0.lock().unwrap_or_else(PoisonError::into_inner);
    if !failures().has(peer.source.ip(), now) {
        site.denied(peer.source, &Refusal::RateLimited, path);
        return Err(Problem::new(
            StatusCode::TOO_MANY_REQUESTS,
            "rate_limited",
            "too many wrong tokens from this address",
            "try again in a minute",
        ));
    }
    let token = shown.to_str().ok().and_then(|shown| {
        let (scheme, token) = shown.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
    });
    match token.ok_or(Refusal::BadAdminToken).and_then(|token| site.service.administrator(token)) {
        Ok(name) => Ok(Access::Admin(name)),
        Err(refusal) => {
            failures().take(peer.source.ip(), now);
            site.denied(peer.source, &refusal, path);
            let mut problem = Problem::from(refusal);
            problem.hint = Some("send it as: Authorization: Bearer TOKEN".to_owned());
            Err(problem)
        }
    }
}

/// Under which name the holder of a certificate acts.
pub(super) fn certificate_name(certificate: &CertificateDer<'_>) -> String {
    let name = common_name(certificate).map(|name| name.chars().take(MAX_NAME).collect());
    name.unwrap_or_else(|| format!("certificate {}", Pin::of(certificate)))
}
