//! Requests beyond the published ones that are about networks: who acts, and
//! whether that node or administrator may do it. What the join rules say is the
//! business of `joining`.
//!
//! | Request | Who |
//! |---|---|
//! | `network_create` | administrators; nodes where any node makes networks |
//! | `network_update`, `network_delete`, `network_remove`, `token_*` | the network's owner, administrators |
//! | `network_list` | nodes, administrators; the rules' configuration for owner and administrators only |
//! | `network_members` | members, owner, administrators |
//! | `network_join`, `network_leave`, `invitation_decline` | the node itself |
//! | `invite` | owner and administrators; members too, without tags, where the rule `invite` is |
//! | `invitation_list` | a node, of its own; with a network owner and administrators, and members of what they made |
//! | `invitation_revoke` | who made it, owner, administrators |
//! | `node_revoke`, `audit_query` | administrators |

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pilot_wire::NodeId;
use pilot_wire::registry::network::{BroadcastRight, Invitee, JoinPolicy, NetworkRef};
use pilot_wire::registry::{
    Acknowledged, Envelope, Extended, Invitations, Members, NetworkViews, Signature, Tokens,
    challenge,
};
use sha2::{Digest as _, Sha256};

use super::joining::INVITE;
use super::{Admitted, Asker, MAX_REQUEST_ID, Service, Then, cut, reply, verifies, views};
use crate::state::{
    Actor, Command, Invitation, MAX_CONFIG_DEPTH, MAX_MEMBER_TAGS, MAX_OWNER, MAX_RULE_CONFIG,
    MAX_RULE_CONFIGS, MAX_RULES, Network, Op, Origin, Refusal, Signer, State, check_network_name,
    check_tags, nests_deeper,
};

/// Most members on one page.
const PAGE: usize = 1000;
/// Longest reason kept of a revocation, in bytes.
const MAX_REASON: usize = 512;

/// Who asks, as far as it is proven.
#[derive(Debug)]
pub(super) struct Who {
    /// The administrator's name.
    admin: Option<String>,
    /// The node of the session.
    node: Option<Signer>,
}

impl Who {
    /// The node itself, whoever it is beside that.
    pub(super) fn node(&self, request: &'static str) -> Result<Signer, Refusal> {
        self.node.ok_or(Refusal::SessionRequired(request))
    }

    /// Who acts where either may: an administrator's token counts first.
    fn actor(&self, request: &'static str) -> Result<Actor, Refusal> {
        match &self.admin {
            Some(name) => Ok(Actor::Admin(name.clone())),
            None => self.node(request).map(Actor::Node),
        }
    }

    fn admin(&self, request: &'static str) -> Result<Actor, Refusal> {
        match &self.admin {
            Some(name) => Ok(Actor::Admin(name.clone())),
            None => Err(Refusal::AdminOnly(request)),
        }
    }

    fn is_admin(&self) -> bool {
        self.admin.is_some()
    }

    fn is(&self, node: Option<NodeId>) -> bool {
        node.is_some() && self.node.map(|signer| signer.node) == node
    }

    /// Whether what belongs to the owner is for this one.
    fn owns(&self, network: &Network) -> bool {
        self.is_admin() || self.is(network.record.owner)
    }
}

impl Service {
    /// Judges one request of `asker` at `now` (Unix seconds). Sessions are not
    /// handled here. A join waits for the rules.
    ///
    /// # Errors
    /// Says why it is refused.
    pub async fn extended(
        &self,
        envelope: Envelope,
        asker: &Asker,
        now: u64,
    ) -> Result<Admitted, Refusal> {
        let who = self.who(&envelope.admin_token, asker, now)?;
        self.decide(who, envelope, asker, now).await
    }

    /// Judges one request of the administrator `name`, who is known by other
    /// means than what the request shows.
    ///
    /// # Errors
    /// Says why it is refused.
    pub(crate) async fn extended_by(
        &self,
        name: &str,
        envelope: Envelope,
        asker: &Asker,
        now: u64,
    ) -> Result<Admitted, Refusal> {
        let who = Who { admin: Some(name.to_owned()), node: asker.session };
        self.decide(who, envelope, asker, now).await
    }

    async fn decide(
        &self,
        who: Who,
        envelope: Envelope,
        asker: &Asker,
        now: u64,
    ) -> Result<Admitted, Refusal> {
        let Envelope { request, admin_token: _, request_id } = envelope;
        let op = match request {
            Extended::NetworkCreate { name, join, broadcast } => {
                self.create(&who, name, join, broadcast).await?
            }
            Extended::NetworkUpdate { network, join, broadcast } => {
                let (by, network) = self.managed(&who, &network, "network_update")?;
                if join.is_none() && broadcast.is_none() {
                    return Err(invalid("join", "nothing to change; give join, or broadcast"));
                }
                if let Some(join) = &join {
                    self.check_policy(join).await?;
                }
                let broadcast = broadcast.map(checked_broadcast).transpose()?;
                Op::UpdateNetwork { by, network, join, broadcast }
            }
            Extended::NetworkDelete { network } => {
                let (by, network) = self.managed(&who, &network, "network_delete")?;
                Op::DeleteNetwork { by, network }
            }
            Extended::NetworkJoin { network, proofs } => {
                let by = who.node("network_join")?;
                self.join(by, &network, &proofs, asker, now).await?
            }
            Extended::NetworkLeave { network } => {
                let by = who.node("network_leave")?;
                let network = self.network_of_member(&network, by.node)?;
                Op::LeaveNetwork { by: Actor::Node(by), node: by.node, network }
            }
            Extended::NetworkRemove { network, node_id } => {
                let (by, _) = self.managed(&who, &network, "network_remove")?;
                let network = self.network_of_member(&network, node_id)?;
                Op::LeaveNetwork { by, node: node_id, network }
            }
            Extended::NetworkList {} => return self.list(&who),
            Extended::NetworkMembers { network, after, limit } => {
                return self.members(&who, &network, after, limit);
            }
            Extended::TokenCreate { network, uses, expires, tags } => {
                let (by, network) = self.managed(&who, &network, "token_create")?;
                if uses == Some(0) {
                    return Err(invalid("uses", "is 0; leave it out for any number"));
                }
                if let Some(expires) = expires {
                    check_future(expires, now)?;
                }
                let tags = checked_tags(&tags)?;
                let (secret, id, salt) = (secret(), hex::encode(random::<6>()), random());
                let hash = salted_hash(&salt, &secret);
                let op = Op::CreateToken { by, network, id, salt, hash, uses, expires, tags };
                let then = Then::new(move |led_to| match led_to {
                    Acknowledged::TokenMade(made) => {
                        pilot_wire::registry::TokenMade { secret, ..made }.into()
                    }
                    other => other,
                });
                return Ok(Admitted::WriteThen(command(op, asker, &request_id, now), then));
            }
            Extended::TokenList { network } => {
                self.managed(&who, &network, "token_list")?;
                let state = self.state();
                let network = state.find_network(&network)?;
                let live = network.tokens.values().filter(|t| !is_over(t.expires, now));
                let views = live.map(|token| token.view(network.record.id));
                return Ok(reply(Tokens { tokens: views::all_that_fit("tokens", views) }));
            }
            Extended::TokenRevoke { network, id } => {
                let (by, network) = self.managed(&who, &network, "token_revoke")?;
                if !self.state().network(network)?.tokens.contains_key(&id) {
                    return Err(Refusal::TokenGone);
                }
                Op::RevokeToken { by, network, id }
            }
            Extended::Invite { network, to, expires, tags, signature } => {
                self.invite(&who, &network, to, expires, &tags, signature, now)?
            }
            Extended::InvitationList { network } => {
                return self.invitations(&who, network.as_ref(), now);
            }
            Extended::InvitationDecline { id } => {
                let by = who.node("invitation_decline")?;
                let state = self.state();
                if !invitations_of(&state, by.node, now).any(|invitation| invitation.id == id) {
                    return Err(Refusal::InvitationGone);
                }
                Op::EndInvitation { by: Actor::Node(by), id }
            }
            Extended::InvitationRevoke { id } => {
                let by = who.actor("invitation_revoke")?;
                let state = self.state();
                let invitation = state.invitation(id).ok_or(Refusal::InvitationGone)?;
                let network = state.network(invitation.network)?;
                // Who has nothing to do with it is not told that there is one.
                if !who.owns(network) && !who.is(invitation.from.map(|(node, _)| node)) {
                    return Err(Refusal::InvitationGone);
                }
                Op::EndInvitation { by, id }
            }
            Extended::NodeRevoke { node_id, reason } => {
                let by = who.admin("node_revoke")?;
                // Also one that is away, or was removed for being silent.
                let state = self.state();
                match node_id {
                    node if !state.is_assigned(node) => return Err(Refusal::UnknownNode(node)),
                    node if state.is_revoked(node) => return Err(Refusal::Revoked(node)),
                    node => {
                        Op::RevokeNode { by, node, reason: cut(&reason, MAX_REASON).to_owned() }
                    }
                }
            }
            Extended::AuditQuery(filter) => {
                who.admin("audit_query")?;
                return Ok(reply(self.audit_query(filter).await?));
            }
            Extended::SessionChallenge {} => return Err(no_session("session_challenge")),
            Extended::SessionOpen { .. } => return Err(no_session("session_open")),
            Extended::SessionWatch { .. } => return Err(no_session("session_watch")),
        };
        Ok(Admitted::Write(command(op, asker, &request_id, now)))
    }

    /// Who asks. A session counts as long as its key is the node's.
    fn who(&self, admin_token: &str, asker: &Asker, now: u64) -> Result<Who, Refusal> {
        let admin = match admin_token {
            "" => None,
            token => Some(self.shown(token, asker, now)?),
        };
        Ok(Who { admin, node: self.session(asker) })
    }

    /// The node of the connection's session, if its key is still the node's.
    pub(super) fn session(&self, asker: &Asker) -> Option<Signer> {
        let state = self.state();
        asker.session.filter(|s| state.node(s.node).is_ok_and(|n| n.record.key == s.key))
    }

    /// A network that the asker owns or administers.
    fn managed(
        &self,
        who: &Who,
        network: &NetworkRef,
        request: &'static str,
    ) -> Result<(Actor, u16), Refusal> {
        let by = who.actor(request)?;
        let state = self.state();
        let network = state.find_network(network)?;
        let id = network.record.id;
        if who.owns(network) { Ok((by, id)) } else { Err(Refusal::NotOwner(id)) }
    }

    fn network_of_member(&self, network: &NetworkRef, node: NodeId) -> Result<u16, Refusal> {
        let state = self.state();
        let network = state.find_network(network)?;
        let id = network.record.id;
        let is_member = network.members.contains_key(&node);
        if is_member { Ok(id) } else { Err(Refusal::NotMember { network: id, node }) }
    }

    async fn create(
        &self,
        who: &Who,
        name: String,
        join: JoinPolicy,
        broadcast: BroadcastRight,
    ) -> Result<Op, Refusal> {
        let by = if self.any_node_makes_networks {
            who.actor("network_create")?
        } else {
            who.admin("network_create")?
        };
        self.check_name(&name)?;
        let broadcast = checked_broadcast(broadcast)?;
        self.check_policy(&join).await?;
        Ok(Op::CreateNetwork { by, name, join, broadcast })
    }

    /// As a hostname, not reserved, of no other network.
    pub(super) fn check_name(&self, name: &str) -> Result<(), Refusal> {
        check_network_name(name)?;
        let there = self.state().find_network(&NetworkRef::Name(name.to_owned())).is_ok();
        if there { Err(Refusal::NetworkExists(name.to_owned())) } else { Ok(()) }
    }

    /// Whether rules can be asked at all, each is named once, and nothing is
    /// too long. What a rule thinks of its configuration it says to who joins.
    async fn check_policy(&self, policy: &JoinPolicy) -> Result<(), Refusal> {
        if policy.rules.is_empty() || policy.rules.len() > MAX_RULES {
            let problem = format!("has {} rules, expected 1 to {MAX_RULES}", policy.rules.len());
            return Err(invalid("join.rules", problem));
        }
        self.rules_ready().await;
        let known = self.join_rules();
        let mut together = 0;
        for (i, rule) in policy.rules.iter().enumerate() {
            let key = format!("join.rules[{i}].rule");
            if policy.rules[..i].iter().any(|earlier| earlier.rule == rule.rule) {
                return Err(invalid(key, format!("{:?} is named twice", rule.rule)));
            }
            if !known.contains(&rule.rule) {
                let problem =
                    format!("{:?}: no plugin provides it; {}", rule.rule, there_are(&known));
                return Err(invalid(key, problem));
            }
            if nests_deeper(&rule.config, MAX_CONFIG_DEPTH) {
                let problem = format!("is nested deeper than {MAX_CONFIG_DEPTH} lists and objects");
                return Err(invalid(format!("join.rules[{i}].config"), problem));
            }
            let len = views::json_len(&rule.config);
            together += len;
            if len > MAX_RULE_CONFIG {
                let problem =
                    format!("has {len} bytes as JSON, expected at most {MAX_RULE_CONFIG}");
                return Err(invalid(format!("join.rules[{i}].config"), problem));
            }
        }
        if together > MAX_RULE_CONFIGS {
            let problem = format!(
                "their config has {together} bytes as JSON together, expected at most \
                 {MAX_RULE_CONFIGS}"
            );
            return Err(invalid("join.rules", problem));
        }
        Ok(())
    }

    fn list(&self, who: &Who) -> Result<Admitted, Refusal> {
        who.actor("network_list")?;
        let node = who.node.map(|signer| signer.node);
        let state = self.state();
        let views = state.networks().map(|n| n.view(node, who.owns(n)));
        Ok(reply(NetworkViews { networks: views::all_that_fit("networks", views) }))
    }

    fn members(
        &self,
        who: &Who,
        network: &NetworkRef,
        after: NodeId,
        limit: u32,
    ) -> Result<Admitted, Refusal> {
        who.actor("network_members")?;
        let limit = match limit {
            0 => PAGE,
            limit => usize::try_from(limit).map_or(PAGE, |limit| limit.min(PAGE)),
        };
        let state = self.state();
        let network = state.find_network(network)?;
        if !who.owns(network) {
            let node = who.node("network_members")?.node;
            if !network.members.contains_key(&node) {
                return Err(Refusal::NotMember { network: network.record.id, node });
            }
        }
        let views = after_node(network, after).map(|m| views::member(&state, network, m));
        let (members, more) = views::page(views, limit);
        let next = members.last().filter(|_| more).map(|m| m.node_id);
        Ok(reply(Members { members, next }))
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of the request")]
    fn invite(
        &self,
        who: &Who,
        network: &NetworkRef,
        to: Invitee,
        expires: u64,
        tags: &[String],
        signature: Option<Signature>,
        now: u64,
    ) -> Result<Op, Refusal> {
        let by = who.actor("invite")?;
        let id = {
            let state = self.state();
            let network = state.find_network(network)?;
            let id = network.record.id;
            if !who.owns(network) {
                let node = who.node("invite")?.node;
                if !network.members.contains_key(&node) {
                    return Err(Refusal::NotMember { network: id, node });
                }
                // No member gives what only the owner can, nor lets in where no
                // rule asks for invitations.
                let asks = network.record.join.rules.iter().any(|rule| rule.rule == INVITE);
                if !asks || !tags.is_empty() {
                    return Err(Refusal::NotOwner(id));
                }
            }
            match &to {
                Invitee::Node(node) if node.0 == 0 || *node >= state.next_node() => {
                    return Err(Refusal::UnknownNode(*node));
                }
                Invitee::Owner(owner) if owner.is_empty() || owner.len() > MAX_OWNER => {
                    return Err(invalid("to.owner", format!("is not 1 to {MAX_OWNER} bytes")));
                }
                Invitee::Node(_) | Invitee::Owner(_) => {}
            }
            id
        };
        check_future(expires, now)?;
        let tags = checked_tags(tags)?;
        match &by {
            Actor::Node(signer) => {
                let text = challenge::invite(id, &to, expires);
                if !signature.is_some_and(|signature| verifies(signer.key, &text, signature)) {
                    return Err(Refusal::BadSignature(signer.node));
                }
            }
            Actor::Admin(_) | Actor::Registry if signature.is_some() => {
                let problem = "an administrator signs nothing; leave it out";
                return Err(invalid("signature", problem));
            }
            Actor::Admin(_) | Actor::Registry => {}
        }
        Ok(Op::Invite { by, network: id, to, expires, tags, signature })
    }

    fn invitations(
        &self,
        who: &Who,
        network: Option<&NetworkRef>,
        now: u64,
    ) -> Result<Admitted, Refusal> {
        let state = self.state();
        let found: Vec<&Invitation> = match network {
            None => invitations_of(&state, who.node("invitation_list")?.node, now).collect(),
            Some(network) => {
                who.actor("invitation_list")?;
                let network = state.find_network(network)?;
                let id = network.record.id;
                let all = state.invitations_to(id).filter(|i| i.expires > now);
                if who.owns(network) {
                    all.collect()
                } else {
                    let node = who.node("invitation_list")?.node;
                    if !network.members.contains_key(&node) {
                        return Err(Refusal::NotMember { network: id, node });
                    }
                    all.filter(|i| i.from.is_some_and(|(from, _)| from == node)).collect()
                }
            }
        };
        let views = found.into_iter().filter_map(|invitation| {
            let network = state.network(invitation.network).ok()?;
            Some(invitation.view(&network.record.name))
        });
        Ok(reply(Invitations { invitations: views::all_that_fit("invitations", views) }))
    }
}

/// Invitations that the node can accept now.
pub(super) fn invitations_of(
    state: &State,
    node: NodeId,
    now: u64,
) -> impl Iterator<Item = &Invitation> {
    state.invitations_for(node).into_iter().filter(move |invitation| invitation.expires > now)
}

/// Members in order of their numbers, after this one.
pub(super) fn after_node(
    network: &Network,
    after: NodeId,
) -> impl Iterator<Item = &crate::state::Member> {
    use std::ops::Bound::{Excluded, Unbounded};
    network.members.range((Excluded(after), Unbounded)).map(|(_, member)| member)
}

/// What there is, for a message.
pub(super) fn there_are(rules: &[String]) -> String {
    match rules {
        [] => "there is none".to_owned(),
        rules => format!("there are: {}", rules.join(", ")),
    }
}

/// Whether the time has come.
pub(super) fn is_over(expires: Option<u64>, now: u64) -> bool {
    expires.is_some_and(|expires| expires <= now)
}

/// SHA-256 over salt and secret, as tokens are kept.
pub(super) fn salted_hash(salt: &[u8; 32], secret: &str) -> [u8; 32] {
    Sha256::new().chain_update(salt).chain_update(secret).finalize().into()
}

/// Unpredictable bytes.
pub(super) fn random<const N: usize>() -> [u8; N] {
    rand::random()
}

/// As set tags are, but [`MAX_MEMBER_TAGS`] of them; each once.
///
/// # Errors
/// Says which rule is broken.
pub(super) fn member_tags(tags: &[String]) -> Result<Vec<String>, String> {
    let mut good: Vec<String> = Vec::new();
    for tag in tags {
        let tag = check_tags(&[tag.as_str().into()]).map_err(|refusal| refusal.to_string())?;
        good.extend(tag.into_iter().filter(|tag| !good.contains(tag)).collect::<Vec<_>>());
        if good.len() > MAX_MEMBER_TAGS {
            return Err(format!("more than {MAX_MEMBER_TAGS} tags"));
        }
    }
    Ok(good)
}

fn checked_tags(tags: &[String]) -> Result<Vec<String>, Refusal> {
    member_tags(tags).map_err(|problem| invalid("tags", problem))
}

fn checked_broadcast(broadcast: BroadcastRight) -> Result<BroadcastRight, Refusal> {
    let BroadcastRight::Tagged(tag) = broadcast else { return Ok(broadcast) };
    match member_tags(std::slice::from_ref(&tag)).map(|mut tags| tags.pop()) {
        Ok(tag) => Ok(BroadcastRight::Tagged(tag.unwrap_or_default())),
        Err(problem) => Err(invalid("broadcast.tagged", problem)),
    }
}

fn check_future(expires: u64, now: u64) -> Result<(), Refusal> {
    if expires > now {
        return Ok(());
    }
    Err(invalid("expires", format!("{expires} is over; it is {now} now, in Unix seconds")))
}

pub(super) fn invalid(key: impl Into<String>, problem: impl Into<String>) -> Refusal {
    Refusal::Invalid { key: key.into(), problem: problem.into() }
}

/// Where there are no sessions, as for requests that come over HTTP.
const fn no_session(request: &'static str) -> Refusal {
    Refusal::SessionRequired(request)
}

/// The secret of a new token: 32 unpredictable bytes.
fn secret() -> String {
    format!("pjt_{}", URL_SAFE_NO_PAD.encode(random::<32>()))
}

pub(super) fn command(op: Op, asker: &Asker, request_id: &str, now: u64) -> Command {
    let request = cut(request_id, MAX_REQUEST_ID).to_owned();
    Command { at: now, origin: Origin { source: Some(asker.source), request }, op }
}
