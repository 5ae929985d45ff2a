//! What the loop tells a scraper of metrics: totals, and the details of a
//! bounded number of streams. It knows no format.

use std::collections::BTreeMap;
use std::time::Duration;

use pilot_core::{Core, Counters, StreamInfo};

use super::hub::LoopCounters;
use crate::udp::UdpStatus;

/// A node at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Since the loop started.
    pub uptime: Duration,
    /// Whether the registry answers.
    pub registry_up: bool,
    /// Peers known to be somewhere, those with a session, those of them that
    /// are reached through the beacon.
    pub peers: [usize; 3],
    /// Ports listened on.
    pub ports: usize,
    /// Clients of the driver socket.
    pub clients: usize,
    /// Datagrams dropped because a client did not read.
    pub datagrams_dropped: u64,
    /// Totals of the core.
    pub counters: Counters,
    /// The socket.
    pub udp: UdpStatus,
    /// Sums over all streams.
    pub streams: StreamTotals,
    /// The streams that moved the most bytes, in the order of their numbers.
    pub busiest: Vec<StreamInfo>,
}

/// Sums over all streams there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamTotals {
    /// How many are in each state.
    pub states: BTreeMap<&'static str, usize>,
    /// Bytes in flight.
    pub in_flight: u64,
    /// Congestion windows, in bytes.
    pub cong_win: u64,
    /// Segments sent again.
    pub retransmits: u64,
    /// Retransmission timeouts.
    pub timeouts: u64,
    /// Smoothed round-trip times below which a half, nine tenths, 99 of 100
    /// and all of the streams that have one are.
    pub srtt: Option<[Duration; 4]>,
}

/// A snapshot with the details of at most `most` streams.
pub(super) fn snapshot(
    core: &Core,
    uptime: Duration,
    registry_up: bool,
    counters: &LoopCounters,
    udp: UdpStatus,
    most: usize,
) -> Snapshot {
    let peers = core.peers();
    let mut streams = core.streams();
    let totals = StreamTotals::of(&streams);
    if streams.len() > most {
        streams.select_nth_unstable_by_key(most, |s| {
            (std::cmp::Reverse(s.bytes_sent.saturating_add(s.bytes_recv)), s.id.0)
        });
        streams.truncate(most);
    }
    streams.sort_unstable_by_key(|s| s.id.0);
    Snapshot {
        uptime,
        registry_up,
        peers: [
            peers.len(),
            peers.iter().filter(|p| p.encrypted).count(),
            peers.iter().filter(|p| p.encrypted && p.relay).count(),
        ],
        ports: core.bound_ports(),
        clients: counters.clients,
        datagrams_dropped: counters.datagrams_dropped,
        counters: core.counters().clone(),
        udp,
        streams: totals,
        busiest: streams,
    }
}

impl StreamTotals {
    fn of(streams: &[StreamInfo]) -> Self {
        let mut totals = Self::default();
        for s in streams {
            *totals.states.entry(s.state).or_default() += 1;
            totals.in_flight += s.in_flight as u64;
            totals.cong_win += s.cong_win as u64;
            totals.retransmits += s.retransmits;
            totals.timeouts += s.timeouts;
        }
        let mut times: Vec<_> = streams.iter().map(|s| s.srtt).filter(|t| !t.is_zero()).collect();
        times.sort_unstable();
        // Nearest rank: the smallest with at least that share at or below it.
        let rank = |percent: usize| times[(times.len() * percent).div_ceil(100) - 1];
        totals.srtt = (!times.is_empty()).then(|| [50, 90, 99, 100].map(rank));
        totals
    }
}
