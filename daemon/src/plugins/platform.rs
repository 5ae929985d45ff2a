//! What the host needs of the process around it, by the daemon: its address and
//! peers, streams and datagrams to others, its ports, methods and events.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pilot_host::events::Happening;
use pilot_host::{BoxFuture, BoxStream, CallError, Peer, Platform, PortService};
use pilot_wire::{Address, NodeId, SocketAddress};
use serde_json::{Map, Value};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::methods::Methods;
use super::{PeerBook, Plugins};
use crate::control::{Call, ControlHandle};
use crate::events::Events;
use crate::node::NodeHandle;
use crate::trust::TrustHandle;

/// What the platform is made of.
pub struct PlatformParts {
    /// The loops.
    pub node: NodeHandle,
    /// Speaks to the registry.
    pub control: ControlHandle,
    /// Keeps who is trusted.
    pub trust: TrustHandle,
    /// Who peers are.
    pub peers: PeerBook,
    /// Where to say what happens.
    pub events: Events,
    /// What runs, for plugins that ask.
    pub plugins: Plugins,
    /// The data folder.
    pub data: std::path::PathBuf,
}

/// The daemon as the host of plugins sees it.
pub struct DaemonPlatform {
    /// Where futures run that plugins wait for.
    runtime: Handle,
    peers: PeerBook,
    events: Events,
    methods: Methods,
}

impl DaemonPlatform {
    /// Must be called inside the daemon's runtime.
    pub fn new(parts: PlatformParts) -> Arc<Self> {
        let PlatformParts { node, control, trust, peers, events, plugins, data } = parts;
        let methods = Methods { node, control, trust, plugins, data };
        Arc::new(Self { runtime: Handle::current(), peers, events, methods })
    }

    /// Runs `work` on the daemon's runtime; whoever waits need not be on one.
    fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
        ended: impl FnOnce() -> T + Send + 'static,
    ) -> BoxFuture<T> {
        let (answer, result) = oneshot::channel();
        self.runtime.spawn(async move {
            // Nobody may wait any more.
            let _ = answer.send(work.await);
        });
        Box::pin(async move { result.await.unwrap_or_else(|_| ended()) })
    }
}

/// What is told once the runtime has ended.
const ENDING: &str = "the daemon is shutting down";

impl Platform for DaemonPlatform {
    fn address(&self) -> Option<Address> {
        self.methods.control.address()
    }

    fn peer(&self, remote: SocketAddress) -> Peer {
        self.peers.peer(remote)
    }

    fn dial(&self, to: &str) -> BoxFuture<Result<BoxStream, String>> {
        let (methods, to) = (self.methods.clone(), to.to_owned());
        let work = async move {
            let at = locate(&methods.control, &to).await?;
            match methods.node.dial(at).await {
                Ok(stream) => Ok(Box::new(stream) as BoxStream),
                Err(error) => Err(format!("dial {to}: {error}")),
            }
        };
        self.run(work, || Err(ENDING.to_owned()))
    }

    fn send_datagram(
        &self,
        to: SocketAddress,
        source_port: u16,
        data: Bytes,
    ) -> Result<(), String> {
        self.methods.node.send_datagram(to, source_port, data)
    }

    fn call(&self, method: &str, request: Value) -> BoxFuture<Result<Value, CallError>> {
        let (methods, method) = (self.methods.clone(), method.to_owned());
        let work = async move { methods.call(&method, &request).await };
        self.run(work, || Err(CallError::Failed(ENDING.to_owned())))
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

    fn listen(&self, port: u16, service: Arc<dyn PortService>) -> BoxFuture<Result<(), String>> {
        let node = self.methods.node.clone();
        self.run(async move { node.listen(port, service).await }, || Err(ENDING.to_owned()))
    }

    fn unlisten(&self, port: u16) {
        let node = self.methods.node.clone();
        self.runtime.spawn(async move { node.unlisten(port).await });
    }
}

/// Longest wait for the registry to say whose a hostname is.
const RESOLVE_LIMIT: Duration = Duration::from_secs(10);

/// The address that `ADDRESS:PORT`, `NODE:PORT` or `HOSTNAME:PORT` stands for.
async fn locate(control: &ControlHandle, to: &str) -> Result<SocketAddress, String> {
    let wrong = || format!("dial {to:?}: expected ADDRESS:PORT, NODE:PORT or HOSTNAME:PORT");
    let (host, port) = to.rsplit_once(':').ok_or_else(wrong)?;
    let port: u16 = port.parse().map_err(|_| wrong())?;
    if let Ok(address) = host.parse::<Address>() {
        return Ok(address.port(port));
    }
    if let Ok(number) = host.parse() {
        return Ok(Address::backbone(NodeId(number)).port(port));
    }
    if host.is_empty() || host.contains(':') {
        return Err(wrong());
    }
    let started = Instant::now();
    let asked = control.call(Call::ResolveHostname(host.to_owned()));
    let found = match tokio::time::timeout(RESOLVE_LIMIT, asked).await {
        Ok(found) => found.map_err(|e| format!("dial {to}: {}", e.message))?,
        Err(_) => {
            let waited = started.elapsed().as_secs();
            return Err(format!("dial {to}: the registry gave no answer in {waited} seconds"));
        }
    };
    let address = found["address"].as_str().and_then(|text| text.parse::<Address>().ok());
    let address = address.ok_or_else(|| format!("dial {to}: the registry gave no address"))?;
    Ok(address.port(port))
}

#[cfg(test)]
mod tests {
    use pilot_host::events::EventError;
    use serde_json::json;

    use super::*;

    fn of(name: &str, data: Value) -> Result<Happening, EventError> {
        let Value::Object(data) = data else { panic!() };
        Happening::of_plugin(name, data)
    }

    #[test]
    fn plugins_cannot_say_what_the_daemon_says() {
        let message = json!({"type": "TEXT", "from": "0:0000.0000.0001", "size": 4});
        let happened = of("message.received", message).unwrap();
        assert!(matches!(happened, Happening::MessageReceived { size: 4, .. }), "{happened:?}");
        assert!(of("orders.received", json!({"n": 1})).is_ok());
        for name in
            ["tunnel.lost", "node.registered", "security.refused", "plugin.loaded", "Orders"]
        {
            assert!(of(name, json!({})).is_err(), "{name}");
        }
    }
}
