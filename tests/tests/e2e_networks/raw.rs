//! The registry as asked by hand: with the key of a daemon, past the daemon.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signer as _, SigningKey};
use pilot_tests::harness::{Daemon, Network};
use pilot_wire::NodeId;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Who has the key of a daemon.
pub(crate) struct KeyHolder {
    key: SigningKey,
    node: NodeId,
}

impl KeyHolder {
    pub(crate) async fn of(daemon: &Daemon) -> Result<Self> {
        let file: Value = serde_json::from_slice(&fs::read(daemon.home.join("identity.key"))?)?;
        let pair = STANDARD.decode(file["private_key"].as_str().context("no private_key")?)?;
        let seed = pair.first_chunk::<32>().context("a short key")?;
        Ok(Self { key: SigningKey::from_bytes(seed), node: daemon.node().await? })
    }

    pub(crate) fn public_key(&self) -> String {
        STANDARD.encode(self.key.verifying_key().as_bytes())
    }

    fn sign(&self, text: &str) -> String {
        STANDARD.encode(self.key.sign(text.as_bytes()).to_bytes())
    }

    /// Ends trust with a peer in the name of the daemon.
    pub(crate) async fn revoke_trust(&self, network: &Network, peer: NodeId) -> Result<()> {
        let node = self.node;
        let signature = self.sign(&format!("revoke_trust:{node}:{peer}"));
        let request = json!({"type": "revoke_trust", "node_id": node, "peer_id": peer,
            "signature": signature});
        let answer = ask(network, &request).await?;
        ensure!(answer["type"] == "revoke_trust_ok", "{answer}");
        Ok(())
    }

    /// Registers with the daemon's key, which it proves.
    pub(crate) async fn register(&self, network: &Network) -> Result<Value> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let listen = "127.0.0.1:1";
        let request = json!({"type": "register", "listen_addr": listen, "timestamp": now,
            "public_key": self.public_key(),
            "proof": self.sign(&format!("register:{now}:{listen}"))});
        ask(network, &request).await
    }
}

/// One request on a connection of its own.
pub(crate) async fn ask(network: &Network, request: &Value) -> Result<Value> {
    let mut stream = TcpStream::connect(network.registry_addr()).await?;
    let body = request.to_string().into_bytes();
    stream.write_u32(u32::try_from(body.len())?).await?;
    stream.write_all(&body).await?;
    let mut answer = vec![0; usize::try_from(stream.read_u32().await?)?];
    stream.read_exact(&mut answer).await?;
    Ok(serde_json::from_slice(&answer)?)
}
