//! One deadline table for streams and peers: a hierarchical timing wheel
//! (Varghese and Lauck, "Hashed and Hierarchical Timing Wheels", scheme 7).
//!
//! Each entry registers at most one moment. A deadline that moves further away
//! is left where it is: it fires early, finds nothing due and registers again,
//! so that the per-packet cost of a timer that is always pushed back is nothing.
//!
//! An entry is a link of a ring, at a place of its own by the owner's slot:
//! registering, moving and cancelling cost the same however many entries there
//! are, and allocate nothing once the owner has been seen. An entry moves down
//! at most once per level before it fires. Deadlines are exact: the tick only
//! decides which ring holds an entry.

use crate::time::Time;

/// A tick is 2^10 ns, about a microsecond: few entries share one.
const TICK_BITS: u32 = 10;
/// A level has 2^6 rings, as many as a word of occupancy has bits.
const DIGIT_BITS: u32 = 6;
const RINGS: usize = 1 << DIGIT_BITS;
/// Nine digits of six bits are all 54 bits that a tick may have, so that every
/// [`Time`] has its ring.
const LEVELS: usize = (u64::BITS - TICK_BITS).div_ceil(DIGIT_BITS) as usize;
/// The ring of what is due and not yet taken.
const DUE: usize = LEVELS * RINGS;
/// The ring of an entry that is in none.
const APART: u16 = u16::MAX;

/// Whose deadline it is, by slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Owner {
    Stream(usize),
    Peer(usize),
}

#[derive(Debug)]
pub(crate) struct Timers {
    /// Entries by the slots of their owners.
    streams: Vec<Entry>,
    peers: Vec<Entry>,
    rings: Box<[Ring]>,
    /// Which rings of a level have entries, a bit each.
    occupied: [u64; LEVELS],
    /// Which levels have.
    levels: u16,
    /// The tick up to which entries have moved down. An entry stands in the
    /// level of the highest digit in which its tick differs from this one, so
    /// what a level has is due before what a higher one has.
    tick: u64,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    at: Time,
    next: Link,
    previous: Link,
    ring: u16,
}

#[derive(Clone, Copy, Debug)]
struct Ring {
    /// No entry of the ring is due before this. It is the first deadline,
    /// unless that one was cancelled since.
    earliest: Time,
    first: Link,
}

/// An owner in half a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Link(u32);

impl Link {
    const NONE: Self = Self(u32::MAX);

    fn to(owner: Owner) -> Self {
        let (slot, kind) = match owner {
            Owner::Stream(slot) => (slot, 0),
            Owner::Peer(slot) => (slot, 1),
        };
        debug_assert!(slot < (u32::MAX >> 1) as usize, "slots are counted from zero");
        Self((slot as u32) << 1 | kind)
    }

    fn owner(self) -> Owner {
        let slot = (self.0 >> 1) as usize;
        if self.0 & 1 == 0 { Owner::Stream(slot) } else { Owner::Peer(slot) }
    }
}

impl Entry {
    const APART: Self =
        Self { at: Time::ZERO, next: Link::NONE, previous: Link::NONE, ring: APART };
}

impl Default for Timers {
    fn default() -> Self {
        let empty = Ring { earliest: Time::ZERO, first: Link::NONE };
        Self {
            streams: Vec::new(),
            peers: Vec::new(),
            rings: vec![empty; DUE + 1].into_boxed_slice(),
            occupied: [0; LEVELS],
            levels: 0,
            tick: 0,
        }
    }
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
        if registered.is_some_and(|at| at <= wanted) {
            return;
        }
        let link = Link::to(owner);
        self.make_place(owner);
        self.unlink(link);
        self.entry(link).at = wanted;
        self.place(link);
        *registered = Some(wanted);
    }

    /// Takes `owner` out of the table.
    pub(crate) fn cancel(&mut self, owner: Owner, registered: &mut Option<Time>) {
        if registered.take().is_some() {
            self.unlink(Link::to(owner));
        }
    }

    /// The owner whose moment has come; its record must be cleared. Owners come
    /// by deadline, those within one tick in any (yet determined) order. `now`
    /// must not go back.
    pub(crate) fn pop_due(&mut self, now: Time) -> Option<Owner> {
        if self.rings[DUE].first == Link::NONE {
            self.advance(now);
        }
        let first = self.rings[DUE].first;
        if first == Link::NONE {
            return None;
        }
        self.unlink(first);
        Some(first.owner())
    }

    /// A moment at which to look again: not later than the first deadline, and
    /// earlier only when the first one was cancelled or moved. It lies ahead of
    /// the moment for which [`Timers::pop_due`] had nothing.
    pub(crate) fn next(&self) -> Option<Time> {
        let due = &self.rings[DUE];
        let due = (due.first != Link::NONE).then_some(due.earliest);
        let ahead = self.first_ring().map(|ring| self.rings[ring].earliest);
        [due, ahead].into_iter().flatten().min()
    }

    /// Moves what is due into its ring, and what is near down.
    fn advance(&mut self, now: Time) {
        let until = tick(now);
        while let Some(ring) = self.first_ring() {
            if self.rings[ring].earliest > now {
                // Entries stand well relative to an old tick, too.
                return;
            }
            // Nothing is before this ring, so time may enter it. A ring of the
            // lowest level is a tick, and what is due of it fires; the entries of
            // a higher one move down, which puts them in order.
            self.tick = self.tick.max(self.start(ring));
            // Entries are taken from the ring's start; those that stay in it
            // come to its end.
            let last = self.last(ring);
            self.rings[ring].earliest = Time::from_nanos(u64::MAX);
            loop {
                let first = self.rings[ring].first;
                self.unlink(first);
                if ring < RINGS && self.entry(first).at <= now {
                    self.link(first, DUE);
                } else {
                    self.place(first);
                }
                if first == last {
                    break;
                }
            }
            if self.rings[DUE].first != Link::NONE {
                return;
            }
        }
        self.tick = self.tick.max(until);
    }

    /// Puts an entry that is in no ring where its deadline belongs.
    fn place(&mut self, link: Link) {
        // What is past belongs to the present.
        let tick = tick(self.entry(link).at).max(self.tick);
        let level = ((tick ^ self.tick) | 1).ilog2() / DIGIT_BITS;
        let digit = (tick >> (level * DIGIT_BITS)) as usize % RINGS;
        self.link(link, level as usize * RINGS + digit);
    }

    /// Puts an entry that is in no ring at the end of one.
    fn link(&mut self, link: Link, ring: usize) {
        let first = self.rings[ring].first;
        let at = self.entry(link).at;
        let (previous, next) = if first == Link::NONE {
            self.rings[ring] = Ring { earliest: at, first: link };
            if ring != DUE {
                self.occupied[ring / RINGS] |= 1 << (ring % RINGS);
                self.levels |= 1 << (ring / RINGS);
            }
            (link, link)
        } else {
            self.rings[ring].earliest = self.rings[ring].earliest.min(at);
            (std::mem::replace(&mut self.entry(first).previous, link), first)
        };
        self.entry(previous).next = link;
        *self.entry(link) = Entry { at, next, previous, ring: ring as u16 };
    }

    /// Takes an entry out of its ring, if it is in one.
    fn unlink(&mut self, link: Link) {
        let Entry { next, previous, ring, .. } = *self.entry(link);
        if ring == APART {
            return;
        }
        self.entry(link).ring = APART;
        let ring = usize::from(ring);
        if next == link {
            self.rings[ring].first = Link::NONE;
            if ring != DUE {
                let level = ring / RINGS;
                self.occupied[level] &= !(1 << (ring % RINGS));
                self.levels &= !(u16::from(self.occupied[level] == 0) << level);
            }
            return;
        }
        self.entry(previous).next = next;
        self.entry(next).previous = previous;
        if self.rings[ring].first == link {
            self.rings[ring].first = next;
        }
    }

    /// The ring with the first deadline among those that are not due.
    fn first_ring(&self) -> Option<usize> {
        let level = self.levels.trailing_zeros() as usize;
        let digit = self.occupied.get(level)?.trailing_zeros() as usize;
        Some(level * RINGS + digit)
    }

    /// The first tick of a ring.
    fn start(&self, ring: usize) -> u64 {
        let shift = (ring / RINGS) as u32 * DIGIT_BITS;
        let above = self.tick >> shift >> DIGIT_BITS << DIGIT_BITS;
        (above | (ring % RINGS) as u64) << shift
    }

    /// The last entry of a ring that has any.
    fn last(&mut self, ring: usize) -> Link {
        let first = self.rings[ring].first;
        self.entry(first).previous
    }

    fn entry(&mut self, link: Link) -> &mut Entry {
        match link.owner() {
            Owner::Stream(slot) => &mut self.streams[slot],
            Owner::Peer(slot) => &mut self.peers[slot],
        }
    }

    /// Makes sure that `owner` has an entry.
    fn make_place(&mut self, owner: Owner) {
        let (entries, slot) = match owner {
            Owner::Stream(slot) => (&mut self.streams, slot),
            Owner::Peer(slot) => (&mut self.peers, slot),
        };
        if slot >= entries.len() {
            entries.resize(slot + 1, Entry::APART);
        }
    }
}

/// The tick that holds a moment.
fn tick(at: Time) -> u64 {
    at.as_nanos() >> TICK_BITS
}

#[cfg(test)]
mod tests;
