//! One session: what it has yet to be told, and telling it.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use pilot_wire::NodeId;
use pilot_wire::registry::append_frame;
use pilot_wire::registry::session::{News, Push, Sync};
use tokio::sync::Notify;

use super::topic::{Gone, Topic};
use super::{Hub, level};
use crate::service::read;
use crate::state::{Signer, State};

/// Topics that a session may have yet to be told; with one more it ends as
/// `slow`. Above twice what it can watch, so that no single event about all of
/// its peers ends a session that is being served.
pub(super) const MAX_TOPICS: usize = 8192;
/// Topics read before the state's lock is given back.
const CHUNK: usize = 64;
/// Longest sync in one frame, in bytes of JSON; what is beyond it follows.
const MAX_SYNC: usize = 768 * 1024;
/// Nodes of trust, and those who revoked it, in a sync that is too long.
const MAX_SYNC_NODES: usize = 20_000;

/// What connects the hub with whoever serves the session.
#[derive(Debug)]
pub(super) struct Link {
    signer: Signer,
    pending: Mutex<Pending>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    topics: BTreeMap<Topic, Option<Gone>>,
    ended: Option<&'static str>,
}

impl Link {
    pub(super) fn new(signer: Signer) -> Self {
        Self { signer, pending: Mutex::default(), wake: Notify::new() }
    }

    pub(super) const fn signer(&self) -> Signer {
        self.signer
    }

    /// Notes something to be told; whether whoever serves it is to be woken.
    pub(super) fn add(&self, topic: Topic, gone: Option<Gone>) -> bool {
        let mut pending = self.pending();
        if pending.ended.is_some() {
            return false;
        }
        let first = pending.topics.is_empty();
        pending.topics.insert(topic, gone);
        if pending.topics.len() <= MAX_TOPICS {
            return first;
        }
        pending.topics.clear();
        pending.ended = Some("slow");
        true
    }

    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Ends the session for this reason, unless it has ended.
    pub(super) fn end(&self, code: &'static str) {
        let mut pending = self.pending();
        pending.topics.clear();
        pending.ended.get_or_insert(code);
        drop(pending);
        self.wake();
    }

    fn ended(&self) -> Option<&'static str> {
        self.pending().ended
    }

    fn take(&self) -> BTreeMap<Topic, Option<Gone>> {
        std::mem::take(&mut self.pending().topics)
    }

    /// A panic leaves whole topics behind, so poisoning is ignored.
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How far [`Live::fill`] came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filled {
    /// There is nothing more to tell now.
    Done,
    /// `out` is full.
    More,
    /// The session has ended, and `out` says why.
    Ended,
}

/// A session being served; dropping it closes it.
#[derive(Debug)]
pub(crate) struct Live {
    hub: Hub,
    link: Arc<Link>,
    /// The session has been told everything up to here.
    told: u64,
    /// Taken and not yet told.
    topics: BTreeMap<Topic, Option<Gone>>,
    /// The next frame, kept back until it is known whether it is the last.
    held: Option<News>,
    /// What has been told once `topics` and `held` are.
    goal: u64,
}

impl Drop for Live {
    fn drop(&mut self) {
        self.hub.close(&self.link);
    }
}

impl Live {
    pub(super) fn new(hub: Hub, link: Arc<Link>, told: u64) -> Self {
        Self { hub, link, told, topics: BTreeMap::new(), held: None, goal: told }
    }

    pub(super) const fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// Waits until there may be something to tell.
    pub(crate) async fn changed(&self) {
        self.link.wake.notified().await;
    }

    /// Waits until the session has ended. Takes notice of news away: fill again
    /// before waiting for them.
    pub(crate) async fn over(&self) {
        while self.link.ended().is_none() {
            self.link.wake.notified().await;
        }
    }

    /// Appends frames of news to `out` until it has `limit` bytes or there is
    /// no more.
    pub(crate) fn fill(
        &mut self,
        state: &RwLock<State>,
        out: &mut Vec<u8>,
        limit: usize,
    ) -> Filled {
        loop {
            if let Some(code) = self.link.ended() {
                return self.end(code, out);
            }
            if out.len() >= limit {
                return Filled::More;
            }
            if self.topics.is_empty() {
                self.told = self.goal;
                if let Some(news) = self.held.take() {
                    self.append(news, out);
                }
                // In this order; see the proof above.
                let followed = self.hub.followed();
                self.topics = self.link.take();
                self.goal = followed.max(self.told);
                if self.topics.is_empty() {
                    self.told = self.goal;
                    return Filled::Done;
                }
            }
            if let Some(code) = self.read(state, out) {
                return self.end(code, out);
            }
        }
    }

    /// Says that the registry ends.
    pub(crate) fn stop(&self, out: &mut Vec<u8>) {
        self.end("stopping", out);
    }

    /// Reads some topics; a reason when the session is over.
    fn read(&mut self, state: &RwLock<State>, out: &mut Vec<u8>) -> Option<&'static str> {
        let node = self.link.signer().node;
        // Before the state's lock: the table comes first.
        let watched = self.topics.contains_key(&Topic::Everything).then(|| {
            self.topics.retain(|topic, _| *topic <= Topic::Everything);
            self.hub.watched(&self.link)
        });
        let mut read_now = Vec::new();
        {
            let state = read(state);
            for _ in 0..CHUNK {
                let Some((topic, gone)) = self.topics.pop_first() else { break };
                match topic {
                    Topic::Own => match state.node(node) {
                        Ok(found) if found.record.key == self.link.signer().key => {}
                        Ok(_) => return Some("key_rotated"),
                        Err(_) => return Some("deregistered"),
                    },
                    Topic::Everything => {
                        let sync =
                            level::sync(&state, node, watched.as_deref().unwrap_or_default());
                        read_now.push(News::Sync(sync));
                    }
                    topic => read_now.extend(level::news(&state, node, topic, gone)),
                }
            }
        }
        for mut news in read_now {
            if let News::Sync(sync) = &mut news {
                shorten(sync, &mut self.topics);
            }
            if let Some(before) = self.held.replace(news) {
                self.append(before, out);
            }
        }
        None
    }

    fn end(&self, code: &str, out: &mut Vec<u8>) -> Filled {
        self.append(News::Ended { code: code.to_owned() }, out);
        Filled::Ended
    }

    fn append(&self, news: News, out: &mut Vec<u8>) {
        if let Err(e) = append_frame(out, &Push { seq: self.told, news }) {
            // No news but a sync can be long, and that was shortened. If it were
            // so, the node must not believe that it knows everything.
            tracing::error!(node = %self.link.signer().node, "session ended, news not sent: {e}");
            self.link.end("slow");
        }
    }
}

/// Makes a long sync fit a frame. What is taken out is told by itself.
fn shorten(sync: &mut Sync, topics: &mut BTreeMap<Topic, Option<Gone>>) {
    if json_len(sync) <= MAX_SYNC {
        return;
    }
    let mut later = |topic| drop(topics.insert(topic, None));
    sync.peers.drain(..).for_each(|peer| later(Topic::Peer(peer.node_id)));
    if json_len(sync) <= MAX_SYNC {
        return;
    }
    sync.invitations.drain(..).for_each(|i| later(Topic::Invitation(i.id)));
    let trust = sync.trust.len().min(MAX_SYNC_NODES);
    let revoked = sync.revoked_by.len().min(MAX_SYNC_NODES);
    let rest: Vec<NodeId> =
        sync.trust.drain(trust..).chain(sync.revoked_by.drain(revoked..)).collect();
    rest.into_iter().for_each(|node| later(Topic::Trust(node)));
}

fn json_len(sync: &Sync) -> usize {
    struct Counter(usize);
    impl io::Write for Counter {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut counter = Counter(0);
    // Nothing in it can fail to be written as JSON.
    let _ = serde_json::to_writer(&mut counter, sync);
    counter.0
}
