//! What plugins and scripts may ask of the daemon by name (`PilotHost::call`),
//! JSON in and JSON out. A plugin that does not ship with Pilot is granted each
//! by name in its configuration.
//!
//! | Method | Request | Answer |
//! |---|---|---|
//! | `node.info` | nothing | what `pilotctl info --json` shows: own address, peers, connections, counters |
//! | `node.status` | nothing | `node_id`, `address`, `hostname`, `version`, `uptime_secs`, `peers` and `encrypted_peers` (how many), `streams` and `connections` (open ones; the same number), `registry` (`up`, `unreachable` or `off`) |
//! | `node.peers` | nothing | `peers`: entries as `peer_list` of `node.info` |
//! | `node.folders` | nothing | paths: `home` and `data` (everything the daemon keeps), `received`, `inbox`, `tasks` |
//! | `registry.lookup` | `node_id` | the registry's `lookup_ok`: `address`, `public_key`, `hostname`, `tags`, `polo_score`, `task_exec` |
//! | `registry.resolve_hostname` | `hostname` | the registry's `resolve_hostname_ok`: `node_id`, `address`, `public` |
//! | `registry.polo_score` | `node_id` | `node_id`, `address`, `polo_score` |
//! | `registry.update_polo_score` | `node_id`, `delta` (whole number) | the same, with the new score |
//! | `trust.list` | nothing | `trusted`: `node_id`, `public_key`, `approved_at`, `mutual`, `network` |
//! | `plugins.list` | nothing | `plugins`: as `pilotctl plugins --json`, each with its `services` (`name`, `ports`, `datagrams`) once more at the top |
//!
//! Any other name is [`CallError::Unknown`]; what fails is
//! [`CallError::Failed`] with a text for the plugin's author.

use std::path::Path;

use pilot_host::{CallError, PluginStatus};
use pilot_wire::NodeId;
use serde_json::{Value, json};

use super::Plugins;
use crate::control::{self, Call, ControlHandle};
use crate::node::NodeHandle;
use crate::trust::TrustHandle;

/// What methods work with.
#[derive(Clone)]
pub(super) struct Methods {
    pub(super) node: NodeHandle,
    pub(super) control: ControlHandle,
    pub(super) trust: TrustHandle,
    pub(super) plugins: Plugins,
    /// The data folder.
    pub(super) data: std::path::PathBuf,
}

impl Methods {
    /// Does `method`.
    pub(super) async fn call(&self, method: &str, request: &Value) -> Result<Value, CallError> {
        match method {
            "node.info" => self.info().await,
            "node.status" => self.status().await,
            "node.peers" => Ok(json!({ "peers": self.info().await?["peer_list"] })),
            "node.folders" => Ok(folders(&self.data)),
            "registry.lookup" => self.registry(Call::Lookup(node_id(method, request)?)).await,
            "registry.resolve_hostname" => {
                let hostname = request["hostname"].as_str().filter(|name| !name.is_empty());
                let hostname = hostname.ok_or_else(|| needs(method, "hostname, a text"))?;
                self.registry(Call::ResolveHostname(hostname.to_owned())).await
            }
            "registry.polo_score" => {
                self.registry(Call::PoloScore(node_id(method, request)?)).await
            }
            "registry.update_polo_score" => {
                let node = node_id(method, request)?;
                let delta = request["delta"].as_i64();
                let delta = delta.ok_or_else(|| needs(method, "delta, a whole number"))?;
                self.registry(Call::UpdatePoloScore { node, delta }).await
            }
            "trust.list" => self.trust.trusted().await.map_err(failed),
            "plugins.list" => Ok(json!({ "plugins": self.plugins() })),
            other => Err(CallError::Unknown(other.to_owned())),
        }
    }

    async fn info(&self) -> Result<Value, CallError> {
        self.node.info().await.ok_or_else(ending)
    }

    async fn status(&self) -> Result<Value, CallError> {
        let snapshot = self.node.snapshot(0).await.ok_or_else(ending)?;
        let status = self.control.status();
        let [peers, encrypted_peers, _] = snapshot.peers;
        let open = |(state, count): (&&str, &usize)| (*state != "TIME_WAIT").then_some(*count);
        let streams: usize = snapshot.streams.states.iter().filter_map(open).sum();
        Ok(json!({
            "node_id": status.node,
            "address": status.address,
            "hostname": status.hostname,
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_secs": snapshot.uptime.as_secs(),
            "peers": peers,
            "encrypted_peers": encrypted_peers,
            "streams": streams,
            "connections": streams,
            "registry": status.state(),
        }))
    }

    fn plugins(&self) -> Vec<Value> {
        let with_services = |status: PluginStatus| {
            let services = json!(status.provides.services);
            let mut status = json!(status);
            status["services"] = services;
            status
        };
        self.plugins.list().into_iter().map(with_services).collect()
    }

    async fn registry(&self, call: Call) -> Result<Value, CallError> {
        self.control.call(call).await.map_err(failed)
    }
}

fn folders(data: &Path) -> Value {
    json!({
        "home": data,
        "data": data,
        "received": data.join("received"),
        "inbox": data.join("inbox"),
        "tasks": data.join("tasks"),
    })
}

fn node_id(method: &str, request: &Value) -> Result<NodeId, CallError> {
    let number = request["node_id"].as_u64().and_then(|n| u32::try_from(n).ok());
    number.map(NodeId).ok_or_else(|| needs(method, "node_id, the number of a node"))
}

fn needs(method: &str, what: &str) -> CallError {
    CallError::Failed(format!("{method} needs {what}"))
}

fn failed(error: control::CallError) -> CallError {
    CallError::Failed(error.message)
}

fn ending() -> CallError {
    CallError::Failed("the daemon is shutting down".to_owned())
}
