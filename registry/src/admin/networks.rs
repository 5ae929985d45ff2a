//! `/api/v1/networks`: networks with their members, tokens and invitations, for
//! administrators. What a token's secret is checked by is shown to nobody.
//!
//! Bound: [`MOST`] entries of each kind on a page.

use std::ops::Bound;

use pilot_wire::NodeId;
use pilot_wire::registry::network::{JoinPolicy, NetworkRef};
use serde_json::{Value, json};

use super::Site;
use super::answer::{Answer, Problem, json as answer};
use super::query::Query;
use crate::state::Network;

const USUAL: usize = 100;
const MOST: usize = 1000;

/// Keys of addresses with pages.
pub(super) const KEYS: &[&str] = &["after", "limit"];

/// A page of networks, in order of their numbers.
pub(super) fn list(site: &Site, query: &Query) -> Result<Answer, Problem> {
    let after: u16 = query.number("after")?.unwrap_or_default();
    let limit = query.limit(USUAL, MOST)?;
    let state = site.service.state();
    let mut rest = state.networks().filter(|network| network.record.id > after).peekable();
    let page: Vec<&Network> = rest.by_ref().take(limit).collect();
    let next = rest.peek().and_then(|_| page.last()).map(|last| last.record.id);
    let views: Vec<Value> = page.into_iter().map(view).collect();
    Ok(answer(&json!({ "networks": views, "next": next })))
}

/// One network, with a page of its members and the beginnings of the rest.
pub(super) fn one(site: &Site, name: &str, query: &Query) -> Result<Answer, Problem> {
    let state = site.service.state();
    let network = state.find_network(&reference(name)).map_err(Problem::from)?;
    let mut whole = view(network);
    let (members, next) = members_of(&state, network, query)?;
    whole["members_page"] = members.into();
    whole["next"] = json!(next);
    whole["tokens"] = tokens_of(network).into();
    let invitations: Vec<Value> = invitations_of(&state, network).take(MOST).collect();
    whole["invitations"] = invitations.into();
    Ok(answer(&whole))
}

/// A page of members, in order of their numbers.
pub(super) fn members(site: &Site, name: &str, query: &Query) -> Result<Answer, Problem> {
    let state = site.service.state();
    let network = state.find_network(&reference(name)).map_err(Problem::from)?;
    let (members, next) = members_of(&state, network, query)?;
    Ok(answer(&json!({ "members": members, "next": next })))
}

/// Tokens without their secrets.
pub(super) fn tokens(site: &Site, name: &str) -> Result<Answer, Problem> {
    let state = site.service.state();
    let network = state.find_network(&reference(name)).map_err(Problem::from)?;
    Ok(answer(&json!({ "tokens": tokens_of(network) })))
}

/// A page of invitations, in order of their numbers.
pub(super) fn invitations(site: &Site, name: &str, query: &Query) -> Result<Answer, Problem> {
    let state = site.service.state();
    let network = state.find_network(&reference(name)).map_err(Problem::from)?;
    let after: u64 = query.number("after")?.unwrap_or_default();
    let limit = query.limit(USUAL, MOST)?;
    let mut rest = invitations_of(&state, network)
        .filter(|i| i["id"].as_u64().is_some_and(|id| id > after))
        .peekable();
    let page: Vec<Value> = rest.by_ref().take(limit).collect();
    let next = rest.peek().and_then(|_| page.last()).map(|last| last["id"].clone());
    Ok(answer(&json!({ "invitations": page, "next": next })))
}

/// A number is one, everything else is a name.
fn reference(text: &str) -> NetworkRef {
    text.parse().map_or_else(|_| NetworkRef::Name(text.to_owned()), NetworkRef::Id)
}

fn view(network: &Network) -> Value {
    let record = &network.record;
    json!({
        "id": record.id,
        "name": record.name,
        "members": network.members.len(),
        "tokens_total": network.tokens.len(),
        "join_rule": record.join.label(),
        "join": without_secrets(&record.join),
        "broadcast": record.broadcast,
        "owner": record.owner,
        "created": record.created,
    })
}

/// The policy without salts and hashes of the tokens that it holds.
fn without_secrets(join: &JoinPolicy) -> JoinPolicy {
    let mut join = join.clone();
    for rule in &mut join.rules {
        if let Some(config) = rule.config.as_object_mut() {
            config.remove("hashed");
        }
    }
    join
}

fn members_of(
    state: &crate::state::State,
    network: &Network,
    query: &Query,
) -> Result<(Vec<Value>, Option<NodeId>), Problem> {
    let after = NodeId(query.number("after")?.unwrap_or_default());
    let limit = query.limit(USUAL, MOST)?;
    let mut rest = network.members.range((Bound::Excluded(after), Bound::Unbounded)).peekable();
    let page: Vec<_> = rest.by_ref().take(limit).collect();
    let next = rest.peek().and_then(|_| page.last()).map(|(node, _)| **node);
    let views = page.into_iter().map(|(id, member)| {
        let node = state.node(*id).ok();
        json!({
            "node_id": id,
            "address": network.address(*id),
            "hostname": node.map(|n| &n.record.hostname),
            "registered": node.is_some(),
            "joined": member.joined,
            "expires": member.expires,
            "tags": member.tags,
            "external_identity": member.external_identity,
            "rule": member.rule,
        })
    });
    Ok((views.collect(), next))
}

fn tokens_of(network: &Network) -> Vec<Value> {
    let view = |token: &crate::state::Token| {
        json!({
            "id": token.id,
            "created": token.created,
            "expires": token.expires,
            "uses_left": token.uses_left,
            "tags": token.tags,
        })
    };
    network.tokens.values().take(MOST).map(view).collect()
}

fn invitations_of<'a>(
    state: &'a crate::state::State,
    network: &Network,
) -> impl Iterator<Item = Value> + use<'a> {
    state.invitations_to(network.record.id).map(|i| {
        json!({
            "id": i.id,
            "to": i.to,
            "from": i.from.map(|(node, _)| node),
            "expires": i.expires,
            "tags": i.tags,
        })
    })
}

#[cfg(test)]
mod tests {
    use pilot_wire::registry::network::{Combine, RuleUse};

    use super::*;

    #[test]
    fn what_tokens_are_checked_by_is_not_shown() {
        let config = json!({ "hashed": [{ "salt": "aa", "hash": "bb" }], "note": "kept" });
        let mut rules = JoinPolicy::of("open").rules;
        rules.push(RuleUse { rule: "token".to_owned(), config });
        let join = JoinPolicy { combine: Combine::Any, rules };
        let shown = json!(without_secrets(&join)).to_string();
        assert!(shown.contains("kept") && shown.contains("open"), "{shown}");
        assert!(!shown.contains("hashed") && !shown.contains("salt"), "{shown}");
    }
}
