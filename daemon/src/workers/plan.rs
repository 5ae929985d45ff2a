//! What every loop of a daemon is made of, and each worker's share of it.

use std::rc::Rc;

use anyhow::Context as _;
use pilot_core::{Config, Core, Input, Permission, StreamNumbers, Time};
use pilot_wire::NodeId;

use super::edge::Edge;
use super::spread::Spread;
use crate::control::ControlHandle;
use crate::events::Events;
use crate::identity::{Identity, random_bytes};
use crate::ipc::IpcListener;
use crate::networks::Networks;
use crate::node::{ControlPlane, NodeInbox, NodeParts};
use crate::plugins::Plugins;
use crate::service::{Echo, Service};
use crate::trust::TrustHandle;
use crate::udp::Udp;

/// What all loops of a daemon have in common.
#[derive(Clone)]
pub struct LoopPlan {
    /// Bounds and timers of the whole daemon.
    pub config: Config,
    /// Who this node is.
    pub identity: Identity,
    /// Peers that are permitted before anything can arrive.
    pub trusted: Vec<NodeId>,
    /// Speaks to the registry.
    pub control: ControlHandle,
    /// Keeps who is trusted.
    pub trust: TrustHandle,
    /// The networks of this node.
    pub networks: Networks,
    /// What is compiled in instead of being a plugin.
    pub native: Vec<NativeService>,
    /// What runs as plugins and scripts.
    pub plugins: Plugins,
    /// Where to say what happens.
    pub events: Events,
    /// Clients served at once.
    pub max_clients: usize,
    /// Lanes of all clients at once. Several workers offer none: a client
    /// speaks to them through the router.
    pub max_lanes: usize,
}

/// A service of the daemon itself.
#[derive(Clone)]
pub enum NativeService {
    /// Port 7.
    Echo,
}

impl NativeService {
    /// The port it answers on.
    pub fn port(&self) -> u16 {
        self.service().port()
    }

    fn service(&self) -> Rc<dyn Service> {
        match self {
            Self::Echo => Rc::new(Echo),
        }
    }
}

/// What one loop has for itself.
pub(super) struct Place {
    pub(super) worker: usize,
    pub(super) udp: Udp,
    pub(super) listener: Option<IpcListener>,
    pub(super) edge: Option<Edge>,
    pub(super) inbox: NodeInbox,
}

impl LoopPlan {
    /// The parts of one loop; to be made on the thread that runs it.
    pub(super) fn parts(&self, spread: Spread, place: Place) -> anyhow::Result<NodeParts> {
        let config = share(&self.config, spread, place.worker);
        let send_buffer = config.send_buffer;
        let seed = random_bytes().map_err(anyhow::Error::msg).context("no random bytes")?;
        let mut core = Core::new(config, self.identity.signing_key().clone(), seed);
        for &node in self.trusted.iter().filter(|n| spread.of_node(**n) == place.worker) {
            let permission = Permission::Trusted;
            core.handle(Input::Permission { node, permission }, Time::ZERO);
        }
        let mut services: Vec<Rc<dyn Service>> = vec![self.trust.service()];
        services.extend(self.native.iter().map(NativeService::service));
        Ok(NodeParts {
            core,
            send_buffer,
            udp: place.udp,
            listener: place.listener,
            edge: place.edge,
            inbox: place.inbox,
            plane: Rc::new(ControlPlane {
                control: self.control.clone(),
                trust: self.trust.clone(),
                public_key: self.identity.public_key().to_string(),
                identity: true,
                plugins: self.plugins.clone(),
                networks: self.networks.clone(),
            }),
            services,
            events: self.events.clone(),
            max_clients: self.max_clients,
            max_lanes: if spread.workers() == 1 { self.max_lanes } else { 0 },
        })
    }
}

/// One worker's share of the daemon's limits, rounded up. What is counted per
/// peer stays whole, since a peer has one worker.
fn share(all: &Config, spread: Spread, worker: usize) -> Config {
    let workers = spread.workers();
    let step = u32::try_from(workers).unwrap_or(u32::MAX);
    Config {
        max_streams: all.max_streams.div_ceil(workers),
        max_streams_per_port: all.max_streams_per_port.div_ceil(workers),
        max_peers: all.max_peers.div_ceil(workers),
        buffer_memory: all.buffer_memory.div_ceil(workers),
        syn_rate: all.syn_rate.div_ceil(step),
        stream_numbers: StreamNumbers { step, rest: u32::try_from(worker).unwrap_or_default() },
        ..all.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_loop_has_the_limits_as_configured() {
        let all = Config::default();
        assert_eq!(format!("{:?}", share(&all, Spread::over(1), 0)), format!("{all:?}"));
    }

    #[test]
    fn limits_of_the_daemon_are_divided_and_those_of_a_peer_are_not() {
        let all =
            Config { max_streams: 101, syn_rate: 100, buffer_memory: 900, ..Config::default() };
        let third = share(&all, Spread::over(3), 2);
        assert_eq!((third.max_streams, third.syn_rate, third.buffer_memory), (34, 34, 300));
        assert_eq!(third.syn_rate_per_node, all.syn_rate_per_node);
        assert_eq!(third.stream_numbers, StreamNumbers { step: 3, rest: 2 });
    }
}
