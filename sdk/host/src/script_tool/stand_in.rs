//! The process around a script that is tried: a stream with its input known
//! beforehand, a store in memory, and nobody else.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use pilot_plugin::Peer;
use pilot_wire::{Address, NodeId, SocketAddress};
use serde_json::{Map, Value, json};

use crate::instance::{BoxFuture, Incident, KeyValue, Observer, StoreError};
use crate::platform::{CallError, Platform, PortService};
use crate::stream::{BoxStream, HostStream};

/// Most bytes that a script may write; then its stream breaks.
const MAX_OUTPUT: usize = 64 << 20;
/// Bytes that the store takes, keys and values.
const QUOTA: usize = 1 << 20;
/// Longest key, as everywhere.
const MAX_KEY: usize = 256;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Default)]
pub(super) struct StandIn {
    events: Mutex<Vec<Value>>,
    store: Mutex<BTreeMap<String, Vec<u8>>>,
    failures: Mutex<Vec<String>>,
    failed: Condvar,
}

impl StandIn {
    pub(super) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// What was emitted.
    pub(super) fn events(&self) -> Vec<Value> {
        lock(&self.events).clone()
    }

    /// The first failure, which may come a little after its stream's reset.
    pub(super) fn failure(&self, patience: Duration) -> Option<String> {
        let failures = lock(&self.failures);
        let (failures, _) = self
            .failed
            .wait_timeout_while(failures, patience, |failures| failures.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        failures.first().cloned()
    }
}

impl Platform for StandIn {
    fn address(&self) -> Option<Address> {
        Some(Address { network: 0, node: NodeId(1) })
    }

    fn peer(&self, remote: SocketAddress) -> Peer {
        Peer { trusted: true, ..Peer::at(remote) }
    }

    fn dial(&self, to: &str) -> BoxFuture<Result<BoxStream, String>> {
        let reason = format!("{to}: there is no network where a script is only tried");
        Box::pin(async move { Err(reason) })
    }

    fn send_datagram(&self, _: SocketAddress, _: u16, _: Bytes) -> Result<(), String> {
        Err("there is no network where a script is only tried".into())
    }

    fn call(&self, method: &str, _: Value) -> BoxFuture<Result<Value, CallError>> {
        let reason = format!("{method}: there is no daemon where a script is only tried");
        Box::pin(async move { Err(CallError::Failed(reason)) })
    }

    fn emit(&self, name: &str, data: Map<String, Value>) {
        lock(&self.events).push(json!({"event": name, "data": data}));
    }

    fn listen(&self, _: u16, _: Arc<dyn PortService>) -> BoxFuture<Result<(), String>> {
        Box::pin(async { Ok(()) })
    }

    fn unlisten(&self, _: u16) {}
}

impl Observer for StandIn {
    fn incident(&self, _: &str, _: u64, incident: Incident) {
        let text = match incident {
            Incident::Failed { text } | Incident::Died { text } => text,
            Incident::Panicked { callback, text } => format!("{callback} panicked: {text}"),
            Incident::Hung { callback } => format!("{callback} hangs"),
        };
        lock(&self.failures).push(text);
        self.failed.notify_all();
    }
}

impl KeyValue for StandIn {
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(lock(&self.store).get(key).cloned())
    }

    fn put(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        if key.is_empty() || key.len() > MAX_KEY {
            return Err(StoreError::Key(key.len()));
        }
        let mut store = lock(&self.store);
        let others: usize =
            store.iter().filter(|(k, _)| *k != key).map(|(k, v)| k.len() + v.len()).sum();
        let wanted = others + key.len() + value.len();
        if wanted > QUOTA {
            return Err(StoreError::Quota {
                plugin: "the script".into(),
                wanted: wanted as u64,
                quota: QUOTA as u64,
            });
        }
        store.insert(key.to_owned(), value.to_vec());
        Ok(())
    }

    fn delete(&self, key: &str) -> Result<(), StoreError> {
        lock(&self.store).remove(key);
        Ok(())
    }

    fn keys(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let store = lock(&self.store);
        Ok(store.keys().filter(|key| key.starts_with(prefix)).cloned().collect())
    }
}

/// A stream whose peer sends `input`, and then no more.
pub(super) fn stream(remote: SocketAddress, port: u16, input: Bytes) -> (BoxStream, Arc<Outcome>) {
    let outcome = Arc::new(Outcome::default());
    let input = Some(input).filter(|input| !input.is_empty());
    (Box::new(Near { remote, port, input, outcome: Arc::clone(&outcome) }), outcome)
}

/// What becomes of a stream.
#[derive(Default)]
pub(super) struct Outcome {
    written: Mutex<Written>,
    over: Condvar,
}

#[derive(Default)]
struct Written {
    bytes: Vec<u8>,
    reset: Option<String>,
    shut: bool,
    over: bool,
}

impl Outcome {
    /// Waits until the stream is over: what was written, and the reason if it
    /// was reset. None when it takes longer.
    pub(super) fn wait(&self, patience: Duration) -> Option<(Vec<u8>, Option<String>)> {
        let written = lock(&self.written);
        let (mut written, _) = self
            .over
            .wait_timeout_while(written, patience, |written| !written.over)
            .unwrap_or_else(PoisonError::into_inner);
        written.over.then(|| (std::mem::take(&mut written.bytes), written.reset.take()))
    }
}

struct Near {
    remote: SocketAddress,
    port: u16,
    input: Option<Bytes>,
    outcome: Arc<Outcome>,
}

impl HostStream for Near {
    fn remote(&self) -> SocketAddress {
        self.remote
    }

    fn local_port(&self) -> u16 {
        self.port
    }

    fn poll_read(&mut self, _: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        Poll::Ready(Ok(self.input.take()))
    }

    fn poll_room(&mut self, _: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let written = lock(&self.outcome.written);
        if written.shut {
            return Poll::Ready(Err(io::Error::other("the stream was shut down")));
        }
        let room = MAX_OUTPUT.saturating_sub(written.bytes.len());
        if room == 0 {
            let reason = format!("a script that is tried writes at most {MAX_OUTPUT} bytes");
            return Poll::Ready(Err(io::Error::other(reason)));
        }
        Poll::Ready(Ok(room))
    }

    fn write(&mut self, data: Bytes) {
        lock(&self.outcome.written).bytes.extend_from_slice(&data);
    }

    fn shutdown(&mut self) {
        lock(&self.outcome.written).shut = true;
    }

    fn reset(&mut self, reason: &str) {
        lock(&self.outcome.written).reset = Some(reason.to_owned());
    }
}

impl Drop for Near {
    fn drop(&mut self) {
        lock(&self.outcome.written).over = true;
        self.outcome.over.notify_all();
    }
}
