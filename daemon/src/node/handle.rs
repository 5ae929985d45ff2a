//! The handle by which the control plane and services speak to the loop.

use std::time::Duration;

use pilot_core::Permission;
use pilot_wire::{NodeId, SocketAddress};
use tokio::sync::{mpsc, oneshot};

use super::snapshot::Snapshot;
use crate::control::ControlEvent;
use crate::service::LocalStream;

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
    Dial { to: SocketAddress, answer: oneshot::Sender<Result<LocalStream, DialFailure>> },
    Permission { node: NodeId, permission: Permission },
    Forget { node: NodeId },
    Control(ControlEvent),
    Snapshot { streams: usize, answer: oneshot::Sender<Snapshot> },
    Shutdown { deadline: Duration, done: oneshot::Sender<()> },
}

/// Orders for the loop. Cheap to clone. Once the loop has ended, everything
/// asked of it is answered as if it were shutting down.
#[derive(Clone)]
pub struct NodeHandle {
    orders: mpsc::Sender<Order>,
}

/// The loop's end of a [`NodeHandle`].
pub struct NodeInbox {
    pub(crate) orders: mpsc::Receiver<Order>,
}

/// A handle and the end that [`super::run`] takes.
pub fn channel() -> (NodeHandle, NodeInbox) {
    let (sender, receiver) = mpsc::channel(ORDERS);
    (NodeHandle { orders: sender }, NodeInbox { orders: receiver })
}

impl NodeHandle {
    /// Opens a stream for an in-process service.
    ///
    /// # Errors
    /// When the peer cannot be found, does not answer or refuses, a limit is
    /// reached, or the node is ending.
    pub async fn dial(&self, to: SocketAddress) -> Result<LocalStream, DialFailure> {
        let (answer, result) = oneshot::channel();
        self.send(Order::Dial { to, answer }).await;
        result.await.unwrap_or(Err(DialFailure::ShuttingDown))
    }

    /// Sets what a peer may do from now on.
    pub async fn set_permission(&self, node: NodeId, permission: Permission) {
        self.send(Order::Permission { node, permission }).await;
    }

    /// Drops the tunnel with a peer.
    pub async fn forget_peer(&self, node: NodeId) {
        self.send(Order::Forget { node }).await;
    }

    /// Tells the loop what the control plane found out.
    pub async fn control(&self, event: ControlEvent) {
        self.send(Order::Control(event)).await;
    }

    /// The node as it is now, with the details of at most `streams` streams;
    /// `None` once the loop has ended.
    pub async fn snapshot(&self, streams: usize) -> Option<Snapshot> {
        let (answer, taken) = oneshot::channel();
        self.send(Order::Snapshot { streams, answer }).await;
        taken.await.ok()
    }

    /// Ends every stream after its data and then the loop; returns when the
    /// loop has ended, at the latest after `deadline`. A second call with a
    /// shorter deadline shortens it.
    pub async fn begin_shutdown(&self, deadline: Duration) {
        let (done, ended) = oneshot::channel();
        self.send(Order::Shutdown { deadline, done }).await;
        // An error means that the loop is gone, which is what was asked for.
        let _ = ended.await;
    }

    async fn send(&self, order: Order) {
        // An error means that the loop is gone: nobody is left to act on it.
        let _ = self.orders.send(order).await;
    }
}
