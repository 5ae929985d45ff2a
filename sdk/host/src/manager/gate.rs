//! Where streams, questions and batches meet the generation that runs: one gate
//! per plugin, and one swap of it for all that the plugin provides.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use pilot_wire::SocketAddress;

use super::Deliver;
use crate::instance::{Failure, Instance};
use crate::platform::PortService;
use crate::stream::BoxStream;

/// Time that a stream on its way into an older generation has to get there.
const ENTER: Duration = Duration::from_secs(1);

/// The gate of a plugin.
pub(super) struct Gate {
    plugin: Arc<str>,
    current: ArcSwap<Current>,
    /// A generation that has passed its self-test and is about to take over:
    /// its sinks may be given events already.
    staged: ArcSwapOption<Running>,
}

/// A generation that runs.
pub(super) struct Running {
    pub(super) instance: Arc<dyn Instance>,
    /// Ports that it answers on, and whether datagrams are for it as well.
    pub(super) ports: BTreeMap<u16, bool>,
}

struct Current {
    running: Option<Arc<Running>>,
    /// Why no streams are taken; nothing says that they are.
    closed: Option<String>,
    /// Callers that are handing something over.
    inside: AtomicUsize,
}

impl Gate {
    pub(super) fn new(plugin: Arc<str>) -> Arc<Self> {
        let closed = Some("it is starting".to_owned());
        let current = Current { running: None, closed, inside: AtomicUsize::new(0) };
        Arc::new(Self {
            plugin,
            current: ArcSwap::from_pointee(current),
            staged: ArcSwapOption::empty(),
        })
    }

    /// Has a generation that is about to take over known to sinks.
    pub(super) fn stage(&self, running: Option<Arc<Running>>) {
        self.staged.store(running);
    }

    /// From now on `running` gets what comes. Afterwards nothing new reaches
    /// the one before, which may be drained.
    pub(super) fn swap(&self, running: Arc<Running>) {
        self.set(Current { running: Some(running), closed: None, inside: AtomicUsize::new(0) });
        self.staged.store(None);
    }

    /// Nothing is taken any more, and why.
    pub(super) fn close(&self, reason: &str) {
        let closed = Some(reason.to_owned());
        self.set(Current { running: None, closed, inside: AtomicUsize::new(0) });
    }

    /// No new streams while there is a reason; questions and batches go on.
    pub(super) fn hold(&self, reason: Option<String>) {
        let running = self.current.load().running.clone();
        if running.is_some() {
            self.set(Current { running, closed: reason, inside: AtomicUsize::new(0) });
        }
    }

    /// Who answers questions and takes batches, or why nobody does.
    pub(super) fn instance(&self) -> Result<Arc<dyn Instance>, String> {
        let current = self.current.load();
        match (&current.running, &current.closed) {
            (Some(running), _) => Ok(Arc::clone(&running.instance)),
            (None, reason) => Err(self.refusal(reason.as_deref())),
        }
    }

    fn refusal(&self, reason: Option<&str>) -> String {
        format!("plugin {} takes nothing: {}", self.plugin, reason.unwrap_or("it does not run"))
    }

    fn set(&self, new: Current) {
        let old = self.current.swap(Arc::new(new));
        // Whoever read the pointer before is counted in it or reads it again:
        // see `enter`. Handing over does not block, so this is short; a plugin
        // that breaks that rule loses the stream, nobody else waits.
        fence(Ordering::SeqCst);
        let until = Instant::now() + ENTER;
        while old.inside.load(Ordering::SeqCst) > 0 && Instant::now() < until {
            std::thread::yield_now();
        }
    }

    /// Calls `hand_over` with the generation that runs, such that a swap waits
    /// for it.
    fn enter<T>(&self, hand_over: impl FnOnce(&Current) -> T) -> T {
        loop {
            let current = self.current.load_full();
            let _inside = Inside::new(&current.inside);
            // Still the one: then a swap from now on sees the count.
            fence(Ordering::SeqCst);
            if Arc::ptr_eq(&current, &self.current.load()) {
                return hand_over(&current);
            }
        }
    }
}

struct Inside<'a>(&'a AtomicUsize);

impl<'a> Inside<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A port as the platform knows it: it stays while generations come and go.
pub(super) struct PortSlot {
    name: String,
    port: u16,
    gate: Arc<Gate>,
}

impl PortSlot {
    pub(super) fn new(port: u16, gate: &Arc<Gate>) -> Arc<Self> {
        Arc::new(Self { name: gate.plugin.to_string(), port, gate: Arc::clone(gate) })
    }
}

impl PortService for PortSlot {
    fn name(&self) -> &str {
        &self.name
    }

    fn open(&self, mut stream: BoxStream) {
        self.gate.enter(|current| match &current.running {
            Some(running) if current.closed.is_none() && running.ports.contains_key(&self.port) => {
                running.instance.open(stream);
            }
            Some(_) if current.closed.is_none() => {
                let reason = format!("it does not answer on port {}", self.port);
                stream.reset(&self.gate.refusal(Some(&reason)));
            }
            _ => stream.reset(&self.gate.refusal(current.closed.as_deref())),
        });
    }

    fn takes_datagrams(&self) -> bool {
        let current = self.gate.current.load();
        current.running.as_ref().is_some_and(|r| r.ports.get(&self.port) == Some(&true))
    }

    fn datagram(&self, from: SocketAddress, port: u16, data: Bytes) {
        self.gate.enter(|current| {
            if let Some(running) = &current.running
                && current.closed.is_none()
                && running.ports.get(&self.port) == Some(&true)
            {
                running.instance.datagram(from, port, data);
            }
        });
    }
}

/// What delivers to the sink `name` (as the manifest has it) of whatever
/// generation runs.
pub(super) fn deliver(gate: &Arc<Gate>, name: &str) -> Deliver {
    let (gate, name) = (Arc::clone(gate), name.to_owned());
    Arc::new(move |mut batch| {
        batch.sink.clone_from(&name);
        let staged = gate.staged.load_full().map(|running| Arc::clone(&running.instance));
        match staged.map_or_else(|| gate.instance(), Ok) {
            Ok(instance) => instance.deliver(batch),
            Err(reason) => Box::pin(async move { Err(Failure::Failed(reason)) }),
        }
    })
}
