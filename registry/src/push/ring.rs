//! The last changes, for sessions that come back.

use std::collections::VecDeque;

use crate::state::Change;

/// Changes kept; the oldest make room.
pub(super) const CAPACITY: usize = 65_536;

/// Changes in order, each with the number of the last command of its batch.
#[derive(Debug)]
pub(super) struct Ring {
    changes: VecDeque<(u64, Change)>,
    /// Every change with a greater number is here.
    floor: u64,
}

impl Ring {
    /// With nothing; what comes has numbers after `applied`.
    pub(super) const fn after(applied: u64) -> Self {
        Self { changes: VecDeque::new(), floor: applied }
    }

    /// Takes the changes of a batch that ended with command `seq`.
    pub(super) fn push(&mut self, seq: u64, changes: Vec<Change>) {
        for change in changes {
            if self.changes.len() >= CAPACITY
                && let Some((oldest, _)) = self.changes.pop_front()
            {
                self.floor = oldest;
            }
            self.changes.push_back((seq, change));
        }
    }

    /// The least number of which everything later is here.
    pub(super) const fn floor(&self) -> u64 {
        self.floor
    }

    /// What came after `seq`, in order.
    pub(super) fn since(&self, seq: u64) -> impl Iterator<Item = &Change> {
        let start = self.changes.partition_point(|(at, _)| *at <= seq);
        self.changes.range(start..).map(|(_, change)| change)
    }
}

#[cfg(test)]
mod tests {
    use pilot_wire::NodeId;

    use super::*;

    #[test]
    fn the_oldest_make_room_and_move_the_floor() {
        let mut ring = Ring::after(7);
        assert_eq!((ring.floor(), ring.since(7).count()), (7, 0));
        ring.push(9, vec![Change::Node(NodeId(1)), Change::Key(NodeId(1))]);
        ring.push(10, vec![Change::Node(NodeId(2))]);
        assert_eq!(ring.floor(), 7);
        let after = |seq| ring.since(seq).collect::<Vec<_>>();
        assert_eq!(after(8).len(), 3);
        assert_eq!(after(9), [&Change::Node(NodeId(2))]);
        assert!(after(10).is_empty());
        ring.push(11, vec![Change::Node(NodeId(3)); CAPACITY - 2]);
        // One of the two of number 9 is gone, so 9 is whole no longer.
        assert_eq!(ring.floor(), 9);
        assert_eq!(ring.since(9).count(), CAPACITY - 1);
    }
}
