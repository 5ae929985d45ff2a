//! Who peers are, for plugins: what trust, the registry and earlier runs have
//! told of them. Written by the control plane, read on any thread.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use pilot_host::Peer;
use pilot_wire::registry::session::PeerView;
use pilot_wire::registry::{Lookup, PublicKey};
use pilot_wire::{NodeId, SocketAddress};

use crate::state::Store;
use crate::trust::Pins;

/// Peers whose names and tags are remembered; beyond it all are forgotten, and
/// learned again as the registry is asked.
const MAX_KNOWN: usize = 16_384;

/// What is known of peers. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct PeerBook {
    pins: Pins,
    store: Store,
    known: Arc<RwLock<HashMap<NodeId, Known>>>,
}

/// What the registry says of a node.
struct Known {
    key: [u8; 32],
    hostname: Option<String>,
    tags: Vec<String>,
    networks: Vec<u16>,
    external_identity: Option<String>,
}

impl PeerBook {
    /// Knows who is trusted, and the keys that are remembered.
    pub fn new(pins: Pins, store: Store) -> Self {
        Self { pins, store, known: Arc::default() }
    }

    /// Takes over what the registry answered.
    pub fn learn(&self, found: Lookup) {
        let known = Known {
            key: found.public_key.0,
            hostname: found.hostname.filter(|name| !name.is_empty()),
            tags: found.tags,
            networks: found.networks.into_iter().filter(|n| *n != 0).collect(),
            external_identity: None,
        };
        self.remember(found.node_id, known);
    }

    /// Takes over what the registry says of a watched peer, which is more than
    /// a lookup tells.
    pub fn see(&self, view: PeerView) {
        let Some(key) = view.public_key else { return };
        let known = Known {
            key: key.0,
            hostname: view.hostname.filter(|name| !name.is_empty()),
            tags: view.tags,
            networks: view.shared_networks,
            external_identity: view.external_identity,
        };
        self.remember(view.node_id, known);
    }

    fn remember(&self, node: NodeId, mut known: Known) {
        let mut all = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_KNOWN {
            all.clear();
        }
        if let Some(before) = all.get(&node)
            && known.external_identity.is_none()
            && before.key == known.key
            && before.networks == known.networks
        {
            // A lookup does not tell it.
            known.external_identity.clone_from(&before.external_identity);
        }
        all.insert(node, known);
    }

    /// Who is at `remote`. A pinned key stands before what the registry says.
    /// Its networks are those that this node is in as well.
    pub fn peer(&self, remote: SocketAddress) -> Peer {
        let node = remote.address.node;
        let mut peer = Peer::at(remote);
        peer.trusted = self.pins.is_trusted(node);
        let mut key = self.pins.key(node);
        if let Some(known) = self.known.read().unwrap_or_else(PoisonError::into_inner).get(&node) {
            key = key.or(Some(known.key));
            peer.hostname.clone_from(&known.hostname);
            peer.tags.clone_from(&known.tags);
            peer.networks.clone_from(&known.networks);
            peer.external_identity.clone_from(&known.external_identity);
        }
        let key = key.or_else(|| self.store.peer(node)?.key);
        peer.public_key = key.map(|key| PublicKey(key).to_string());
        peer
    }
}

#[cfg(test)]
mod tests {
    use pilot_wire::Address;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_peer_is_what_trust_and_the_registry_say() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::load(&dir.path().join("state.json")).unwrap();
        let book = PeerBook::new(Pins::default(), store.clone());
        let at = Address::backbone(NodeId(3)).port(80);
        assert_eq!(book.peer(at), Peer::at(at));
        store.set_peer_key(NodeId(3), [1; 32]);
        let remembered = PublicKey([1; 32]).to_string();
        assert_eq!(book.peer(at).public_key.as_deref(), Some(remembered.as_str()));
        let found = json!({
            "node_id": 3, "address": "0:0000.0000.0003", "networks": [0, 5, 7], "public": false,
            "public_key": PublicKey([2; 32]).to_string(), "hostname": "agent-c",
            "tags": ["gpu"],
        });
        book.learn(serde_json::from_value(found).unwrap());
        let peer = book.peer(at);
        assert_eq!(peer.public_key, Some(PublicKey([2; 32]).to_string()));
        assert_eq!((peer.hostname.as_deref(), peer.trusted), (Some("agent-c"), false));
        assert_eq!(peer.tags, ["gpu"]);
        assert_eq!(peer.networks, [5, 7]);
    }
}
