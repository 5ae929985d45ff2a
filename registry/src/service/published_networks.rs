//! Network requests in their published shape. Published registries refuse all
//! that change something; here they are for whoever has the admin token, which
//! every one of them needs: nothing in them proves who the node is.
//!
//! They know the rules `open`, `token` and `invite` only, and judge these
//! without plugins. A token that is given with `create_network` is kept as salt
//! and hash in the configuration of the network's rule: it is there from the
//! moment that the network is, good for any number of nodes, until the rules
//! are changed. Tokens that count their uses are for `network_join`.

use pilot_wire::NodeId;
use pilot_wire::registry::network::{Combine, JoinPolicy, RuleUse};
use pilot_wire::registry::{
    Acknowledged, Fields, JoinedNetwork, LeftNetwork, ListedNode, Network as Listed,
    NetworkCreated, NetworkList, NodeList,
};
use serde_json::{Value, json};

use super::joining::{INVITE, TOKEN};
use super::networks::{after_node, command, invalid, is_over, random, salted_hash};
use super::{Admitted, Asker, Service, Then, reply, views};
use crate::admins::equal;
use crate::state::{Actor, Network, Op, Refusal};

/// The rule that asks for nothing.
const OPEN: &str = "open";
/// Most nodes on one page.
const PAGE: usize = 1000;

impl Service {
    /// Judges the published requests about networks.
    ///
    /// # Errors
    /// Says why it is refused.
    pub async fn published_network(
        &self,
        fields: &Fields<'_>,
        asker: &Asker,
        now: u64,
    ) -> Result<Admitted, Refusal> {
        let node = NodeId(fields.node_id);
        let request = |op| command(op, asker, &fields.request_id, now);
        match fields.kind.as_ref() {
            "create_network" => {
                let by = self.published_admin(fields, asker, now, "create_network")?;
                self.check_name(&fields.name)?;
                let join = policy(&fields.join_rule, &fields.token)?;
                let name = fields.name.clone().into_owned();
                let broadcast = pilot_wire::registry::network::BroadcastRight::default();
                let op = Op::CreateNetwork { by, name, join, broadcast };
                let then = Then::new(|led_to| match led_to {
                    Acknowledged::NetworkMade(made) => {
                        let (network_id, name) = (made.network.id, made.network.name);
                        NetworkCreated { network_id, name }.into()
                    }
                    other => other,
                });
                Ok(Admitted::WriteThen(request(op), then))
            }
            "join_network" => {
                let by = self.published_admin(fields, asker, now, "join_network")?;
                let (network_id, address) = {
                    let state = self.state();
                    state.node(node)?;
                    let network = state.network(fields.network_id)?;
                    let id = network.record.id;
                    if network.members.contains_key(&node) {
                        return Err(Refusal::AlreadyMember { network: id, node });
                    }
                    admits(network, fields, now)?;
                    (id, network.address(node))
                };
                let op = Op::AddMember { by, node, network: network_id };
                let joined = JoinedNetwork { network_id, address };
                Ok(Admitted::WriteThen(request(op), Then::new(move |_| joined.into())))
            }
            "leave_network" => {
                let by = self.published_admin(fields, asker, now, "leave_network")?;
                let network_id = fields.network_id;
                if !self.state().network(network_id)?.members.contains_key(&node) {
                    return Err(Refusal::NotMember { network: network_id, node });
                }
                let op = Op::LeaveNetwork { by, node, network: network_id };
                let left = LeftNetwork { network_id };
                Ok(Admitted::WriteThen(request(op), Then::new(move |_| left.into())))
            }
            "list_networks" => Ok(self.list_networks()),
            "list_nodes" => self.list_nodes(fields, asker, now),
            other => Err(Refusal::UnknownType(super::cut(other, 64).to_owned())),
        }
    }

    fn published_admin(
        &self,
        fields: &Fields<'_>,
        asker: &Asker,
        now: u64,
        request: &'static str,
    ) -> Result<Actor, Refusal> {
        match fields.admin_token.as_ref() {
            "" => Err(Refusal::AdminOnly(request)),
            token => self.shown(token, asker, now).map(Actor::Admin),
        }
    }

    /// All networks, the backbone first. Anybody may ask.
    pub(super) fn list_networks(&self) -> Admitted {
        let state = self.state();
        let backbone = Listed {
            id: 0,
            name: "backbone".to_owned(),
            members: state.len() as u64,
            join_rule: OPEN.to_owned(),
        };
        let others = state.networks().map(|network| Listed {
            id: network.record.id,
            name: network.record.name.clone(),
            members: network.members.len() as u64,
            join_rule: network.record.join.label(),
        });
        let all = std::iter::once(backbone).chain(others);
        reply(NetworkList { networks: views::all_that_fit("networks", all) })
    }

    /// Members that are registered. Anybody may ask for those of a network that
    /// anybody may join; else members do, on a session, and administrators.
    pub(super) fn list_nodes(
        &self,
        fields: &Fields<'_>,
        asker: &Asker,
        now: u64,
    ) -> Result<Admitted, Refusal> {
        let is_admin = match fields.admin_token.as_ref() {
            "" => false,
            token => self.shown(token, asker, now).map(|_| true)?,
        };
        let session = self.session(asker).map(|signer| signer.node);
        let state = self.state();
        let network = state.network(fields.network_id)?;
        if !is_admin && !is_open(network) {
            let node = session.ok_or(Refusal::SessionRequired("list_nodes"))?;
            if !network.members.contains_key(&node) {
                return Err(Refusal::NotMember { network: network.record.id, node });
            }
        }
        let listed = after_node(network, NodeId(fields.after)).filter_map(|member| {
            let record = &state.node(member.node).ok()?.record;
            Some(ListedNode {
                node_id: record.id,
                address: network.address(record.id),
                hostname: Some(&record.hostname).filter(|h| !h.is_empty()).cloned(),
                task_exec: record.task_exec,
                real_addr: record.public.then(|| record.endpoint.to_string()),
            })
        });
        let (nodes, more) = views::page(listed, PAGE);
        let next = nodes.last().filter(|_| more).map(|node| node.node_id);
        Ok(reply(NodeList { nodes, next }))
    }
}

/// Whether nobody is kept out.
pub(super) fn is_open(network: &Network) -> bool {
    let policy = &network.record.join;
    let open = |rule: &RuleUse| rule.rule == OPEN;
    !policy.rules.is_empty()
        && match policy.combine {
            Combine::Any => policy.rules.iter().any(open),
            Combine::All => policy.rules.iter().all(open),
        }
}

/// The published rules, as a policy.
fn policy(rule: &str, token: &str) -> Result<JoinPolicy, Refusal> {
    match rule {
        OPEN | INVITE => Ok(JoinPolicy::of(rule)),
        TOKEN if token.is_empty() => {
            Err(invalid("token", "is missing; with the join rule token there has to be one"))
        }
        TOKEN => {
            let salt = random::<32>();
            let hash = salted_hash(&salt, token);
            let config =
                json!({ "hashed": [{ "salt": hex::encode(salt), "hash": hex::encode(hash) }] });
            let rule = RuleUse { rule: TOKEN.to_owned(), config };
            Ok(JoinPolicy { combine: Combine::Any, rules: vec![rule] })
        }
        other => {
            let problem = format!("{:?} is not open, token or invite", super::cut(other, 64));
            Err(invalid("join_rule", problem))
        }
    }
}

/// Whether the network's rules let in whom the request names.
fn admits(network: &Network, fields: &Fields<'_>, now: u64) -> Result<(), Refusal> {
    let policy = &network.record.join;
    let judged = policy.rules.iter().map(|rule| match rule.rule.as_str() {
        OPEN => Ok(()),
        TOKEN if is_token(network, &rule.config, &fields.token, now) => Ok(()),
        TOKEN => Err((rule, "the token is wrong, expired, or counts its uses")),
        INVITE if network.members.contains_key(&NodeId(fields.inviter_id)) => Ok(()),
        INVITE => Err((rule, "inviter_id is not a member")),
        _ => Err((rule, "join_network does not know it; the node has to use network_join")),
    });
    let judged: Vec<_> = judged.collect();
    let admitted = match policy.combine {
        Combine::Any => judged.iter().any(Result::is_ok),
        Combine::All => !judged.is_empty() && judged.iter().all(Result::is_ok),
    };
    if admitted {
        return Ok(());
    }
    let denied: Vec<_> = judged.into_iter().filter_map(Result::err).collect();
    let reasons = denied.iter().map(|(rule, reason)| format!("rule {:?}: {reason}", rule.rule));
    Err(Refusal::NotAdmitted {
        network: network.record.id,
        rule: denied.last().map(|(rule, _)| rule.rule.clone()).unwrap_or_default(),
        reason: reasons.collect::<Vec<_>>().join("; "),
    })
}

/// Whether the text is a token of the network that counts nothing.
fn is_token(network: &Network, config: &Value, text: &str, now: u64) -> bool {
    if text.is_empty() {
        return false;
    }
    let made = network
        .tokens
        .values()
        .filter(|token| token.uses_left.is_none() && !is_over(token.expires, now))
        .map(|token| (token.salt.as_str(), token.hash.as_str()));
    let given = config["hashed"].as_array().into_iter().flatten();
    let given = given.filter_map(|one| Some((one["salt"].as_str()?, one["hash"].as_str()?)));
    // All are compared, so that the time does not tell which one it is.
    made.chain(given).fold(false, |found, (salt, hash)| {
        let (mut salt_bytes, mut hash_bytes) = ([0; 32], [0; 32]);
        let read = hex::decode_to_slice(salt, &mut salt_bytes).is_ok()
            && hex::decode_to_slice(hash, &mut hash_bytes).is_ok();
        (read && equal(&salted_hash(&salt_bytes, text), &hash_bytes)) || found
    })
}
