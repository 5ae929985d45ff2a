//! Which peers the session at the registry watches: those that this node last
//! had to do with. Changes are gathered and told together.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pilot_wire::NodeId;
use pilot_wire::registry::session::MAX_WATCHED;
use tokio::sync::Notify;

use super::member::Member;

/// Peers that left and of which nobody has been told; beyond it one is never told
/// of. More cannot be permitted by networks.
const MAX_EVICTED: usize = 65_536;
/// Changes are gathered for this long before they are told.
const GATHER: Duration = Duration::from_millis(20);

/// The watched peers; at the bound the one not used for longest leaves. Cheap
/// to clone, all clones are one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watched {
    inner: Arc<Mutex<Inner>>,
    changed: Arc<Notify>,
    left: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Inner {
    ages: HashMap<NodeId, u64>,
    /// The same nodes by age.
    order: BTreeMap<u64, NodeId>,
    next: u64,
    /// Not told yet.
    add: BTreeSet<NodeId>,
    remove: BTreeSet<NodeId>,
    /// Left to make room, and nobody has been told.
    evicted: BTreeSet<NodeId>,
}

impl Watched {
    /// This node has to do with a peer.
    pub(crate) fn touch(&self, node: NodeId) {
        if self.lock().touch(node) {
            self.changed.notify_one();
            self.left.notify_one();
        }
    }

    /// Whether a peer is watched.
    pub(crate) fn has(&self, node: NodeId) -> bool {
        self.lock().ages.contains_key(&node)
    }

    /// Those that left to make room, as soon as there are some: what changes with
    /// them is not told any more.
    pub(crate) async fn evicted(&self) -> BTreeSet<NodeId> {
        loop {
            let evicted = std::mem::take(&mut self.lock().evicted);
            if !evicted.is_empty() {
                return evicted;
            }
            self.left.notified().await;
        }
    }

    /// The same, and how the peer is now is to be told again.
    pub(crate) fn refresh(&self, node: NodeId) {
        let mut inner = self.lock();
        inner.touch(node);
        inner.add.insert(node);
        drop(inner);
        self.changed.notify_one();
        self.left.notify_one();
    }

    /// How every watched peer is now is to be told again.
    pub(crate) fn refresh_all(&self) {
        let mut inner = self.lock();
        let all: Vec<_> = inner.order.values().copied().collect();
        inner.add.extend(all);
        drop(inner);
        self.changed.notify_one();
    }

    /// There is a session: what came while it was opened is told.
    pub(crate) fn tell(&self) {
        self.changed.notify_one();
    }

    /// All of them, for a new session.
    pub(crate) fn take_all(&self) -> Vec<NodeId> {
        let mut inner = self.lock();
        inner.add.clear();
        inner.remove.clear();
        inner.order.values().copied().collect()
    }

    /// Tells the registry of changes, for ever.
    pub(crate) async fn keep_told(self, member: Member) {
        loop {
            self.changed.notified().await;
            tokio::time::sleep(GATHER).await;
            if !member.has_session() {
                // The next one begins with all of them.
                continue;
            }
            let (add, remove) = {
                let mut inner = self.lock();
                (std::mem::take(&mut inner.add), std::mem::take(&mut inner.remove))
            };
            // Room is made before it is used.
            for (add, remove) in [(BTreeSet::new(), remove), (add, BTreeSet::new())] {
                if add.is_empty() && remove.is_empty() {
                    continue;
                }
                let (add, remove) = (add.into_iter().collect(), remove.into_iter().collect());
                if let Err(e) = member.watch_peers(add, remove).await {
                    tracing::debug!("peers could not be watched: {e}");
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Whether it is a new one.
    fn touch(&mut self, node: NodeId) -> bool {
        let age = self.next;
        self.next += 1;
        let before = self.ages.insert(node, age);
        if let Some(before) = before {
            self.order.remove(&before);
        }
        self.order.insert(age, node);
        if before.is_some() {
            return false;
        }
        self.remove.remove(&node);
        self.evicted.remove(&node);
        self.add.insert(node);
        if self.order.len() > MAX_WATCHED
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.ages.remove(&oldest);
            self.add.remove(&oldest);
            self.remove.insert(oldest);
            self.evicted.insert(oldest);
            if self.evicted.len() > MAX_EVICTED {
                self.evicted.pop_first();
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_not_used_for_longest_leaves() {
        let watched = Watched::default();
        let bound = u32::try_from(MAX_WATCHED).unwrap();
        for node in 1..=bound {
            watched.touch(NodeId(node));
        }
        assert_eq!(watched.take_all().len(), MAX_WATCHED);
        watched.touch(NodeId(1));
        assert!(watched.lock().add.is_empty(), "it is watched already");
        watched.touch(NodeId(bound + 1));
        let told = |set: &BTreeSet<NodeId>| set.iter().map(|n| n.0).collect::<Vec<_>>();
        assert_eq!(told(&watched.lock().add), [bound + 1]);
        assert_eq!(told(&watched.lock().remove), [2]);
        assert!(!watched.has(NodeId(2)));
        assert_eq!(told(&watched.lock().evicted), [2]);
        watched.touch(NodeId(2));
        assert_eq!(told(&watched.lock().evicted), [3]);
        assert_eq!(told(&watched.lock().remove), [3], "it is back before it was told");
        assert_eq!(watched.take_all().len(), MAX_WATCHED);
        watched.refresh_all();
        assert_eq!(watched.lock().add.len(), MAX_WATCHED);
    }
}
