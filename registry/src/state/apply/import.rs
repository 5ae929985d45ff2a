//! What another registry held becomes the beginning of this one. Nobody is
//! told: in an empty registry there is nobody.

use std::collections::BTreeMap;

use super::networks::{check_policy, following};
use super::{Outcome, invalid, nothing};
use crate::state::{
    Imported, KeyEntry, Loading, MAX_KEYS, MAX_MEMBERSHIPS, MAX_NETWORKS, MAX_OWNER, MAX_TRUST,
    Refusal, State, StateError, check_hostname, check_network_name,
};

impl State {
    pub(super) fn import(&mut self, imported: &Imported, at: u64) -> Outcome {
        if self.next_node != 1 || self.networks.len() != 0 {
            return Err(Refusal::NotEmpty);
        }
        check(imported)?;
        let mut state = self.built(imported).map_err(|e| invalid("import", e.to_string()))?;
        let members = state.networks.iter().flat_map(|n| n.members.keys());
        if let Some(node) =
            members.into_iter().find(|node| state.networks.of(**node).count() > MAX_MEMBERSHIPS)
        {
            let problem = format!("node {node} is in more than {MAX_MEMBERSHIPS} networks");
            return Err(invalid("networks", problem));
        }
        state.touch_all(at);
        state.epoch = std::mem::take(&mut self.epoch);
        state.changes = std::mem::take(&mut self.changes);
        state.dirty = std::mem::take(&mut self.dirty);
        state.next_invitation = self.next_invitation;
        *self = state;
        let mut dirty = std::mem::take(&mut self.dirty);
        self.row_keys().for_each(|key| dirty.mark(|| key));
        self.dirty = dirty;
        Ok(nothing())
    }

    fn built(&self, imported: &Imported) -> Result<Self, StateError> {
        let mut loading = Loading::default();
        loading.stands(self.applied, imported.next_node);
        let mut owners = BTreeMap::new();
        for record in &imported.nodes {
            if !record.owner.is_empty() {
                // The first node of an owner is the one that is recovered.
                let id = owners.entry(record.owner.as_str()).or_insert(record.id);
                *id = record.id.min(*id);
            }
            let mut record = record.clone();
            record.registered_by = self.applied;
            loading.node(record)?;
        }
        for (key, node) in &imported.keys {
            loading.key(*key, KeyEntry { node: *node, proven: false, revoked: false })?;
        }
        owners.into_iter().try_for_each(|(text, node)| loading.owner(text, node))?;
        for (a, b) in &imported.trust {
            loading.stated(*a, *b)?;
            loading.stated(*b, *a)?;
        }
        for (node, requests) in imported.requests.iter().filter(|(_, r)| !r.is_empty()) {
            loading.requests(*node, requests.clone())?;
        }
        for (node, answers) in imported.answers.iter().filter(|(_, a)| !a.is_empty()) {
            loading.answers(*node, answers.clone().into())?;
        }
        let last = imported.networks.iter().map(|(record, _)| record.id).max();
        loading.next_network(last.map_or(self.next_network, following));
        for (record, members) in &imported.networks {
            loading.network(record.clone(), self.applied, false)?;
            members.iter().for_each(|member| loading.member(record.id, member.clone()));
        }
        loading.check()
    }
}

/// What a state does not check of itself when it is loaded.
fn check(imported: &Imported) -> Result<(), Refusal> {
    let Imported { next_node, nodes, keys, trust, networks, .. } = imported;
    if *next_node == 0 {
        return Err(invalid("next_node", "is 0; the first node has number 1"));
    }
    for (len, max, what) in [
        (keys.len(), MAX_KEYS, "keys"),
        (trust.len(), MAX_TRUST, "trust pairs"),
        (networks.len(), MAX_NETWORKS, "networks"),
    ] {
        if len > max {
            return Err(Refusal::Full(what));
        }
    }
    for record in nodes {
        if !record.hostname.is_empty() {
            check_hostname(&record.hostname)?;
        }
        if record.owner.len() > MAX_OWNER {
            return Err(Refusal::OwnerTooLong);
        }
    }
    networks.iter().try_for_each(|(record, _)| {
        check_network_name(&record.name)?;
        check_policy(&record.join)
    })
}
