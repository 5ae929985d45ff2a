//! A process around the host that is all in memory: streams with a far end, a
//! store, a platform and an observer that remember what happened. Every wait
//! has a bound that only a fault reaches.

#![allow(dead_code, reason = "every test binary uses its part")]

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use pilot_host::{
    BoxFuture, BoxStream, CallError, HostStream, Incident, KeyValue, Limits, Observer, Platform,
    PortService, StoreError,
};
use pilot_plugin::{JoinRequest, Peer};
use pilot_wire::{Address, NodeId, SocketAddress};
use serde_json::{Map, Value, json};

/// Longer than anything takes that works.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes that a stream takes before its writer has to wait.
pub(crate) const WINDOW: usize = 1 << 20;

/// Waits until `condition` holds.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "still not: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The address `0:0000.0000.NNNN`.
pub(crate) fn address(node: u32) -> Address {
    Address { network: 0, node: NodeId(node) }
}

/// Runs a future of the host on the calling thread.
pub(crate) fn wait<T>(future: BoxFuture<T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime
        .block_on(async { tokio::time::timeout(PATIENCE, future).await })
        .expect("no answer in time")
}

/// A join request of node 7.
pub(crate) fn request(rule: &str) -> JoinRequest {
    JoinRequest {
        rule: rule.into(),
        network: 5,
        network_name: "lab".into(),
        node: NodeId(7),
        address: address(7),
        public_key: "a2V5".into(),
        owner: "ann".into(),
        hostname: "seven".into(),
        tags: vec!["gpu".into()],
        proof: json!({"token": "t"}),
        source: "192.0.2.7".into(),
        config: serde_json::Value::Null,
        kept: serde_json::Value::Null,
        at_ms: 1_700_000_000_000,
    }
}

#[derive(Default)]
struct Pipe {
    inbound: VecDeque<Bytes>,
    inbound_ended: bool,
    broken: Option<String>,
    outbound: VecDeque<Bytes>,
    outbound_length: usize,
    shut: bool,
    closed: bool,
    reset: Option<String>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Default)]
struct Shared {
    pipe: Mutex<Pipe>,
    changed: Condvar,
}

impl Shared {
    fn pipe(&self) -> MutexGuard<'_, Pipe> {
        self.pipe.lock().unwrap()
    }
}

struct Near {
    shared: Arc<Shared>,
    remote: SocketAddress,
    port: u16,
}

/// The other end of a stream, for the test.
pub(crate) struct Far(Arc<Shared>);

/// A stream that came in on `port`, and its far end.
pub(crate) fn stream(remote: SocketAddress, port: u16) -> (BoxStream, Far) {
    let shared = Arc::new(Shared::default());
    let near = Near { shared: Arc::clone(&shared), remote, port };
    (Box::new(near), Far(shared))
}

/// A stream of node 7 to port 2000.
pub(crate) fn any_stream() -> (BoxStream, Far) {
    stream(address(7).port(49_152), 2000)
}

impl HostStream for Near {
    fn remote(&self) -> SocketAddress {
        self.remote
    }

    fn local_port(&self) -> u16 {
        self.port
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        let mut pipe = self.shared.pipe();
        if let Some(data) = pipe.inbound.pop_front() {
            self.shared.changed.notify_all();
            return Poll::Ready(Ok(Some(data)));
        }
        if let Some(reason) = &pipe.broken {
            return Poll::Ready(Err(io::Error::other(reason.clone())));
        }
        if pipe.inbound_ended {
            return Poll::Ready(Ok(None));
        }
        pipe.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut pipe = self.shared.pipe();
        if let Some(reason) = &pipe.broken {
            return Poll::Ready(Err(io::Error::other(reason.clone())));
        }
        if pipe.shut {
            return Poll::Ready(Err(io::Error::other("the stream was shut down")));
        }
        match WINDOW.saturating_sub(pipe.outbound_length) {
            0 => {
                pipe.writer = Some(cx.waker().clone());
                Poll::Pending
            }
            room => Poll::Ready(Ok(room)),
        }
    }

    fn write(&mut self, data: Bytes) {
        let mut pipe = self.shared.pipe();
        assert!(!pipe.shut, "written after the end");
        pipe.outbound_length += data.len();
        pipe.outbound.push_back(data);
        self.shared.changed.notify_all();
    }

    fn shutdown(&mut self) {
        self.shared.pipe().shut = true;
        self.shared.changed.notify_all();
    }

    fn reset(&mut self, reason: &str) {
        self.shared.pipe().reset = Some(reason.to_owned());
        self.shared.changed.notify_all();
    }
}

impl Drop for Near {
    fn drop(&mut self) {
        self.shared.pipe().closed = true;
        self.shared.changed.notify_all();
    }
}

impl Far {
    /// Sends without waiting.
    pub(crate) fn send(&self, data: impl Into<Bytes>) {
        let mut pipe = self.0.pipe();
        pipe.inbound.push_back(data.into());
        Self::wake(pipe.reader.take());
    }

    /// Sends when fewer than `most` pieces wait.
    pub(crate) fn send_when_room(&self, data: Bytes, most: usize) {
        drop(self.until("room", |pipe| pipe.inbound.len() < most));
        self.send(data);
    }

    /// Sends no more.
    pub(crate) fn end(&self) {
        let mut pipe = self.0.pipe();
        pipe.inbound_ended = true;
        Self::wake(pipe.reader.take());
    }

    /// Breaks the stream for the near end.
    pub(crate) fn break_with(&self, reason: &str) {
        let mut pipe = self.0.pipe();
        pipe.broken = Some(reason.into());
        Self::wake(pipe.reader.take());
        Self::wake(pipe.writer.take());
    }

    /// Waits for `length` bytes.
    pub(crate) fn receive(&self, length: usize) -> Vec<u8> {
        let mut got = Vec::new();
        while got.len() < length {
            let mut pipe = self.until("more data", |pipe| {
                !pipe.outbound.is_empty() || pipe.closed || pipe.reset.is_some()
            });
            let Some(mut piece) = pipe.outbound.pop_front() else {
                let reset = pipe.reset.clone();
                drop(pipe);
                panic!("over after {} of {length} bytes, reset: {reset:?}", got.len());
            };
            let part = piece.split_to(piece.len().min(length - got.len()));
            got.extend_from_slice(&part);
            pipe.outbound_length -= part.len();
            if !piece.is_empty() {
                pipe.outbound.push_front(piece);
            }
            Self::wake(pipe.writer.take());
        }
        got
    }

    /// Waits for the end and gives all that came; panics when it was reset.
    pub(crate) fn receive_all(&self) -> Vec<u8> {
        let mut got = Vec::new();
        loop {
            let mut pipe = self.until("the end", |pipe| {
                !pipe.outbound.is_empty() || pipe.closed || pipe.shut || pipe.reset.is_some()
            });
            let reset = pipe.reset.clone();
            let Some(piece) = pipe.outbound.pop_front() else {
                drop(pipe);
                assert_eq!(reset, None, "reset after {:?}", String::from_utf8_lossy(&got));
                return got;
            };
            pipe.outbound_length -= piece.len();
            got.extend_from_slice(&piece);
            Self::wake(pipe.writer.take());
        }
    }

    /// As [`Far::receive_all`], as text.
    pub(crate) fn receive_text(&self) -> String {
        String::from_utf8(self.receive_all()).unwrap()
    }

    /// Waits until the stream is reset; gives the reason.
    pub(crate) fn reset_reason(&self) -> String {
        let pipe = self.until("a reset", |pipe| pipe.reset.is_some());
        pipe.reset.clone().unwrap()
    }

    /// Whether it was reset.
    pub(crate) fn was_reset(&self) -> bool {
        self.0.pipe().reset.is_some()
    }

    fn until(&self, what: &str, condition: impl Fn(&Pipe) -> bool) -> MutexGuard<'_, Pipe> {
        let (pipe, late) = self
            .0
            .changed
            .wait_timeout_while(self.0.pipe(), PATIENCE, |pipe| !condition(pipe))
            .unwrap();
        if late.timed_out() && !condition(&pipe) {
            drop(pipe);
            panic!("waited too long for {what}");
        }
        pipe
    }

    fn wake(waker: Option<Waker>) {
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// What a script or plugin did to its surroundings.
#[derive(Default)]
pub(crate) struct World {
    /// Events that were emitted.
    pub(crate) events: Mutex<Vec<(String, Map<String, Value>)>>,
    /// Methods that were called.
    pub(crate) calls: Mutex<Vec<(String, Value)>>,
    /// Far ends of streams that were dialled, with where to.
    pub(crate) dialled: Mutex<Vec<(String, Far)>>,
    /// What went wrong.
    pub(crate) incidents: Mutex<Vec<Incident>>,
    store: Mutex<BTreeMap<String, Vec<u8>>>,
}

/// Bytes that the store takes.
pub(crate) const QUOTA: usize = 64 << 10;

impl World {
    /// A new one.
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// A context for an instance, with these grants.
    pub(crate) fn context(
        self: &Arc<Self>,
        name: &str,
        limits: Limits,
        granted: &[&str],
    ) -> pilot_host::Context {
        pilot_host::Context {
            name: name.into(),
            generation: 1,
            platform: Arc::clone(self) as _,
            store: Arc::clone(self) as _,
            observer: Arc::clone(self) as _,
            limits,
            granted: granted.iter().map(|grant| (*grant).to_owned()).collect(),
        }
    }

    /// The texts of all failures.
    pub(crate) fn failures(&self) -> Vec<String> {
        let incidents = self.incidents.lock().unwrap();
        incidents
            .iter()
            .map(|incident| match incident {
                Incident::Failed { text } => text.clone(),
                other => format!("{other:?}"),
            })
            .collect()
    }
}

impl Platform for World {
    fn address(&self) -> Option<Address> {
        Some(address(1))
    }

    fn peer(&self, remote: SocketAddress) -> Peer {
        Peer {
            public_key: Some("cGs=".into()),
            trusted: true,
            networks: vec![3, 5],
            tags: vec!["gpu".into(), "lab".into()],
            hostname: Some("seven".into()),
            external_identity: None,
            ..Peer::at(remote)
        }
    }

    fn dial(&self, to: &str) -> BoxFuture<Result<BoxStream, String>> {
        if to.starts_with("nobody") {
            let reason = format!("{to}: no such host");
            return Box::pin(async move { Err(reason) });
        }
        let (near, far) = stream(address(9).port(7), 0);
        self.dialled.lock().unwrap().push((to.to_owned(), far));
        Box::pin(async move { Ok(near) })
    }

    fn send_datagram(&self, _: SocketAddress, _: u16, _: Bytes) -> Result<(), String> {
        Ok(())
    }

    fn call(&self, method: &str, request: Value) -> BoxFuture<Result<Value, CallError>> {
        self.calls.lock().unwrap().push((method.to_owned(), request.clone()));
        let answer = match method {
            "echo" => Ok(request),
            "fail" => Err(CallError::Failed("it is broken; mend it".into())),
            other => Err(CallError::Unknown(other.to_owned())),
        };
        Box::pin(async move {
            // Not at once, as it is over a network.
            tokio::task::yield_now().await;
            answer
        })
    }

    fn emit(&self, name: &str, data: Map<String, Value>) {
        self.events.lock().unwrap().push((name.to_owned(), data));
    }

    fn tell(&self, happening: pilot_host::events::Happening) {
        self.emit(happening.name(), happening.data().unwrap_or_default());
    }

    fn listen(&self, _: u16, _: Arc<dyn PortService>) -> BoxFuture<Result<(), String>> {
        Box::pin(async { Ok(()) })
    }

    fn unlisten(&self, _: u16) {}
}

impl Observer for World {
    fn incident(&self, _: &str, _: u64, incident: Incident) {
        self.incidents.lock().unwrap().push(incident);
    }
}

impl KeyValue for World {
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.store.lock().unwrap().get(key).cloned())
    }

    fn put(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        if key.is_empty() || key.len() > 256 {
            return Err(StoreError::Key(key.len()));
        }
        let mut store = self.store.lock().unwrap();
        let others = store.iter().filter(|(k, _)| *k != key);
        let wanted =
            others.map(|(k, v)| k.len() + v.len()).sum::<usize>() + key.len() + value.len();
        if wanted > QUOTA {
            let (wanted, quota) = (wanted as u64, QUOTA as u64);
            return Err(StoreError::Quota { plugin: "test".into(), wanted, quota });
        }
        store.insert(key.to_owned(), value.to_vec());
        Ok(())
    }

    fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.store.lock().unwrap().remove(key);
        Ok(())
    }

    fn keys(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let store = self.store.lock().unwrap();
        Ok(store.keys().filter(|key| key.starts_with(prefix)).cloned().collect())
    }
}
