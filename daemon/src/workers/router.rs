//! Takes the clients of the driver socket in, and gives each a pipe to every
//! worker.

use std::cell::RefCell;
use std::io;
use std::os::unix::net::UnixStream as StdStream;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::client::{self, Settling, Unsettled};
use super::desk::{Claims, Desk};
use super::spread::Spread;
use crate::ipc::IpcListener;
use crate::ipc::client::DATA_BOUND;
use crate::node::NodeHandle;

/// Pause after an accept that failed, most likely for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// What all clients have in common.
pub(crate) struct Router {
    spread: Spread,
    node: NodeHandle,
    claims: Rc<RefCell<Claims>>,
    settling: Rc<Settling>,
    max_clients: usize,
}

impl Router {
    pub(crate) fn new(spread: Spread, node: NodeHandle, max_clients: usize) -> Self {
        Self { spread, node, claims: Rc::default(), settling: Rc::default(), max_clients }
    }

    /// By which the clients are told to settle.
    pub(crate) fn settling(&self) -> Rc<Settling> {
        Rc::clone(&self.settling)
    }

    /// Serves clients until `stop`, and then those that are left until they
    /// have been told everything.
    pub(crate) async fn run(self, listener: IpcListener, stop: oneshot::Receiver<()>) {
        let mut clients = JoinSet::new();
        let accepting = self.accept(&listener, &mut clients);
        tokio::select! {
            () = accepting => {}
            // An error means that nobody waits for the end.
            _ = stop => {}
        }
        drop(listener);
        while clients.join_next().await.is_some() {}
    }

    async fn accept(&self, listener: &IpcListener, clients: &mut JoinSet<()>) {
        let mut number = 0;
        loop {
            let accepted = tokio::select! {
                accepted = std::future::poll_fn(|cx| listener.poll_accept(cx)) => accepted,
                Some(ended) = clients.join_next(), if !clients.is_empty() => {
                    if let Err(error) = ended {
                        tracing::error!("a client ended badly: {error}");
                    }
                    continue;
                }
            };
            let stream = match accepted {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::warn!(%error, "driver socket cannot accept; trying again in a second");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            if clients.len() >= self.max_clients || self.node.is_ending() {
                let limit = self.max_clients;
                tracing::warn!(limit, "client refused: too many, or the node is ending");
                continue;
            }
            number += 1;
            match self.pipes().await {
                Ok(pipes) => {
                    let desk = Desk::new(number, self.spread, Rc::clone(&self.claims));
                    let node = self.node.clone();
                    let unsettled = Unsettled::new(&self.settling);
                    let ending = move || node.is_ending();
                    let served = client::serve(stream, pipes, desk, unsettled, ending);
                    clients.spawn_local(served);
                }
                Err(error) => tracing::warn!(%error, "client refused: it cannot be served"),
            }
        }
    }

    /// A pipe to every worker, whose other end the worker serves as a client.
    async fn pipes(&self) -> io::Result<Vec<UnixStream>> {
        let mut pipes = Vec::with_capacity(self.spread.workers());
        for worker in 0..self.spread.workers() {
            let (ours, theirs) = StdStream::pair()?;
            ours.set_nonblocking(true)?;
            theirs.set_nonblocking(true)?;
            // A larger buffer spares wake-ups; the system may give less.
            let _ = socket2::SockRef::from(&ours).set_send_buffer_size(DATA_BOUND);
            pipes.push(UnixStream::from_std(ours)?);
            self.node.serve_client(worker, theirs).await;
        }
        Ok(pipes)
    }
}
