//! Which address is answered by what, and for whom.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use pilot_wire::registry::audit::{AuditFilter, AuditResult};
use pilot_wire::registry::{Envelope, Extended};

use super::access::access;
use super::answer::{Answer, Problem};
use super::query::{Query, decoded};
use super::{Peer, Site, health, live, networks, nodes, published, request};
use crate::denials::Refused;
use crate::state::Refusal;

/// Longest time until an answer begins.
const LIMIT: Duration = Duration::from_secs(60);
/// Longest text of a request's in a log, in characters.
const MAX_TEXT: usize = 80;

/// Answers one request; a problem is an answer as well.
pub(super) async fn answer(site: &Site, peer: &Peer, request: Request<Incoming>) -> Answer {
    let answered = tokio::time::timeout(LIMIT, route(site, peer, request)).await;
    let answered = answered.unwrap_or_else(|_| {
        let text = format!("no answer within {} s", LIMIT.as_secs());
        Err(Problem::new(StatusCode::GATEWAY_TIMEOUT, "timeout", text, "try again later"))
    });
    let answer = answered.unwrap_or_else(|problem| {
        let (source, code) = (peer.source, problem.code);
        tracing::debug!(%source, code, "administration: {}", problem.message);
        problem.answer()
    });
    let class = usize::from(answer.status().as_u16() / 100);
    if let Some(count) = site.service.metrics().admin.answers.get(class) {
        count.fetch_add(1, Relaxed);
    }
    answer
}

async fn route(site: &Site, peer: &Peer, request: Request<Incoming>) -> Result<Answer, Problem> {
    let path = request.uri().path().to_owned();
    let access = access(site, peer, request.headers(), &path)?;
    let parts: Vec<String> =
        path.split('/').skip(1).map(decoded).collect::<Result<_, Problem>>()?;
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    if parts == ["api", "v1", "request"] {
        if request.method() != Method::POST {
            return Err(not_allowed("post_only", &request));
        }
        query(&request, &[])?;
        return request::request(site, peer, access.admin()?, request).await;
    }
    if !is_known(&parts) {
        return Err(Problem::unknown("unknown_path", format!("there is nothing at {path}")));
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return Err(not_allowed("get_only", &request));
    }
    let headers = request.headers();
    match parts[..] {
        // The page and what is shown to anybody take any query, as published:
        // some add one to get around what is kept on the way.
        [""] => return Ok(site.page.answer()),
        ["api", "stats"] => return Ok(published::stats(site, access.is_admin()).await),
        ["api", "badge", name] => {
            let unknown =
                || Problem::unknown("unknown_path", format!("there is no badge {name:?}"));
            return published::badge(site, name).await.ok_or_else(unknown);
        }
        ["metrics"] => return health::metrics(site, peer, &access, headers).await,
        ["healthz"] => return Ok(health::alive(site)),
        ["readyz"] => return Ok(health::ready(site).await),
        _ => {}
    }
    access.admin()?;
    match parts[..] {
        ["api", "v1", "nodes"] => nodes::list(site, &query(&request, nodes::KEYS)?),
        ["api", "v1", "nodes", id] => {
            query(&request, &[])?;
            nodes::one(site, id)
        }
        ["api", "v1", "networks"] => networks::list(site, &query(&request, networks::KEYS)?),
        ["api", "v1", "networks", id] => networks::one(site, id, &query(&request, networks::KEYS)?),
        ["api", "v1", "networks", id, "members"] => {
            networks::members(site, id, &query(&request, networks::KEYS)?)
        }
        ["api", "v1", "networks", id, "tokens"] => {
            query(&request, &[])?;
            networks::tokens(site, id)
        }
        ["api", "v1", "networks", id, "invitations"] => {
            networks::invitations(site, id, &query(&request, networks::KEYS)?)
        }
        ["api", "v1", "audit"] => {
            let mut filter = audit_filter(&query(&request, AUDIT_KEYS)?)?;
            if let Some(newest) = query(&request, AUDIT_KEYS)?.number::<u64>("newest")? {
                let head = site.service.audit().head().map_or(0, |head| head.seq);
                filter.after = filter.after.max(Some(head.saturating_sub(newest)));
            }
            let asked = Envelope::new(Extended::AuditQuery(filter));
            request::settled(site, peer, access.admin()?, asked).await
        }
        ["api", "v1", "events"] => {
            query(&request, &[])?;
            live::events(site, headers)
        }
        _ => Err(Problem::unknown("unknown_path", format!("there is nothing at {path}"))),
    }
}

fn is_known(parts: &[&str]) -> bool {
    matches!(
        parts,
        [""] | ["metrics" | "healthz" | "readyz"]
            | ["api", "stats"]
            | ["api", "badge", _]
            | ["api", "v1", "nodes" | "networks" | "audit" | "events"]
            | ["api", "v1", "nodes" | "networks", _]
            | ["api", "v1", "networks", _, "members" | "tokens" | "invitations"]
    )
}

fn not_allowed(code: &'static str, request: &Request<Incoming>) -> Problem {
    let wanted = if code == "post_only" { "POST" } else { "GET or HEAD" };
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        code,
        format!("{} is not for {}", cut(request.method().as_str()), cut(request.uri().path())),
        format!("use {wanted}"),
    )
}

fn query(request: &Request<Incoming>, known: &[&str]) -> Result<Query, Problem> {
    Query::parse(request.uri().query(), known)
}

/// `newest`: of the last so many records those that fit.
const AUDIT_KEYS: &[&str] =
    &["since", "until", "actor", "operation", "object", "result", "after", "limit", "newest"];

fn audit_filter(query: &Query) -> Result<AuditFilter, Problem> {
    let text = |key| query.text(key).map(str::to_owned);
    Ok(AuditFilter {
        since: query.number("since")?,
        until: query.number("until")?,
        actor: text("actor"),
        operation: text("operation"),
        object: text("object"),
        result: match query.text("result") {
            None => None,
            Some("allowed") => Some(AuditResult::Allowed),
            Some("denied") => Some(AuditResult::Denied),
            Some(other) => {
                let problem = format!("result is {other:?}, expected allowed or denied");
                return Err(Problem::invalid(problem));
            }
        },
        after: query.number("after")?,
        limit: query.number("limit")?,
    })
}

impl Site {
    /// Tells whoever runs the registry of a refusal.
    pub(super) fn denied(&self, source: SocketAddr, refusal: &Refusal, operation: &str) {
        self.service.metrics().admin.denied.fetch_add(1, Relaxed);
        tracing::debug!(%source, code = refusal.code(), operation, "refused: {refusal}");
        self.denials.deny(source, refusal, || Refused {
            operation: cut(operation),
            claimed: None,
            by: None,
            object: String::new(),
            request_id: String::new(),
        });
    }
}

/// The beginning of a text that may be long.
pub(super) fn cut(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}
