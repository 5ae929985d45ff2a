//! Snapshots for people and metrics.

use std::net::SocketAddr;
use std::time::Duration;

use pilot_wire::{NodeId, SocketAddress};

use crate::event::{Refusal, StreamId};
use crate::stream::Stats;
use crate::time::Time;

/// One peer's tunnel.
#[derive(Clone, Debug)]
pub struct PeerInfo {
    /// The peer.
    pub node: NodeId,
    /// Its UDP endpoint, when known.
    pub endpoint: Option<SocketAddr>,
    /// Whether a session is up.
    pub encrypted: bool,
    /// Whether its identity was proven; always so when a session is up.
    pub authenticated: bool,
    /// Whether frames go through the beacon.
    pub relay: bool,
    /// Largest UDP payload in use on the path, in bytes.
    pub path_mtu: usize,
    /// When an authenticated frame last came from it.
    pub last_heard: Option<Time>,
}

/// One stream. Counter names are those of the protocol page "Daemon socket",
/// section 5.
#[derive(Clone, Debug)]
pub struct StreamInfo {
    /// The stream.
    pub id: StreamId,
    /// Local port.
    pub local_port: u16,
    /// Peer's address and port.
    pub remote: SocketAddress,
    /// State name.
    pub state: &'static str,
    /// Whether the peer can end one direction alone; published peers cannot.
    pub half_close: bool,
    /// Congestion window, in bytes.
    pub cong_win: usize,
    /// Slow-start threshold, in bytes.
    pub ssthresh: usize,
    /// Bytes in flight.
    pub in_flight: usize,
    /// Smoothed round-trip time; zero before the first sample.
    pub srtt: Duration,
    /// Variation of the round-trip time.
    pub rttvar: Duration,
    /// Segments not acknowledged.
    pub unacked: usize,
    /// Pieces held out of order.
    pub ooo_buf: usize,
    /// Bytes that the peer takes.
    pub peer_recv_win: usize,
    /// Bytes that this side takes.
    pub recv_win: usize,
    /// Whether a loss is being recovered from.
    pub in_recovery: bool,
    /// Payload bytes sent, repetitions included.
    pub bytes_sent: u64,
    /// Payload bytes received in order.
    pub bytes_recv: u64,
    /// Packets sent.
    pub segs_sent: u64,
    /// Packets received.
    pub segs_recv: u64,
    /// Segments sent again.
    pub retransmits: u64,
    /// Loss episodes found without a timeout.
    pub fast_retx: u64,
    /// SACK blocks received.
    pub sack_recv: u64,
    /// SACK blocks sent.
    pub sack_sent: u64,
    /// Duplicate acknowledgements received.
    pub dup_acks: u64,
    /// Bytes of UDP payload in use on the path to the peer; zero while there is
    /// none.
    pub path_mtu: usize,
    /// Payload bytes of a full segment; zero before it is known.
    pub mss: usize,
    /// Name of the congestion controller: `cubic`, `newreno` or `bbr`.
    pub congestion: &'static str,
    /// Payload bytes that arrived per second, as acknowledgements show it; zero
    /// before the first sample.
    pub delivery_rate: u64,
    /// Payload bytes sent per second at most; zero when sending is not paced.
    pub pacing_rate: u64,
    /// Shortest round-trip time measured; zero before the first sample.
    pub min_rtt: Duration,
    /// Retransmission timeout now, with back-off.
    pub rto: Duration,
    /// Retransmission timeouts.
    pub timeouts: u64,
    /// Retransmissions that turned out to be needless and were undone.
    pub spurious: u64,
    /// Segments per batch handed to the socket, on average; zero before the
    /// first.
    pub gso_batch: f64,
}

impl StreamInfo {
    /// A stream of which nothing is known or counted yet.
    pub fn new(id: StreamId, local_port: u16, remote: SocketAddress, state: &'static str) -> Self {
        Self {
            id,
            local_port,
            remote,
            state,
            half_close: false,
            cong_win: 0,
            ssthresh: 0,
            in_flight: 0,
            srtt: Duration::ZERO,
            rttvar: Duration::ZERO,
            unacked: 0,
            ooo_buf: 0,
            peer_recv_win: 0,
            recv_win: 0,
            in_recovery: false,
            bytes_sent: 0,
            bytes_recv: 0,
            segs_sent: 0,
            segs_recv: 0,
            retransmits: 0,
            fast_retx: 0,
            sack_recv: 0,
            sack_sent: 0,
            dup_acks: 0,
            path_mtu: 0,
            mss: 0,
            congestion: "cubic",
            delivery_rate: 0,
            pacing_rate: 0,
            min_rtt: Duration::ZERO,
            rto: Duration::ZERO,
            timeouts: 0,
            spurious: 0,
            gso_batch: 0.0,
        }
    }

    pub(crate) fn stats_from(&mut self, s: &Stats) {
        self.bytes_sent = s.bytes_sent;
        self.bytes_recv = s.bytes_recv;
        self.segs_sent = s.segs_sent;
        self.segs_recv = s.segs_recv;
        self.retransmits = s.retransmits;
        self.fast_retx = s.fast_retx;
        self.sack_recv = s.sack_recv;
        self.sack_sent = s.sack_sent;
        self.dup_acks = s.dup_acks;
        self.timeouts = s.timeouts;
        self.spurious = s.spurious;
        if s.batches > 0 {
            self.gso_batch = s.batched as f64 / s.batches as f64;
        }
    }
}

/// Totals since the core was made (protocol page "Tunnel layer", section 11).
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Bytes of frames sent to peers, key exchange and relay header included.
    pub bytes_sent: u64,
    /// Bytes of frames received that opened and decoded.
    pub bytes_recv: u64,
    /// Frames sent to peers.
    pub pkts_sent: u64,
    /// Frames received that opened and decoded.
    pub pkts_recv: u64,
    refused: [u64; Refusal::ALL.len()],
}

impl Counters {
    /// Packets refused by `rule`.
    pub fn refused(&self, rule: Refusal) -> u64 {
        self.refused[rule as usize]
    }

    /// Adds the totals of another core.
    pub fn add(&mut self, more: &Self) {
        let Self { bytes_sent, bytes_recv, pkts_sent, pkts_recv, refused } = more;
        self.bytes_sent += bytes_sent;
        self.bytes_recv += bytes_recv;
        self.pkts_sent += pkts_sent;
        self.pkts_recv += pkts_recv;
        for (sum, more) in self.refused.iter_mut().zip(refused) {
            *sum += more;
        }
    }

    pub(crate) fn refuse(&mut self, rule: Refusal) {
        self.refused[rule as usize] += 1;
    }
}
