//! The handle by which the control plane and services speak to the loop, or to
//! all of them when peers are spread over workers.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pilot_core::Permission;
use pilot_wire::{NodeId, SocketAddress};
use tokio::sync::{mpsc, oneshot};

use super::snapshot::Snapshot;
use crate::control::ControlEvent;
use crate::service::LocalStream;
use crate::workers::Spread;

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
    Permission {
        node: NodeId,
        permission: Permission,
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

    /// Sets what a peer may do from now on.
    pub async fn set_permission(&self, node: NodeId, permission: Permission) {
        self.to_owner(node, Order::Permission { node, permission }).await;
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
