//! `/api/v1/nodes`: all of what is known of nodes, for administrators.
//!
//! Bounds: [`MOST`] nodes on a page; [`LOOKS`] nodes are looked at for one, in
//! steps between which writers have their turn, so a page with a filter may be
//! short although `next` says that there is more.

use pilot_wire::NodeId;
use serde_json::{Value, json};

use super::Site;
use super::answer::{Answer, Problem, json as answer};
use super::counts::is_online;
use super::query::Query;
use crate::connection::unix_now;
use crate::state::{Node, State};

const USUAL: usize = 100;
const MOST: usize = 1000;
const STEP: usize = 2048;
const LOOKS: usize = 256 * 1024;
/// Peers listed with a node.
const PEERS: usize = 1000;

/// Keys of a list's address.
pub(super) const KEYS: &[&str] = &["after", "limit", "hostname", "tag", "owner", "public"];

struct Filter<'a> {
    /// Whole, or its beginning with a star behind it.
    hostname: Option<&'a str>,
    tag: Option<&'a str>,
    owner: Option<&'a str>,
    public: Option<bool>,
}

impl Filter<'_> {
    fn fits(&self, node: &Node) -> bool {
        let record = &node.record;
        let owner: &str = &record.owner;
        self.hostname.is_none_or(|wanted| match wanted.strip_suffix('*') {
            Some(start) => !record.hostname.is_empty() && record.hostname.starts_with(start),
            None => *record.hostname == *wanted,
        }) && self.tag.is_none_or(|tag| record.tags.iter().any(|t| **t == *tag))
            && self.owner.is_none_or(|wanted| owner == wanted)
            && self.public.is_none_or(|public| record.public == public)
    }
}

/// A page of nodes, in order of their numbers.
pub(super) fn list(site: &Site, query: &Query) -> Result<Answer, Problem> {
    let mut after = NodeId(query.number("after")?.unwrap_or_default());
    let limit = query.limit(USUAL, MOST)?;
    let public = match query.text("public") {
        None => None,
        Some("true") => Some(true),
        Some("false") => Some(false),
        Some(other) => {
            let problem = format!("public is {other:?}, expected true or false");
            return Err(Problem::invalid(problem));
        }
    };
    let filter = Filter {
        hostname: query.text("hostname"),
        tag: query.text("tag").map(|tag| tag.strip_prefix('#').unwrap_or(tag)),
        owner: query.text("owner"),
        public,
    };
    let now = unix_now();
    let mut page = Vec::new();
    // A name is looked up, not looked for.
    if let Some(name) = filter.hostname.filter(|name| !name.ends_with('*')) {
        let state = site.service.state();
        let named = state.named(name).ok().filter(|n| n.record.id > after && filter.fits(n));
        page.extend(named.map(|node| view(&state, node, now)));
        return Ok(answer(&json!({ "nodes": page, "next": null })));
    }
    let mut looked = 0;
    let next = loop {
        let state = site.service.state();
        let mut seen = 0;
        let mut full = false;
        for node in state.nodes_after(after).take(STEP) {
            if page.len() >= limit {
                full = true;
                break;
            }
            after = node.record.id;
            seen += 1;
            if filter.fits(node) {
                page.push(view(&state, node, now));
            }
        }
        looked += seen;
        if full || (seen == STEP && looked >= LOOKS) {
            break Some(after);
        }
        if seen < STEP {
            break None;
        }
    };
    Ok(answer(&json!({ "nodes": page, "next": next })))
}

/// One node, with whom it has to do.
pub(super) fn one(site: &Site, id: &str) -> Result<Answer, Problem> {
    let id = number(id)?;
    let now = unix_now();
    let state = site.service.state();
    let node = state.node(id).map_err(Problem::from)?;
    let mut view = view(&state, node, now);
    let mut trusted = state.trusted_by(id);
    trusted.sort_unstable();
    view["trusted_total"] = json!(trusted.len());
    trusted.truncate(PEERS);
    view["trusted"] = json!(trusted);
    let mut revoked = state.revoked_by(id);
    revoked.sort_unstable();
    revoked.truncate(PEERS);
    view["revoked_by"] = json!(revoked);
    view["memberships"] = state
        .memberships(id)
        .map(|(network, member)| {
            json!({
                "network": network.record.id,
                "name": network.record.name,
                "address": network.address(id),
                "joined": member.joined,
                "expires": member.expires,
                "tags": member.tags,
                "external_identity": member.external_identity,
                "rule": member.rule,
                "may_broadcast": network.may_broadcast(id),
            })
        })
        .collect();
    let invitations = state.invitations_for(id);
    view["invitations"] = invitations
        .into_iter()
        .take(PEERS)
        .map(|i| json!({ "id": i.id, "network": i.network, "expires": i.expires }))
        .collect();
    view["handshakes_wait"] = json!(state.has_handshakes(id));
    Ok(answer(&view))
}

/// A node by its number or its address on the backbone.
fn number(text: &str) -> Result<NodeId, Problem> {
    if let Ok(id) = text.parse::<u32>() {
        return Ok(NodeId(id));
    }
    text.parse::<pilot_wire::Address>()
        .map(|address| address.node)
        .map_err(|_| Problem::invalid(format!("{text:?} is no node's number or address")))
}

fn view(state: &State, node: &Node, now: u64) -> Value {
    let record = &node.record;
    let networks = state.memberships(record.id).map(|(network, _)| network.record.id);
    json!({
        "node_id": record.id,
        "address": record.address(),
        "public_key": record.key,
        "owner": record.owner,
        "hostname": record.hostname,
        "public": record.public,
        "online": is_online(node.last_seen(), now),
        "last_seen": node.last_seen(),
        "endpoint": record.endpoint,
        "tags": record.tags,
        "polo_score": record.polo_score,
        "task_exec": record.task_exec,
        "networks": std::iter::once(0).chain(networks).collect::<Vec<u16>>(),
    })
}
