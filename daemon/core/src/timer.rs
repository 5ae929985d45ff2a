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
    pub(crate) fn update(&mut self, owner: Owner, registered: &mut Option<Time>, wanted: Option<Time>) {
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
