//! Requests by type: how many, how many failed, how long they took. A type that
//! the registry does not know counts as `unknown`, so that what clients send
//! does not decide how much memory this takes.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use super::Metrics;
use super::histogram::{Seen, cumulated};

/// Known types, the most frequent first, as they are looked for in this order.
const KINDS: [&str; 49] = [
    "lookup",
    "heartbeat",
    "resolve",
    "register",
    "poll_handshakes",
    "resolve_hostname",
    "session_watch",
    "session_open",
    "session_challenge",
    "report_trust",
    "revoke_trust",
    "request_handshake",
    "respond_handshake",
    "set_visibility",
    "set_hostname",
    "set_tags",
    "set_task_exec",
    "deregister",
    "rotate_key",
    "punch",
    "get_polo_score",
    "update_polo_score",
    "set_polo_score",
    "list_networks",
    "list_nodes",
    "beacon_register",
    "beacon_list",
    "create_network",
    "join_network",
    "leave_network",
    "subscribe_replication",
    "network_create",
    "network_update",
    "network_delete",
    "network_join",
    "network_leave",
    "network_remove",
    "network_list",
    "network_members",
    "token_create",
    "token_list",
    "token_revoke",
    "invite",
    "invitation_list",
    "invitation_decline",
    "invitation_revoke",
    "node_revoke",
    "audit_query",
    "unknown",
];
const UNKNOWN: usize = KINDS.len() - 1;
/// As published, in seconds; what takes longer is in none of them.
const BOUNDS: [f64; 13] =
    [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0];
/// The same in nanoseconds.
const BOUND_NANOS: [u64; 13] = [
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
];
/// Parts of the counts; a thread adds to one of them.
const SHARDS: usize = 8;

/// A type of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind(usize);

impl Kind {
    /// By its name.
    pub(crate) fn of(name: &str) -> Self {
        Self(KINDS.iter().position(|known| *known == name).unwrap_or(UNKNOWN))
    }

    /// Its name.
    pub(crate) const fn name(self) -> &'static str {
        KINDS[self.0]
    }

    /// All there are.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..KINDS.len()).map(Self)
    }
}

/// Sums of one type.
#[derive(Debug)]
pub(crate) struct Total {
    /// Requests answered.
    pub(crate) count: u64,
    /// Of these, with an error.
    pub(crate) errors: u64,
    /// How long they took.
    pub(crate) durations: Seen,
}

#[derive(Debug, Default)]
struct Cells {
    /// The last one is beyond all bounds.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    nanos: AtomicU64,
    errors: AtomicU64,
}

/// Aligned so that no two threads write to the same cache line.
#[derive(Debug)]
#[repr(align(128))]
struct Shard([Cells; KINDS.len()]);

/// Counts of all types.
#[derive(Debug)]
pub(crate) struct Requests(Box<[Shard; SHARDS]>);

impl Default for Requests {
    fn default() -> Self {
        let shard = |_| Shard(std::array::from_fn(|_| Cells::default()));
        Self(Box::new(std::array::from_fn(shard)))
    }
}

impl Requests {
    /// Counts an answer.
    pub(crate) fn answered(&self, kind: Kind, nanos: u64, failed: bool) {
        let cells = &self.0[shard()].0[kind.0];
        let bucket = BOUND_NANOS.iter().position(|bound| nanos <= *bound).unwrap_or(BOUNDS.len());
        cells.buckets[bucket].fetch_add(1, Relaxed);
        cells.nanos.fetch_add(nanos, Relaxed);
        if failed {
            cells.errors.fetch_add(1, Relaxed);
        }
    }

    /// Adds up what there is of one type.
    pub(crate) fn total(&self, kind: Kind) -> Total {
        let sum = |cell: &dyn Fn(&Cells) -> &AtomicU64| -> u64 {
            self.0.iter().map(|shard| cell(&shard.0[kind.0]).load(Relaxed)).sum()
        };
        let counts = BOUNDS.iter().enumerate().map(|(i, b)| (*b, sum(&|c| &c.buckets[i])));
        let buckets = cumulated(counts);
        let below = buckets.last().map_or(0, |(_, count)| *count);
        let count = below + sum(&|c| &c.buckets[BOUNDS.len()]);
        #[expect(clippy::cast_precision_loss, reason = "a sum of measurements")]
        let seconds = sum(&|c| &c.nanos) as f64 / 1e9;
        let errors = sum(&|c| &c.errors);
        Total { count, errors, durations: Seen { buckets, count, sum: seconds } }
    }
}

/// The shard of this thread.
fn shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static MINE: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    MINE.with(|mine| {
        if mine.get() == usize::MAX {
            mine.set(NEXT.fetch_add(1, Relaxed) % SHARDS);
        }
        mine.get()
    })
}

/// Follows the requests of one connection, which are answered in order.
#[derive(Debug)]
pub(crate) struct Meter {
    metrics: Arc<Metrics>,
    begun: VecDeque<(Kind, Instant)>,
    failed: bool,
}

impl Meter {
    /// Counts in `metrics`.
    pub(crate) const fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, begun: VecDeque::new(), failed: false }
    }

    /// A request of type `kind` has come.
    pub(crate) fn begin(&mut self, kind: &str) {
        self.begun.push_back((Kind::of(kind), Instant::now()));
    }

    /// The next answer is an error.
    pub(crate) const fn fail(&mut self) {
        self.failed = true;
    }

    /// The oldest request that waits is answered. What answers nothing counts
    /// as nothing.
    pub(crate) fn end(&mut self) {
        let failed = std::mem::take(&mut self.failed);
        let Some((kind, begun)) = self.begun.pop_front() else { return };
        let nanos = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.metrics.requests.answered(kind, nanos, failed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_send_makes_no_new_type() {
        assert_eq!(Kind::of("lookup").name(), "lookup");
        assert_eq!(Kind::of("x\"} 1\n").name(), "unknown");
        let mut names = KINDS.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), KINDS.len());
    }

    #[test]
    fn answers_belong_to_requests_in_order() {
        let metrics = Arc::new(Metrics::default());
        let mut meter = Meter::new(Arc::clone(&metrics));
        for kind in ["register", "lookup", "nonsense"] {
            meter.begin(kind);
        }
        meter.end();
        meter.fail();
        meter.end();
        meter.end();
        meter.end();
        let total = |kind: &str| {
            let total = metrics.requests.total(Kind::of(kind));
            (total.count, total.errors)
        };
        assert_eq!(total("register"), (1, 0));
        assert_eq!(total("lookup"), (1, 1));
        assert_eq!(total("unknown"), (1, 0));
        assert_eq!((metrics.total_requests(), metrics.succeeded("register")), (3, 1));
    }

    #[test]
    fn threads_add_up() {
        let requests = Requests::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for nanos in [1, 100_001, u64::from(u32::MAX)] {
                        requests.answered(Kind::of("lookup"), nanos, nanos == 1);
                    }
                });
            }
        });
        let total = requests.total(Kind::of("lookup"));
        assert_eq!((total.count, total.errors, total.durations.count), (12, 4, 12));
        assert_eq!(total.durations.buckets[0], (0.000_1, 4));
        assert_eq!(total.durations.buckets[12], (1.0, 8));
    }
}
