//! What the loop tells a scraper of metrics: totals, and the details of a
//! bounded number of streams. It knows no format.

use std::cmp::Reverse;
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
    let streams = core.streams();
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
        streams: StreamTotals::of(&streams),
        busiest: busiest(streams, most),
    }
}

fn busiest(mut streams: Vec<StreamInfo>, most: usize) -> Vec<StreamInfo> {
    if streams.len() > most {
        streams.select_nth_unstable_by_key(most, |s| {
            (Reverse(s.bytes_sent.saturating_add(s.bytes_recv)), s.id.0)
        });
        streams.truncate(most);
    }
    streams.sort_unstable_by_key(|s| s.id.0);
    streams
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

#[cfg(test)]
mod tests {
    use pilot_core::StreamId;
    use pilot_wire::{Address, NodeId};

    use super::*;

    fn streams(count: u32) -> Vec<StreamInfo> {
        let remote = Address::backbone(NodeId(2)).port(7);
        let stream = |n: u32| {
            let state = if n.is_multiple_of(2) { "ESTABLISHED" } else { "TIME_WAIT" };
            let mut s = StreamInfo::new(StreamId(n), 1, remote, state);
            // In no order, all different.
            s.bytes_sent = u64::from(n * 37 % 101);
            s.srtt = Duration::from_millis(u64::from(n * 37 % 101));
            s.in_flight = 10;
            s
        };
        (0..count).map(stream).collect()
    }

    #[test]
    fn the_busiest_are_kept_in_the_order_of_their_numbers() {
        let kept = busiest(streams(101), 10);
        assert!(kept.is_sorted_by_key(|s| s.id.0));
        let mut bytes: Vec<u64> = kept.iter().map(|s| s.bytes_sent).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (91..=100).collect::<Vec<_>>());
        assert_eq!(busiest(streams(3), 10).len(), 3);
        assert!(busiest(streams(3), 0).is_empty());
    }

    #[test]
    fn sums_are_of_all() {
        let totals = StreamTotals::of(&streams(101));
        assert_eq!(totals.states, BTreeMap::from([("ESTABLISHED", 51), ("TIME_WAIT", 50)]));
        assert_eq!(totals.in_flight, 1010);
        // Of 1 to 100 ms; the stream with 0 has none yet.
        assert_eq!(totals.srtt, Some([50, 90, 99, 100].map(Duration::from_millis)));
        assert_eq!(StreamTotals::of(&streams(1)).srtt, None);
        assert_eq!(StreamTotals::of(&[]), StreamTotals::default());
    }
}
