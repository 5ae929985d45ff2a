//! `network`: commands on networks, and the words in which they are told of.

pub(super) mod invitation;
pub(super) mod manage;
pub(super) mod member;
pub(super) mod status;
pub(super) mod token;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pilot_sdk::{Host, NodeId};
use pilot_wire::registry::network::{BroadcastRight, NetworkRef};

use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::{printable_line, rfc3339, seconds};
use crate::peer;
use crate::spec::Flag;

/// Tags that come with joining.
const TAG: Flag = Flag::value("tag", "tag", "a tag for who joins with it; may be given again");

/// A network by number or name.
pub(crate) fn named(text: &str) -> NetworkRef {
    text.parse().map_or_else(|_| NetworkRef::Name(text.to_owned()), NetworkRef::Id)
}

/// A node by number or address, or by a hostname that the daemon is asked for.
pub(crate) async fn node(cx: &Cx, text: &str) -> Result<NodeId, Failure> {
    match text.parse::<Host>() {
        Ok(Host::Address(address)) => Ok(address.node),
        Ok(Host::Name(_)) => Ok(peer::resolve(cx, &cx.client().await?, text).await?.node),
        Err(e) => Err(Failure::invalid(e.to_string())),
    }
}

pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// The moment that `--expires` means, or none for `never`.
fn expiry(args: &Args, default: Duration) -> Result<Option<u64>, Failure> {
    if args.value("expires") == Some("never") {
        return Ok(None);
    }
    let span = args.duration("expires", default)?;
    if span.is_zero() {
        return Err(Failure::invalid("invalid --expires: it would be over at once")
            .hint("write a duration like 24h or 7d"));
    }
    Ok(Some(unix_now().saturating_add(span.as_secs().max(1))))
}

/// A moment for people: how long until then.
pub(crate) fn until(moment: Option<u64>) -> String {
    let Some(moment) = moment else { return "never".to_owned() };
    match moment.checked_sub(unix_now()) {
        Some(left) => format!("in {}", seconds(left)),
        None => format!("{} ago", seconds(unix_now() - moment)),
    }
}

/// A moment for people.
fn moment(unix: u64) -> String {
    rfc3339(i64::try_from(unix).unwrap_or(i64::MAX))
}

fn broadcast(right: &BroadcastRight) -> String {
    match right {
        BroadcastRight::Nobody => "nobody".to_owned(),
        BroadcastRight::Owner => "owner".to_owned(),
        BroadcastRight::Members => "members".to_owned(),
        BroadcastRight::Tagged(tag) => format!("tag:{}", printable_line(tag)),
    }
}

/// Tags for people.
fn tags(tags: &[String]) -> String {
    match tags {
        [] => "-".to_owned(),
        tags => printable_line(&tags.join(" ")),
    }
}
