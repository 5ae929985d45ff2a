//! Carries batches to sinks: a thread with a runtime of its own, on which the
//! sinks' answers are waited for. Decides nothing.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use futures_util::FutureExt;
use pilot_plugin::{Batch, Delivery};
use tokio::sync::mpsc;

use super::inbox::Inbox;
use crate::instance::{BoxFuture, Failure};

/// Gives a batch to a sink. Must not block: all sinks share one thread.
pub type Deliver = Arc<dyn Fn(Batch) -> BoxFuture<Result<Delivery, Failure>> + Send + Sync>;

/// A batch to be carried.
pub(super) struct Parcel {
    /// Who it is for, in the keeper's numbers.
    pub slot: u64,
    pub deliver: Deliver,
    pub batch: Batch,
    pub timeout: Duration,
}

/// What came of it.
pub(super) struct Outcome {
    pub slot: u64,
    pub result: Result<Delivery, Failure>,
}

/// Starts the thread. It ends when the sender is dropped, and with it whatever
/// is still under way. The channel needs no bound: there is at most one parcel
/// for each sink.
pub(super) fn start(inbox: Arc<Inbox>) -> std::io::Result<mpsc::UnboundedSender<Parcel>> {
    let (sender, mut parcels) = mpsc::unbounded_channel::<Parcel>();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("journal-courier".into()).spawn(move || {
        runtime.block_on(async {
            while let Some(parcel) = parcels.recv().await {
                let inbox = inbox.clone();
                tokio::spawn(async move {
                    let slot = parcel.slot;
                    let result = carry(parcel).await;
                    inbox.outcome(Outcome { slot, result });
                });
            }
        });
        runtime.shutdown_background();
    })?;
    Ok(sender)
}

async fn carry(parcel: Parcel) -> Result<Delivery, Failure> {
    let Parcel { deliver, batch, timeout, .. } = parcel;
    // The call is inside, so that a panic in it is one of the sink's too.
    let answer = AssertUnwindSafe(async move { deliver(batch).await }).catch_unwind();
    match tokio::time::timeout(timeout, answer).await {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) => Err(Failure::Crashed(text(&*panic))),
        Err(_) => Err(Failure::Timeout(timeout)),
    }
}

fn text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without text")
        .to_owned()
}
