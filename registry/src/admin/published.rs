//! What the published registry shows of itself: statistics as JSON, and badges.
//! Of a private node only administrators see more than that it is one.
//!
//! Bounds: [`LISTED`] nodes and [`EDGES`] pairs are listed, `truncated` says so;
//! what anybody may see is made anew after [`KEEP`].

use std::collections::HashSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::header::{ACCESS_CONTROL_ALLOW_ORIGIN, CACHE_CONTROL};
use pilot_wire::NodeId;
use serde::Serialize;

use super::Site;
use super::answer::{Answer, json, whole, with};
use super::counts::{Counts, LISTED, is_online};
use crate::connection::unix_now;
use crate::service::Service;

/// Pairs in a list.
const EDGES: usize = 5000;
const KEEP: Duration = Duration::from_secs(1);

#[derive(Debug, Serialize)]
struct Stats {
    total_nodes: u64,
    active_nodes: u64,
    total_trust_links: u64,
    total_requests: u64,
    unique_tags: u64,
    task_executors: u64,
    networks: Vec<Network>,
    nodes: Vec<Node>,
    edges: Vec<Edge>,
    uptime_secs: u64,
    // What follows is not published.
    public_nodes: u64,
    public_online: u64,
    private_nodes: u64,
    registrations: u64,
    /// There are more nodes or pairs than are listed.
    truncated: bool,
    version: &'static str,
}

#[derive(Debug, Serialize)]
struct Network {
    id: u16,
    name: String,
    members: u64,
    online_members: u64,
}

#[derive(Debug, Serialize)]
struct Node {
    address: String,
    tags: Vec<String>,
    online: bool,
    trust_links: usize,
    task_exec: bool,
    polo_score: i64,
    hostname: String,
    /// For administrators.
    #[serde(skip_serializing_if = "Option::is_none")]
    public: Option<bool>,
}

#[derive(Debug, Serialize)]
struct Edge {
    source: String,
    target: String,
}

/// What anybody was shown last.
#[derive(Debug, Default)]
pub(super) struct Cache(tokio::sync::Mutex<Option<(Bytes, Instant)>>);

/// `/api/stats`.
pub(super) async fn stats(site: &Site, admin: bool) -> Answer {
    let counts = site.counts.get(&site.service).await;
    if admin {
        return json(&make(&site.service, &counts, true));
    }
    let mut kept = site.stats.0.lock().await;
    let body = match kept.as_ref().filter(|(_, until)| Instant::now() < *until) {
        Some((body, _)) => body.clone(),
        None => {
            let body = match serde_json::to_vec(&make(&site.service, &counts, false)) {
                Ok(body) => Bytes::from(body),
                // Says why.
                Err(_) => return json(&make(&site.service, &counts, false)),
            };
            *kept = Some((body.clone(), Instant::now() + KEEP));
            body
        }
    };
    with(whole("application/json", body), ACCESS_CONTROL_ALLOW_ORIGIN, "*")
}

fn make(service: &Arc<Service>, counts: &Counts, admin: bool) -> Stats {
    let metrics = service.metrics();
    let listed = if admin { &counts.first } else { &counts.first_public };
    let (nodes, edges) = graph(service, listed, admin, unix_now());
    let all = if admin { counts.total } else { counts.public };
    Stats {
        total_nodes: counts.total,
        active_nodes: counts.online,
        total_trust_links: counts.trust,
        total_requests: metrics.total_requests(),
        unique_tags: counts.tags,
        task_executors: counts.executors,
        networks: counts
            .networks
            .iter()
            .map(|n| Network {
                id: n.id,
                name: n.name.clone(),
                members: n.members,
                online_members: n.online,
            })
            .collect(),
        truncated: all > LISTED as u64 || edges.len() >= EDGES,
        nodes,
        edges,
        uptime_secs: metrics.uptime().as_secs(),
        public_nodes: counts.public,
        public_online: counts.public_online,
        private_nodes: counts.total - counts.public,
        registrations: metrics.succeeded("register"),
        version: env!("CARGO_PKG_VERSION"),
    }
}

/// The listed nodes that are still there and may be shown, and who of them
/// trusts whom.
fn graph(service: &Service, listed: &[NodeId], admin: bool, now: u64) -> (Vec<Node>, Vec<Edge>) {
    let among: HashSet<NodeId> = listed.iter().copied().collect();
    let (mut nodes, mut edges) = (Vec::new(), Vec::new());
    for ids in listed.chunks(100) {
        let state = service.state();
        for id in ids {
            // It may have left or become private since it was counted.
            let Ok(node) = state.node(*id) else { continue };
            let record = &node.record;
            if !admin && !record.public {
                continue;
            }
            let trusted = state.trusted_by(*id);
            for peer in trusted.iter().filter(|peer| id < *peer && among.contains(peer)) {
                let shown = state.node(*peer).is_ok_and(|peer| admin || peer.record.public);
                if shown && edges.len() < EDGES {
                    edges.push(Edge {
                        source: record.address().to_string(),
                        target: pilot_wire::Address::backbone(*peer).to_string(),
                    });
                }
            }
            nodes.push(Node {
                address: record.address().to_string(),
                tags: record.tags.iter().map(ToString::to_string).collect(),
                online: is_online(node.last_seen(), now),
                trust_links: trusted.len(),
                task_exec: record.task_exec,
                polo_score: record.polo_score,
                hostname: record.hostname.to_string(),
                public: admin.then_some(record.public),
            });
        }
    }
    nodes.sort_unstable_by(|a, b| a.address.cmp(&b.address));
    (nodes, edges)
}

/// `/api/badge/NAME`, if there is one.
pub(super) async fn badge(site: &Site, name: &str) -> Option<Answer> {
    let counts = site.counts.get(&site.service).await;
    let (label, value, colour) = match name {
        "nodes" => ("online nodes", counts.online, "#4c1"),
        "trust" => ("trust links", counts.trust, "#58a6ff"),
        "requests" => ("requests", site.service.metrics().total_requests(), "#a855f7"),
        "tags" => ("tags", counts.tags, "#f59e0b"),
        "task-executors" => ("task executors", counts.executors, "#4c1"),
        _ => return None,
    };
    let colour = if value == 0 && name != "requests" { "#9f9f9f" } else { colour };
    let answer = whole("image/svg+xml", svg(label, &shortened(value), colour));
    let answer = with(answer, CACHE_CONTROL, "no-cache, no-store, must-revalidate");
    Some(with(answer, ACCESS_CONTROL_ALLOW_ORIGIN, "*"))
}

/// With one decimal from 1000 up.
fn shortened(value: u64) -> String {
    for (unit, letter) in [(1_000_000_000, 'B'), (1_000_000, 'M'), (1_000, 'K')] {
        if value >= unit {
            #[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
            let value = value as f64 / unit as f64;
            return format!("{value:.1}{letter}");
        }
    }
    value.to_string()
}

/// Two fields side by side, as wide as their texts at about 7 pixels a letter.
fn svg(label: &str, value: &str, colour: &str) -> String {
    let width = |text: &str| text.len() * 7 + 10;
    let (left, right) = (width(label), width(value));
    let all = left + right;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{all}\" height=\"20\" role=\"img\" \
         aria-label=\"{label}: {value}\"><title>{label}: {value}</title>\
         <clipPath id=\"r\"><rect width=\"{all}\" height=\"20\" rx=\"3\" fill=\"#fff\"/></clipPath>\
         <g clip-path=\"url(#r)\"><rect width=\"{left}\" height=\"20\" fill=\"#555\"/>\
         <rect x=\"{left}\" width=\"{right}\" height=\"20\" fill=\"{colour}\"/></g>\
         <g fill=\"#fff\" text-anchor=\"middle\" \
         font-family=\"Verdana,Geneva,DejaVu Sans,sans-serif\" font-size=\"11\">"
    );
    for (text, x) in [(label, left / 2), (value, left + right / 2)] {
        // Writing to a String does not fail.
        let _ = write!(out, "<text x=\"{x}\" y=\"14\">{text}</text>");
    }
    out + "</g></svg>"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_shortened_as_published() {
        for (value, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1.0K"),
            (1234, "1.2K"),
            (1_200_000, "1.2M"),
            (1_240_000_000, "1.2B"),
        ] {
            assert_eq!(shortened(value), text);
        }
    }
}
