//! The JSON of `info` (protocol page "Daemon socket", section 5), with keys of
//! our own beside the published ones.

use pilot_core::{Core, Refusal};
use pilot_wire::{Address, NodeId};
use serde_json::{Map, Value, json};

use super::hub::LoopCounters;
use crate::udp::UdpStatus;
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
    /// How networks stand: a list of objects with `name`, `id`, `state` and so
    /// on.
    pub networks: Value,
    /// What is amiss with all of them; null if nothing.
    pub networks_warning: Value,
    /// How plugins and scripts stand: a list of objects with `name`, `state`,
    /// `streams` and so on; null if none can run.
    pub plugins: Value,
    /// How the event journal stands; null without one.
    pub events: Value,
}

/// Connections and peers listed; the counts have them all. So that the answer
/// fits a message.
const LISTED_CONNECTIONS: usize = 800;
const LISTED_PEERS: usize = 800;

/// The whole answer.
pub(crate) fn info(
    core: &Core,
    facts: &NodeFacts,
    uptime_secs: u64,
    counters: &LoopCounters,
    udp: &UdpStatus,
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
        "peer_list": peers.iter().take(LISTED_PEERS).map(|p| peer(p, udp)).collect::<Vec<_>>(),
        "conn_list": streams.iter().take(LISTED_CONNECTIONS).map(connection).collect::<Vec<_>>(),
        "version": env!("CARGO_PKG_VERSION"),
        "public": facts.public,
        "registry": facts.registry,
        "networks": facts.networks,
        "networks_warning": facts.networks_warning,
        "plugins": facts.plugins,
        "events": facts.events,
        "refused": refused,
        "clients": counters.clients,
        "datagrams_dropped": counters.datagrams_dropped,
        "udp": {
            "sends": udp.counters.sends,
            "segments": udp.counters.segments,
            "too_large": udp.counters.too_large,
            "send_errors": udp.counters.send_errors,
            "receive_errors": udp.counters.receive_errors,
            "offload_refused": udp.counters.offload_refused,
            "buffer_wanted": udp.buffers.wanted,
            "receive_buffer": udp.buffers.receive,
            "send_buffer": udp.buffers.send,
            "buffer_shortfall": udp.buffers.shortfall(),
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
    value["networks"] = json!([]);
    value["plugins"] = json!([]);
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

fn peer(peer: &pilot_core::PeerInfo, udp: &UdpStatus) -> Value {
    json!({
        "node_id": peer.node,
        "endpoint": peer.endpoint.map(|e| e.to_string()).unwrap_or_default(),
        "encrypted": peer.encrypted,
        "authenticated": peer.authenticated,
        "relay": peer.relay,
        "path_mtu": peer.path_mtu,
        "offload": peer.endpoint.map(|to| udp.offloads(to)),
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
        "srtt_us": micros(s.srtt),
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
        "path_mtu": s.path_mtu,
        "mss": s.mss,
        "congestion": s.congestion,
        "delivery_rate": s.delivery_rate,
        "pacing_rate": s.pacing_rate,
        "min_rtt_us": micros(s.min_rtt),
        "rto_ms": millis(s.rto),
        "timeouts": s.timeouts,
        "spurious": s.spurious,
        "gso_batch": (s.gso_batch * 10.0).round() / 10.0,
    })
}

fn micros(d: std::time::Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}

fn millis(d: std::time::Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pilot_core::{PeerInfo, StreamId, StreamInfo};

    use super::*;

    /// A long-lived, busy stream: each figure with as many digits as it gets.
    fn busy() -> StreamInfo {
        let remote = Address::backbone(NodeId(u32::MAX)).port(65_535);
        let mut s = StreamInfo::new(StreamId(u32::MAX), 65_535, remote, "ESTABLISHED");
        for bytes in [
            &mut s.cong_win,
            &mut s.in_flight,
            &mut s.peer_recv_win,
            &mut s.recv_win,
            &mut s.unacked,
            &mut s.ooo_buf,
            &mut s.path_mtu,
            &mut s.mss,
        ] {
            *bytes = 99_999_999;
        }
        for count in [
            &mut s.bytes_sent,
            &mut s.bytes_recv,
            &mut s.segs_sent,
            &mut s.segs_recv,
            &mut s.retransmits,
            &mut s.fast_retx,
            &mut s.sack_recv,
            &mut s.sack_sent,
            &mut s.dup_acks,
            &mut s.delivery_rate,
            &mut s.pacing_rate,
            &mut s.timeouts,
            &mut s.spurious,
        ] {
            *count = 999_999_999_999;
        }
        for time in [&mut s.srtt, &mut s.rttvar, &mut s.min_rtt, &mut s.rto] {
            *time = Duration::from_millis(9_999);
        }
        // Before the first loss.
        s.ssthresh = usize::MAX;
        s.congestion = "newreno";
        s.gso_batch = 12.345;
        s
    }

    #[test]
    fn full_lists_fit_a_message() {
        let peer_info = PeerInfo {
            node: NodeId(u32::MAX),
            endpoint: Some("[2001:db8:1234:5678:9abc:def0:1234:5678]:65535".parse().unwrap()),
            encrypted: false,
            authenticated: false,
            relay: false,
            path_mtu: 65_507,
            last_heard: None,
        };
        let one = connection(&busy());
        assert_eq!(one["gso_batch"], 12.3);
        let connections = (one.to_string().len() + 1) * LISTED_CONNECTIONS;
        let peers = (peer(&peer_info, &UdpStatus::default()).to_string().len() + 1) * LISTED_PEERS;
        // What is left is for the other keys.
        assert!(connections + peers + 8192 < pilot_wire::ipc::MAX_MESSAGE, "{connections} {peers}");
    }
}
