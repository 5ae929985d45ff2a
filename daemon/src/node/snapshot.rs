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
    /// Smoothed round-trip times of the streams that have one, in no order.
    pub srtts: Vec<Duration>,
}

impl Snapshot {
    /// Adds what another worker of the node has. Ports, clients and what the
    /// control plane says are the same in every one; a peer or a stream is in
    /// one only. At most `most` streams stay.
    pub(super) fn add(&mut self, more: Self, most: usize) {
        self.uptime = self.uptime.max(more.uptime);
        self.registry_up &= more.registry_up;
        for (sum, more) in self.peers.iter_mut().zip(more.peers) {
            *sum += more;
        }
        self.ports = self.ports.max(more.ports);
        self.clients = self.clients.max(more.clients);
        self.datagrams_dropped += more.datagrams_dropped;
        self.counters.add(&more.counters);
        self.udp.add(&more.udp);
        self.streams.add(more.streams);
        self.busiest.extend(more.busiest);
        self.busiest = busiest(std::mem::take(&mut self.busiest), most);
    }
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
        totals.srtts = streams.iter().map(|s| s.srtt).filter(|t| !t.is_zero()).collect();
        totals
    }

    fn add(&mut self, more: Self) {
        for (state, count) in more.states {
            *self.states.entry(state).or_default() += count;
        }
        self.in_flight += more.in_flight;
        self.cong_win += more.cong_win;
        self.retransmits += more.retransmits;
        self.timeouts += more.timeouts;
        self.srtts.extend(more.srtts);
    }

    /// Smoothed round-trip times below which a half, nine tenths, 99 of 100
    /// and all of the streams that have one are.
    pub fn srtt(&self) -> Option<[Duration; 4]> {
        let mut times = self.srtts.clone();
        times.sort_unstable();
        // Nearest rank: the smallest with at least that share at or below it.
        let rank = |percent: usize| times[(times.len() * percent).div_ceil(100) - 1];
        (!times.is_empty()).then(|| [50, 90, 99, 100].map(rank))
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;
    use pilot_core::{Config, StreamId};
    use pilot_wire::{Address, NodeId};

    use super::*;
    use crate::udp::KernelBuffers;

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
        assert_eq!(totals.srtt(), Some([50, 90, 99, 100].map(Duration::from_millis)));
        assert_eq!(StreamTotals::of(&streams(1)).srtt(), None);
        assert_eq!(StreamTotals::of(&[]), StreamTotals::default());
    }

    #[test]
    fn workers_add_up_to_the_node() {
        let all = streams(101);
        let key = SigningKey::from_bytes(&[1; 32]);
        let core = Core::new(Config::default(), key, [0; 32]);
        let of = |streams: Vec<StreamInfo>, sends: u64, receive: usize| {
            let mut counters = core.counters().clone();
            counters.bytes_sent = sends * 10;
            let mut udp = UdpStatus::default();
            udp.counters.sends = sends;
            udp.buffers = KernelBuffers { wanted: 9, receive, send: 9 };
            Snapshot {
                uptime: Duration::from_secs(sends),
                registry_up: true,
                peers: [3, 2, 1],
                ports: 4,
                clients: 5,
                datagrams_dropped: sends,
                counters,
                udp,
                streams: StreamTotals::of(&streams),
                busiest: busiest(streams, 10),
            }
        };
        let (even, odd) = all.iter().cloned().partition(|s| s.id.0.is_multiple_of(2));
        let mut sum = of(even, 1, 8);
        sum.add(of(odd, 2, 7), 10);
        assert_eq!((sum.peers, sum.ports, sum.clients), ([6, 4, 2], 4, 5));
        assert_eq!((sum.uptime, sum.registry_up), (Duration::from_secs(2), true));
        assert_eq!((sum.datagrams_dropped, sum.counters.bytes_sent), (3, 30));
        assert_eq!(sum.udp.counters.sends, 3);
        assert_eq!(sum.udp.buffers, KernelBuffers { wanted: 9, receive: 7, send: 9 });
        let whole = StreamTotals::of(&all);
        assert_eq!((&sum.streams.states, sum.streams.in_flight), (&whole.states, 1010));
        assert_eq!(sum.streams.srtt(), whole.srtt());
        let numbers = |list: &[StreamInfo]| list.iter().map(|s| s.id.0).collect::<Vec<_>>();
        assert_eq!(numbers(&sum.busiest), numbers(&busiest(all, 10)));
    }
}
