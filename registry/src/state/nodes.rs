//! Nodes that are registered now, and what is known of keys.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use pilot_wire::registry::PublicKey;
use pilot_wire::{Address, NodeId};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Nodes of one page.
const PAGE: usize = 256;
/// Kinds of signatures that a node's last good one is kept of.
const KINDS: usize = 2;

/// The durable part of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its ID.
    pub id: NodeId,
    /// Its key.
    pub key: PublicKey,
    /// Source IP of its registration and the port it stated.
    pub endpoint: SocketAddr,
    /// Number of the command that last registered it.
    pub registered_by: u64,
    /// Text naming the owner.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub owner: String,
    /// Unique among nodes; empty for none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hostname: String,
    /// Whether anybody may see `endpoint`.
    #[serde(default)]
    pub public: bool,
    /// At most 10.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Reputation.
    #[serde(default)]
    pub polo_score: i64,
    /// Whether it executes tasks.
    #[serde(default)]
    pub task_exec: bool,
}

impl NodeRecord {
    /// Its address on the backbone.
    pub const fn address(&self) -> Address {
        Address::backbone(self.id)
    }
}

/// A node that is registered now.
#[derive(Debug)]
pub struct Node {
    /// What is durable.
    pub record: NodeRecord,
    /// Unix seconds; liveness is not durable and no part of a row.
    seen: AtomicU64,
    /// Digests of signatures that were found good; zeros for none.
    good: Mutex<[Digest; KINDS]>,
}

impl Node {
    /// Kind of the signature that heartbeats carry.
    pub const HEARTBEAT: u8 = 0;
    /// Kind of the signature that polls for handshakes carry.
    pub const POLL_HANDSHAKES: u8 = 1;

    pub(super) fn new(record: NodeRecord, seen: u64) -> Self {
        Self { record, seen: AtomicU64::new(seen), good: Mutex::default() }
    }

    /// Notes that the node was heard of.
    pub fn touch(&self, now: u64) {
        self.seen.fetch_max(now, Ordering::Relaxed);
    }

    /// When it was last heard of, Unix seconds.
    pub fn last_seen(&self) -> u64 {
        self.seen.load(Ordering::Relaxed)
    }

    /// Whether this very signature was found good before, under the key that
    /// the node has now. What nodes sign to be heard holds no time and is the
    /// same each time, so verifying it again would say the same.
    pub fn knows_signature(&self, kind: u8, signature: &[u8; 64]) -> bool {
        let good = self.good.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = good.get(usize::from(kind)).copied();
        drop(good);
        slot.is_some_and(|known| known == digest(&self.record.key, kind, signature))
    }

    /// Keeps a signature that was found good under `key`; of each kind the last
    /// one. Without effect when the node has another key by now.
    pub fn remember_signature(&self, kind: u8, key: &PublicKey, signature: &[u8; 64]) {
        if *key != self.record.key {
            return;
        }
        let known = digest(key, kind, signature);
        let mut good = self.good.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = good.get_mut(usize::from(kind)) {
            *slot = known;
        }
    }
}

/// A quarter of the room of a signature and, with 128 bits, as hard to forge:
/// another one has to have this very digest. With the key in it, what was good
/// under another key is good no more.
type Digest = [u8; 16];

fn digest(key: &PublicKey, kind: u8, signature: &[u8; 64]) -> Digest {
    let whole = Sha256::new().chain_update(key.0).chain_update([kind]).chain_update(signature);
    let mut digest = Digest::default();
    digest.copy_from_slice(&whole.finalize()[..size_of::<Digest>()]);
    digest
}

/// What is known of a key, for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyEntry {
    /// Its node.
    pub node: NodeId,
    /// Whether its holder has once proven possession; then it always must.
    pub proven: bool,
    /// Whether an administrator has revoked it; then it never registers again.
    pub revoked: bool,
}

/// The registered nodes by number. Numbers are given out in order, so that
/// pages of pointers are small and found without hashing; a page without nodes
/// is given back.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    pages: Vec<Option<Box<Page>>>,
    count: usize,
}

#[derive(Debug)]
struct Page {
    used: usize,
    nodes: [Option<Box<Node>>; PAGE],
}

impl Nodes {
    pub(super) fn get(&self, id: NodeId) -> Option<&Node> {
        let (page, slot) = place(id);
        self.pages.get(page)?.as_ref()?.nodes[slot].as_deref()
    }

    pub(super) fn get_mut(&mut self, id: NodeId) -> Option<&mut Node> {
        let (page, slot) = place(id);
        self.pages.get_mut(page)?.as_mut()?.nodes[slot].as_deref_mut()
    }

    /// Puts a node at its number; whether the place was free.
    pub(super) fn insert(&mut self, node: Node) -> bool {
        let (page, slot) = place(node.record.id);
        if self.pages.len() <= page {
            self.pages.resize_with(page + 1, || None);
        }
        let empty = || Box::new(Page { used: 0, nodes: [const { None }; PAGE] });
        let page = self.pages[page].get_or_insert_with(empty);
        let free = page.nodes[slot].replace(Box::new(node)).is_none();
        page.used += usize::from(free);
        self.count += usize::from(free);
        free
    }

    pub(super) fn remove(&mut self, id: NodeId) -> Option<Box<Node>> {
        let (number, slot) = place(id);
        let page = self.pages.get_mut(number)?.as_mut()?;
        let node = page.nodes[slot].take()?;
        page.used -= 1;
        if page.used == 0 {
            self.pages[number] = None;
        }
        self.count -= 1;
        Some(node)
    }

    pub(super) const fn len(&self) -> usize {
        self.count
    }

    /// In order of their numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Node> {
        self.pages.iter().flatten().flat_map(|page| page.nodes.iter().flatten().map(|n| &**n))
    }

    /// Those after `id`, in order of their numbers.
    pub(super) fn after(&self, id: NodeId) -> impl Iterator<Item = &Node> {
        let (first, slot) = place(id);
        let pages = self.pages.iter().enumerate().skip(first);
        pages.filter_map(|(n, page)| Some((n, page.as_ref()?))).flat_map(move |(n, page)| {
            let passed = if n == first { slot + 1 } else { 0 };
            page.nodes.iter().skip(passed).flatten().map(|n| &**n)
        })
    }
}

/// Page, and place in it.
const fn place(id: NodeId) -> (usize, usize) {
    (id.0 as usize / PAGE, id.0 as usize % PAGE)
}
