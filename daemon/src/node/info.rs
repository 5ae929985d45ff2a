//! The JSON of `info` (protocol page "Daemon socket", section 5), with keys of
//! our own beside the published ones.

use pilot_core::{Core, Refusal};
use pilot_wire::{Address, NodeId};
use serde_json::{Map, Value, json};

use super::hub::LoopCounters;
use crate::udp::UdpCounters;
use crate::workers::EdgeCounters;

/// What the control plane knows of this node.
#[derive(Clone, Debug, Default)]
pub struct NodeFacts {
    /// The node's number; 0 while it has none.
    pub node_id: NodeId,
    /// Its address.
    pub address: Option<Address>,
    /// Its hostname; empty if none.
    pub hostname: String,
    /// Who it belongs to.
    pub owner: String,
    /// Base64 Ed25519 key.
    pub public_key: String,
    /// Whether the identity is kept in a file.
    pub identity: bool,
    /// Whether any registered node may resolve this one.
    pub public: bool,
    /// How the registry connection stands: `state`, `since_secs`,
    /// `last_error`.
    pub registry: Value,
}

/// Connections and peers listed; the counts have them all. So that the answer
/// fits a message.
const LISTED_CONNECTIONS: usize = 1200;
const LISTED_PEERS: usize = 1200;

/// The whole answer.
pub(crate) fn info(
    core: &Core,
    facts: &NodeFacts,
    uptime_secs: u64,
    counters: &LoopCounters,
    udp: UdpCounters,
) -> Value {
    let peers = core.peers();
    let streams = core.streams();
    let core_counters = core.counters();
    let refused: Map<String, Value> = Refusal::ALL
        .into_iter()
        .map(|rule| (rule.name().to_owned(), core_counters.refused(rule).into()))
        .collect();
    let address = facts.address.unwrap_or_default();
    let open = |state: &str| matches!(state, "SYN_SENT" | "SYN_RECV" | "ESTABLISHED");
    json!({
        "node_id": facts.node_id,
        "address": address,
        "hostname": facts.hostname,
        "uptime_secs": uptime_secs,
        "connections": streams.iter().filter(|s| open(s.state)).count(),
        "ports": core.bound_ports(),
        "peers": peers.len(),
        "encrypted_peers": peers.iter().filter(|p| p.encrypted).count(),
        "authenticated_peers": peers.iter().filter(|p| p.authenticated).count(),
        "encrypt": true,
        "identity": facts.identity,
        "public_key": facts.public_key,
        "owner": facts.owner,
        "bytes_sent": core_counters.bytes_sent,
        "bytes_recv": core_counters.bytes_recv,
        "pkts_sent": core_counters.pkts_sent,
        "pkts_recv": core_counters.pkts_recv,
        "peer_list": peers.iter().take(LISTED_PEERS).map(peer).collect::<Vec<_>>(),
        "conn_list": streams.iter().take(LISTED_CONNECTIONS).map(connection).collect::<Vec<_>>(),
        "version": env!("CARGO_PKG_VERSION"),
        "public": facts.public,
        "registry": facts.registry,
        "refused": refused,
        "clients": counters.clients,
        "datagrams_dropped": counters.datagrams_dropped,
        "udp": {
            "too_large": udp.too_large,
            "send_errors": udp.send_errors,
            "receive_errors": udp.receive_errors,
            "offload_refused": udp.offload_refused,
        },
    })
}

/// Longest text of the answer; a message has to hold it.
const MAX_JSON: usize = pilot_wire::ipc::MAX_MESSAGE - 64;

/// The text of an answer. When it does not fit a message its lists are left
/// out: they are what grows, and their counts stay.
pub(crate) fn render(mut value: Value) -> String {
    let text = value.to_string();
    if text.len() <= MAX_JSON {
        return text;
    }
    value["conn_list"] = json!([]);
    value["peer_list"] = json!([]);
    value.to_string()
}

/// Adds what concerns one of several workers: which one each peer and
/// connection belongs to, and what came to its socket by mistake.
pub(crate) fn of_worker(value: &mut Value, worker: usize, edge: EdgeCounters) {
    for list in ["peer_list", "conn_list"] {
        for entry in value[list].as_array_mut().into_iter().flatten() {
            entry["worker"] = json!(worker);
        }
    }
    value["udp"]["strayed"] = json!(edge.strayed);
    value["udp"]["strayed_dropped"] = json!(edge.strayed_dropped);
}

fn peer(peer: &pilot_core::PeerInfo) -> Value {
    json!({
        "node_id": peer.node,
        "endpoint": peer.endpoint.map(|e| e.to_string()).unwrap_or_default(),
        "encrypted": peer.encrypted,
        "authenticated": peer.authenticated,
        "relay": peer.relay,
    })
}

fn connection(s: &pilot_core::StreamInfo) -> Value {
    json!({
        "id": s.id.0,
        "local_port": s.local_port,
        "remote_addr": s.remote.address,
        "remote_port": s.remote.port,
        "state": s.state,
        "cong_win": s.cong_win,
        "ssthresh": s.ssthresh,
        "in_flight": s.in_flight,
        "srtt_ms": millis(s.srtt),
        "rttvar_ms": millis(s.rttvar),
        "srtt_us": u64::try_from(s.srtt.as_micros()).unwrap_or(u64::MAX),
        "unacked": s.unacked,
        "ooo_buf": s.ooo_buf,
        "peer_recv_win": s.peer_recv_win,
        "recv_win": s.recv_win,
        "in_recovery": s.in_recovery,
        "bytes_sent": s.bytes_sent,
        "bytes_recv": s.bytes_recv,
        "segs_sent": s.segs_sent,
        "segs_recv": s.segs_recv,
        "retransmits": s.retransmits,
        "fast_retx": s.fast_retx,
        "sack_recv": s.sack_recv,
        "sack_sent": s.sack_sent,
        "dup_acks": s.dup_acks,
    })
}

fn millis(d: std::time::Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}
