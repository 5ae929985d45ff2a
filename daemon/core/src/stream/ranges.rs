//! Ranges of offsets, disjoint, not touching, lowest first.

/// As many as there are holes in what has arrived.
#[derive(Debug, Default)]
pub(super) struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// Adds `left..right`, which is not empty. Returns the range that it is
    /// part of now, and the span inside it, from the first to the last offset
    /// that is new; `None` when nothing is new.
    pub(super) fn add(&mut self, left: u64, right: u64) -> Option<((u64, u64), (u64, u64))> {
        let first = self.0.partition_point(|r| r.1 < left);
        let after = self.0.partition_point(|r| r.0 <= right);
        if first == after {
            self.0.insert(first, (left, right));
            return Some(((left, right), (left, right)));
        }
        let (low, high) = (self.0[first], self.0[after - 1]);
        if first + 1 == after && low.0 <= left && right <= low.1 {
            return None;
        }
        let whole = (low.0.min(left), high.1.max(right));
        let from = if low.0 <= left { low.1 } else { left };
        let until = if high.1 >= right { high.0 } else { right };
        self.0.splice(first..after, [whole]);
        Some((whole, (from, until)))
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The ranges, lowest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().copied()
    }

    /// The range that `offset` lies in.
    pub(super) fn containing(&self, offset: u64) -> Option<(u64, u64)> {
        let i = self.0.partition_point(|r| r.1 <= offset);
        self.0.get(i).copied().filter(|r| r.0 <= offset)
    }

    /// Drops what lies before `offset`.
    pub(super) fn forget_before(&mut self, offset: u64) {
        let gone = self.0.partition_point(|r| r.1 <= offset);
        self.0.drain(..gone);
        if let Some(first) = self.0.first_mut() {
            first.0 = first.0.max(offset);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranges_are_the_set_of_what_was_added(
            added in proptest::collection::vec((0u64..60, 1u64..20), 1..40),
            gone in 0u64..80,
        ) {
            let mut ranges = Ranges::default();
            let mut set = std::collections::BTreeSet::new();
            for (left, len) in added {
                let new: Vec<u64> = (left..left + len).filter(|o| !set.contains(o)).collect();
                set.extend(left..left + len);
                match ranges.add(left, left + len) {
                    None => prop_assert!(new.is_empty()),
                    Some((whole, fresh)) => {
                        prop_assert!(!new.is_empty());
                        prop_assert!(whole.0 <= fresh.0 && fresh.1 <= whole.1);
                        prop_assert!(new.iter().all(|o| (fresh.0..fresh.1).contains(o)));
                        prop_assert!((whole.0..whole.1).all(|o| set.contains(&o)));
                    }
                }
                prop_assert!(ranges.0.windows(2).all(|w| w[0].1 < w[1].0));
                let held: Vec<u64> = ranges.0.iter().flat_map(|r| r.0..r.1).collect();
                prop_assert_eq!(held, set.iter().copied().collect::<Vec<_>>());
            }
            ranges.forget_before(gone);
            let held: Vec<u64> = ranges.0.iter().flat_map(|r| r.0..r.1).collect();
            prop_assert_eq!(held, set.into_iter().filter(|o| *o >= gone).collect::<Vec<_>>());
        }
    }
}
