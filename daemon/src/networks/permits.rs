//! Why a peer may reach this node: trust, or networks that both are in. The one
//! place where the reasons meet: the loop is told when the first comes and when
//! the last goes, and which networks a peer shares.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pilot_core::Permission;
use pilot_wire::NodeId;
use tokio::sync::Mutex;

use crate::node::NodeHandle;

/// Peers permitted by a network alone; one more stays a stranger.
const MAX_SHARING: usize = 65_536;

/// The reasons of all peers. Cheap to clone, all clones are one.
#[derive(Clone)]
pub struct Permits {
    node: NodeHandle,
    /// Held while the loop is told, so that it hears changes in their order.
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    /// Networks that this node is in, beside 0.
    own: BTreeSet<u16>,
    peers: BTreeMap<NodeId, Reasons>,
    /// It was said that there are too many.
    full: bool,
}

#[derive(Clone, Default, PartialEq)]
struct Reasons {
    trust: bool,
    networks: BTreeSet<u16>,
    /// Those in which it may broadcast.
    speaks: BTreeSet<u16>,
}

impl Reasons {
    fn permit(&self) -> bool {
        self.trust || !self.networks.is_empty()
    }

    fn leave(&mut self, gone: impl Fn(u16) -> bool) {
        self.networks.retain(|n| !gone(*n));
        self.speaks.retain(|n| !gone(*n));
    }
}

impl Permits {
    /// Of a node that is in no network and whose loop has been told whom it
    /// trusts.
    pub fn new(node: NodeHandle, trusted: impl IntoIterator<Item = NodeId>) -> Self {
        let reasons = Reasons { trust: true, ..Reasons::default() };
        let peers = trusted.into_iter().map(|node| (node, reasons.clone())).collect();
        Self { node, inner: Arc::new(Mutex::new(Inner { peers, ..Inner::default() })) }
    }

    /// A peer is trusted from now on, or not any more.
    pub async fn set_trust(&self, node: NodeId, trust: bool) {
        let mut inner = self.inner.lock().await;
        self.change(&mut inner, node, |reasons| reasons.trust = trust).await;
    }

    /// These are all networks that a peer is in, as far as this node is in them
    /// too, and in these of them it may broadcast. Returns which of them count.
    pub async fn set_shared(
        &self,
        node: NodeId,
        networks: &[u16],
        speaks: &[u16],
    ) -> BTreeSet<u16> {
        self.share(node, networks, Some(speaks)).await
    }

    /// The same when nothing is known of broadcasts: in networks that were not
    /// known to be shared they are taken, until more is known.
    pub async fn find_shared(&self, node: NodeId, networks: &[u16]) -> BTreeSet<u16> {
        self.share(node, networks, None).await
    }

    /// The networks that a peer shares with this node.
    pub async fn shared(&self, node: NodeId) -> BTreeSet<u16> {
        let inner = self.inner.lock().await;
        inner.peers.get(&node).map(|reasons| reasons.networks.clone()).unwrap_or_default()
    }

    /// A peer is not in these networks. Returns those that it still shares.
    pub async fn drop_shared(&self, node: NodeId, networks: &[u16]) -> BTreeSet<u16> {
        let mut inner = self.inner.lock().await;
        let leave = |reasons: &mut Reasons| reasons.leave(|n| networks.contains(&n));
        self.change(&mut inner, node, leave).await;
        inner.peers.get(&node).map(|reasons| reasons.networks.clone()).unwrap_or_default()
    }

    async fn share(&self, node: NodeId, networks: &[u16], speaks: Option<&[u16]>) -> BTreeSet<u16> {
        let mut inner = self.inner.lock().await;
        let shared: BTreeSet<u16> =
            networks.iter().copied().filter(|n| inner.own.contains(n)).collect();
        let known = inner.peers.get(&node);
        let new = |n: &u16| known.is_none_or(|k| k.speaks.contains(n) || !k.networks.contains(n));
        let speaks: BTreeSet<u16> = match speaks {
            Some(speaks) => shared.iter().copied().filter(|n| speaks.contains(n)).collect(),
            None => shared.iter().copied().filter(new).collect(),
        };
        if known.is_none() && !shared.is_empty() && inner.peers.len() >= MAX_SHARING {
            if !std::mem::replace(&mut inner.full, true) {
                tracing::warn!(
                    "{MAX_SHARING} peers share a network with this node; others stay strangers"
                );
            }
            return BTreeSet::new();
        }
        let take = |reasons: &mut Reasons| {
            reasons.networks.clone_from(&shared);
            reasons.speaks = speaks;
        };
        self.change(&mut inner, node, take).await;
        shared
    }

    /// This node is in exactly these networks, beside 0. What was permitted by
    /// another one ends.
    pub async fn set_own(&self, networks: BTreeSet<u16>) {
        let mut inner = self.inner.lock().await;
        if inner.own == networks {
            return;
        }
        let left: Vec<u16> = inner.own.difference(&networks).copied().collect();
        inner.own.clone_from(&networks);
        let lost = |reasons: &Reasons| left.iter().any(|n| reasons.networks.contains(n));
        let peers: Vec<NodeId> =
            inner.peers.iter().filter(|(_, r)| lost(r)).map(|(node, _)| *node).collect();
        // Streams first, whosever they are.
        self.node.set_networks(networks.into_iter().collect()).await;
        for node in peers {
            let leave = |reasons: &mut Reasons| reasons.leave(|n| left.contains(&n));
            self.change(&mut inner, node, leave).await;
        }
    }

    /// Whether there is any reason.
    pub async fn permits(&self, node: NodeId) -> bool {
        self.inner.lock().await.peers.get(&node).is_some_and(Reasons::permit)
    }

    async fn change(&self, inner: &mut Inner, node: NodeId, change: impl FnOnce(&mut Reasons)) {
        let before = inner.peers.get(&node).cloned().unwrap_or_default();
        let mut after = before.clone();
        change(&mut after);
        if before.networks != after.networks || before.speaks != after.speaks {
            let list = |networks: &BTreeSet<u16>| networks.iter().copied().collect();
            self.node.set_shared(node, list(&after.networks), list(&after.speaks)).await;
        }
        if before.permit() != after.permit() {
            let permission =
                if after.permit() { Permission::Trusted } else { Permission::Stranger };
            self.node.set_permission(node, permission).await;
        }
        if after.permit() {
            inner.peers.insert(node, after);
        } else {
            inner.peers.remove(&node);
            inner.full = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{self, NodeInbox, Order};

    fn told(inbox: &mut NodeInbox) -> Vec<String> {
        let mut all = Vec::new();
        while let Ok(order) = inbox.orders.try_recv() {
            all.push(match order {
                Order::Permission { node, permission } => format!("{node} {permission:?}"),
                Order::Shared { node, networks, speaks } if speaks.is_empty() => {
                    format!("{node} shares {networks:?}")
                }
                Order::Shared { node, networks, speaks } => {
                    format!("{node} shares {networks:?} speaks {speaks:?}")
                }
                Order::Networks(networks) => format!("in {networks:?}"),
                _ => continue,
            });
        }
        all
    }

    #[tokio::test]
    async fn the_last_reason_ends_what_the_first_began() {
        let (node, mut inbox) = node::channel();
        let permits = Permits::new(node, [NodeId(1)]);
        permits.set_own(BTreeSet::from([5, 6])).await;
        assert_eq!(told(&mut inbox), ["in [5, 6]"]);
        // Trusted already: only what it shares is news.
        permits.set_shared(NodeId(1), &[0, 5, 9], &[]).await;
        assert_eq!(told(&mut inbox), ["1 shares [5]"]);
        permits.set_trust(NodeId(1), false).await;
        permits.set_trust(NodeId(1), false).await;
        assert_eq!(told(&mut inbox), [""; 0]);
        assert!(permits.permits(NodeId(1)).await);
        // In what is new it may broadcast until more is known.
        permits.find_shared(NodeId(1), &[5, 6]).await;
        permits.set_shared(NodeId(2), &[6], &[]).await;
        assert_eq!(told(&mut inbox), ["1 shares [5, 6] speaks [6]", "2 shares [6]", "2 Trusted"]);
        permits.set_own(BTreeSet::from([5])).await;
        let expected = ["in [5]", "1 shares [5]", "2 shares []", "2 Stranger"];
        assert_eq!(told(&mut inbox), expected);
        permits.set_trust(NodeId(2), true).await;
        permits.set_shared(NodeId(1), &[], &[]).await;
        assert_eq!(told(&mut inbox), ["2 Trusted", "1 shares []", "1 Stranger"]);
        assert!(!permits.permits(NodeId(1)).await);
    }
}
