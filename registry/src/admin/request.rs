//! `POST /api/v1/request`: a request as on the registry's own port, by an
//! administrator.
//!
//! Bound: a body is at most as long as a frame of that port may be.

use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderMap};
use hyper::{Request, StatusCode};
use pilot_wire::registry::{Envelope, MAX_BODY_LEN};

use super::answer::{Answer, Problem, json};
use super::route::cut;
use super::{Peer, Site};
use crate::connection::unix_now;
use crate::denials::{self, Refused};
use crate::service::Asker;

/// Answers the request in the body.
pub(super) async fn request(
    site: &Site,
    peer: &Peer,
    admin: &str,
    request: Request<Incoming>,
) -> Result<Answer, Problem> {
    check_kind(request.headers())?;
    let body = Limited::new(request.into_body(), MAX_BODY_LEN).collect().await.map_err(|e| {
        if e.is::<LengthLimitError>() {
            return Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "too_large",
                format!("the body is longer than {MAX_BODY_LEN} bytes"),
                "no request needs so much",
            );
        }
        Problem::invalid(format!("the body did not arrive: {e}"))
    })?;
    let envelope = Envelope::parse(&body.to_bytes())
        .map_err(|e| Problem::invalid(format!("the request cannot be read: {e}")))?;
    settled(site, peer, admin, envelope).await
}

/// Answers a request of the administrator of that name.
pub(super) async fn settled(
    site: &Site,
    peer: &Peer,
    admin: &str,
    envelope: Envelope,
) -> Result<Answer, Problem> {
    let asker = Asker { source: peer.source, session: None };
    // For those who are told when it is refused.
    let (about, request_id) =
        (serde_json::to_value(&envelope.request), envelope.request_id.clone());
    let admitted = site.service.extended_by(admin, envelope, &asker, unix_now()).await;
    let outcome = match admitted {
        Ok(admitted) => site.writer.settle(admitted).await.inspect_err(|refusal| {
            // The command is in the audit log.
            site.denials.applied(peer.source, refusal);
        }),
        Err(refusal) => {
            site.denials.deny(peer.source, &refusal, || {
                let about = about.unwrap_or_default();
                let operation = about["type"].as_str().unwrap_or_default().to_owned();
                let object = denials::object(about.to_string().as_bytes());
                Refused { operation, claimed: None, by: None, object, request_id: cut(&request_id) }
            });
            Err(refusal)
        }
    };
    outcome.map(|reply| json(&reply)).map_err(Problem::from)
}

/// A page of another site cannot send this type without asking first, which is
/// never answered: whoever has a certificate in the browser is safe from it.
fn check_kind(headers: &HeaderMap) -> Result<(), Problem> {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(Problem::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "not_json",
        format!("the body is {kind:?}"),
        "send it as: Content-Type: application/json",
    ))
}
