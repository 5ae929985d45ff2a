//! Datagrams to all of a network: whether this node may send one now, and whom
//! it is for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pilot_core::MAX_BROADCAST;
use pilot_wire::ipc::ErrorCode;
use pilot_wire::registry::network::NetworkRef;
use pilot_wire::registry::{Extended, Members};
use pilot_wire::{NodeId, SocketAddress};
use tokio::time::Instant;

use super::Networks;
use crate::control::RegistryError;
use crate::node::Refused;

/// Broadcasts of this node to one network, per second and at once.
const RATE: f64 = 10.0;
const BURST: f64 = 20.0;
/// Members that a broadcast goes to; in a network with more there is none.
const MAX_RECIPIENTS: usize = 4096;
/// How long the members are taken to be the same.
const FRESH: Duration = Duration::from_secs(30);
/// Members asked for at once.
const PAGE: u32 = 1000;

/// The members of networks, as they were lately. At most one list for each
/// network that this node is in.
#[derive(Default)]
pub(super) struct Recipients(BTreeMap<u16, (Instant, Arc<[NodeId]>)>);

/// A token bucket; starts full.
pub(super) struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    fn new() -> Self {
        Self { tokens: BURST, filled: Instant::now() }
    }

    fn take(&mut self) -> bool {
        let passed = self.filled.elapsed().as_secs_f64();
        self.filled = Instant::now();
        self.tokens = (self.tokens + passed * RATE).min(BURST);
        let some = self.tokens >= 1.0;
        if some {
            self.tokens -= 1.0;
        }
        some
    }
}

fn refused(code: ErrorCode, text: impl Into<String>) -> Refused {
    Refused { code, text: text.into() }
}

impl Networks {
    /// Sends a datagram to all other members of a network, as far as they can
    /// be reached. What can be said at once is checked before this returns, so
    /// that waiting sends are no more than the rate lets through.
    ///
    /// # Errors
    /// When this node is no member, may not broadcast, or not so often, or the
    /// datagram is too large. The future fails when the members cannot be
    /// asked for, or are too many.
    pub fn broadcast(
        &self,
        to: SocketAddress,
        data: &[u8],
    ) -> Result<impl Future<Output = Result<(), Refused>> + use<>, Refused> {
        let network = to.address.network;
        {
            let mut shared = self.lock();
            let Some(membership) = shared.memberships.get(&network) else {
                let text = format!("this node is not a member of network {network}");
                return Err(refused(ErrorCode::NOT_FOUND, text));
            };
            if !membership.may_broadcast {
                let text = format!("this node may not broadcast in network {}", membership.name);
                return Err(refused(ErrorCode::REFUSED, text));
            }
            if data.len() > MAX_BROADCAST {
                let text = format!(
                    "datagram of {} bytes is too large: a broadcast takes {MAX_BROADCAST}",
                    data.len()
                );
                return Err(refused(ErrorCode::INVALID_ARGUMENT, text));
            }
            if !shared.buckets.entry(network).or_insert_with(Bucket::new).take() {
                let text = format!(
                    "more than {RATE} broadcasts a second to network {network}; send fewer"
                );
                return Err(refused(ErrorCode::LIMIT, text));
            }
        }
        let (networks, data) = (self.clone(), Bytes::copy_from_slice(data));
        Ok(async move {
            let recipients = networks.recipients(network).await?;
            networks.node.broadcast(to, &recipients, data).await;
            Ok(())
        })
    }

    async fn recipients(&self, network: u16) -> Result<Arc<[NodeId]>, Refused> {
        // Held while the registry is asked: whoever else sends wants the same.
        let mut known = self.recipients.lock().await;
        if let Some((at, members)) = known.0.get(&network)
            && at.elapsed() < FRESH
        {
            return Ok(Arc::clone(members));
        }
        let members = match self.ask_members(network).await {
            Ok(members) => members,
            Err(e) => {
                let text = format!("the members of network {network} are not known: {e}");
                return Err(refused(e.code(), text));
            }
        };
        if members.len() > MAX_RECIPIENTS {
            let text = format!(
                "network {network} has more than {MAX_RECIPIENTS} members; there is no broadcast \
                 to so many"
            );
            return Err(refused(ErrorCode::LIMIT, text));
        }
        let members: Arc<[NodeId]> = members.into();
        let ours = self.lock().memberships.keys().copied().collect::<Vec<_>>();
        known.0.retain(|network, _| ours.contains(network));
        known.0.insert(network, (Instant::now(), Arc::clone(&members)));
        Ok(members)
    }

    /// Whether a node is a member, registered or not.
    pub(super) async fn has_member(
        &self,
        network: u16,
        node: NodeId,
    ) -> Result<bool, RegistryError> {
        self.member.need_session()?;
        let (network, after) = (NetworkRef::Id(network), NodeId(node.0.saturating_sub(1)));
        let request = Extended::NetworkMembers { network, after, limit: 1 };
        let page: Members = self.member.extended(request).await?;
        Ok(page.members.first().is_some_and(|m| m.node_id == node))
    }

    /// Those that are registered now, this node left out; a few more than the
    /// bound when they are too many.
    async fn ask_members(&self, network: u16) -> Result<Vec<NodeId>, RegistryError> {
        self.member.need_session()?;
        let me = self.member.node();
        let mut members = Vec::new();
        let mut after = NodeId(0);
        loop {
            let network = NetworkRef::Id(network);
            let request = Extended::NetworkMembers { network, after, limit: PAGE };
            let page: Members = self.member.extended(request).await?;
            let there = page.members.iter().filter(|m| m.registered && Some(m.node_id) != me);
            members.extend(there.map(|m| m.node_id));
            match page.next {
                Some(next) if members.len() <= MAX_RECIPIENTS && next > after => after = next,
                _ => return Ok(members),
            }
        }
    }
}
