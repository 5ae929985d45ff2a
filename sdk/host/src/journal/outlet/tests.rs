//! Sinks that fail in every way, in virtual time, from seeds: nothing is lost
//! without a gap that says so exactly, order is kept, and events come twice only
//! after a failure.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::super::settings::{Size, Span};
use super::*;

#[derive(Clone, Debug)]
enum Step {
    /// Events of so many bytes each.
    Emit(u8, u32),
    /// The sink is asked if it is due, and answers.
    Ask(Answer),
    /// Milliseconds pass.
    Pass(u16),
    /// The process ends and starts again; with `true` without having written
    /// what the sink answered last.
    Restart,
    /// The operator sets another bound.
    Bound(u64),
}

#[derive(Clone, Debug)]
enum Answer {
    Ack {
        written: bool,
    },
    Retry {
        accepted: usize,
        after_ms: Option<u64>,
    },
    Reject {
        accepted: usize,
        rejected: usize,
    },
    /// No answer; the events may have arrived all the same.
    Fail {
        arrived: bool,
    },
    /// No answer yet: events come in while the sink has the batch.
    Slow {
        emit: u8,
        bytes: u32,
        then_fail: bool,
    },
}

fn answer() -> impl Strategy<Value = Answer> {
    prop_oneof![
        any::<bool>().prop_map(|written| Answer::Ack { written }),
        (0..9usize, proptest::option::of(0..5000u64))
            .prop_map(|(accepted, after_ms)| Answer::Retry { accepted, after_ms }),
        (0..9usize, 0..4usize)
            .prop_map(|(accepted, rejected)| Answer::Reject { accepted, rejected }),
        any::<bool>().prop_map(|arrived| Answer::Fail { arrived }),
        (0..20u8, 1..400u32, any::<bool>()).prop_map(|(emit, bytes, then_fail)| Answer::Slow {
            emit,
            bytes,
            then_fail
        }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1..12u8, 1..400u32).prop_map(|(count, bytes)| Step::Emit(count, bytes)),
        4 => answer().prop_map(Step::Ask),
        2 => (0..3000u16).prop_map(Step::Pass),
        1 => Just(Step::Restart),
        1 => (0..4000u64).prop_map(Step::Bound),
    ]
}

fn settings(max_attempts: u32, batch: usize) -> SinkSettings {
    SinkSettings {
        batch,
        batch_bytes: Size(1500),
        queue_bytes: Size(3000),
        linger: Span(Duration::from_millis(20)),
        retry_min: Span(Duration::from_millis(100)),
        retry_max: Span(Duration::from_secs(2)),
        max_attempts,
        ..SinkSettings::default()
    }
}

/// What a crash leaves.
#[derive(Clone, Default)]
struct Disk {
    rows: BTreeMap<u64, u32>,
    cursor: u64,
    gaps: Vec<Gap>,
}

struct World {
    outlet: Outlet,
    now: Instant,
    next: u64,
    disk: Disk,
    /// Rows as they are before the next transaction.
    rows: BTreeMap<u64, u32>,
    emitted: BTreeSet<u64>,
    accepted: BTreeSet<u64>,
    dead: BTreeSet<u64>,
    dropped: BTreeSet<u64>,
    gaps: Vec<Gap>,
    /// Highest number that the receiver has seen, and whether it may see such a
    /// one again.
    seen: u64,
    again: bool,
    failures: u64,
}

impl World {
    fn new(settings: SinkSettings) -> Self {
        Self {
            outlet: Outlet::new(settings, 0, 1),
            now: Instant::now(),
            next: 1,
            disk: Disk::default(),
            rows: BTreeMap::new(),
            emitted: BTreeSet::new(),
            accepted: BTreeSet::new(),
            dead: BTreeSet::new(),
            dropped: BTreeSet::new(),
            gaps: Vec::new(),
            seen: 0,
            again: false,
            failures: 0,
        }
    }

    fn emit(&mut self, count: u8, bytes: u32) {
        for _ in 0..count {
            let id = self.next;
            self.next += 1;
            self.emitted.insert(id);
            self.rows.insert(id, bytes);
            let mut dropped = Vec::new();
            self.outlet.push(Entry::Event { id, at: id, bytes }, self.now, id, &mut dropped);
            self.note(dropped);
            let spared: u64 = self
                .outlet
                .front(self.outlet.in_flight())
                .map(|entry| match entry {
                    Entry::Event { bytes, .. } => u64::from(*bytes),
                    Entry::Gap(_) => 0,
                })
                .sum();
            let bound = self.outlet.settings().queue_bytes.0;
            assert!(self.outlet.bytes() <= bound.max(spared), "the bound holds");
        }
        self.write();
    }

    fn note(&mut self, dropped: Vec<u64>) {
        for id in dropped {
            assert!(self.rows.remove(&id).is_some(), "{id} was dropped twice");
            self.dropped.insert(id);
        }
    }

    fn write(&mut self) {
        let gaps = self.outlet.gaps().cloned().collect();
        self.disk = Disk { rows: self.rows.clone(), cursor: self.outlet.cursor(), gaps };
    }

    fn restart(&mut self) {
        let settings = self.outlet.settings().clone();
        self.rows = self.disk.rows.clone();
        self.outlet = Outlet::new(settings, self.disk.cursor, self.next);
        let rows = self.disk.rows.iter();
        let stored = rows.map(|(id, bytes)| Entry::Event { id: *id, at: *id, bytes: *bytes });
        let mut gone = Vec::new();
        self.outlet.requeue(self.disk.gaps.clone(), stored, self.now, &mut gone);
        assert!(gone.is_empty());
        self.again = true;
    }

    /// Whether the sink was due.
    fn ask(&mut self, answer: &Answer) -> bool {
        let Next::Deliver(count) = self.outlet.poll(self.now, self.next - 1) else { return false };
        let batch: Vec<Entry> = self.outlet.front(count).cloned().collect();
        assert_eq!(batch.len(), count);
        assert!(count <= self.outlet.settings().batch);
        assert!(batch.windows(2).all(|pair| pair[0].id() < pair[1].id()), "{batch:?}");
        if batch[0].id() <= self.seen {
            assert!(self.again, "{} came again without a failure", batch[0].id());
        } else {
            self.again = false;
        }
        self.outlet.start(count, self.now);
        assert_eq!(self.outlet.poll(self.now, u64::MAX), Next::Idle, "one batch at a time");
        let (result, arrived, written) = match answer {
            Answer::Ack { written } => (Ok(Delivery::Ack), count, *written),
            Answer::Retry { accepted, after_ms } => {
                let (accepted, after_ms, reason) = (*accepted, *after_ms, "busy".to_owned());
                (Ok(Delivery::Retry { accepted, after_ms, reason }), accepted.min(count), true)
            }
            Answer::Reject { accepted, rejected } => {
                let (accepted, rejected, reason) = (*accepted, *rejected, "no".to_owned());
                (Ok(Delivery::Reject { accepted, rejected, reason }), accepted.min(count), true)
            }
            Answer::Fail { arrived } => (Err(Failure::Ended), usize::from(*arrived) * count, true),
            Answer::Slow { emit, bytes, then_fail } => {
                self.emit(*emit, *bytes);
                match then_fail {
                    true => (Err(Failure::Crashed("slow".into())), 0, true),
                    false => (Ok(Delivery::Ack), count, true),
                }
            }
        };
        if let Some(entry) = arrived.checked_sub(1).map(|last| &batch[last]) {
            self.seen = self.seen.max(entry.id());
        }
        self.again |= result != Ok(Delivery::Ack);
        self.failures += u64::from(result.is_err());
        let verdict = self.outlet.judge(result);
        let settled = self.outlet.settle(verdict, self.now);
        for (entries, into) in
            [(settled.accepted, &mut self.accepted), (settled.rejected, &mut self.dead)]
        {
            for entry in entries {
                match entry {
                    Entry::Event { id, .. } => {
                        assert!(self.rows.remove(&id).is_some(), "{id} was not waiting");
                        into.insert(id);
                    }
                    Entry::Gap(gap) => self.gaps.push(*gap),
                }
            }
        }
        if written {
            self.write();
        }
        true
    }

    fn run(&mut self, steps: &[Step]) {
        for step in steps {
            match step {
                Step::Emit(count, bytes) => self.emit(*count, *bytes),
                Step::Ask(answer) => drop(self.ask(answer)),
                Step::Pass(ms) => self.now += Duration::from_millis(u64::from(*ms)),
                Step::Restart => self.restart(),
                Step::Bound(bytes) => {
                    let mut changed = self.outlet.settings().clone();
                    changed.queue_bytes = Size(*bytes);
                    let mut dropped = Vec::new();
                    self.outlet.replace(changed, self.next, &mut dropped);
                    self.note(dropped);
                    self.write();
                }
            }
        }
        // A sink that is well gets the rest, without a pause longer than set.
        while self.outlet.front(1).next().is_some() {
            if !self.ask(&Answer::Ack { written: true }) {
                let Next::At(at) = self.outlet.poll(self.now, self.next) else {
                    panic!("it waits for nothing");
                };
                assert!(at > self.now && at <= self.now + PAUSE_MAX);
                self.now = at;
            }
        }
        assert_eq!((self.outlet.bytes(), self.outlet.events()), (0, 0));
        for id in &self.emitted {
            let shown = self.gaps.iter().any(|gap| (gap.first..=gap.last).contains(id));
            assert!(
                self.accepted.contains(id) || self.dead.contains(id) || shown,
                "{id} is lost and nothing says so"
            );
        }
        for id in &self.dropped {
            let shown = self.gaps.iter().any(|gap| (gap.first..=gap.last).contains(id));
            assert!(shown, "{id} was dropped and no gap says so");
        }
        for gap in &self.gaps {
            let count = self.dropped.range(gap.first..=gap.last).count() as u64;
            assert_eq!(gap.count, count, "{gap:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn nothing_is_lost_in_silence(
        steps in proptest::collection::vec(step(), 1..80),
        max_attempts in 0..4u32,
        batch in 1..9usize,
    ) {
        World::new(settings(max_attempts, batch)).run(&steps);
    }
}

#[test]
fn the_oldest_go_first_and_are_counted() {
    let mut world = World::new(settings(0, 8));
    world.emit(30, 100);
    assert_eq!((world.outlet.events(), world.dropped.len()), (30, 0));
    world.emit(12, 100);
    assert_eq!((world.outlet.events(), world.dropped.len()), (30, 12));
    let first = world.outlet.front(1).next().cloned();
    let Some(Entry::Gap(gap)) = first else { panic!("{first:?}") };
    assert_eq!((gap.first, gap.last, gap.count), (1, 12, 12));
    assert!(gap.reason.contains("queue-bytes (3000)"), "{}", gap.reason);
}

/// What the sink has when room is needed is not dropped: it may be arriving.
#[test]
fn a_batch_under_way_is_spared() {
    let mut world = World::new(settings(0, 8));
    world.emit(30, 100);
    world.outlet.start(8, world.now);
    world.emit(5, 100);
    let ids: Vec<u64> = world.outlet.front(9).map(Entry::id).collect();
    assert_eq!(ids, [1, 2, 3, 4, 5, 6, 7, 8, 13], "9 to 13 are a gap");
    assert_eq!(world.dropped.len(), 5);
}

#[test]
fn pauses_double_up_to_the_longest_and_a_batch_comes_again_as_it_was() {
    let mut world = World::new(settings(0, 4));
    world.emit(3, 10);
    world.now += Duration::from_millis(20);
    let mut longest = Duration::ZERO;
    for attempt in 0..200u32 {
        assert_eq!(world.outlet.poll(world.now, u64::MAX), Next::Deliver(3), "as it was");
        assert!(world.ask(&Answer::Fail { arrived: false }));
        world.emit(1, 1);
        let bound = Duration::from_millis(100) * 2u32.pow(attempt.min(10));
        let at = world.outlet.retry_at().expect("a pause");
        assert!(at - world.now <= bound.min(Duration::from_secs(2)));
        longest = longest.max(at - world.now);
        world.now = at;
    }
    assert!(longest > Duration::from_secs(1), "of 200 some are long: {longest:?}");
}

#[test]
fn failing_is_said_once_and_recovery_once() {
    let mut world = World::new(settings(0, 4));
    world.emit(4, 10);
    let mut notices = Vec::new();
    for good in [false, false, false, false, false, true, true] {
        world.emit(4, 10);
        world.outlet.start(4, world.now);
        let result = if good { Ok(Delivery::Ack) } else { Err(Failure::Ended) };
        let verdict = world.outlet.judge(result);
        notices.extend(world.outlet.settle(verdict, world.now).notice);
    }
    assert!(
        matches!(notices[..], [Notice::Failing { .. }, Notice::Recovered { attempts: 5, .. }]),
        "{notices:?}"
    );
}

#[test]
fn an_hour_is_the_longest_that_a_sink_can_ask_for() {
    let mut world = World::new(settings(0, 4));
    world.emit(4, 10);
    world.ask(&Answer::Retry { accepted: 1, after_ms: Some(u64::MAX) });
    assert_eq!(world.outlet.retry_at(), Some(world.now + PAUSE_MAX));
    assert_eq!(world.outlet.front(1).map(Entry::id).collect::<Vec<_>>(), [2]);
}
