//! Who is at the other end of a stream.

use pilot_wire::{NodeId, SocketAddress};
use serde::{Deserialize, Serialize};

/// A peer as the daemon knows it. The tunnel has proven the node's identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Virtual address and port, as `N:HHHH.HHHH.HHHH:PORT`.
    pub address: SocketAddress,
    /// Ed25519 identity key, base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// Whether both sides trust each other.
    #[serde(default)]
    pub trusted: bool,
    /// Networks that both are in, beside network 0.
    #[serde(default)]
    pub networks: Vec<u16>,
    /// Its tags, as far as the registry shows them.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Its hostname, when known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Who it is elsewhere (an OIDC subject, a SPIFFE ID), when known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_identity: Option<String>,
}

impl Peer {
    /// A peer of which only the address is known.
    pub const fn at(address: SocketAddress) -> Self {
        Self {
            address,
            public_key: None,
            trusted: false,
            networks: Vec::new(),
            tags: Vec::new(),
            hostname: None,
            external_identity: None,
        }
    }

    /// Node number.
    pub const fn node(&self) -> NodeId {
        self.address.address.node
    }
}
