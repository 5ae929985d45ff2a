//! Handshake requests and answers that wait, by the node that they wait for,
//! with what is found by sender. Nothing here judges.
//!
//! Of one sender one request and one answer wait for a node at the most.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use pilot_wire::NodeId;
use pilot_wire::registry::{HandshakeAnswer, HandshakeRequest};

use super::rows::Inbox;

/// What waits; none of the inboxes is empty.
#[derive(Debug, Default)]
pub(super) struct Inboxes {
    all: BTreeMap<NodeId, Inbox>,
    /// Sender and target.
    senders: BTreeSet<(NodeId, NodeId)>,
}

impl Inboxes {
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn get(&self, node: NodeId) -> Option<&Inbox> {
        self.all.get(&node)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&NodeId, &Inbox)> {
        self.all.iter()
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = NodeId> {
        self.all.keys().copied()
    }

    /// Whether a request of `from` waits for `to`.
    pub(super) fn asks(&self, from: NodeId, to: NodeId) -> bool {
        self.senders.contains(&(from, to))
            && self.get(to).is_some_and(|i| i.requests.iter().any(|r| r.from_node_id == from))
    }

    pub(super) fn ask(&mut self, to: NodeId, request: HandshakeRequest) {
        self.senders.insert((request.from_node_id, to));
        self.all.entry(to).or_default().requests.push(request);
    }

    /// Puts an answer, in the place of an earlier one of the same node; beyond
    /// `most` the oldest goes.
    pub(super) fn answer(&mut self, to: NodeId, answer: HandshakeAnswer, most: usize) {
        let from = answer.from_node_id;
        let inbox = self.all.entry(to).or_default();
        inbox.answers.retain(|earlier| earlier.from_node_id != from);
        let oldest = if inbox.answers.len() >= most { inbox.answers.pop_front() } else { None };
        inbox.answers.push_back(answer);
        self.senders.insert((from, to));
        if let Some(gone) = oldest {
            let inbox = self.all.get(&to);
            if inbox.is_some_and(|inbox| !inbox.is_from(gone.from_node_id)) {
                self.senders.remove(&(gone.from_node_id, to));
            }
        }
    }

    /// Takes all that waits for `node`.
    pub(super) fn take(&mut self, node: NodeId) -> Inbox {
        let inbox = self.all.remove(&node).unwrap_or_default();
        for from in inbox.senders() {
            self.senders.remove(&(from, node));
        }
        inbox
    }

    /// Drops what waits for others from `node`; gives for whom it waited.
    pub(super) fn drop_from(&mut self, node: NodeId) -> Vec<NodeId> {
        let sent = self.senders.range((node, NodeId(0))..=(node, NodeId(u32::MAX)));
        let targets: Vec<_> = sent.map(|(_, to)| *to).collect();
        for to in &targets {
            self.senders.remove(&(node, *to));
            let Some(inbox) = self.all.get_mut(to) else { continue };
            inbox.requests.retain(|request| request.from_node_id != node);
            inbox.answers.retain(|answer| answer.from_node_id != node);
            if inbox.is_empty() {
                self.all.remove(to);
            }
        }
        targets
    }

    /// Puts requests of a stored state; whether there were none.
    pub(super) fn load_requests(&mut self, node: NodeId, requests: Vec<HandshakeRequest>) -> bool {
        self.senders.extend(requests.iter().map(|r| (r.from_node_id, node)));
        if requests.is_empty() {
            return true;
        }
        let inbox = self.all.entry(node).or_default();
        std::mem::replace(&mut inbox.requests, requests).is_empty()
    }

    /// Puts answers of a stored state; whether there were none.
    pub(super) fn load_answers(
        &mut self,
        node: NodeId,
        answers: VecDeque<HandshakeAnswer>,
    ) -> bool {
        self.senders.extend(answers.iter().map(|a| (a.from_node_id, node)));
        if answers.is_empty() {
            return true;
        }
        let inbox = self.all.entry(node).or_default();
        std::mem::replace(&mut inbox.answers, answers).is_empty()
    }
}

impl Inbox {
    fn senders(&self) -> impl Iterator<Item = NodeId> {
        let asking = self.requests.iter().map(|r| r.from_node_id);
        asking.chain(self.answers.iter().map(|a| a.from_node_id))
    }

    fn is_from(&self, node: NodeId) -> bool {
        self.senders().any(|from| from == node)
    }
}
