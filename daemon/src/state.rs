//! What a node remembers between runs (`state.json`): who it is at its
//! registry, what its user set, and the peers it has met.
//!
//! Changes are gathered and written by one task; losing the last second of
//! them in a crash costs a lookup, never trust.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pilot_wire::registry::PublicKey;
use pilot_wire::registry::network::Membership;
use pilot_wire::{Address, NodeId};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::durable;

/// Peers remembered; beyond it the one not heard of for longest goes.
pub const MAX_PEERS: usize = 4096;
/// Changes are gathered for this long before they are written.
const GATHER: Duration = Duration::from_secs(1);

/// Why `state.json` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The system refused.
    #[error("state: cannot {action} {}: {source}; fix its permissions or free space", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not what this program writes.
    #[error("state: {} is damaged ({problem}); it can be moved away, the node then asks its registry again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

/// What the user set, by configuration or command.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Wishes {
    /// Hostname; empty for none.
    pub hostname: String,
    /// Whether anybody may resolve this node.
    pub public: bool,
    /// Tags.
    pub tags: Vec<String>,
    /// Whether the node executes tasks.
    pub task_exec: bool,
}

/// A peer that was met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Its key, if it was ever looked up.
    pub key: Option<[u8; 32]>,
    /// Where it last proved itself from or was registered.
    pub endpoint: Option<SocketAddr>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Stored {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node_id: Option<NodeId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    address: Option<Address>,
    #[serde(flatten)]
    wishes: Wishes,
    /// The registry's state, as its sessions name it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    epoch: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    memberships: Vec<Membership>,
    /// The one heard of longest ago first.
    #[serde(default)]
    peers: Vec<StoredPeer>,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredPeer {
    node_id: NodeId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    public_key: Option<PublicKey>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    endpoint: Option<SocketAddr>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    networks: BTreeSet<u16>,
}

#[derive(Debug, Default)]
struct Inner {
    member: Option<(NodeId, Address)>,
    wishes: Wishes,
    epoch: Option<String>,
    memberships: Vec<Membership>,
    /// Networks shared with peers, none empty; all of them are in `peers`.
    shared: BTreeMap<NodeId, BTreeSet<u16>>,
    peers: BTreeMap<NodeId, (u64, Peer)>,
    /// Peers by age; the same nodes as in `peers`.
    ages: BTreeMap<u64, NodeId>,
    next_age: u64,
    dirty: bool,
}

/// The remembered state. Cheap to clone, all clones are one.
#[derive(Clone, Debug)]
pub struct Store {
    path: PathBuf,
    inner: Arc<Mutex<Inner>>,
    /// Held while the file is written, so that an older state never comes last.
    writing: Arc<Mutex<()>>,
    changed: Arc<Notify>,
}

impl Store {
    /// Reads the file; no file is an empty state.
    ///
    /// # Errors
    /// When it cannot be read or is damaged. It is never overwritten then.
    pub fn load(path: &Path) -> Result<Self, StateError> {
        let io_error = |source| StateError::Io { action: "read", path: path.to_owned(), source };
        let mut inner = Inner::default();
        if let Some(bytes) = durable::read(path).map_err(io_error)? {
            let damaged = |e: serde_json::Error| StateError::Damaged {
                path: path.to_owned(),
                problem: e.to_string(),
            };
            inner.restore(serde_json::from_slice(&bytes).map_err(damaged)?);
        }
        Ok(Self {
            path: path.to_owned(),
            inner: Arc::new(Mutex::new(inner)),
            writing: Arc::default(),
            changed: Arc::new(Notify::new()),
        })
    }

    /// The number and address given last.
    pub fn member(&self) -> Option<(NodeId, Address)> {
        self.lock().member
    }

    /// Remembers number and address. Another number than before means another
    /// registry or a lost one: the peers met before are then forgotten, since
    /// their numbers mean nothing any more.
    pub fn set_member(&self, node: NodeId, address: Address) {
        self.change(|inner| {
            if inner.member.is_some_and(|(before, _)| before != node) {
                inner.peers.clear();
                inner.ages.clear();
                inner.shared.clear();
                inner.memberships.clear();
            }
            inner.member.replace((node, address)) != Some((node, address))
        });
    }

    /// What the user set.
    pub fn wishes(&self) -> Wishes {
        self.lock().wishes.clone()
    }

    /// Changes what the user set.
    pub fn wish(&self, change: impl FnOnce(&mut Wishes)) {
        self.change(|inner| {
            let before = inner.wishes.clone();
            change(&mut inner.wishes);
            before != inner.wishes
        });
    }

    /// What is remembered of a peer.
    pub fn peer(&self, node: NodeId) -> Option<Peer> {
        self.lock().peers.get(&node).map(|(_, peer)| *peer)
    }

    /// Remembers a peer's key.
    pub fn set_peer_key(&self, node: NodeId, key: [u8; 32]) {
        self.change(|inner| inner.meet(node, |peer| peer.key = Some(key)));
    }

    /// Remembers where a peer is.
    pub fn set_peer_endpoint(&self, node: NodeId, endpoint: SocketAddr) {
        self.change(|inner| inner.meet(node, |peer| peer.endpoint = Some(endpoint)));
    }

    /// The registry's state that this node was last told of.
    pub fn epoch(&self) -> Option<String> {
        self.lock().epoch.clone()
    }

    /// Remembers the registry's state.
    pub fn set_epoch(&self, epoch: String) {
        self.change(|inner| inner.epoch.replace(epoch.clone()).as_ref() != Some(&epoch));
    }

    /// The networks that this node was last in; some may have expired.
    pub fn memberships(&self) -> Vec<Membership> {
        self.lock().memberships.clone()
    }

    /// Remembers all networks that this node is in.
    pub fn set_memberships(&self, memberships: Vec<Membership>) {
        self.change(|inner| {
            let changed = inner.memberships != memberships;
            inner.memberships = memberships;
            changed
        });
    }

    /// Peers with the networks that they shared with this node.
    pub fn shared(&self) -> Vec<(NodeId, Vec<u16>)> {
        let inner = self.lock();
        inner.shared.iter().map(|(node, n)| (*node, n.iter().copied().collect())).collect()
    }

    /// Remembers which networks a peer shares with this node.
    pub fn set_shared(&self, node: NodeId, networks: &BTreeSet<u16>) {
        self.change(|inner| {
            if networks.is_empty() {
                return inner.shared.remove(&node).is_some();
            }
            let met = inner.meet(node, |_| {});
            let before = inner.shared.insert(node, networks.clone());
            met || before.as_ref() != Some(networks)
        });
    }

    /// Writes what changed; durable when it returns.
    ///
    /// # Errors
    /// When the system refuses; the change is then still to be written.
    pub fn flush(&self) -> Result<(), StateError> {
        let _alone = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let json = {
            let mut inner = self.lock();
            if !inner.dirty {
                return Ok(());
            }
            inner.dirty = false;
            inner.render()
        };
        durable::replace(&self.path, &json).map_err(|source| {
            self.lock().dirty = true;
            StateError::Io { action: "write", path: self.path.clone(), source }
        })
    }

    /// Writes changes as they come, for ever. A failure is logged and tried
    /// again with the next change.
    pub async fn keep_written(self) {
        loop {
            self.changed.notified().await;
            tokio::time::sleep(GATHER).await;
            let store = self.clone();
            match tokio::task::spawn_blocking(move || store.flush()).await {
                Ok(Ok(())) => {}
                Ok(Err(e)) => tracing::warn!("{e}"),
                Err(e) => tracing::warn!("state: writing was interrupted: {e}"),
            }
        }
    }

    fn change(&self, change: impl FnOnce(&mut Inner) -> bool) {
        let mut inner = self.lock();
        if change(&mut inner) {
            inner.dirty = true;
            drop(inner);
            self.changed.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn restore(&mut self, stored: Stored) {
        self.member = stored.node_id.zip(stored.address);
        self.wishes = stored.wishes;
        self.epoch = stored.epoch;
        self.memberships = stored.memberships;
        for peer in stored.peers {
            if !peer.networks.is_empty() {
                self.shared.insert(peer.node_id, peer.networks);
            }
            self.meet(peer.node_id, |p| {
                *p = Peer { key: peer.public_key.map(|k| k.0), endpoint: peer.endpoint };
            });
        }
    }

    /// Whether something changed that is worth a write; age alone is not.
    fn meet(&mut self, node: NodeId, change: impl FnOnce(&mut Peer)) -> bool {
        let age = self.next_age;
        self.next_age += 1;
        let entry = self.peers.entry(node).or_default();
        if self.ages.get(&entry.0) == Some(&node) {
            self.ages.remove(&entry.0);
        }
        let before = entry.1;
        change(&mut entry.1);
        entry.0 = age;
        let changed = before != entry.1;
        self.ages.insert(age, node);
        if self.peers.len() > MAX_PEERS
            && let Some((_, oldest)) = self.ages.pop_first()
        {
            self.peers.remove(&oldest);
            self.shared.remove(&oldest);
        }
        changed
    }

    fn render(&self) -> Vec<u8> {
        let peers = self.ages.values().filter_map(|node| {
            let (_, peer) = self.peers.get(node)?;
            let public_key = peer.key.map(PublicKey);
            let networks = self.shared.get(node).cloned().unwrap_or_default();
            Some(StoredPeer { node_id: *node, public_key, endpoint: peer.endpoint, networks })
        });
        let stored = Stored {
            node_id: self.member.map(|(node, _)| node),
            address: self.member.map(|(_, address)| address),
            wishes: self.wishes.clone(),
            epoch: self.epoch.clone(),
            memberships: self.memberships.clone(),
            peers: peers.collect(),
        };
        let mut json = serde_json::to_vec(&stored).unwrap_or_default();
        json.push(b'\n');
        json
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn endpoint(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    #[test]
    fn everything_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        let store = Store::load(&path).unwrap();
        store.flush().unwrap();
        assert!(!path.exists(), "nothing to remember, nothing written");
        store.set_member(NodeId(7), Address::backbone(NodeId(7)));
        store.wish(|w| {
            w.hostname = "agent-a".into();
            w.tags = vec!["x".into()];
        });
        store.set_peer_key(NodeId(2), [9; 32]);
        store.set_peer_endpoint(NodeId(2), endpoint(4));
        store.set_peer_endpoint(NodeId(3), endpoint(5));
        store.flush().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = Store::load(&path).unwrap();
        assert_eq!(again.member(), Some((NodeId(7), Address::backbone(NodeId(7)))));
        assert_eq!(again.wishes(), store.wishes());
        let peer = Peer { key: Some([9; 32]), endpoint: Some(endpoint(4)) };
        assert_eq!(again.peer(NodeId(2)), Some(peer));
        assert_eq!(again.peer(NodeId(3)), Some(Peer { key: None, endpoint: Some(endpoint(5)) }));
        again.set_member(NodeId(8), Address::backbone(NodeId(8)));
        assert_eq!(again.peer(NodeId(2)), None, "numbers of another registry");
        assert_eq!(again.wishes().hostname, "agent-a");
    }

    #[test]
    fn peers_are_bounded_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::load(&dir.path().join("state.json")).unwrap();
        let bound = u32::try_from(MAX_PEERS).unwrap();
        for n in 0..bound {
            store.set_peer_endpoint(NodeId(n), endpoint(1));
        }
        store.set_peer_endpoint(NodeId(0), endpoint(1));
        store.set_peer_endpoint(NodeId(bound), endpoint(1));
        assert!(store.peer(NodeId(0)).is_some());
        assert!(store.peer(NodeId(1)).is_none());
        assert!(store.peer(NodeId(bound)).is_some());
        store.flush().unwrap();
        let again = Store::load(&dir.path().join("state.json")).unwrap();
        again.set_peer_endpoint(NodeId(bound + 1), endpoint(1));
        assert!(again.peer(NodeId(2)).is_none(), "age survives");
        assert!(again.peer(NodeId(3)).is_some());
    }

    #[test]
    fn a_damaged_file_is_named_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        for text in ["", "[]", "{\"node_id\":\"x\"}", "{\"peers\":[{}]}", "{\"address\":\"5\"}"] {
            fs::write(&path, text).unwrap();
            let line = Store::load(&path).unwrap_err().to_string();
            assert!(line.contains("state.json") && line.contains("moved away"), "{line}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn changes_are_written_together() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        let store = Store::load(&path).unwrap();
        let writer = tokio::spawn(store.clone().keep_written());
        for n in 1..100 {
            store.set_peer_endpoint(NodeId(n), endpoint(1));
        }
        let written = async {
            while !path.exists() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), written).await.unwrap();
        writer.abort();
        assert!(Store::load(&path).unwrap().peer(NodeId(99)).is_some());
    }
}
