//! Sessions of nodes and what they are told. See
//! `pilot_wire::registry::session` for the protocol. Must not know connections.
//!
//! The writer calls `Hub::follow` after each batch. That only notes, for each
//! session concerned, *what* is news (`Topic`); how it stands is read from the
//! state later, by whoever serves the session (`Live::fill`). So the writer
//! waits for nobody, what changes twice before it is told is told once, and a
//! frame is never older than the one before it.
//!
//! Why nothing is missed. A change becomes visible when its command is applied,
//! and a topic when the batch is followed, which is later. Opening a session
//! enters it in the table first and looks at the state afterwards. A change
//! followed before the session is in the table was therefore applied before the
//! state is looked at, and is in the `Ring` or in the sync; one followed later
//! becomes a topic. Both may happen: levels are read again and are the same.
//!
//! Why numbers may be trusted. `followed` is the number of the last command
//! whose topics are all with their sessions. Filling reads `followed` first,
//! takes the topics, and then reads the state, which is at least as new. Of the
//! frames that come of it only the last carries the number, those before it the
//! number before: a session that breaks off between two frames and comes back
//! with the number of the first is told the second again. In the ring a change
//! has the number of the last command of its batch, so that a number from the
//! middle of a batch brings back all of it.
//!
//! Locks: the table, then the state. A session's topics are a lock of their own
//! that is held for an insertion or a take.
//!
//! Bounds: one session per node; [`MAX_WATCHED`] peers each; `MAX_TOPICS`
//! untold topics, beyond which the session ends as `slow`; a ring of
//! `ring::CAPACITY` changes, beyond which a session begins with everything.

mod level;
mod link;
mod ring;
#[cfg(test)]
mod tests;
mod topic;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use pilot_wire::NodeId;
use pilot_wire::registry::session::MAX_WATCHED;

pub(crate) use link::{Filled, Live};
use link::{Link, MAX_TOPICS};
use ring::Ring;
use topic::{Gone, Notice, Topic};

use crate::service::{read, write};
use crate::state::{Change, Signer, State};

/// All sessions. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Hub(Arc<Inner>);

struct Inner {
    table: Mutex<Table>,
    /// Number of the last command whose topics are with their sessions.
    followed: AtomicU64,
}

struct Table {
    ring: Ring,
    sessions: HashMap<NodeId, Entry>,
    /// By the watched node, the nodes whose sessions watch it.
    watchers: HashMap<NodeId, HashSet<NodeId>>,
    /// By owner text, the nodes with sessions.
    owners: HashMap<String, HashSet<NodeId>>,
    /// To be woken once a batch is followed.
    asleep: Vec<Arc<Link>>,
}

struct Entry {
    link: Arc<Link>,
    watched: HashSet<NodeId>,
    /// [`proven_owner`] as last seen.
    owner: String,
}

impl Entry {
    /// Notes the owner text, and whether it is another.
    fn owned_by(
        &mut self,
        owner: &str,
        node: NodeId,
        owners: &mut HashMap<String, HashSet<NodeId>>,
    ) -> bool {
        if owner == self.owner {
            return false;
        }
        disown(owners, &self.owner, node);
        self.owner = owner.to_owned();
        if !owner.is_empty() {
            owners.entry(self.owner.clone()).or_default().insert(node);
        }
        true
    }
}

/// How a session was opened before.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Since<'a> {
    /// Empty for never.
    pub epoch: &'a str,
    /// Number of the last news that was handled.
    pub seq: u64,
}

/// More peers are asked for than one session can watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a session watches at most {MAX_WATCHED} peers; this would be {0}")]
pub(crate) struct TooManyPeers(pub usize);

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("sessions", &self.len()).finish_non_exhaustive()
    }
}

impl Default for Hub {
    fn default() -> Self {
        Self::at(0)
    }
}

impl Hub {
    /// For a state that `applied` commands made; of what they changed nothing
    /// is known.
    pub fn at(applied: u64) -> Self {
        Self(Arc::new(Inner {
            table: Mutex::new(Table {
                ring: Ring::after(applied),
                sessions: HashMap::new(),
                watchers: HashMap::new(),
                owners: HashMap::new(),
                asleep: Vec::new(),
            }),
            followed: AtomicU64::new(applied),
        }))
    }

    /// How many sessions there are.
    pub fn len(&self) -> usize {
        self.table().sessions.len()
    }

    /// Whether there is no session.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Notes what has changed since the last call. Called by the one thread
    /// that changes the state, so nothing changes meanwhile.
    pub(crate) fn follow(&self, state: &RwLock<State>) {
        let (seq, changes) = {
            let mut state = write(state);
            (state.applied(), state.take_changes())
        };
        let mut asleep = Vec::new();
        if !changes.is_empty() {
            let mut table = self.table();
            if !table.sessions.is_empty() {
                let state = read(state);
                changes.iter().for_each(|change| table.route(change, &state));
            }
            table.ring.push(seq, changes);
            asleep = std::mem::take(&mut table.asleep);
        }
        self.0.followed.store(seq, Ordering::Release);
        // Last, so that who wakes can be told the new number with the news.
        asleep.iter().for_each(|link| link.wake());
    }

    /// Opens a session of the node that proved its key, in place of one that it
    /// had. Whoever serves it tells the news until it ends.
    pub(crate) fn open(
        &self,
        state: &RwLock<State>,
        signer: Signer,
        since: Since<'_>,
        peers: Vec<NodeId>,
    ) -> Result<Opened, TooManyPeers> {
        let watched: HashSet<_> = peers.into_iter().collect();
        if watched.len() > MAX_WATCHED {
            return Err(TooManyPeers(watched.len()));
        }
        let node = signer.node;
        let link = Arc::new(Link::new(signer));
        let mut table = self.table();
        let followed = self.followed();
        let state = read(state);
        let owner = proven_owner(&state, node).to_owned();
        table.enter(&link, watched, owner);
        let same = !since.epoch.is_empty() && since.epoch == state.epoch();
        // 0 is of no news: such a session has not been told anything whole.
        let within = (table.ring.floor().max(1)..=followed).contains(&since.seq);
        let missed = (same && within).then(|| table.missed(since.seq, node, &state));
        let missed = missed.filter(|topics| topics.len() <= MAX_TOPICS / 2);
        let resumed = missed.is_some();
        let topics = missed.unwrap_or_else(|| BTreeMap::from([(Topic::Everything, None)]));
        // Who resumes with nothing missed is up to date. Until then the number
        // is the last that was told, as nothing beyond it has been.
        let told = match (same, topics.is_empty()) {
            (true, true) => followed,
            (true, false) => since.seq.min(followed),
            (false, _) => 0,
        };
        let seq = if resumed { told } else { followed };
        // The key may have changed between the proof and the entry.
        link.add(Topic::Own, None);
        for (topic, gone) in topics {
            link.add(topic, gone);
        }
        let epoch = state.epoch().to_owned();
        Ok(Opened { epoch, seq, resumed, live: Live::new(self.clone(), link, told) })
    }

    /// Changes whom a session watches; each added one is news. Returns how many
    /// it watches then; when those would be too many, or one of the lists is
    /// longer than what can be watched, nothing changes.
    pub(crate) fn watch(
        &self,
        live: &Live,
        add: &[NodeId],
        remove: &[NodeId],
    ) -> Result<usize, TooManyPeers> {
        let most = add.len().max(remove.len());
        if most > MAX_WATCHED {
            return Err(TooManyPeers(most));
        }
        // Before the lock, for which everybody waits.
        let remove: HashSet<_> = remove.iter().collect();
        let link = live.link();
        let mut table = self.table();
        let node = link.signer().node;
        let Table { sessions, watchers, .. } = &mut *table;
        let Some(entry) = sessions.get_mut(&node).filter(|e| Arc::ptr_eq(&e.link, link)) else {
            // It was replaced or has ended; the reason is about to be told.
            return Ok(0);
        };
        let mut watched = entry.watched.clone();
        watched.retain(|peer| !remove.contains(peer));
        watched.extend(add);
        if watched.len() > MAX_WATCHED {
            return Err(TooManyPeers(watched.len()));
        }
        for peer in entry.watched.difference(&watched) {
            unwatch(watchers, *peer, node);
        }
        for peer in &watched {
            watchers.entry(*peer).or_default().insert(node);
        }
        entry.watched = watched;
        for peer in add {
            link.add(Topic::Peer(*peer), None);
        }
        Ok(entry.watched.len())
    }

    /// Number of the last command whose topics are with their sessions.
    fn followed(&self) -> u64 {
        self.0.followed.load(Ordering::Acquire)
    }

    /// Whom a session watches.
    fn watched(&self, link: &Arc<Link>) -> Vec<NodeId> {
        let table = self.table();
        let entry = table.sessions.get(&link.signer().node).filter(|e| Arc::ptr_eq(&e.link, link));
        let mut watched: Vec<_> =
            entry.map_or_else(Vec::new, |e| e.watched.iter().copied().collect());
        watched.sort_unstable();
        watched
    }

    /// Forgets a session, unless another has taken its place.
    fn close(&self, link: &Arc<Link>) {
        let mut table = self.table();
        let node = link.signer().node;
        if table.sessions.get(&node).is_some_and(|e| Arc::ptr_eq(&e.link, link)) {
            table.leave(node);
        }
    }

    /// A panic leaves whole entries behind, so poisoning is ignored.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session that was opened.
#[derive(Debug)]
pub(crate) struct Opened {
    /// The registry's state.
    pub epoch: String,
    /// Where the registry stands, as far as the session is told already when
    /// it resumes.
    pub seq: u64,
    /// Whether only what was missed follows.
    pub resumed: bool,
    /// To serve it.
    pub live: Live,
}

impl Table {
    fn enter(&mut self, link: &Arc<Link>, watched: HashSet<NodeId>, owner: String) {
        let node = link.signer().node;
        if let Some(former) = self.leave(node) {
            former.link.end("replaced");
        }
        for peer in &watched {
            self.watchers.entry(*peer).or_default().insert(node);
        }
        if !owner.is_empty() {
            self.owners.entry(owner.clone()).or_default().insert(node);
        }
        self.sessions.insert(node, Entry { link: Arc::clone(link), watched, owner });
    }

    fn leave(&mut self, node: NodeId) -> Option<Entry> {
        let entry = self.sessions.remove(&node)?;
        for peer in &entry.watched {
            unwatch(&mut self.watchers, *peer, node);
        }
        disown(&mut self.owners, &entry.owner, node);
        Some(entry)
    }

    /// Notes a change with the sessions that it concerns.
    fn route(&mut self, change: &Change, state: &State) {
        let Self { sessions, watchers, owners, asleep, .. } = self;
        let mut tell = |entry: Option<&Entry>, topic, gone| {
            let Some(Entry { link, .. }) = entry else { return };
            if link.add(topic, gone) {
                asleep.push(Arc::clone(link));
            }
        };
        topic::notices(change, state, |notice| match notice {
            Notice::Node(node, topic, gone) => {
                tell(sessions.get(&node), topic, gone);
                if topic != Topic::Own {
                    return;
                }
                // It may have another owner text, for which invitations wait.
                let Some(entry) = sessions.get_mut(&node) else { return };
                if entry.owned_by(proven_owner(state, node), node, owners) {
                    for invitation in state.invitations_for(node) {
                        tell(Some(entry), Topic::Invitation(invitation.id), None);
                    }
                }
            }
            Notice::Watchers(peer) => {
                for node in watchers.get(&peer).into_iter().flatten() {
                    tell(sessions.get(node), Topic::Peer(peer), None);
                }
            }
            Notice::Watching { node, peer } => {
                let entry = sessions.get(&node).filter(|e| e.watched.contains(&peer));
                tell(entry, Topic::Peer(peer), None);
            }
            Notice::Fellows { node, network } => {
                let entry = sessions.get(&node);
                let watched = entry.map(|e| topic::fellows(&e.watched, network));
                for peer in watched.into_iter().flatten() {
                    tell(entry, Topic::Peer(peer), None);
                }
            }
            Notice::Owner(owner, topic) => {
                for node in owners.get(owner).into_iter().flatten() {
                    tell(sessions.get(node), topic, None);
                }
            }
        });
    }

    /// What one node is to be told of that knows everything up to `seq`: what
    /// concerns it of the changes after it, and whom it watches.
    fn missed(&self, seq: u64, node: NodeId, state: &State) -> BTreeMap<Topic, Option<Gone>> {
        let mut topics = BTreeMap::new();
        let Some(entry) = self.sessions.get(&node) else { return topics };
        for change in self.ring.since(seq) {
            topic::notices(change, state, |notice| match notice {
                Notice::Node(concerned, topic, gone) if concerned == node => {
                    topics.insert(topic, gone);
                }
                Notice::Owner(owner, topic) if owner == entry.owner => {
                    topics.insert(topic, None);
                }
                _ => {}
            });
        }
        // They may be others than were watched before, of whom nothing is known.
        topics.extend(entry.watched.iter().map(|peer| (Topic::Peer(*peer), None)));
        // What the owner was before is not known.
        if topics.contains_key(&Topic::Own) && !entry.owner.is_empty() {
            let invitations = state.invitations_for(node).into_iter();
            topics.extend(invitations.map(|i| (Topic::Invitation(i.id), None)));
        }
        topics
    }
}

/// The owner text by which a node is invited; empty for none. Anybody can
/// register with any text, so its key must be proven.
fn proven_owner(state: &State, node: NodeId) -> &str {
    state
        .node(node)
        .ok()
        .filter(|n| state.key(&n.record.key).is_some_and(|key| key.proven))
        .map_or("", |n| n.record.owner.as_str())
}

fn unwatch(watchers: &mut HashMap<NodeId, HashSet<NodeId>>, peer: NodeId, node: NodeId) {
    if let Some(nodes) = watchers.get_mut(&peer) {
        nodes.remove(&node);
        if nodes.is_empty() {
            watchers.remove(&peer);
        }
    }
}

fn disown(owners: &mut HashMap<String, HashSet<NodeId>>, owner: &str, node: NodeId) {
    if let Some(nodes) = owners.get_mut(owner) {
        nodes.remove(&node);
        if nodes.is_empty() {
            owners.remove(owner);
        }
    }
}
