//! Single moves, and random ones against a sorted set.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn at(ms: u64) -> Time {
    Time::ZERO + Duration::from_millis(ms)
}

fn drain(timers: &mut Timers, now: Time) -> Vec<Owner> {
    std::iter::from_fn(|| timers.pop_due(now)).collect()
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
    let fired = drain(&mut timers, at(30));
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

#[test]
fn a_deadline_is_met_to_the_nanosecond() {
    let (mut timers, mut registered) = (Timers::default(), None);
    // The first, a middle and the last nanosecond of a tick, near and far.
    for nanos in [1 << 20, (1 << 20) + 500, (1 << 20) + 1023, (1 << 41) + 1, u64::MAX] {
        let due = Time::from_nanos(nanos);
        timers.update(Owner::Peer(3), &mut registered, Some(due));
        assert_eq!(timers.next(), Some(due));
        assert_eq!(timers.pop_due(due - Duration::from_nanos(1)), None);
        assert_eq!(timers.next(), Some(due));
        assert_eq!(timers.pop_due(due), Some(Owner::Peer(3)));
        assert_eq!((timers.pop_due(due), timers.next()), (None, None));
        registered = None;
    }
}

#[test]
fn a_past_deadline_is_due_at_once() {
    let (mut timers, mut registered) = (Timers::default(), None);
    assert_eq!(timers.pop_due(at(1000)), None);
    timers.update(Owner::Stream(0), &mut registered, Some(at(1)));
    assert_eq!(timers.next(), Some(at(1)));
    assert_eq!(timers.pop_due(at(1000)), Some(Owner::Stream(0)));
}

#[test]
fn an_owner_cancelled_while_others_fire_does_not_fire() {
    let (mut timers, mut registered) = (Timers::default(), [None; 3]);
    for (slot, registered) in registered.iter_mut().enumerate() {
        timers.update(Owner::Stream(slot), registered, Some(at(5)));
    }
    assert_eq!(timers.pop_due(at(9)), Some(Owner::Stream(0)));
    timers.cancel(Owner::Stream(1), &mut registered[1]);
    assert_eq!(timers.next(), Some(at(5)));
    assert_eq!(drain(&mut timers, at(9)), [Owner::Stream(2)]);
    assert_eq!(timers.next(), None);
}

/// Looks at the table whenever it asks for that, until `end`; how often.
fn looks(timers: &mut Timers, end: Time, mut fire: impl FnMut(&mut Timers, Owner, Time)) -> usize {
    let mut looks = 0;
    let mut now = Time::ZERO;
    while let Some(next) = timers.next().filter(|next| *next <= end) {
        assert!(next > now, "no progress at {now:?}");
        (looks, now) = (looks + 1, next);
        while let Some(owner) = timers.pop_due(now) {
            fire(timers, owner, now);
        }
    }
    looks
}

#[test]
fn an_idle_day_costs_a_look_per_deadline() {
    const DAY: Duration = Duration::from_secs(86_400);
    let mut timers = Timers::default();
    let mut registered = [None; 2];
    timers.update(Owner::Peer(0), &mut registered[0], Some(Time::ZERO + DAY));
    timers.update(Owner::Stream(0), &mut registered[1], Some(Time::ZERO + DAY * 400));
    let mut fired = Vec::new();
    let end = Time::ZERO + DAY * 1000;
    assert_eq!(looks(&mut timers, end, |_, owner, now| fired.push((owner, now))), 2);
    let days = |n| Time::ZERO + DAY * n;
    assert_eq!(fired, [(Owner::Peer(0), days(1)), (Owner::Stream(0), days(400))]);
    // And after it, what is near is met as before.
    let mut registered = None;
    let near = end + Duration::from_micros(100);
    timers.update(Owner::Peer(0), &mut registered, Some(near));
    assert_eq!((timers.pop_due(end), timers.next()), (None, Some(near)));
    assert_eq!(timers.pop_due(near), Some(Owner::Peer(0)));
}

#[test]
fn a_cancelled_first_deadline_costs_few_looks() {
    let mut timers = Timers::default();
    let mut registered = [None; 2];
    timers.update(Owner::Stream(0), &mut registered[0], Some(at(86_400_000)));
    timers.update(Owner::Stream(1), &mut registered[1], Some(at(86_399_000)));
    timers.cancel(Owner::Stream(1), &mut registered[1]);
    let mut fired = None;
    let looks = looks(&mut timers, at(90_000_000), |_, owner, now| fired = Some((owner, now)));
    assert_eq!(fired, Some((Owner::Stream(0), at(86_400_000))));
    assert!(looks <= LEVELS, "{looks}");
}

#[test]
fn idle_owners_stay_small_and_registering_again_allocates_nothing() {
    const IDLE: usize = 10_000;
    assert!(size_of::<Entry>() <= 24, "{}", size_of::<Entry>());
    let mut timers = Timers::default();
    let mut registered = vec![None; IDLE];
    for (slot, registered) in registered.iter_mut().enumerate() {
        timers.update(Owner::Stream(slot), registered, Some(at(30_000)));
    }
    let room = timers.streams.capacity();
    assert!(room * size_of::<Entry>() <= 48 * IDLE, "{room}");
    let mut fired = 0;
    // All share one deadline, over and over.
    looks(&mut timers, at(300_000), |timers, owner, now| {
        let Owner::Stream(slot) = owner else { panic!("{owner:?}") };
        registered[slot] = None;
        timers.update(owner, &mut registered[slot], Some(now + Duration::from_secs(30)));
        fired += 1;
    });
    assert_eq!(fired, 10 * IDLE);
    assert_eq!((timers.streams.capacity(), timers.peers.capacity()), (room, 0));
}

/// What may happen to the table.
#[derive(Clone, Debug)]
enum Move {
    /// An owner wants to fire so many nanoseconds from now.
    Update(usize, u64),
    /// An owner wants to fire when another does, and so many nanoseconds off.
    Beside(usize, usize, i64),
    Cancel(usize),
    /// Time passes, in nanoseconds.
    Pass(u64),
    /// Time passes until the table wants to be looked at.
    Wait,
    /// One owner fires, if one is due; the rest stay.
    Pop,
}

const OWNERS: usize = 12;

fn owner(index: usize) -> Owner {
    if index.is_multiple_of(3) { Owner::Peer(index / 3) } else { Owner::Stream(index) }
}

/// Every magnitude from nothing to weeks.
fn span() -> impl Strategy<Value = u64> {
    (any::<u64>(), 0u32..51).prop_map(|(bits, width)| bits & ((1 << width) - 1))
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        6 => (0..OWNERS, span()).prop_map(|(i, n)| Move::Update(i, n)),
        2 => (0..OWNERS, 0..OWNERS, -2000i64..2000).prop_map(|(i, j, n)| Move::Beside(i, j, n)),
        2 => (0..OWNERS).prop_map(Move::Cancel),
        3 => span().prop_map(Move::Pass),
        3 => Just(Move::Wait),
        1 => Just(Move::Pop),
    ];
    proptest::collection::vec(one, 1..200)
}

/// A table, and what should be in it.
struct Both {
    timers: Timers,
    registered: [Option<Time>; OWNERS],
    model: BTreeSet<(Time, Owner)>,
    now: Time,
}

impl Both {
    fn update(&mut self, index: usize, wanted: Time) {
        let before = self.registered[index];
        self.timers.update(owner(index), &mut self.registered[index], Some(wanted));
        if before.is_none_or(|at| at > wanted) {
            if let Some(at) = before {
                assert!(self.model.remove(&(at, owner(index))));
            }
            self.model.insert((wanted, owner(index)));
        }
        let nearest = before.map_or(wanted, |at| at.min(wanted));
        assert_eq!(self.registered[index], Some(nearest));
    }

    /// Takes one owner that is due; its deadline.
    fn pop(&mut self) -> Option<Time> {
        let popped = self.timers.pop_due(self.now);
        let due = self.model.first().is_some_and(|(at, _)| *at <= self.now);
        assert_eq!(popped.is_some(), due, "{popped:?} of {:?} at {:?}", self.model, self.now);
        let popped = popped?;
        let index = (0..OWNERS).find(|i| owner(*i) == popped).unwrap();
        let at = self.registered[index].take().expect("only what is registered fires");
        assert!(at <= self.now, "{popped:?} fires at {:?}, before {at:?}", self.now);
        assert!(self.model.remove(&(at, popped)));
        Some(at)
    }

    /// Takes all that is due; the ticks of their deadlines.
    fn drain(&mut self) -> Vec<u64> {
        let ticks = std::iter::from_fn(|| self.pop().map(tick)).collect();
        let next = self.timers.next();
        assert_eq!(next.is_some(), !self.model.is_empty());
        assert!(next.is_none_or(|next| next > self.now), "{next:?} at {:?}", self.now);
        ticks
    }

    fn check(&self) {
        let first = self.model.first().map(|(at, _)| *at);
        let next = self.timers.next();
        assert_eq!(next.is_some(), first.is_some());
        assert!(next <= first, "{next:?} {first:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn does_what_a_sorted_set_does(moves in moves(), start in span()) {
        let mut both = Both {
            timers: Timers::default(),
            registered: [None; OWNERS],
            model: BTreeSet::new(),
            now: Time::from_nanos(start),
        };
        for step in moves {
            match step {
                Move::Update(index, nanos) => {
                    both.update(index, both.now + Duration::from_nanos(nanos));
                }
                Move::Beside(index, other, nanos) => {
                    let beside = both.registered[other].unwrap_or(both.now).as_nanos();
                    both.update(index, Time::from_nanos(beside.saturating_add_signed(nanos)));
                }
                Move::Cancel(index) => {
                    if let Some(at) = both.registered[index] {
                        both.model.remove(&(at, owner(index)));
                    }
                    both.timers.cancel(owner(index), &mut both.registered[index]);
                    prop_assert_eq!(both.registered[index], None);
                }
                Move::Pass(nanos) => {
                    both.drain();
                    both.now = both.now + Duration::from_nanos(nanos);
                    let ticks = both.drain();
                    prop_assert!(ticks.is_sorted(), "{:?}", ticks);
                }
                Move::Wait => {
                    if let Some(next) = both.timers.next() {
                        both.now = both.now.max(next);
                    }
                    both.drain();
                }
                Move::Pop => {
                    both.pop();
                }
            }
            both.check();
        }
        // Whatever is left fires in time, in few looks each.
        let mut looks = both.model.len() * (LEVELS + 1) + 1;
        while let Some(next) = both.timers.next() {
            prop_assert!(looks > 0);
            looks -= 1;
            both.now = both.now.max(next);
            both.drain();
        }
        prop_assert!(both.model.is_empty());
    }
}
