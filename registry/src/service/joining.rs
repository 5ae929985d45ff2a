//! May this node join this network? Asks the rules of the network's policy and
//! makes one admission, or one refusal, of their verdicts. Whatever is not a
//! clear yes denies.
//!
//! Bounds: [`MAX_JOINS`] joins are judged at once, [`MAX_JOINS_OF_NODE`] of one
//! node; one more is refused. Plugins that start are waited for [`READY_LIMIT`];
//! a rule that is not there then denies. Texts of rules are cut.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use pilot_plugin::{JoinRequest, Verdict};
use pilot_wire::NodeId;
use pilot_wire::registry::network::{Combine, NetworkRef, RuleUse};
use serde_json::{Map, Value, json};

use super::networks::{invitations_of, is_over, member_tags, there_are};
use super::{Asker, Service, cut, lock};
use crate::state::{Admission, MAX_MEMBER_TAGS, Network, Op, Refusal, Signer, State};

/// Joins judged at once.
const MAX_JOINS: u32 = 64;
/// Of one node.
const MAX_JOINS_OF_NODE: u32 = 4;
/// Longest wait for plugins that start.
const READY_LIMIT: Duration = Duration::from_secs(5);
/// Longest reason kept of one rule, in bytes.
const MAX_REASON: usize = 512;
/// Longest external identity, in bytes.
const MAX_IDENTITY: usize = 512;

/// The rule to which tokens are shown.
pub(super) const TOKEN: &str = "token";
/// The rule to which invitations are shown.
pub(super) const INVITE: &str = "invite";

/// The joins that are being judged.
#[derive(Debug, Default)]
pub(super) struct Joins(Mutex<Judged>);

#[derive(Debug, Default)]
struct Judged {
    all: u32,
    by_node: HashMap<NodeId, u32>,
}

impl Joins {
    /// A turn for one more, until it is dropped.
    fn enter(&self, node: NodeId) -> Result<Turn<'_>, Refusal> {
        let mut judged = lock(&self.0);
        let of_node = judged.by_node.get(&node).copied().unwrap_or(0);
        if judged.all >= MAX_JOINS || of_node >= MAX_JOINS_OF_NODE {
            return Err(Refusal::TooManyJoins { all: MAX_JOINS, of_node: MAX_JOINS_OF_NODE });
        }
        judged.all += 1;
        judged.by_node.insert(node, of_node + 1);
        Ok(Turn { joins: self, node })
    }
}

#[derive(Debug)]
struct Turn<'a> {
    joins: &'a Joins,
    node: NodeId,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut judged = lock(&self.joins.0);
        judged.all -= 1;
        match judged.by_node.get_mut(&self.node) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(judged.by_node.remove(&self.node)),
        }
    }
}

/// What one rule grants.
#[derive(Debug, Default, PartialEq)]
struct Grant {
    tags: Vec<String>,
    /// Unix seconds.
    expires: Option<u64>,
    external_identity: Option<String>,
    token: Option<String>,
    invitation: Option<u64>,
}

impl Service {
    /// Waits until plugins have started, but not for ever.
    pub(super) async fn rules_ready(&self) {
        if tokio::time::timeout(READY_LIMIT, self.rules.ready()).await.is_err() {
            tracing::warn!("plugins have not started after {} s", READY_LIMIT.as_secs());
        }
    }

    /// Has the rules judge, and gives what puts the node in.
    pub(super) async fn join(
        &self,
        by: Signer,
        network: &NetworkRef,
        proofs: &Map<String, Value>,
        asker: &Asker,
        now: u64,
    ) -> Result<Op, Refusal> {
        let _turn = self.joins.enter(by.node)?;
        // What cannot be joined is refused before anybody waits.
        self.state().find_network(network)?;
        self.rules_ready().await;
        let (id, combine, questions, policy, renews) = {
            let state = self.state();
            let network = state.find_network(network)?;
            let join = &network.record.join;
            let question = |rule| question(&state, network, by, rule, proofs, asker, now);
            let questions = join.rules.iter().map(question).collect::<Result<Vec<_>, _>>()?;
            // What changes while rules are asked makes their answers void.
            let renews = network.members.get(&by.node).map(|member| member.joined);
            (network.record.id, join.combine, questions, network.policy(), renews)
        };
        let admission = self.judge(combine, questions, now).await.map_err(|denied| {
            let Denied { rule, reason } = denied;
            Refusal::NotAdmitted { network: id, rule, reason }
        })?;
        let admission = Admission { policy, renews, ..admission };
        Ok(Op::JoinNetwork { by, network: id, admission })
    }

    async fn judge(
        &self,
        combine: Combine,
        questions: Vec<JoinRequest>,
        now: u64,
    ) -> Result<Admission, Denied> {
        let mut granted = Vec::new();
        let mut denied: Option<Denied> = None;
        for question in questions {
            let rule = question.rule.clone();
            match self.ask(question, now).await {
                Ok(grant) => granted.push((rule, grant)),
                Err(reason) => {
                    let reason = format!("rule {rule:?}: {}", cut(&reason, MAX_REASON));
                    let reason = match denied {
                        Some(Denied { reason: earlier, .. }) => format!("{earlier}; {reason}"),
                        None => reason,
                    };
                    denied = Some(Denied { rule, reason });
                }
            }
            let decided = match combine {
                Combine::Any => !granted.is_empty(),
                Combine::All => denied.is_some(),
            };
            if decided {
                break;
            }
        }
        match (combine, denied) {
            (Combine::Any, Some(denied)) if granted.is_empty() => Err(denied),
            (Combine::All, Some(denied)) => Err(denied),
            _ if granted.is_empty() => Err(Denied {
                rule: String::new(),
                reason: "it has no join rule; its owner has to give it one with network_update"
                    .to_owned(),
            }),
            _ => combined(granted),
        }
    }

    /// What the rule grants, or why it does not.
    async fn ask(&self, question: JoinRequest, now: u64) -> Result<Grant, String> {
        let known = self.rules.names();
        if !known.contains(&question.rule) {
            return Err(format!(
                "no plugin provides it; load one that does at the registry, or have the network's \
                 owner change its rules ({})",
                there_are(&known)
            ));
        }
        let (rule, kept) = (question.rule.clone(), question.kept.clone());
        match self.rules.validate(question).await {
            Verdict::Allow { tags, expires_at_ms, external_identity, uses } => {
                grant(&rule, &kept, tags, expires_at_ms, external_identity, uses, now)
            }
            Verdict::Deny { reason } if reason.is_empty() => Err("it gave no reason".to_owned()),
            Verdict::Deny { reason } => Err(reason),
        }
    }
}

/// Who did not allow it, and everything that was said.
#[derive(Debug, PartialEq)]
struct Denied {
    rule: String,
    reason: String,
}

/// What `rule` is asked.
fn question(
    state: &State,
    network: &Network,
    by: Signer,
    rule: &RuleUse,
    proofs: &Map<String, Value>,
    asker: &Asker,
    now: u64,
) -> Result<JoinRequest, Refusal> {
    let record = &state.node(by.node)?.record;
    Ok(JoinRequest {
        rule: rule.rule.clone(),
        network: network.record.id,
        network_name: network.record.name.clone(),
        node: by.node,
        address: record.address(),
        public_key: by.key.to_string(),
        owner: record.owner.clone(),
        hostname: record.hostname.clone(),
        tags: record.tags.clone(),
        proof: proofs.get(&rule.rule).cloned().unwrap_or_default(),
        config: rule.config.clone(),
        kept: kept(state, network, by, &rule.rule, now),
        source: asker.source.ip().to_string(),
        at_ms: now.saturating_mul(1000),
    })
}

/// What the registry keeps for this rule: what is good now.
fn kept(state: &State, network: &Network, by: Signer, rule: &str, now: u64) -> Value {
    let ms = |seconds: u64| seconds.saturating_mul(1000);
    match rule {
        TOKEN => {
            let live = network
                .tokens
                .values()
                .filter(|token| !is_over(token.expires, now) && token.uses_left != Some(0));
            let tokens = live.map(|token| {
                json!({
                    "id": token.id,
                    "salt": token.salt,
                    "hash": token.hash,
                    "expires_at_ms": token.expires.map(ms),
                    "uses_left": token.uses_left,
                    "tags": token.tags,
                })
            });
            json!({ "tokens": tokens.collect::<Vec<_>>() })
        }
        INVITE => {
            let here = invitations_of(state, by.node, now)
                .filter(|i| i.network == network.record.id && state.is_backed(i));
            let invitations = here.map(|invitation| {
                json!({
                    "id": invitation.id,
                    "expires_at_ms": ms(invitation.expires),
                    "tags": invitation.tags,
                    "from": invitation.from.map(|(node, _)| node),
                })
            });
            json!({ "invitations": invitations.collect::<Vec<_>>() })
        }
        _ => Value::Null,
    }
}

/// Checks what a rule grants: it is a plugin's word.
fn grant(
    rule: &str,
    kept: &Value,
    tags: Vec<String>,
    expires_at_ms: Option<u64>,
    external_identity: Option<String>,
    uses: Option<String>,
    now: u64,
) -> Result<Grant, String> {
    let tags = member_tags(&tags).map_err(|problem| format!("it gives wrong tags: {problem}"))?;
    let expires = expires_at_ms.map(|ms| ms / 1000);
    if is_over(expires, now) {
        return Err("the membership that it grants would be over already".to_owned());
    }
    if external_identity.as_ref().is_some_and(|identity| identity.len() > MAX_IDENTITY) {
        return Err(format!("it gives an external identity of more than {MAX_IDENTITY} bytes"));
    }
    let mut grant = Grant { tags, expires, external_identity, ..Grant::default() };
    if let Some(used) = uses {
        // Only what was shown to it can have been used.
        let shown = |list: &str| {
            kept[list].as_array().is_some_and(|all| {
                all.iter().any(|one| match &one["id"] {
                    Value::String(id) => *id == used,
                    id => id.as_u64().is_some_and(|id| used.parse() == Ok(id)),
                })
            })
        };
        match rule {
            TOKEN if shown("tokens") => grant.token = Some(used),
            INVITE if shown("invitations") => grant.invitation = used.parse().ok(),
            _ => {
                return Err(format!(
                    "it names {:?} as used, which it was not shown",
                    cut(&used, 64)
                ));
            }
        }
    }
    Ok(grant)
}

/// One admission of all that was granted, of which there is something.
fn combined(granted: Vec<(String, Grant)>) -> Result<Admission, Denied> {
    let mut admission = Admission::default();
    for (rule, grant) in granted {
        if !admission.rule.is_empty() {
            admission.rule.push('+');
        }
        admission.rule.push_str(&rule);
        for tag in grant.tags {
            if !admission.tags.contains(&tag) {
                admission.tags.push(tag);
            }
        }
        if admission.tags.len() > MAX_MEMBER_TAGS {
            let reason = format!("rule {rule:?}: together more than {MAX_MEMBER_TAGS} tags");
            return Err(Denied { rule, reason });
        }
        admission.expires = match (admission.expires, grant.expires) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        admission.external_identity = admission.external_identity.or(grant.external_identity);
        admission.tokens.extend(grant.token);
        admission.invitations.extend(grant.invitation);
    }
    Ok(admission)
}

#[cfg(test)]
mod tests;
