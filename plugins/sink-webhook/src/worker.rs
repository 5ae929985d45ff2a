//! The thread with the runtime that the client runs on: a plugin does not
//! share the host's. It lives as long as the instance.

use std::any::Any;
use std::io;
use std::panic::AssertUnwindSafe;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use futures_util::FutureExt;
use pilot_plugin::Delivery;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot};

use crate::client::Client;
use crate::config::Config;
use crate::deliver::deliver;
use crate::environment;
use crate::settings::Settings;

/// Deliveries that wait for the thread; the host has one under way at a time,
/// and further ones wait to be put in.
const WAITING: usize = 1;

/// Time for one delivery, after which it reports how far it got; the POST that
/// is under way by then may take its own time. A host waits a minute.
const BUDGET: Duration = Duration::from_secs(10);

/// A name lookup that hangs keeps the thread at the end no longer than this.
const END: Duration = Duration::from_secs(1);

/// Delivers on its own thread.
pub(crate) struct Worker {
    /// Taken at the end, which ends the thread.
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

struct Job {
    lines: String,
    reply: oneshot::Sender<Delivery>,
}

impl Worker {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system gives no thread or no event queue.
    pub(crate) fn start(config: Config, settings: Settings) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
        let (jobs, queue) = mpsc::channel(WAITING);
        let thread = thread::Builder::new()
            .name("webhook-post".to_owned())
            .spawn(move || run(runtime, queue, config, settings))?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Delivers a batch; the future is for any executor.
    pub(crate) async fn deliver(&self, lines: String) -> Delivery {
        const ENDED: &str = "the thread of sink-webhook has ended";
        let (reply, answer) = oneshot::channel();
        let Some(jobs) = &self.jobs else { return Delivery::retry(ENDED) };
        if jobs.send(Job { lines, reply }).await.is_err() {
            return Delivery::retry(ENDED);
        }
        answer.await.unwrap_or_else(|_| Delivery::retry(ENDED))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // It catches panics; there is nobody to tell of another.
            let _ = thread.join();
        }
    }
}

fn run(runtime: Runtime, mut queue: mpsc::Receiver<Job>, config: Config, settings: Settings) {
    runtime.block_on(async {
        let mut client = Client::new(settings);
        while let Some(Job { lines, mut reply }) = queue.recv().await {
            let delivered = AssertUnwindSafe(handle(&mut client, &config, &lines)).catch_unwind();
            let delivery = tokio::select! {
                delivery = delivered => delivery.unwrap_or_else(|panic| {
                    Delivery::retry(format!("sink-webhook panicked: {}", said(&*panic)))
                }),
                // The instance is stopped. What was under way is dropped, and
                // its connection with it.
                () = reply.closed() => continue,
            };
            // Nobody waits when the instance was stopped meanwhile.
            let _ = reply.send(delivery);
        }
    });
    runtime.shutdown_timeout(END);
}

async fn handle(client: &mut Client, config: &Config, lines: &str) -> Delivery {
    if client.is_suspect() {
        // A token or certificate may have been replaced meanwhile.
        match Settings::resolve(config, &environment) {
            Ok(Some(settings)) => client.renew(settings),
            Ok(None) => return Delivery::retry("`url` of sink-webhook is empty now"),
            Err(why) => return Delivery::retry(why),
        }
    }
    let events: Vec<&str> = lines.lines().filter(|line| !line.is_empty()).collect();
    let format = client.settings().format;
    deliver(client, format, &events, BUDGET).await
}

fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text")
}
