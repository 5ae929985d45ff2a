//! The daemon's JSON answers as types (protocol page "Daemon socket",
//! sections 5 to 7). Keys a type does not know are kept in `extra`, missing
//! ones are zero or empty, so that daemons of other versions can be read.

use pilot_wire::NodeId;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The daemon's state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Info {
    /// Own node number; 0 while not registered.
    pub node_id: NodeId,
    /// Own address, as text.
    pub address: String,
    /// Own hostname, empty if none.
    pub hostname: String,
    /// Whole seconds since start.
    pub uptime_secs: u64,
    /// Connections being opened or open.
    pub connections: u64,
    /// Bound ports.
    pub ports: u64,
    /// Entries of the peer table.
    pub peers: u64,
    /// Peers with an encrypted tunnel.
    pub encrypted_peers: u64,
    /// Peers with an authenticated tunnel.
    pub authenticated_peers: u64,
    /// Whether tunnels are encrypted.
    pub encrypt: bool,
    /// Whether the identity is kept in a file.
    pub identity: bool,
    /// Own Ed25519 key, base64.
    pub public_key: String,
    /// Owner given at registration.
    pub owner: String,
    /// Bytes sent in tunnels.
    pub bytes_sent: u64,
    /// Bytes received in tunnels.
    pub bytes_recv: u64,
    /// Packets sent in tunnels.
    pub pkts_sent: u64,
    /// Packets received in tunnels.
    pub pkts_recv: u64,
    /// The peer table.
    pub peer_list: Vec<PeerInfo>,
    /// The connection table.
    pub conn_list: Vec<ConnectionInfo>,
    /// Keys this version does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// One entry of the peer table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PeerInfo {
    /// Node number.
    pub node_id: NodeId,
    /// Where its tunnel goes, `ip:port`.
    pub endpoint: String,
    /// Whether the tunnel is encrypted.
    pub encrypted: bool,
    /// Whether the peer has proven its identity.
    pub authenticated: bool,
    /// Keys this version does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// One entry of the connection table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConnectionInfo {
    /// Connection ID.
    pub id: u32,
    /// Own port.
    pub local_port: u16,
    /// The peer's address, as text.
    pub remote_addr: String,
    /// The peer's port.
    pub remote_port: u16,
    /// Name of the state, as in RFC 9293.
    pub state: String,
    /// Congestion window, bytes.
    pub cong_win: u64,
    /// Slow-start threshold, bytes.
    pub ssthresh: u64,
    /// Bytes sent and not acknowledged.
    pub in_flight: u64,
    /// Smoothed round-trip time, milliseconds.
    pub srtt_ms: f64,
    /// Variation of the round-trip time, milliseconds.
    pub rttvar_ms: f64,
    /// Segments not acknowledged.
    pub unacked: u64,
    /// Pieces held out of order.
    pub ooo_buf: u64,
    /// Bytes that the peer takes.
    pub peer_recv_win: u64,
    /// Bytes that this side takes.
    pub recv_win: u64,
    /// Whether a loss is being recovered from.
    pub in_recovery: bool,
    /// Payload bytes sent.
    pub bytes_sent: u64,
    /// Payload bytes received.
    pub bytes_recv: u64,
    /// Segments sent.
    pub segs_sent: u64,
    /// Segments received.
    pub segs_recv: u64,
    /// Segments sent again.
    pub retransmits: u64,
    /// Losses found without a timeout.
    pub fast_retx: u64,
    /// SACK blocks received.
    pub sack_recv: u64,
    /// SACK blocks sent.
    pub sack_sent: u64,
    /// Duplicate acknowledgements received.
    pub dup_acks: u64,
    /// Smoothed round-trip time, microseconds. This and what follows are told
    /// by daemons of this project alone.
    pub srtt_us: u64,
    /// Bytes of UDP payload in use on the path to the peer.
    pub path_mtu: u64,
    /// Payload bytes of a full segment.
    pub mss: u64,
    /// Congestion controller: `cubic`, `newreno` or `bbr`; empty if not told.
    pub congestion: String,
    /// Payload bytes that arrive per second.
    pub delivery_rate: u64,
    /// Payload bytes sent per second at most; zero when not paced.
    pub pacing_rate: u64,
    /// Shortest round-trip time, microseconds.
    pub min_rtt_us: u64,
    /// Retransmission timeout, milliseconds.
    pub rto_ms: u64,
    /// Retransmission timeouts.
    pub timeouts: u64,
    /// Needless retransmissions that were undone.
    pub spurious: u64,
    /// Segments per batch sent, on average.
    pub gso_batch: f64,
    /// Keys this version does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// What a hostname stands for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resolved {
    /// The hostname.
    pub hostname: String,
    /// Whose it is.
    pub node_id: NodeId,
    /// That node's address, as text.
    pub address: String,
    /// Whether any registered node may resolve it.
    pub public: bool,
    /// Keys this version does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// What became of a trust command.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HandshakeStatus {
    /// `sent`, `approved`, `rejected` or `revoked`.
    pub status: String,
    /// The node concerned.
    pub node_id: NodeId,
    /// Keys this version does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A trust request that waits for approval.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PendingRequest {
    /// Who asks.
    pub node_id: NodeId,
    /// Its Ed25519 key, base64; may be empty.
    pub public_key: String,
    /// Why it asks.
    pub justification: String,
    /// When the request came, Unix seconds.
    pub received_at: i64,
    /// Keys this version does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A trusted node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrustedNode {
    /// Node number.
    pub node_id: NodeId,
    /// Its Ed25519 key, base64; may be empty.
    pub public_key: String,
    /// Since when, Unix seconds.
    pub approved_at: i64,
    /// Whether it trusts us as well.
    pub mutual: bool,
    /// The network that both share, 0 if trust was given directly.
    pub network: u16,
    /// Keys this version does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}
