//! One deadline table for streams and peers.
//!
//! Each entry registers at most one moment. A deadline that moves further away
//! is left where it is: it fires early, finds nothing due and registers again,
//! so that the per-packet cost of a timer that is always pushed back is nothing.

use std::collections::BTreeSet;

use crate::time::Time;

/// Whose deadline it is, by slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Owner {
    Stream(usize),
    Peer(usize),
}

#[derive(Debug, Default)]
pub(crate) struct Timers {
    entries: BTreeSet<(Time, Owner)>,
}

impl Timers {
    /// Makes sure that `owner` fires at `wanted` or before. `registered` is
    /// the owner's own record of what stands in the table.
    pub(crate) fn update(
        &mut self,
        owner: Owner,
        registered: &mut Option<Time>,
        wanted: Option<Time>,
    ) {
        let Some(wanted) = wanted else { return };
        match *registered {
            Some(at) if at <= wanted => return,
            Some(at) => {
                self.entries.remove(&(at, owner));
            }
            None => {}
        }
        self.entries.insert((wanted, owner));
        *registered = Some(wanted);
    }

    /// Takes `owner` out of the table.
    pub(crate) fn cancel(&mut self, owner: Owner, registered: &mut Option<Time>) {
        if let Some(at) = registered.take() {
            self.entries.remove(&(at, owner));
        }
    }

    /// The owner whose moment has come; its record must be cleared.
    pub(crate) fn pop_due(&mut self, now: Time) -> Option<Owner> {
        let first = *self.entries.first().filter(|(at, _)| *at <= now)?;
        self.entries.remove(&first);
        Some(first.1)
    }

    pub(crate) fn next(&self) -> Option<Time> {
        self.entries.first().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(ms: u64) -> Time {
        Time::ZERO + Duration::from_millis(ms)
    }

    #[test]
    fn fires_in_order_and_each_owner_once() {
        let mut timers = Timers::default();
        let mut registered = [None; 3];
        let owners = [Owner::Stream(0), Owner::Peer(0), Owner::Stream(1)];
        for (i, ms) in [30, 10, 20].into_iter().enumerate() {
            timers.update(owners[i], &mut registered[i], Some(at(ms)));
        }
        assert_eq!(timers.next(), Some(at(10)));
        assert_eq!(timers.pop_due(at(9)), None);
        let fired: Vec<_> = std::iter::from_fn(|| timers.pop_due(at(30))).collect();
        assert_eq!(fired, [Owner::Peer(0), Owner::Stream(1), Owner::Stream(0)]);
        assert_eq!(timers.next(), None);
    }

    #[test]
    fn a_deadline_moves_nearer_at_once_and_further_when_it_fires() {
        let (mut timers, mut registered) = (Timers::default(), None);
        let owner = Owner::Stream(7);
        timers.update(owner, &mut registered, Some(at(20)));
        timers.update(owner, &mut registered, Some(at(50)));
        assert_eq!(registered, Some(at(20)), "left where it is");
        timers.update(owner, &mut registered, Some(at(5)));
        assert_eq!(timers.next(), Some(at(5)));
        timers.cancel(owner, &mut registered);
        assert_eq!((timers.next(), registered), (None, None));
    }
}
