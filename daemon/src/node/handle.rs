//! The handle by which the control plane and services speak to the loop, or to
//! all of them when peers are spread over workers.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use pilot_core::Permission;
use pilot_host::PortService;
use pilot_wire::{NodeId, SocketAddress};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::snapshot::Snapshot;
use crate::control::ControlEvent;
use crate::service::LocalStream;
use crate::workers::{Spread, merge};

/// Orders waiting for the loop; beyond it the sender waits.
const ORDERS: usize = 1024;

/// Why a dial of an in-process service failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialFailure {
    /// The peer refused, did not answer, or could not be found.
    #[error(transparent)]
    Peer(#[from] pilot_core::DialFailure),
    /// The core would not start it: no address yet, or a limit is reached.
    #[error(transparent)]
    Local(#[from] pilot_core::DialError),
    /// The node is ending.
    #[error("the daemon is shutting down")]
    ShuttingDown,
}

/// What the loop is asked to do.
pub(crate) enum Order {
    Dial {
        to: SocketAddress,
        answer: oneshot::Sender<Result<LocalStream, DialFailure>>,
    },
    Datagram {
        to: SocketAddress,
        source_port: u16,
        data: Bytes,
    },
    /// Has a plugin answer on a port; the answer is the earlier one.
    Listen {
        port: u16,
        service: Arc<dyn PortService>,
        answer: oneshot::Sender<Result<Option<Arc<dyn PortService>>, String>>,
    },
    Unlisten {
        port: u16,
    },
    /// What `info` shows.
    Info {
        answer: oneshot::Sender<Value>,
    },
    Permission {
        node: NodeId,
        permission: Permission,
    },
    /// The networks that this node is in.
    Networks(Vec<u16>),
    /// The networks that a peer and this node are both in.
    Shared {
        node: NodeId,
        networks: Vec<u16>,
        /// Those in which the peer may broadcast.
        speaks: Vec<u16>,
    },
    /// A datagram to all of a network, for these of its members.
    Broadcast {
        to: SocketAddress,
        recipients: Vec<NodeId>,
        data: Bytes,
    },
    Forget {
        node: NodeId,
    },
    Control(ControlEvent),
    /// Serve this client as if it had come over the driver socket.
    Client(UnixStream),
    Snapshot {
        streams: usize,
        answer: oneshot::Sender<Snapshot>,
    },
    Shutdown {
        deadline: Duration,
        done: oneshot::Sender<()>,
    },
}

/// Orders for the loop, or for the one among several that they concern. Cheap
/// to clone. Once the loop has ended, everything asked of it is answered as if
/// it were shutting down.
#[derive(Clone)]
pub struct NodeHandle {
    /// By worker; at least one.
    orders: Arc<[mpsc::Sender<Order>]>,
    ending: Arc<AtomicBool>,
}

/// The loop's end of a [`NodeHandle`].
pub struct NodeInbox {
    pub(crate) orders: mpsc::Receiver<Order>,
}

/// A handle and the end that [`super::run`] takes.
pub fn channel() -> (NodeHandle, NodeInbox) {
    let (sender, orders) = mpsc::channel(ORDERS);
    (NodeHandle { orders: Arc::new([sender]), ending: Arc::default() }, NodeInbox { orders })
}

/// One handle for all workers, and their ends in order.
pub fn channels(spread: Spread) -> (NodeHandle, Vec<NodeInbox>) {
    let (senders, inboxes): (Vec<_>, Vec<_>) = (0..spread.workers())
        .map(|_| mpsc::channel(ORDERS))
        .map(|(sender, orders)| (sender, NodeInbox { orders }))
        .unzip();
    (NodeHandle { orders: senders.into(), ending: Arc::default() }, inboxes)
}

impl NodeHandle {
    /// Opens a stream for an in-process service.
    ///
    /// # Errors
    /// When the peer cannot be found, does not answer or refuses, a limit is
    /// reached, or the node is ending.
    pub async fn dial(&self, to: SocketAddress) -> Result<LocalStream, DialFailure> {
        let (answer, result) = oneshot::channel();
        self.to_owner(to.address.node, Order::Dial { to, answer }).await;
        result.await.unwrap_or(Err(DialFailure::ShuttingDown))
    }

    /// Sends a datagram from `source_port`, or from a new ephemeral port when
    /// it is 0. Does not wait; nothing tells whether it arrives.
    ///
    /// # Errors
    /// When the loop has more to do than fits its queue, or has ended.
    pub fn send_datagram(
        &self,
        to: SocketAddress,
        source_port: u16,
        data: Bytes,
    ) -> Result<(), String> {
        let worker = Spread::over(self.orders.len()).of_node(to.address.node);
        let orders = self.orders.get(worker).ok_or("the daemon is shutting down")?;
        orders.try_send(Order::Datagram { to, source_port, data }).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => {
                "the daemon has too much to do; the datagram was not sent".to_owned()
            }
            mpsc::error::TrySendError::Closed(_) => "the daemon is shutting down".to_owned(),
        })
    }

    /// Has `service` answer on `port` in every worker, instead of an earlier
    /// plugin. Where it cannot in one, nothing changes in any.
    ///
    /// # Errors
    /// When a client or the daemon itself has the port, or the daemon is
    /// ending; the text says which.
    pub async fn listen(&self, port: u16, service: Arc<dyn PortService>) -> Result<(), String> {
        let mut earlier = Vec::new();
        for worker in 0..self.orders.len() {
            let (answer, result) = oneshot::channel();
            let service = Arc::clone(&service);
            self.send(worker, Order::Listen { port, service, answer }).await;
            match result.await.unwrap_or_else(|_| Err("the daemon is shutting down".to_owned())) {
                Ok(before) => earlier.push(before),
                Err(reason) => {
                    for (worker, before) in earlier.into_iter().enumerate() {
                        self.restore(worker, port, before).await;
                    }
                    return Err(reason);
                }
            }
        }
        Ok(())
    }

    async fn restore(&self, worker: usize, port: u16, before: Option<Arc<dyn PortService>>) {
        match before {
            None => self.send(worker, Order::Unlisten { port }).await,
            Some(service) => {
                // It had the port a moment ago, so nobody else has it.
                let (answer, _) = oneshot::channel();
                self.send(worker, Order::Listen { port, service, answer }).await;
            }
        }
    }

    /// No plugin answers on `port` any more.
    pub async fn unlisten(&self, port: u16) {
        for worker in 0..self.orders.len() {
            self.send(worker, Order::Unlisten { port }).await;
        }
    }

    /// What `info` shows, all workers together; `None` once a loop has ended.
    pub async fn info(&self) -> Option<Value> {
        let mut answers = Vec::new();
        for worker in 0..self.orders.len() {
            let (answer, taken) = oneshot::channel();
            self.send(worker, Order::Info { answer }).await;
            answers.push((worker, taken));
        }
        let mut all = Vec::new();
        for (worker, taken) in answers {
            all.push((worker, taken.await.ok()?));
        }
        match all.len() {
            1 => all.pop().map(|(_, info)| info),
            _ => Some(merge(all)),
        }
    }

    /// Sets what a peer may do from now on.
    pub async fn set_permission(&self, node: NodeId, permission: Permission) {
        self.to_owner(node, Order::Permission { node, permission }).await;
    }

    /// Sets which networks this node is in, beside 0.
    pub async fn set_networks(&self, networks: Vec<u16>) {
        for worker in 0..self.orders.len() {
            self.send(worker, Order::Networks(networks.clone())).await;
        }
    }

    /// Sets which networks a peer and this node are both in, beside 0, and in which
    /// of them it may broadcast.
    pub async fn set_shared(&self, node: NodeId, networks: Vec<u16>, speaks: Vec<u16>) {
        self.to_owner(node, Order::Shared { node, networks, speaks }).await;
    }

    /// Sends a datagram for all of a network to these of its members.
    pub async fn broadcast(&self, to: SocketAddress, recipients: &[NodeId], data: Bytes) {
        let spread = Spread::over(self.orders.len());
        for worker in 0..self.orders.len() {
            let of_worker = |node: &&NodeId| spread.of_node(**node) == worker;
            let recipients: Vec<_> = recipients.iter().filter(of_worker).copied().collect();
            if !recipients.is_empty() {
                self.send(worker, Order::Broadcast { to, recipients, data: data.clone() }).await;
            }
        }
    }

    /// Drops the tunnel with a peer.
    pub async fn forget_peer(&self, node: NodeId) {
        self.to_owner(node, Order::Forget { node }).await;
    }

    /// Tells the loop what the control plane found out.
    pub async fn control(&self, event: ControlEvent) {
        match &event {
            ControlEvent::Registered { .. } | ControlEvent::Beacon(_) => {
                for worker in 0..self.orders.len() {
                    self.send(worker, Order::Control(event.clone())).await;
                }
            }
            &ControlEvent::Endpoint { node, .. } | &ControlEvent::IdentityKey { node, .. } => {
                self.to_owner(node, Order::Control(event)).await;
            }
            // The beacon's answer comes to the first one, and one line in the
            // log is enough.
            ControlEvent::Discover
            | ControlEvent::RegistryUp
            | ControlEvent::RegistryDown { .. } => self.send(0, Order::Control(event)).await,
        }
    }

    /// Has a worker serve a client.
    pub(crate) async fn serve_client(&self, worker: usize, client: UnixStream) {
        self.send(worker, Order::Client(client)).await;
    }

    /// The node as it is now, all workers together, with the details of at most
    /// `streams` streams; `None` once a loop has ended.
    pub async fn snapshot(&self, streams: usize) -> Option<Snapshot> {
        let mut answers = Vec::new();
        for worker in 0..self.orders.len() {
            let (answer, taken) = oneshot::channel();
            self.send(worker, Order::Snapshot { streams, answer }).await;
            answers.push(taken);
        }
        let mut all: Option<Snapshot> = None;
        for taken in answers {
            let one = taken.await.ok()?;
            match &mut all {
                Some(all) => all.add(one, streams),
                None => all = Some(one),
            }
        }
        all
    }

    /// Ends every stream after its data and then the loop; returns when the
    /// loop has ended, at the latest after `deadline`. A second call with a
    /// shorter deadline shortens it.
    pub async fn begin_shutdown(&self, deadline: Duration) {
        self.ending.store(true, Ordering::Release);
        let mut endings = Vec::new();
        for worker in 0..self.orders.len() {
            let (done, ended) = oneshot::channel();
            self.send(worker, Order::Shutdown { deadline, done }).await;
            endings.push(ended);
        }
        for ended in endings {
            // An error means that the loop is gone, which is what was asked for.
            let _ = ended.await;
        }
    }

    /// Whether the end has been ordered.
    pub(crate) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    async fn to_owner(&self, node: NodeId, order: Order) {
        self.send(Spread::over(self.orders.len()).of_node(node), order).await;
    }

    async fn send(&self, worker: usize, order: Order) {
        if let Some(orders) = self.orders.get(worker) {
            // An error means that the loop is gone: nobody is left to act on it.
            let _ = orders.send(order).await;
        }
    }
}
