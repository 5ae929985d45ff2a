//! The registry as a published daemon uses it: framed JSON over one TCP
//! connection, one request at a time, signatures over the published strings.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signer as _, SigningKey};
use pilot_wire::NodeId;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const PAUSES: [u64; 5] = [500, 1000, 2000, 4000, 8000];
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const MAX_BODY: usize = 1_048_576;

/// A key or signature as it stands in JSON.
pub(super) fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Bytes of a key or signature in JSON.
pub(super) fn unbase64<const N: usize>(text: &str) -> Option<[u8; N]> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

pub(super) struct RegistryClient {
    address: String,
    identity: SigningKey,
    connection: Option<TcpStream>,
}

impl RegistryClient {
    pub(super) fn new(address: String, identity: SigningKey) -> Self {
        Self { address, identity, connection: None }
    }

    /// Sends a request and reads its reply; a lost connection is opened again
    /// and the request repeated once.
    pub(super) async fn request(&mut self, request: Value) -> Result<Value> {
        for last in [false, true] {
            if self.connection.is_none() {
                self.connection = Some(self.connect().await?);
            }
            let Some(connection) = &mut self.connection else { continue };
            match exchange(connection, &request).await {
                Ok(reply) => {
                    ensure!(!reply["error"].is_string(), "registry: request failed");
                    return Ok(reply);
                }
                Err(error) => {
                    self.connection = None;
                    if last {
                        return Err(error);
                    }
                }
            }
        }
        bail!("registry: no connection")
    }

    async fn connect(&self) -> Result<TcpStream> {
        let mut error = None;
        for pause in [0].into_iter().chain(PAUSES) {
            tokio::time::sleep(Duration::from_millis(pause)).await;
            match tokio::time::timeout(CONNECT_LIMIT, TcpStream::connect(&self.address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(e)) => error = Some(e.to_string()),
                Err(_) => error = Some("timeout".to_owned()),
            }
        }
        bail!("registry {} cannot be reached: {}", self.address, error.unwrap_or_default())
    }

    fn signed(&self, challenge: &str, mut request: Value) -> Value {
        request["signature"] = base64(&self.identity.sign(challenge.as_bytes()).to_bytes()).into();
        request
    }

    pub(super) async fn register(&mut self, listen_addr: &str) -> Result<NodeId> {
        let key = base64(self.identity.verifying_key().as_bytes());
        let request = json!({"type": "register", "listen_addr": listen_addr, "public_key": key});
        let reply = self.request(request).await.context("register")?;
        node(&reply["node_id"]).context("register_ok without node_id")
    }

    pub(super) async fn set_visibility(&mut self, node: NodeId, public: bool) -> Result<Value> {
        let request = json!({"type": "set_visibility", "node_id": node, "public": public});
        self.request(self.signed(&format!("set_visibility:{node}"), request)).await
    }

    pub(super) async fn set_hostname(&mut self, node: NodeId, hostname: &str) -> Result<Value> {
        let request = json!({"type": "set_hostname", "node_id": node, "hostname": hostname});
        self.request(self.signed(&format!("set_hostname:{node}"), request)).await
    }

    /// The registered key.
    pub(super) async fn lookup(&mut self, node: NodeId) -> Result<[u8; 32]> {
        let reply = self.request(json!({"type": "lookup", "node_id": node})).await?;
        let key = reply["public_key"].as_str().context("lookup_ok without public_key")?;
        unbase64(key).context("public_key is not 32 bytes of base64")
    }

    pub(super) async fn resolve(&mut self, node: NodeId, requester: NodeId) -> Result<String> {
        let request = json!({"type": "resolve", "node_id": node, "requester_id": requester});
        let request = self.signed(&format!("resolve:{requester}:{node}"), request);
        let reply = self.request(request).await.with_context(|| format!("resolve node {node}"))?;
        let address = reply["real_addr"].as_str().filter(|a| !a.is_empty());
        Ok(address.with_context(|| format!("node {node} has no real address"))?.to_owned())
    }

    pub(super) async fn heartbeat(&mut self, node: NodeId) -> Result<Value> {
        let request = json!({"type": "heartbeat", "node_id": node});
        self.request(self.signed(&format!("heartbeat:{node}"), request)).await
    }

    pub(super) async fn report_trust(&mut self, node: NodeId, peer: NodeId) -> Result<Value> {
        let request = json!({"type": "report_trust", "node_id": node, "peer_id": peer});
        self.request(self.signed(&format!("report_trust:{node}:{peer}"), request)).await
    }

    pub(super) async fn revoke_trust(&mut self, node: NodeId, peer: NodeId) -> Result<Value> {
        let request = json!({"type": "revoke_trust", "node_id": node, "peer_id": peer});
        self.request(self.signed(&format!("revoke_trust:{node}:{peer}"), request)).await
    }

    pub(super) async fn request_handshake(
        &mut self,
        from: NodeId,
        to: NodeId,
        justification: &str,
    ) -> Result<Value> {
        let request = json!({
            "type": "request_handshake",
            "from_node_id": from,
            "to_node_id": to,
            "justification": justification,
        });
        let request = self.signed(&format!("handshake:{from}:{to}"), request);
        self.request(request).await.context("handshake relay")
    }

    pub(super) async fn poll_handshakes(&mut self, node: NodeId) -> Result<Value> {
        let request = json!({"type": "poll_handshakes", "node_id": node});
        self.request(self.signed(&format!("poll_handshakes:{node}"), request)).await
    }

    pub(super) async fn respond_handshake(
        &mut self,
        node: NodeId,
        peer: NodeId,
        accept: bool,
    ) -> Result<Value> {
        let request = json!({
            "type": "respond_handshake",
            "node_id": node,
            "peer_id": peer,
            "accept": accept,
        });
        self.request(self.signed(&format!("respond:{node}:{peer}"), request)).await
    }

    pub(super) async fn deregister(&mut self, node: NodeId) -> Result<Value> {
        let request = json!({"type": "deregister", "node_id": node});
        self.request(self.signed(&format!("deregister:{node}"), request)).await
    }
}

/// A node number in JSON.
pub(super) fn node(value: &Value) -> Option<NodeId> {
    value.as_u64().and_then(|n| u32::try_from(n).ok()).map(NodeId)
}

async fn exchange(connection: &mut TcpStream, request: &Value) -> Result<Value> {
    write_message(connection, request).await?;
    read_message(connection).await
}

pub(super) async fn write_message(connection: &mut TcpStream, message: &Value) -> Result<()> {
    let body = message.to_string();
    let mut frame = u32::try_from(body.len())?.to_be_bytes().to_vec();
    frame.extend(body.as_bytes());
    Ok(connection.write_all(&frame).await?)
}

pub(super) async fn read_message(connection: &mut TcpStream) -> Result<Value> {
    let len = usize::try_from(connection.read_u32().await?)?;
    ensure!(len <= MAX_BODY, "registry message of {len} bytes");
    let mut body = vec![0; len];
    connection.read_exact(&mut body).await?;
    Ok(serde_json::from_slice(&body)?)
}
