//! The networks that this node is in beside the backbone: which, until when,
//! who shares them, and what may be said to all of one.
//!
//! `task` joins and stays joined, `permits` is where the reasons meet for which
//! a peer may reach this node, `requests` passes on what applications ask of the
//! registry, `broadcast` finds out whom a datagram to all is for. What the
//! registry said last is kept on disk, so that known peers go on while it is
//! away, until memberships end by the clock.

mod broadcast;
mod permits;
mod proof;
mod requests;
mod status;
mod task;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pilot_wire::NodeId;
use pilot_wire::registry::network::{InvitationView, Membership};
use serde_json::Value;
use tokio::sync::{Semaphore, mpsc, oneshot};

pub use permits::Permits;
pub use proof::Environment;

use self::broadcast::Recipients;
use self::status::Status;
use self::task::Task;
use crate::config::{Plaintext, WantedNetwork};
use crate::control::{Member, Moment, Watched};
use crate::events::{Events, other};
use crate::node::NodeHandle;
use crate::state::Store;

/// News for the task; beyond it who brings them waits. The task itself waits
/// for nothing but the loop.
const NEWS: usize = 256;
/// Peers that the registry is asked about at once; others wait. There are no
/// more than are watched.
const RECHECKS: usize = 8;

/// What networks are kept with.
pub struct NetworksParts {
    /// From the configuration.
    pub wanted: Vec<WantedNetwork>,
    /// This node at its registry.
    pub member: Member,
    /// What is remembered.
    pub store: Store,
    /// Who may reach this node.
    pub permits: Permits,
    /// The loop.
    pub node: NodeHandle,
    /// Where to say what happens.
    pub events: Events,
    /// Where proofs come from.
    pub environment: Environment,
    /// Seconds since 1970.
    pub clock: fn() -> u64,
    /// Whether the registry's words can be changed on the way.
    pub plaintext: Plaintext,
}

/// The networks of this node. Cheap to clone, all clones are one.
#[derive(Clone)]
pub struct Networks {
    member: Member,
    permits: Permits,
    store: Store,
    node: NodeHandle,
    watched: Watched,
    events: Events,
    news: mpsc::Sender<News>,
    shared: Arc<Mutex<Published>>,
    recipients: Arc<tokio::sync::Mutex<Recipients>>,
    rechecks: Arc<Semaphore>,
    plaintext: Plaintext,
}

/// The end of a [`Networks`] that [`NetworksInbox::run`] serves.
pub struct NetworksInbox {
    task: Task,
    news: mpsc::Receiver<News>,
}

/// What the task has found out, for whoever looks.
#[derive(Default)]
struct Published {
    memberships: BTreeMap<u16, Membership>,
    status: Vec<Status>,
    /// Grows with every change of memberships.
    generation: u64,
    /// How often each network may still be spoken to.
    buckets: BTreeMap<u16, broadcast::Bucket>,
    /// Peers whose networks were forgotten because they are not watched any more.
    forgotten: BTreeSet<NodeId>,
}

/// What the task is told. Each is answered once it counts.
enum News {
    /// All memberships, and whether the registry's state is another one; `None`
    /// when nothing was missed.
    Synced(Option<(Vec<Membership>, bool, Moment)>, oneshot::Sender<()>),
    Joined(Membership, Moment, oneshot::Sender<()>),
    Left {
        network: u16,
        name: String,
        reason: String,
        moment: Moment,
        done: oneshot::Sender<()>,
    },
    /// The registry refuses to say what this node is in.
    Withdrawn(oneshot::Sender<()>),
}

/// Networks as they were remembered, and their task.
pub fn channel(parts: NetworksParts) -> (Networks, NetworksInbox) {
    let (news, receiver) = mpsc::channel(NEWS);
    let shared: Arc<Mutex<Published>> = Arc::default();
    let watched = Watched::default();
    let networks = Networks {
        member: parts.member.clone(),
        permits: parts.permits.clone(),
        store: parts.store.clone(),
        node: parts.node.clone(),
        watched: watched.clone(),
        events: parts.events.clone(),
        news,
        shared: Arc::clone(&shared),
        recipients: Arc::default(),
        rechecks: Arc::new(Semaphore::new(RECHECKS)),
        plaintext: parts.plaintext,
    };
    let task = Task::new(parts, watched, shared);
    (networks, NetworksInbox { task, news: receiver })
}

impl NetworksInbox {
    /// Joins and stays joined, until all handles are gone.
    pub async fn run(self) {
        self.task.run(self.news).await;
    }
}

impl Networks {
    /// The peers that the session watches.
    pub(crate) fn watched(&self) -> &Watched {
        &self.watched
    }

    /// How they stand, for people.
    pub fn status(&self) -> Value {
        let shared = self.lock();
        serde_json::to_value(&shared.status).unwrap_or_default()
    }

    /// What is amiss with all of them, for people.
    pub fn warning(&self) -> Option<&'static str> {
        self.plaintext.warning().filter(|_| !self.lock().status.is_empty())
    }

    /// Those of `networks` that this node is in as well.
    pub(crate) fn ours(&self, networks: &[u16]) -> Vec<u16> {
        let shared = self.lock();
        networks.iter().copied().filter(|n| shared.memberships.contains_key(n)).collect()
    }

    /// Another number than before says that this node is in other networks.
    pub(crate) fn generation(&self) -> u64 {
        self.lock().generation
    }

    /// Whether the networks of a peer were forgotten since this was last asked.
    pub(crate) fn was_forgotten(&self, node: NodeId) -> bool {
        self.lock().forgotten.remove(&node)
    }

    /// The registry said what a peer is in.
    pub(crate) async fn found(&self, node: NodeId, networks: &[u16]) {
        let networks = self.ours(networks);
        if networks.is_empty() {
            // Anybody can make this node look a stranger up, and a registry that
            // knows no networks says nothing of them.
            if !self.member.has_session() || self.permits.shared(node).await.is_empty() {
                return;
            }
        }
        let shared = self.permits.find_shared(node, &networks).await;
        self.store.set_shared(node, &shared);
        // What came later than this answer must have the last word.
        self.watched.refresh(node);
    }

    /// These are the networks that a peer shares with this node, and in which of
    /// them it may broadcast.
    pub(crate) async fn shares(&self, node: NodeId, networks: &[u16], speaks: &[u16]) {
        if self.lock().forgotten.contains(&node) && !self.watched.has(node) {
            // It was on its way when watching ended, after which nothing follows.
            return;
        }
        let shared = self.permits.set_shared(node, networks, speaks).await;
        self.store.set_shared(node, &shared);
    }

    /// A peer is not registered now. Most likely it is away for a moment; but
    /// one that an administrator shut out is not in its networks any more.
    pub(crate) fn recheck(&self, node: NodeId) {
        let networks = self.clone();
        tokio::spawn(async move {
            let shared = networks.permits.shared(node).await;
            if shared.is_empty() {
                return;
            }
            // An error would mean that it was closed, which nobody does.
            let _turn = networks.rechecks.acquire().await;
            let mut gone = Vec::new();
            for network in shared {
                if let Ok(false) = networks.has_member(network, node).await {
                    gone.push(network);
                }
            }
            let left = networks.permits.drop_shared(node, &gone).await;
            networks.store.set_shared(node, &left);
        });
    }

    /// All memberships, as the registry has them; `renewed` when its state is
    /// another one than before.
    pub(crate) async fn synced(&self, memberships: Vec<Membership>, renewed: bool, moment: Moment) {
        self.tell(|done| News::Synced(Some((memberships, renewed, moment)), done)).await;
    }

    /// The session goes on, and nothing was missed that does not follow.
    pub(crate) async fn resumed(&self) {
        self.tell(|done| News::Synced(None, done)).await;
    }

    /// This node is in a network, or its membership has changed.
    pub(crate) async fn joined(&self, membership: Membership, moment: Moment) {
        self.tell(|done| News::Joined(membership, moment, done)).await;
    }

    /// This node is no longer in a network.
    pub(crate) async fn left(&self, network: u16, name: String, reason: String, moment: Moment) {
        self.tell(|done| News::Left { network, name, reason, moment, done }).await;
    }

    /// The registry was known to say what this node is in, and refuses to: that
    /// what it said permits anything ends.
    pub(crate) async fn withdrawn(&self) {
        self.tell(News::Withdrawn).await;
    }

    /// Somebody invites this node.
    pub(crate) fn invited(&self, invitation: &InvitationView) {
        let InvitationView { id, network, name, from, expires, .. } = invitation;
        tracing::info!(id, network, "invited to network {name}; join it to accept");
        self.events.emit(|| {
            other(
                "network.invited",
                serde_json::json!({"expires": expires, "from": from, "id": id, "name": name,
                                   "network": network}),
            )
        });
    }

    async fn tell(&self, news: impl FnOnce(oneshot::Sender<()>) -> News) {
        let (done, counts) = oneshot::channel();
        // Errors mean that the task has ended, and the daemon with it.
        let _ = self.news.send(news(done)).await;
        let _ = counts.await;
    }

    fn lock(&self) -> MutexGuard<'_, Published> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Numbers of networks, in order.
fn numbers(memberships: &BTreeMap<u16, Membership>) -> BTreeSet<u16> {
    memberships.keys().copied().collect()
}

#[cfg(test)]
mod tests;
