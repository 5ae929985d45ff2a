//! What the host of plugins needs of the process around it, by the registry.
//!
//! What plugins may ask by name, JSON in and JSON out:
//!
//! | Method | Request | Answer |
//! |---|---|---|
//! | `registry.lookup` | `node_id` | the registry's `lookup_ok`: `address`, `public_key`, `hostname`, `tags`, `polo_score`, `task_exec`, `public` |
//! | `registry.stats` | nothing | how many: `nodes` (registered now), `keys` (ever), `trust_pairs`, `commands`; `uptime_secs`, `version` |
//! | `plugins.list` | nothing | `plugins`: as `pilotctl plugins --json` of a daemon, each with its `services`, of which none is `served` |

use std::future::ready;
use std::sync::{Arc, RwLock};
use std::time::Instant;

use bytes::Bytes;
use pilot_host::events::Happening;
use pilot_host::{BoxFuture, BoxStream, CallError, Platform, PortService};
use pilot_plugin::Peer;
use pilot_wire::{Address, NodeId, SocketAddress};
use serde_json::{Map, Value, json};

use super::{NO_PORTS, Plugins};
use crate::events::Events;
use crate::service::{lookup, read};
use crate::state::State;

/// The registry as the host of plugins sees it.
pub(super) struct RegistryPlatform {
    state: Arc<RwLock<State>>,
    events: Events,
    plugins: Plugins,
    started: Instant,
}

impl RegistryPlatform {
    pub(super) fn new(state: Arc<RwLock<State>>, events: Events, plugins: Plugins) -> Self {
        Self { state, events, plugins, started: Instant::now() }
    }

    fn do_call(&self, method: &str, request: &Value) -> Result<Value, CallError> {
        match method {
            "registry.lookup" => {
                let node = request["node_id"].as_u64().and_then(|n| u32::try_from(n).ok());
                let node = node.map(NodeId).ok_or_else(|| {
                    CallError::Failed(format!("{method} needs node_id, the number of a node"))
                })?;
                let state = read(&self.state);
                let node = state.node(node).map_err(|e| CallError::Failed(e.to_string()))?;
                Ok(json!(lookup(&state, &node.record)))
            }
            "registry.stats" => {
                let state = read(&self.state);
                Ok(json!({
                    "nodes": state.len(),
                    "keys": state.keys(),
                    "trust_pairs": state.trust_pairs(),
                    "commands": state.applied(),
                    "uptime_secs": self.started.elapsed().as_secs(),
                    "version": env!("CARGO_PKG_VERSION"),
                }))
            }
            "plugins.list" => Ok(self.plugins.describe()),
            other => Err(CallError::Unknown(other.to_owned())),
        }
    }
}

impl Platform for RegistryPlatform {
    fn address(&self) -> Option<Address> {
        None
    }

    fn peer(&self, remote: SocketAddress) -> Peer {
        let state = read(&self.state);
        let Ok(node) = state.node(remote.address.node) else { return Peer::at(remote) };
        let record = &node.record;
        Peer {
            public_key: Some(record.key.to_string()),
            tags: record.tags.clone(),
            hostname: Some(&record.hostname).filter(|name| !name.is_empty()).cloned(),
            ..Peer::at(remote)
        }
    }

    fn dial(&self, to: &str) -> BoxFuture<Result<BoxStream, String>> {
        Box::pin(ready(Err(not_here(&format!("dial {to}")))))
    }

    fn send_datagram(&self, to: SocketAddress, _: u16, _: Bytes) -> Result<(), String> {
        Err(not_here(&format!("datagram to {to}")))
    }

    fn call(&self, method: &str, request: Value) -> BoxFuture<Result<Value, CallError>> {
        Box::pin(ready(self.do_call(method, &request)))
    }

    fn emit(&self, name: &str, data: Map<String, Value>) {
        if !self.events.wanted() {
            return;
        }
        match Happening::of_plugin(name, data) {
            Ok(happening) => self.events.emit(|| happening),
            Err(error) => tracing::debug!("an event of a plugin was refused: {error}"),
        }
    }

    fn tell(&self, happening: Happening) {
        self.events.emit(|| happening);
    }

    fn listen(&self, port: u16, _: Arc<dyn PortService>) -> BoxFuture<Result<(), String>> {
        Box::pin(ready(Err(not_here(&format!("port {port}")))))
    }

    fn unlisten(&self, _: u16) {}
}

fn not_here(what: &str) -> String {
    format!("{what}: {NO_PORTS}, and opens no streams; a daemon does")
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use pilot_wire::registry::PublicKey;

    use super::*;
    use crate::state::{Command, Op, Register};

    fn now<T>(future: impl Future<Output = T>) -> T {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => value,
            Poll::Pending => panic!("it waits"),
        }
    }

    fn platform() -> RegistryPlatform {
        let mut state = State::default();
        let register = Register {
            key: PublicKey([7; 32]),
            endpoint: "192.0.2.1:4000".parse().unwrap(),
            owner: String::new(),
            hostname: "seven".to_owned(),
            proven: false,
            takeover: false,
        };
        state.apply(&Command::own(1, Op::Register(register))).unwrap();
        RegistryPlatform::new(Arc::new(RwLock::new(state)), Events::default(), Plugins::default())
    }

    #[test]
    fn methods_answer_from_the_state() {
        let platform = platform();
        let call = |method: &str, request| now(platform.call(method, request));
        let found = call("registry.lookup", json!({"node_id": 1})).unwrap();
        assert_eq!((&found["type"], &found["hostname"]), (&json!("lookup_ok"), &json!("seven")));
        assert!(found.get("real_addr").is_none(), "it is private: {found}");
        let failed = call("registry.lookup", json!({"node_id": 2})).unwrap_err().to_string();
        assert_eq!(failed, "node 2 is not registered");
        let failed = call("registry.lookup", json!({"node": 1})).unwrap_err().to_string();
        assert!(failed.contains("needs node_id"), "{failed}");
        let stats = call("registry.stats", Value::Null).unwrap();
        assert_eq!((&stats["nodes"], &stats["commands"]), (&json!(1), &json!(1)));
        assert_eq!((&stats["keys"], &stats["trust_pairs"]), (&json!(1), &json!(0)));
        assert_eq!(call("plugins.list", Value::Null), Ok(json!({"plugins": []})));
        let unknown = Err(CallError::Unknown("node.info".to_owned()));
        assert_eq!(call("node.info", Value::Null), unknown);
    }

    #[test]
    fn there_are_no_ports() {
        let platform = platform();
        assert_eq!(platform.address(), None);
        let at = Address::backbone(NodeId(1)).port(7);
        let refused = now(platform.dial("friend:7")).err().unwrap();
        assert_eq!(
            refused,
            "dial friend:7: a registry has no ports, and opens no streams; a daemon does"
        );
        let refused = platform.send_datagram(at, 1, Bytes::new()).unwrap_err();
        assert!(refused.contains("a registry has no ports"), "{refused}");
        let peer = platform.peer(at);
        assert_eq!(peer.hostname.as_deref(), Some("seven"));
        assert_eq!(peer.public_key, Some(PublicKey([7; 32]).to_string()));
        let stranger = Address::backbone(NodeId(9)).port(7);
        assert_eq!(platform.peer(stranger), Peer::at(stranger));
    }
}
