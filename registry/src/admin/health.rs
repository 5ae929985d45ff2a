//! Whether the registry lives, whether it can do its work, and what it counts.

use std::time::{Duration, Instant};

use hyper::StatusCode;
use hyper::header::HeaderMap;
use pilot_host::State as PluginState;
use serde_json::{Value, json};

use super::access::Access;
use super::answer::{Answer, Problem, json as answer, whole};
use super::{Peer, Site};
use crate::connection::unix_now;
use crate::metrics::{Gauge, render};
use crate::state::{Command, Op};

/// How often a store that failed is tried again for somebody who asks.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// `/healthz`: it answers, so it lives.
pub(super) fn alive(site: &Site) -> Answer {
    answer(&json!({ "alive": true, "uptime_secs": site.service.metrics().uptime().as_secs() }))
}

/// `/readyz`: whether what is asked for can be done. Problems beside that are
/// warnings. Texts and names may tell of folders and plugins, so they are for
/// this machine and for administrators; others get codes.
pub(super) async fn ready(
    site: &Site,
    peer: &Peer,
    access: &Access,
    headers: &HeaderMap,
) -> Answer {
    probe(site).await;
    let whole = is_local(peer, headers) || access.is_admin();
    let problem = |part: &str, code, reason: &str| problem(whole, part, code, reason);
    let mut reasons: Vec<Value> = Vec::new();
    let mut warnings: Vec<Value> = Vec::new();
    if *site.stop.borrow() {
        reasons.push(problem("registry", "ending", "is ending"));
    }
    if let Some(error) = site.service.metrics().store.failing() {
        reasons.push(problem("store", "store_failing", &error.to_string()));
    }
    if !site.service.audit().is_healthy() {
        let reason = "cannot be written; nothing is changed meanwhile, and it is tried again";
        reasons.push(problem("audit log", "audit_failing", reason));
    }
    for plugin in site.plugins.list() {
        let reason = plugin.last_reload.and_then(|r| r.error).unwrap_or_default();
        let name = format!("plugin {}", plugin.name);
        match plugin.state {
            PluginState::Starting => {
                reasons.push(problem(&name, "plugin_starting", "is being started"));
            }
            PluginState::Failed | PluginState::BackingOff | PluginState::OverBudget => {
                warnings.push(problem(&name, "plugin_failing", &reason));
            }
            PluginState::Running | PluginState::Draining | PluginState::Off => {}
        }
    }
    let ready = reasons.is_empty();
    let body = json!({ "ready": ready, "reasons": reasons, "warnings": warnings });
    let mut answer = answer(&body);
    if !ready {
        *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    answer
}

/// One problem, as a whole or without what not everybody may know.
fn problem(whole: bool, part: &str, code: &str, reason: &str) -> Value {
    if whole {
        return json!({ "part": part, "code": code, "reason": reason });
    }
    let part = if part.starts_with("plugin ") { "plugin" } else { part };
    json!({ "part": part, "code": code })
}

/// A store that failed is written to again, as nobody may write while the
/// registry is not ready. What is written says nothing.
async fn probe(site: &Site) {
    if site.service.metrics().store.failing().is_none() {
        return;
    }
    {
        let mut last = site.probed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if last.is_some_and(|at: Instant| at.elapsed() < PROBE_EVERY) {
            return;
        }
        *last = Some(Instant::now());
    }
    let nothing = Command::own(unix_now(), Op::Reap { silent: Vec::new() });
    site.writer.submit(vec![nothing]).await;
}

/// `/metrics`: for this machine, and for administrators. Whoever is behind a
/// proxy is not on this machine, wherever the proxy is.
pub(super) async fn metrics(
    site: &Site,
    peer: &Peer,
    access: &Access,
    headers: &HeaderMap,
) -> Result<Answer, Problem> {
    if !is_local(peer, headers) && !access.is_admin() {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            "not_local",
            "metrics are for this machine and for administrators",
            "ask from the registry's machine, without a proxy, or send the admin token",
        ));
    }
    let counts = site.counts.get(&site.service).await;
    let memory = memory();
    let now = Gauge::now;
    let mut gauges = vec![
        now("pilot_nodes_online", "Nodes heard of within 3 minutes.", counts.online),
        now("pilot_nodes_total", "Registered nodes.", counts.total),
        now("pilot_nodes_public", "Registered nodes that are public.", counts.public),
        now("pilot_trust_links", "Pairs that trust each other.", counts.trust),
        now("pilot_task_executors", "Nodes that execute tasks.", counts.executors),
        now("pilot_unique_tags", "Different tags of nodes.", counts.tags),
        now(
            "pilot_networks",
            "Networks beside the backbone.",
            counts.networks.len().saturating_sub(1) as u64,
        ),
        now(
            "pilot_network_members",
            "Memberships beside the backbone.",
            counts.networks.iter().skip(1).map(|n| n.members).sum(),
        ),
        now(
            "pilot_commands_applied",
            "Number of the last command.",
            site.service.state().applied(),
        ),
    ];
    let audit = site.service.audit();
    let records = audit.head().map_or(0, |head| head.seq);
    gauges.extend([
        now("pilot_sessions", "Nodes with a session.", site.hub.len() as u64),
        now("pilot_audit_last_record", "Number of the newest signed audit record.", records),
        now(
            "pilot_audit_failing",
            "1 while the audit log cannot be written.",
            u64::from(!audit.is_healthy()),
        ),
    ]);
    if let Some(bytes) = memory {
        gauges.push(Gauge::now("pilot_resident_bytes", "Memory of the process.", bytes));
    }
    let text = render(site.service.metrics(), &gauges);
    Ok(whole("text/plain; version=0.0.4; charset=utf-8", text))
}

/// Whether somebody on this machine asks for himself.
fn is_local(peer: &Peer, headers: &HeaderMap) -> bool {
    let forwarded = ["x-real-ip", "x-forwarded-for", "forwarded"];
    peer.source.ip().is_loopback() && !forwarded.iter().any(|name| headers.contains_key(*name))
}

/// Resident memory of this process, where the system tells.
fn memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_told_codes_of_problems_only() {
        let [own, others] = [true, false]
            .map(|whole| problem(whole, "plugin secret", "plugin_failing", "/home/x: is gone"));
        assert_eq!(own["reason"], "/home/x: is gone");
        assert_eq!(others, json!({ "part": "plugin", "code": "plugin_failing" }));
        let store = problem(false, "store", "store_failing", "/home/x: is full");
        assert_eq!(store, json!({ "part": "store", "code": "store_failing" }));
    }
}
