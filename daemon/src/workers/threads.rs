//! Starting the loops of a daemon, and knowing when they have ended.

use std::net::SocketAddr;
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet, LocalSet};

use super::client::Settling;
use super::edge::edges;
use super::plan::{LoopPlan, Place};
use super::router::Router;
use super::sockets;
use super::spread::Spread;
use crate::ipc::IpcListener;
use crate::node::{self, NodeHandle, NodeInbox};
use crate::udp::Udp;

/// Time for what clients had written to be passed on before the end.
const SETTLE_LIMIT: Duration = Duration::from_millis(250);

/// The running loops.
pub struct Running(Kind);

enum Kind {
    /// On this thread.
    One(JoinHandle<()>),
    /// Each on its own thread, and the router on this one.
    Many {
        workers: JoinSet<anyhow::Result<()>>,
        router: JoinHandle<()>,
        settling: Rc<Settling>,
        stop: oneshot::Sender<()>,
    },
}

/// Binds `address` and starts one loop per inbox; returns where it is bound.
/// Must be called inside a tokio `LocalSet`, on whose thread a single loop runs
/// and the clients of several are served.
///
/// # Errors
/// When the address cannot be bound or a loop cannot be made.
pub async fn start(
    plan: LoopPlan,
    address: SocketAddr,
    listener: IpcListener,
    node: &NodeHandle,
    inboxes: Vec<NodeInbox>,
) -> anyhow::Result<(Running, SocketAddr)> {
    let spread = Spread::over(inboxes.len());
    let mut inboxes = inboxes.into_iter();
    if spread.workers() == 1 {
        let inbox = inboxes.next().context("no inbox")?;
        let udp = Udp::bind(address)?;
        let listen = udp.local_addr().context("listen: the UDP socket has no address")?;
        let place = Place { worker: 0, udp, listener: Some(listener), edge: None, inbox };
        let parts = plan.parts(spread, place)?;
        return Ok((Running(Kind::One(tokio::task::spawn_local(node::run(parts)))), listen));
    }
    let sockets = sockets::bind(address, spread)?;
    let listen = sockets.first().and_then(|s| s.local_addr().ok()?.as_socket());
    let listen = listen.context("listen: the UDP sockets have no address")?;
    let mut workers = JoinSet::new();
    let edges = edges(spread);
    for (worker, ((socket, edge), inbox)) in sockets.into_iter().zip(edges).zip(inboxes).enumerate()
    {
        let plan = plan.clone();
        let place = move |udp| Place { worker, udp, listener: None, edge: Some(edge), inbox };
        let ended = spawn(worker, move || {
            Udp::from_socket(socket, listen)
                .map_err(anyhow::Error::from)
                .and_then(|udp| plan.parts(spread, place(udp)))
        })
        .await?;
        workers.spawn(async move {
            ended.await.with_context(|| format!("worker {worker} ended badly"))
        });
    }
    tracing::info!(workers = spread.workers(), "peers are spread over workers by node number");
    let (stop, stopped) = oneshot::channel();
    let router = Router::new(spread, node.clone(), plan.max_clients);
    let settling = router.settling();
    let router = tokio::task::spawn_local(router.run(listener, stopped));
    Ok((Running(Kind::Many { workers, router, settling, stop }), listen))
}

/// Runs what `parts` makes as a loop on a thread of its own. Returns once the
/// loop has been made; what is returned resolves when it has ended.
async fn spawn(
    worker: usize,
    parts: impl FnOnce() -> anyhow::Result<node::NodeParts> + Send + 'static,
) -> anyhow::Result<oneshot::Receiver<()>> {
    let (ready, made) = oneshot::channel();
    let (end, ended) = oneshot::channel();
    let body = move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(e) => return drop(ready.send(Err(anyhow!(e).context("the runtime cannot start")))),
        };
        LocalSet::new().block_on(&runtime, async move {
            match parts() {
                Ok(parts) => {
                    // The starter waits for it, or the daemon is ending.
                    let _ = ready.send(Ok(()));
                    node::run(parts).await;
                    let _ = end.send(());
                }
                Err(e) => drop(ready.send(Err(e))),
            }
        });
    };
    thread::Builder::new()
        .name(format!("worker-{worker}"))
        .spawn(body)
        .with_context(|| format!("workers: no thread for worker {worker}; configure fewer"))?;
    made.await.with_context(|| format!("worker {worker} did not start"))??;
    Ok(ended)
}

impl Running {
    /// Resolves when a loop has ended, whichever is the first.
    ///
    /// # Errors
    /// When it ended by a panic.
    pub async fn ended(&mut self) -> anyhow::Result<()> {
        match &mut self.0 {
            Kind::One(node) => node.await.context("the loop ended badly"),
            Kind::Many { workers, .. } => match workers.join_next().await {
                Some(ended) => ended.context("a worker cannot be waited for")?,
                None => Ok(()),
            },
        }
    }

    /// To be called before the loops are told to end: brings what clients had
    /// written until now to the workers, which end after the data that they
    /// have. Takes no longer than a moment, also with clients that write on.
    pub async fn settle(&self) {
        if let Kind::Many { settling, .. } = &self.0 {
            // What has not come by then was written while the daemon ended.
            let _ = tokio::time::timeout(SETTLE_LIMIT, settling.settle()).await;
        }
    }

    /// Waits for all loops, and until clients have been written what was left
    /// for them.
    ///
    /// # Errors
    /// When a loop ended by a panic.
    pub async fn finish(self) -> anyhow::Result<()> {
        match self.0 {
            Kind::One(node) => node.await.context("the loop ended badly"),
            Kind::Many { mut workers, router, stop, .. } => {
                while let Some(ended) = workers.join_next().await {
                    ended.context("a worker cannot be waited for")??;
                }
                // It may have ended already.
                let _ = stop.send(());
                router.await.context("the router ended badly")
            }
        }
    }
}
