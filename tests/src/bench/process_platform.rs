//! A host without a process around it: for what is measured inside one program.

use std::sync::Arc;

use bytes::Bytes;
use pilot_host::{
    BoxFuture, BoxStream, CallError, Context, Incident, KeyValue, Limits, Observer, Platform,
    PortService, StoreError,
};
use pilot_plugin::Peer;
use pilot_wire::{Address, SocketAddress};
use serde_json::{Map, Value};

/// Has no node, no peers and no store.
pub(super) struct Alone;

impl Alone {
    /// What an instance is made with.
    pub(super) fn context(name: &str) -> Context {
        let alone = Arc::new(Self);
        Context {
            name: name.into(),
            generation: 1,
            platform: Arc::clone(&alone) as _,
            store: Arc::clone(&alone) as _,
            observer: alone as _,
            limits: Limits::default(),
            granted: [].into(),
        }
    }
}

fn nothing<T: Send + 'static>(value: T) -> BoxFuture<T> {
    Box::pin(std::future::ready(value))
}

impl Platform for Alone {
    fn address(&self) -> Option<Address> {
        None
    }

    fn peer(&self, remote: SocketAddress) -> Peer {
        Peer::at(remote)
    }

    fn dial(&self, _: &str) -> BoxFuture<Result<BoxStream, String>> {
        nothing(Err("there is no network here".to_owned()))
    }

    fn send_datagram(&self, _: SocketAddress, _: u16, _: Bytes) -> Result<(), String> {
        Err("there is no network here".to_owned())
    }

    fn call(&self, method: &str, _: Value) -> BoxFuture<Result<Value, CallError>> {
        nothing(Err(CallError::Unknown(method.to_owned())))
    }

    fn emit(&self, _: &str, _: Map<String, Value>) {}

    fn tell(&self, _: pilot_host::events::Happening) {}

    fn listen(&self, _: u16, _: Arc<dyn PortService>) -> BoxFuture<Result<(), String>> {
        nothing(Ok(()))
    }

    fn unlisten(&self, _: u16) {}
}

impl Observer for Alone {
    fn incident(&self, name: &str, _: u64, incident: Incident) {
        eprintln!("{name}: {incident:?}");
    }
}

impl KeyValue for Alone {
    fn get(&self, _: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(None)
    }

    fn put(&self, _: &str, _: &[u8]) -> Result<(), StoreError> {
        Err(StoreError::Disk("there is no disk here".to_owned()))
    }

    fn delete(&self, _: &str) -> Result<(), StoreError> {
        Ok(())
    }

    fn keys(&self, _: &str) -> Result<Vec<String>, StoreError> {
        Ok(Vec::new())
    }
}
