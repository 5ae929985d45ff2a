//! Networks begin, change and end.

use pilot_wire::NodeId;
use pilot_wire::registry::NetworkMade;
use pilot_wire::registry::network::{BroadcastRight, JoinPolicy};

use super::{Outcome, done, invalid};
use crate::state::rows::RowKey;
use crate::state::{
    Actor, Change, LeaveReason, MAX_CONFIG_DEPTH, MAX_LEAVING, MAX_MEMBER_TAG, MAX_NETWORKS,
    MAX_NETWORKS_OF_OWNER, MAX_RULE_CONFIG, MAX_RULE_CONFIGS, MAX_RULES, NetworkRecord, Refusal,
    State, check_network_name, nests_deeper,
};

impl State {
    pub(super) fn create_network(
        &mut self,
        by: &Actor,
        name: &str,
        join: &JoinPolicy,
        broadcast: &BroadcastRight,
        at: u64,
    ) -> Outcome {
        let owner = self.actor(by)?;
        check_network_name(name)?;
        check_policy(join)?;
        check_broadcast(broadcast)?;
        if self.networks.named(name).is_some() {
            return Err(Refusal::NetworkExists(name.to_owned()));
        }
        if let Some(owner) = owner {
            let owned = self.networks.iter().filter(|n| n.record.owner == Some(owner));
            if owned.count() >= MAX_NETWORKS_OF_OWNER {
                return Err(Refusal::Full("networks of one owner"));
            }
        }
        let id = self.free_number()?;
        self.next_network = following(id);
        let record = NetworkRecord {
            id,
            name: name.to_owned(),
            join: join.clone(),
            broadcast: broadcast.clone(),
            owner,
            created: at,
        };
        self.networks.begin(record, self.applied);
        self.dirty.mark(|| RowKey::Network(id));
        self.network_made(id, owner)
    }

    /// The next number that no network has. The number of one that ended is
    /// used again only after all others were, so that whoever still knows it is
    /// not led into another network.
    fn free_number(&self) -> Result<u16, Refusal> {
        if self.networks.len() >= MAX_NETWORKS {
            return Err(Refusal::Full("networks"));
        }
        let mut id = self.next_network.max(1);
        while self.networks.is_used(id) {
            id = following(id);
        }
        Ok(id)
    }

    pub(super) fn update_network(
        &mut self,
        by: &Actor,
        id: u16,
        join: Option<&JoinPolicy>,
        broadcast: Option<&BroadcastRight>,
    ) -> Outcome {
        self.managed(by, id)?;
        join.map_or(Ok(()), check_policy)?;
        broadcast.map_or(Ok(()), check_broadcast)?;
        if let Some(join) = join {
            self.networks.set_policy(id, join.clone(), self.applied);
        }
        if let Some(broadcast) = broadcast {
            self.set_broadcast(id, broadcast)?;
        }
        self.dirty.mark(|| RowKey::Network(id));
        let node = self.actor(by)?;
        self.network_made(id, node)
    }

    /// Who may broadcast now and could not before, or the other way round, has
    /// another membership.
    fn set_broadcast(&mut self, id: u16, broadcast: &BroadcastRight) -> Result<(), Refusal> {
        let may = |state: &Self| -> Result<Vec<(NodeId, bool)>, Refusal> {
            let network = state.network(id)?;
            let members = network.members.keys();
            Ok(members.map(|node| (*node, network.may_broadcast(*node))).collect())
        };
        if self.network(id)?.record.broadcast == *broadcast {
            return Ok(());
        }
        let before = may(self)?;
        if let Some(record) = self.networks.record_mut(id) {
            record.broadcast = broadcast.clone();
        }
        for (before, after) in before.into_iter().zip(may(self)?) {
            if before != after {
                self.changed(Change::Joined { network: id, node: after.0 });
            }
        }
        Ok(())
    }

    fn network_made(&self, id: u16, node: Option<NodeId>) -> Outcome {
        Ok(NetworkMade { network: self.network(id)?.view(node, true) }.into())
    }

    pub(super) fn delete_network(&mut self, by: &Actor, id: u16) -> Outcome {
        self.managed(by, id)?;
        let network = self.network(id)?;
        let tokens: Vec<_> = network.tokens.keys().cloned().collect();
        let invitations: Vec<_> = self.networks.invited_to(id).map(|i| i.id).collect();
        for token in tokens {
            self.networks.remove_token(id, &token);
        }
        for invitation in invitations {
            self.forget_invitation(invitation);
        }
        self.networks.end(id);
        self.dirty.mark(|| RowKey::Network(id));
        self.empty_ended(MAX_LEAVING);
        Ok(done(id))
    }

    /// Takes members out of networks that are ending, at most `count`: one
    /// without members is gone, and its number is free. With millions of
    /// members, all at once would hold up everybody.
    pub(super) fn empty_ended(&mut self, count: usize) {
        let mut left = count;
        while let Some(network) = self.networks.first_ending() {
            let id = network.record.id;
            let members: Vec<_> = network.members.keys().take(left).copied().collect();
            left -= members.len();
            for node in members {
                self.leave(id, node, LeaveReason::Deleted);
            }
            if !self.networks.forget_ended(id) {
                return;
            }
            self.dirty.mark(|| RowKey::Network(id));
        }
    }
}

/// The number after this one; 0 is the backbone.
pub(super) const fn following(id: u16) -> u16 {
    match id.checked_add(1) {
        Some(next) => next,
        None => 1,
    }
}

pub(super) fn check_policy(policy: &JoinPolicy) -> Result<(), Refusal> {
    if policy.rules.len() > MAX_RULES {
        return Err(invalid("join.rules", format!("there are more than {MAX_RULES}")));
    }
    let mut together = 0;
    for (i, rule) in policy.rules.iter().enumerate() {
        if nests_deeper(&rule.config, MAX_CONFIG_DEPTH) {
            let problem = format!("is nested deeper than {MAX_CONFIG_DEPTH} lists and objects");
            return Err(invalid(&format!("join.rules[{i}].config"), problem));
        }
        let len = rule.config.to_string().len();
        together += len;
        if len > MAX_RULE_CONFIG {
            let problem = format!("is longer than {MAX_RULE_CONFIG} bytes as JSON");
            return Err(invalid(&format!("join.rules[{i}].config"), problem));
        }
    }
    if together > MAX_RULE_CONFIGS {
        let problem = format!("their config is longer than {MAX_RULE_CONFIGS} bytes together");
        return Err(invalid("join.rules", problem));
    }
    Ok(())
}

fn check_broadcast(right: &BroadcastRight) -> Result<(), Refusal> {
    match right {
        BroadcastRight::Tagged(tag) if tag.is_empty() || tag.len() > MAX_MEMBER_TAG => {
            Err(invalid("broadcast.tagged", format!("is not 1 to {MAX_MEMBER_TAG} bytes")))
        }
        _ => Ok(()),
    }
}
