//! How many values lie up to each of a few bounds.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Values by size. For what happens some thousand times a second at most: all
/// threads write to the same memory.
#[derive(Debug)]
pub(crate) struct Histogram<const N: usize> {
    bounds: [f64; N],
    /// Those up to the bound and over the one before.
    buckets: [AtomicU64; N],
    beyond: AtomicU64,
    /// Sum of the values, in millionths.
    sum: AtomicU64,
}

/// A histogram at one moment.
#[derive(Debug)]
pub(crate) struct Seen {
    /// By bound, all values up to it.
    pub(crate) buckets: Vec<(f64, u64)>,
    /// All values.
    pub(crate) count: u64,
    /// Their sum.
    pub(crate) sum: f64,
}

impl<const N: usize> Histogram<N> {
    /// With ascending bounds.
    pub(crate) fn new(bounds: [f64; N]) -> Self {
        let buckets = std::array::from_fn(|_| AtomicU64::new(0));
        Self { bounds, buckets, beyond: AtomicU64::new(0), sum: AtomicU64::new(0) }
    }

    /// Counts a value.
    pub(crate) fn observe(&self, value: f64) {
        let found = self.bounds.iter().position(|bound| value <= *bound);
        found.map_or(&self.beyond, |i| &self.buckets[i]).fetch_add(1, Relaxed);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "no value here is negative, and `as` saturates"
        )]
        self.sum.fetch_add((value * 1e6) as u64, Relaxed);
    }

    /// What there is now.
    pub(crate) fn seen(&self) -> Seen {
        let counts = self.buckets.iter().map(|b| b.load(Relaxed));
        let buckets = cumulated(self.bounds.iter().copied().zip(counts));
        let below = buckets.last().map_or(0, |(_, count)| *count);
        #[expect(clippy::cast_precision_loss, reason = "a sum of measurements")]
        let sum = self.sum.load(Relaxed) as f64 / 1e6;
        Seen { buckets, count: below + self.beyond.load(Relaxed), sum }
    }
}

/// Adds to each count those before it.
pub(crate) fn cumulated(counts: impl Iterator<Item = (f64, u64)>) -> Vec<(f64, u64)> {
    let mut total = 0;
    let mut add = |count| {
        total += count;
        total
    };
    counts.map(|(bound, count)| (bound, add(count))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_up_to_their_bound() {
        let histogram = Histogram::new([1.0, 10.0]);
        for value in [0.5, 1.0, 1.5, 10.0, 11.0] {
            histogram.observe(value);
        }
        let seen = histogram.seen();
        assert_eq!((seen.buckets, seen.count), (vec![(1.0, 2), (10.0, 4)], 5));
        assert!((seen.sum - 24.0).abs() < 1e-6);
    }
}
