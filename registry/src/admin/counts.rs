//! Numbers that take a look at every node: which of them were heard of lately.
//! They are looked at in small steps, between which writers have their turn, and
//! what was found is kept for a while.
//!
//! Bounds: [`STEP`] nodes or members per step; a look is kept for [`KEEP`], and
//! for [`SHARE`] times as long as it took, so that it never takes more than that
//! part of one core.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pilot_wire::NodeId;

use crate::connection::unix_now;
use crate::service::Service;
use crate::state::State;

/// A node not heard of for longer is not online, as published.
const ONLINE_SECS: u64 = 180;
const STEP: usize = 2048;
const KEEP: Duration = Duration::from_secs(1);
const SHARE: u32 = 50;
/// Nodes kept by name for lists.
pub(super) const LISTED: usize = 1000;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) total: u64,
    pub(super) online: u64,
    pub(super) public: u64,
    pub(super) public_online: u64,
    pub(super) trust: u64,
    pub(super) tags: u64,
    pub(super) executors: u64,
    /// The backbone first.
    pub(super) networks: Vec<NetworkCount>,
    /// The first [`LISTED`] public nodes.
    pub(super) first_public: Vec<NodeId>,
    /// The first [`LISTED`] nodes.
    pub(super) first: Vec<NodeId>,
}

#[derive(Debug)]
pub(super) struct NetworkCount {
    pub(super) id: u16,
    pub(super) name: String,
    pub(super) members: u64,
    pub(super) online: u64,
}

/// The newest look.
#[derive(Debug, Default)]
pub(super) struct Cache(tokio::sync::Mutex<Option<Looked>>);

#[derive(Debug)]
struct Looked {
    counts: Arc<Counts>,
    good_until: Instant,
}

impl Cache {
    /// Counts that are hardly older than [`KEEP`]. One look at a time; who comes
    /// meanwhile waits for it.
    pub(super) async fn get(&self, service: &Arc<Service>) -> Arc<Counts> {
        let mut looked = self.0.lock().await;
        if let Some(looked) = looked.as_ref().filter(|l| Instant::now() < l.good_until) {
            return Arc::clone(&looked.counts);
        }
        let service = Arc::clone(service);
        let began = Instant::now();
        let look = tokio::task::spawn_blocking(move || look(&service, unix_now()));
        let counts = match look.await {
            Ok(counts) => Arc::new(counts),
            Err(e) => {
                tracing::error!("counting nodes ended badly: {e}");
                return looked.as_ref().map(|l| Arc::clone(&l.counts)).unwrap_or_default();
            }
        };
        let keep = KEEP.max(began.elapsed() * SHARE);
        let good_until = Instant::now() + keep;
        *looked = Some(Looked { counts: Arc::clone(&counts), good_until });
        counts
    }
}

/// Whether a node that was last heard of at `seen` counts as online.
pub(super) const fn is_online(seen: u64, now: u64) -> bool {
    seen + ONLINE_SECS > now
}

fn look(service: &Service, now: u64) -> Counts {
    let mut counts = Counts::default();
    let mut after = NodeId(0);
    loop {
        let state = service.state();
        let mut seen = 0;
        for node in state.nodes_after(after).take(STEP) {
            let online = is_online(node.last_seen(), now);
            let public = node.record.public;
            counts.total += 1;
            counts.online += u64::from(online);
            counts.public += u64::from(public);
            counts.public_online += u64::from(public && online);
            if counts.first.len() < LISTED {
                counts.first.push(node.record.id);
            }
            if public && counts.first_public.len() < LISTED {
                counts.first_public.push(node.record.id);
            }
            after = node.record.id;
            seen += 1;
        }
        if seen < STEP {
            counts.trust = state.mutual_pairs() as u64;
            counts.tags = state.census().unique_tags() as u64;
            counts.executors = state.census().task_executors() as u64;
            break;
        }
    }
    networks(service, now, &mut counts);
    counts
}

fn networks(service: &Service, now: u64, counts: &mut Counts) {
    counts.networks.push(NetworkCount {
        id: 0,
        name: "backbone".to_owned(),
        members: counts.total,
        online: counts.online,
    });
    let ids: Vec<u16> = service.state().networks().map(|n| n.record.id).collect();
    for id in ids {
        let mut count: Option<NetworkCount> = None;
        let mut after = None;
        loop {
            let state = service.state();
            // It may be gone by now.
            let Ok(network) = state.network(id) else { break };
            let count = count.get_or_insert_with(|| NetworkCount {
                id,
                name: network.record.name.clone(),
                members: network.members.len() as u64,
                online: 0,
            });
            let from = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
            let range = network.members.range((from, std::ops::Bound::Unbounded));
            let mut seen = 0;
            for node in range.map(|(node, _)| *node).take(STEP) {
                count.online += u64::from(is_node_online(&state, node, now));
                after = Some(node);
                seen += 1;
            }
            if seen < STEP {
                break;
            }
        }
        counts.networks.extend(count);
    }
}

fn is_node_online(state: &State, node: NodeId, now: u64) -> bool {
    state.node(node).is_ok_and(|node| is_online(node.last_seen(), now))
}
