//! Answers of the administration, and what is wrong with a request.

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, REFERRER_POLICY, WWW_AUTHENTICATE,
    X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Response, StatusCode};
use serde::Serialize;

use super::live::Stream;
use crate::state::Refusal;

/// Whole, or as it comes.
pub(super) type Body = Either<Full<Bytes>, Stream>;
/// An answer.
pub(super) type Answer = Response<Body>;

/// Why a request is not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    /// Stable reason for programs.
    pub(super) code: &'static str,
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

impl Problem {
    pub(super) fn new(
        status: StatusCode,
        code: &'static str,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self { status, code, message: message.into(), hint: Some(hint.into()) }
    }

    /// Something in the request is not as it must be.
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        let (status, code) = (StatusCode::BAD_REQUEST, "invalid");
        Self { status, code, message: message.into(), hint: None }
    }

    /// There is no such thing.
    pub(super) fn unknown(code: &'static str, message: impl Into<String>) -> Self {
        Self { status: StatusCode::NOT_FOUND, code, message: message.into(), hint: None }
    }

    pub(super) fn answer(&self) -> Answer {
        #[derive(Serialize)]
        struct Shape<'a> {
            code: &'a str,
            message: &'a str,
            hint: Option<&'a str>,
        }
        let Self { status, code, message, hint } = self;
        let mut answer = json(&Shape { code, message, hint: hint.as_deref() });
        *answer.status_mut() = *status;
        match *status {
            StatusCode::UNAUTHORIZED => {
                let value = HeaderValue::from_static("Bearer realm=\"pilot-registry\"");
                answer.headers_mut().insert(WWW_AUTHENTICATE, value);
            }
            StatusCode::METHOD_NOT_ALLOWED => {
                let allowed = if *code == "post_only" { "POST" } else { "GET, HEAD" };
                answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
            }
            _ => {}
        }
        answer
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let reply = refusal.reply();
        Self {
            status: status(&refusal),
            code: refusal.code(),
            message: refusal.to_string(),
            hint: reply.hint,
        }
    }
}

fn status(refusal: &Refusal) -> StatusCode {
    match refusal.code() {
        "bad_admin_token" => StatusCode::UNAUTHORIZED,
        "admin_only" | "not_owner" | "not_member" | "not_admitted" | "revoked" | "private"
        | "bad_signature" | "session_required" => StatusCode::FORBIDDEN,
        "unknown_node" | "unknown_hostname" | "unknown_network" | "unknown_type" | "token_gone"
        | "invitation_gone" => StatusCode::NOT_FOUND,
        "network_exists" | "already_member" | "hostname_taken" | "registry_full" | "not_empty"
        | "full" => StatusCode::CONFLICT,
        "rate_limited" => StatusCode::TOO_MANY_REQUESTS,
        "storage" => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::BAD_REQUEST,
    }
}

/// JSON that nobody keeps.
pub(super) fn json(value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => whole("application/json", body),
        Err(e) => {
            // Nothing here has keys that are no texts, so this does not happen.
            let problem = Problem::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                format!("the answer is no JSON: {e}"),
                "this is an error of the registry",
            );
            tracing::error!("{}", problem.message);
            let mut answer = whole("text/plain; charset=utf-8", problem.message);
            *answer.status_mut() = problem.status;
            answer
        }
    }
}

/// A whole body of this type, which nobody keeps.
pub(super) fn whole(kind: &'static str, body: impl Into<Bytes>) -> Answer {
    of(kind, Either::Left(Full::new(body.into())))
}

/// A body of this type, which nobody keeps.
pub(super) fn of(kind: &'static str, body: Body) -> Answer {
    let mut answer = Response::new(body);
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    answer
}

/// With one more header.
pub(super) fn with(mut answer: Answer, name: HeaderName, value: &'static str) -> Answer {
    answer.headers_mut().insert(name, HeaderValue::from_static(value));
    answer
}
