//! The control plane: everything this node says to its registry.
//!
//! It knows nothing of packets; the loop hands it questions and gets answers
//! as [`ControlEvent`]. `membership` joins and stays joined, and opens the
//! session on which `news` hears what the registry says by itself; `lookups`
//! answers questions about peers and runs commands; `watched` keeps which peers
//! the session tells of.

mod handle;
mod lookups;
mod member;
mod membership;
mod news;
mod registry;
mod session;
mod watched;

use std::net::SocketAddr;
use std::time::Duration;

use pilot_host::events::Happening;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

pub use handle::{
    Call, CallError, ControlEvent, ControlHandle, ControlInbox, ControlStatus, channel,
};
pub use member::Member;
pub(crate) use member::unix_now;
pub(crate) use registry::{Answered, Moment, RegistryError};
pub(crate) use watched::Watched;

use crate::events::Events;
use crate::networks::Networks;
use crate::node::NodeHandle;
use crate::plugins::PeerBook;
use crate::state::Store;
use crate::trust::{Pins, TrustHandle};

/// Time to leave the registry at the end.
const LEAVE_LIMIT: Duration = Duration::from_secs(2);

/// What the control plane is told by the configuration.
#[derive(Clone, Debug)]
pub struct ControlSettings {
    /// The registry, host:port, as configured.
    pub registry: Option<String>,
    /// The beacon, host:port.
    pub beacon: Option<String>,
    /// Where the tunnel socket is bound.
    pub listen: SocketAddr,
    /// Endpoint to register, host:port, without asking the beacon.
    pub endpoint: Option<String>,
    /// Free text naming the owner.
    pub owner: String,
    /// Time between heartbeats.
    pub keepalive: Duration,
}

/// What the control plane works with.
#[derive(Clone)]
pub struct ControlParts {
    /// From the configuration.
    pub settings: ControlSettings,
    /// This node at its registry.
    pub member: Member,
    /// What is remembered.
    pub store: Store,
    /// Keys of trusted peers.
    pub pins: Pins,
    /// The loop.
    pub node: NodeHandle,
    /// The trust task.
    pub trust: TrustHandle,
    /// The networks of this node.
    pub networks: Networks,
    /// Who peers are.
    pub peers: PeerBook,
    /// Where to say what happens.
    pub events: Events,
}

/// The running control plane; it ends when this is dropped.
#[derive(Debug)]
pub struct Control {
    member: Member,
    events: Events,
    status: watch::Receiver<ControlStatus>,
    _tasks: JoinSet<()>,
}

/// Starts the control plane.
pub fn spawn(parts: ControlParts, inbox: ControlInbox) -> Control {
    let ControlInbox { asks, status } = inbox;
    let wishes = parts.store.wishes();
    let remembered = parts.store.member();
    status.send_modify(|s| {
        s.registry.clone_from(&parts.settings.registry);
        s.owner.clone_from(&parts.settings.owner);
        s.hostname.clone_from(&wishes.hostname);
        s.public = wishes.public;
        s.node = remembered.map(|(node, _)| node);
        s.address = remembered.map(|(_, address)| address);
    });
    if let Some((node, _)) = remembered {
        parts.member.set_node(node);
        parts.events.set_node(node);
    }
    let watched = status.subscribe();
    let status = std::sync::Arc::new(status);
    let (orders, receiver) = mpsc::channel(membership::ORDERS);
    let mut tasks = JoinSet::new();
    tasks.spawn(membership::watch_link(
        parts.member.clone(),
        parts.node.clone(),
        status.clone(),
        parts.events.clone(),
    ));
    tasks.spawn(news::Listener::new(parts.clone(), orders.clone()).run());
    tasks.spawn(parts.networks.watched().clone().keep_told(parts.member.clone()));
    tasks.spawn(lookups::Lookups::new(&parts, orders, status.clone()).run(asks));
    let (member, events) = (parts.member.clone(), parts.events.clone());
    tasks.spawn(membership::Membership::new(parts, receiver, status).run());
    Control { member, events, status: watched, _tasks: tasks }
}

impl Control {
    /// Leaves the registry, as far as that takes no longer than 2 seconds, and
    /// ends the control plane.
    pub async fn leave(self) {
        let joined = {
            let status = self.status.borrow();
            status.registered && status.up
        };
        if !joined {
            return;
        }
        match tokio::time::timeout(LEAVE_LIMIT, self.member.deregister()).await {
            Ok(Ok(())) => {
                tracing::info!("left the registry");
                self.events.emit(|| Happening::NodeDeregistered);
            }
            Ok(Err(e)) => tracing::warn!("could not leave the registry: {e}"),
            Err(_) => tracing::warn!("could not leave the registry: no answer in 2 seconds"),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
