//! `audit`: records of the registry's audit log, for administrators.

use std::time::Duration;

use pilot_wire::registry::audit::{AuditActor, AuditFilter, AuditRecord, AuditResult};
use pilot_wire::registry::{AuditPage, Extended};
use pilot_wire::service::rfc3339::parse as parse_rfc3339;
use tokio::time::sleep;

use super::network::unix_now;
use crate::args::{self, Args};
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::{Answer, or_dash, printable_line, rfc3339};
use crate::registry::{ADMIN_TOKEN, Asker, FINGERPRINT};
use crate::spec::{Flag, Spec};

/// Records asked for at once; the registry gives no more.
const PAGE: u64 = 1000;
/// Records shown unless something else is said.
const DEFAULT_LIMIT: u64 = 1000;
/// Time between looks for new records.
const LOOK: Duration = Duration::from_secs(1);

pub(crate) const SPEC: Spec = Spec {
    name: "audit",
    usage: "audit [--since <dur|time>] [--until <dur|time>] [--actor <actor>] [--operation <operation>] [--object <object>] [--result allowed|denied] [--limit <n>] [--follow] [--admin-token <token>]",
    about: "Show the registry's audit log, as an administrator",
    returns: "one record per line: seq, time, command, actor (kind, name, node_id, address, public_key, owner, external_identity), source, operation, object, result, code, rule, detail, request_id, count, previous, hash",
    flags: &[
        Flag::value("since", "dur|time", "from then on: 1h ago, or 2026-11-20T13:00:00Z"),
        Flag::value("until", "dur|time", "before then"),
        Flag::value(
            "actor",
            "actor",
            "a node's number or address, an owner, a key, an external identity, an administrator",
        ),
        Flag::value("operation", "operation", "such as register, network_join, revoke_trust"),
        Flag::value("object", "object", "the whole object, such as \"node 7\" or \"network 3\""),
        Flag::value("result", "allowed|denied", "what came of it"),
        Flag::value("limit", "n", "so many at most, oldest first; default 1000, with --follow any"),
        Flag::switch("follow", "and go on with new ones; without --since with new ones alone"),
        ADMIN_TOKEN,
        FINGERPRINT,
    ],
    positionals: (0, 0),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let follow = args.is_set("follow");
    let mut filter = filter(args)?;
    if follow && filter.since.is_none() {
        filter.since = Some(unix_now());
    }
    let any = if follow { u64::MAX } else { DEFAULT_LIMIT };
    let mut left = args.number("limit")?.unwrap_or(any);
    let mut asker = Asker::admin(cx, args).await?;
    let mut shown = 0_u64;
    while left > 0 {
        filter.limit = u32::try_from(left.min(PAGE)).ok();
        let request = Extended::AuditQuery(filter.clone());
        let (_, page) = asker.ask::<AuditPage>("audit", request).await?;
        for record in &page.records {
            let value = serde_json::to_value(record)
                .map_err(|e| Failure::internal("a record cannot be shown").reason(e))?;
            if cx.out.line(&value, &line(cx, record)).is_err() {
                // Whoever read this has gone.
                return Ok(Answer::done());
            }
            filter.after = Some(record.seq);
            shown += 1;
            left -= 1;
        }
        match page.next {
            Some(next) => filter.after = Some(next),
            None if follow => sleep(LOOK).await,
            None => return Ok(end(cx, shown, false)),
        }
    }
    Ok(end(cx, shown, true))
}

/// What a person is told after the last record.
fn end(cx: &Cx, shown: u64, more: bool) -> Answer {
    if shown == 0 {
        cx.out.remark("no records");
    } else if more {
        cx.out.remark(&format!("{shown} shown, there may be more: see --limit and --since"));
    }
    Answer::done()
}

fn line(cx: &Cx, r: &AuditRecord) -> String {
    let result = match r.result {
        AuditResult::Allowed => cx.out.good("allowed"),
        AuditResult::Denied => cx.out.bad("denied "),
    };
    let mut text = format!(
        "{:>7}  {}  {result}  {:<20}  {:<24}  {}",
        r.seq,
        rfc3339(i64::try_from(r.time).unwrap_or(i64::MAX)),
        printable_line(&r.operation),
        actor(&r.actor),
        or_dash(&printable_line(&r.object)),
    );
    for (name, value) in [("code", &r.code), ("rule", &r.rule)] {
        if !value.is_empty() {
            text.push_str(&format!("  {name}={}", printable_line(value)));
        }
    }
    if r.count > 1 {
        text.push_str(&format!("  {} times", r.count));
    }
    if !r.source.is_empty() {
        text.push_str(&format!("  from {}", printable_line(&r.source)));
    }
    if !r.detail.is_empty() {
        text.push_str(&format!("  ({})", printable_line(&r.detail)));
    }
    text
}

fn actor(a: &AuditActor) -> String {
    let mut text = match (&a.node_id, a.name.as_str()) {
        (Some(node), _) => format!("node {node}"),
        (None, "") => a.kind.clone(),
        (None, name) => format!("{} {name}", a.kind),
    };
    let who = [a.external_identity.as_str(), a.owner.as_str()];
    if let Some(who) = who.into_iter().find(|w| !w.is_empty()) {
        text.push_str(&format!(" ({who})"));
    }
    printable_line(&text)
}

fn filter(args: &Args) -> Result<AuditFilter, Failure> {
    let text = |flag: &str| args.value(flag).map(str::to_owned);
    let result = match args.value("result") {
        None => None,
        Some("allowed") => Some(AuditResult::Allowed),
        Some("denied") => Some(AuditResult::Denied),
        Some(other) => {
            return Err(Failure::invalid(format!("invalid --result {other:?}"))
                .hint("write allowed or denied"));
        }
    };
    Ok(AuditFilter {
        since: moment(args, "since")?,
        until: moment(args, "until")?,
        actor: text("actor"),
        operation: text("operation"),
        object: text("object"),
        result,
        after: None,
        limit: None,
    })
}

/// A moment: so long ago, or a time.
fn moment(args: &Args, flag: &str) -> Result<Option<u64>, Failure> {
    let Some(text) = args.value(flag) else { return Ok(None) };
    if let Some(ms) = parse_rfc3339(text) {
        return Ok(Some(u64::try_from(ms / 1000).unwrap_or(0)));
    }
    match args::duration(text) {
        Some(ago) => Ok(Some(unix_now().saturating_sub(ago.as_secs()))),
        None => Err(Failure::invalid(format!("invalid --{flag} {text:?}"))
            .hint("write 1h or 7d ago as a duration, or a time like 2026-11-20T13:00:00Z")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::spec::{Lookup, find};

    fn parse(text: &str) -> Result<AuditFilter, Failure> {
        let words: Vec<String> = text.split(' ').map(str::to_owned).collect();
        match find(&words) {
            Lookup::Found(spec, used) => filter(&Args::parse(spec, &words[used..])?),
            _ => panic!("no such command: {text}"),
        }
    }

    #[test]
    fn moments_are_times_or_spans() {
        let filter = parse("audit --since 2026-11-20T12:10:31Z --until 1h").expect("a filter");
        assert_eq!(filter.since, Some(1_795_176_631));
        let ago = unix_now() - filter.until.expect("a time");
        assert!((3600..3700).contains(&ago), "{ago}");
        let failure = parse("audit --since yesterday").expect_err("no time");
        assert_eq!(failure.message, "invalid --since \"yesterday\"");
        assert!(parse("audit --result maybe").is_err());
    }

    #[test]
    fn an_actor_is_who_it_is_elsewhere() {
        let node = AuditActor {
            kind: "node".into(),
            node_id: Some(pilot_wire::NodeId(7)),
            owner: "ops".into(),
            ..AuditActor::default()
        };
        assert_eq!(actor(&node), "node 7 (ops)");
        let admin = AuditActor { kind: "admin".into(), ..AuditActor::default() };
        assert_eq!(actor(&admin), "admin");
        let value = json!({"kind": "admin", "name": "token\u{1b}[2J"});
        let admin: AuditActor = serde_json::from_value(value).expect("an actor");
        assert_eq!(actor(&admin), "admin token\u{fffd}[2J");
    }
}
