//! What is to be done about one plugin when its file, its configuration or its
//! conduct changes. Knows no clock, no files, and not how it is done.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::status::State;

/// Incidents within [`WINDOW`] that switch a plugin off.
pub(super) const MAX_INCIDENTS: usize = 3;
/// Incidents count for so long; a plugin that has run so long without one
/// starts afresh.
pub(super) const WINDOW: Duration = Duration::from_secs(60);
/// First time that a plugin is switched off; each further one is twice as long.
pub(super) const FIRST_BACK_OFF: Duration = Duration::from_secs(1);
/// Longest time that a plugin is switched off.
pub(super) const LAST_BACK_OFF: Duration = Duration::from_secs(300);
/// Threads that are stuck in one plugin; with so many it stays off until the
/// process is started again, as they cannot be ended.
pub(super) const MAX_HUNG: usize = 8;
/// Time over which processor time is measured.
const CPU_WINDOW: Duration = Duration::from_secs(10);
/// Part of the limit that the share must fall to before new streams are given.
const CPU_RECOVERED: f64 = 0.8;

/// Why something is loaded or ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    Start,
    Config,
    File,
    Reload,
    Set,
    Panicked,
    Hung,
    Died,
    BackOff,
}

impl Cause {
    pub(super) const fn text(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Config => "config",
            Self::File => "file",
            Self::Reload => "reload",
            Self::Set => "set",
            Self::Panicked => "panicked",
            Self::Hung => "hung",
            Self::Died => "died",
            Self::BackOff => "back-off",
        }
    }

    /// Whether the instance must be replaced although nothing else changed.
    pub(super) const fn is_trouble(self) -> bool {
        matches!(self, Self::Panicked | Self::Hung | Self::Died | Self::BackOff)
    }
}

/// What an instance did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    Panicked,
    Hung,
    Died,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Do {
    Nothing,
    /// Load what is wanted, then tell [`Machine::succeeded`],
    /// [`Machine::unchanged`] or [`Machine::failed`].
    Load,
    /// Replace the instance, and tell the same.
    Replace(Cause),
    /// End what runs; it is not wanted any more.
    Stop,
    /// End what runs; it is tried again then.
    SwitchOff(Instant),
    /// End what runs, for good.
    Ban,
}

/// What is known about one plugin. `W` is what makes two versions of it (file
/// and configuration) different.
#[derive(Debug)]
pub(super) struct Machine<W> {
    wanted: Option<W>,
    /// What was last tried, well or not; not tried again without a reason.
    tried: Option<W>,
    /// What the current generation was made of.
    loaded: Option<W>,
    current: Option<u64>,
    started: Option<Instant>,
    last: u64,
    incidents: VecDeque<Instant>,
    strikes: u32,
    retry: Option<Instant>,
    hung: BTreeSet<u64>,
    samples: VecDeque<(Instant, Duration)>,
    over: bool,
}

impl<W: Clone + PartialEq> Machine<W> {
    pub(super) const fn new() -> Self {
        Self {
            wanted: None,
            tried: None,
            loaded: None,
            current: None,
            started: None,
            last: 0,
            incidents: VecDeque::new(),
            strikes: 0,
            retry: None,
            hung: BTreeSet::new(),
            samples: VecDeque::new(),
            over: false,
        }
    }

    /// This is what should run; nothing when it should not. `again` tries once
    /// more what failed or was switched off.
    pub(super) fn want(&mut self, wanted: Option<W>, again: bool) -> Do {
        self.wanted = wanted;
        let Some(wanted) = &self.wanted else {
            (self.tried, self.loaded, self.retry) = (None, None, None);
            self.incidents.clear();
            self.strikes = 0;
            return if self.current.take().is_some() { Do::Stop } else { Do::Nothing };
        };
        if self.banned() {
            return Do::Nothing;
        }
        if self.tried.as_ref() == Some(wanted) {
            // An earlier generation that goes on is not what is wanted either.
            let failed = self.current.is_none() || self.loaded.as_ref() != Some(wanted);
            return if again && failed { Do::Load } else { Do::Nothing };
        }
        if self.current.is_some() && self.loaded.as_ref() == Some(wanted) {
            // Back to what runs.
            self.tried = Some(wanted.clone());
            return Do::Nothing;
        }
        Do::Load
    }

    /// What was last tried.
    pub(super) const fn tried(&self) -> Option<&W> {
        self.tried.as_ref()
    }

    /// What is wanted is tried now.
    pub(super) fn trying(&mut self) {
        self.tried.clone_from(&self.wanted);
        self.retry = None;
    }

    /// Number of the generation that is made now.
    pub(super) const fn generation(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Number of the last generation that was made; 0 for none.
    pub(super) const fn last(&self) -> u64 {
        self.last
    }

    /// Generation `number` has taken over.
    pub(super) fn succeeded(&mut self, now: Instant, number: u64) {
        if self.tried != self.loaded {
            // Another file or configuration: what the one before did is over.
            self.incidents.clear();
            self.strikes = 0;
        }
        self.loaded.clone_from(&self.tried);
        (self.current, self.started) = (Some(number), Some(now));
        self.samples.clear();
        self.over = false;
    }

    /// What was tried is what runs.
    pub(super) fn unchanged(&mut self) {
        self.loaded.clone_from(&self.tried);
    }

    /// It could not be loaded. Gives when it is tried again, if it is; what
    /// runs goes on only when [`Machine::current`] says so.
    pub(super) fn failed(&mut self, now: Instant, cause: Cause) -> Option<Instant> {
        if !cause.is_trouble() {
            return None;
        }
        self.current = None;
        Some(self.back_off(now))
    }

    /// The generation that runs and is fit to.
    pub(super) const fn current(&self) -> Option<u64> {
        self.current
    }

    /// Something happened to generation `number`.
    pub(super) fn trouble(&mut self, now: Instant, number: u64, trouble: Trouble) -> Do {
        if trouble == Trouble::Hung && !self.banned() {
            self.hung.insert(number);
            if self.banned() {
                (self.current, self.retry) = (None, None);
                return Do::Ban;
            }
        }
        if self.current != Some(number) {
            return Do::Nothing;
        }
        self.incidents.push_back(now);
        self.forget(now);
        if self.incidents.len() >= MAX_INCIDENTS {
            self.current = None;
            self.incidents.clear();
            return Do::SwitchOff(self.back_off(now));
        }
        Do::Replace(match trouble {
            Trouble::Panicked => Cause::Panicked,
            Trouble::Hung => {
                self.current = None;
                Cause::Hung
            }
            Trouble::Died => {
                self.current = None;
                Cause::Died
            }
        })
    }

    /// Generation `number` never finished starting, and its thread cannot be
    /// ended. Bans when there are too many of them.
    pub(super) fn stuck(&mut self, number: u64) -> Do {
        self.hung.insert(number);
        if !self.banned() {
            return Do::Nothing;
        }
        (self.current, self.retry) = (None, None);
        Do::Ban
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, now: Instant) -> Do {
        self.forget(now);
        let long = |since: Instant| now.saturating_duration_since(since) >= WINDOW;
        if self.current.is_some() && self.incidents.is_empty() && self.started.is_some_and(long) {
            self.strikes = 0;
        }
        match self.retry {
            Some(at) if at <= now => {
                self.retry = None;
                Do::Replace(Cause::BackOff)
            }
            _ => Do::Nothing,
        }
    }

    /// What the running generation used since it started, and its queue. Gives
    /// a text when it has come over its budget, an empty one when it is back.
    pub(super) fn sample(
        &mut self,
        now: Instant,
        cpu: Duration,
        queue: usize,
        limits: (f64, usize),
    ) -> Option<String> {
        self.samples.push_back((now, cpu));
        let old = |at: Instant| now.saturating_duration_since(at) >= CPU_WINDOW;
        while self.samples.get(1).is_some_and(|(at, _)| old(*at)) {
            self.samples.pop_front();
        }
        let (most, most_queue) = limits;
        let share = self.samples.front().filter(|(at, _)| old(*at)).map(|(at, before)| {
            let passed = now.saturating_duration_since(*at).as_secs_f64();
            cpu.saturating_sub(*before).as_secs_f64() / passed
        });
        if self.over {
            let calm = share.is_some_and(|share| share <= most * CPU_RECOVERED)
                || (share.is_none() && !self.samples.is_empty());
            if calm && queue <= most_queue / 2 {
                self.over = false;
                return Some(String::new());
            }
            return None;
        }
        let reason = match share {
            _ if queue >= most_queue => {
                format!("{queue} messages wait for it, its limit is {most_queue}")
            }
            Some(share) if share > most => {
                format!("it uses {:.0} % of a core, its limit is {:.0} %", share * 1e2, most * 1e2)
            }
            _ => return None,
        };
        self.over = true;
        Some(reason)
    }

    /// Threads that are stuck.
    pub(super) fn hung(&self) -> usize {
        self.hung.len()
    }

    /// Whether it stays off until the process is started again.
    pub(super) fn banned(&self) -> bool {
        self.hung.len() >= MAX_HUNG
    }

    pub(super) fn state(&self) -> State {
        match (&self.wanted, self.current) {
            (None, _) => State::Off,
            _ if self.banned() => State::Off,
            (_, Some(_)) if self.over => State::OverBudget,
            (_, Some(_)) => State::Running,
            _ if self.retry.is_some() => State::BackingOff,
            _ => State::Failed,
        }
    }

    fn back_off(&mut self, now: Instant) -> Instant {
        let factor = 1_u32.checked_shl(self.strikes).unwrap_or(u32::MAX);
        self.strikes = self.strikes.saturating_add(1).min(30);
        let at = now + FIRST_BACK_OFF.saturating_mul(factor).min(LAST_BACK_OFF);
        self.retry = Some(at);
        at
    }

    fn forget(&mut self, now: Instant) {
        let old = |at: &Instant| now.saturating_duration_since(*at) >= WINDOW;
        while self.incidents.front().is_some_and(old) {
            self.incidents.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Want(Option<u8>, bool),
        Trouble(u64, u8),
        Tick,
        Sample(u64, usize),
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (proptest::option::weighted(0.9, 0..4_u8), any::<bool>())
                .prop_map(|(w, again)| Step::Want(w, again)),
            6 => (0..3_u64, 0..30_u8).prop_map(|(back, kind)| Step::Trouble(back, kind)),
            4 => Just(Step::Tick),
            2 => (0..3000_u64, 0..12_usize).prop_map(|(cpu, queue)| Step::Sample(cpu, queue)),
            4 => (1..40_000_u64).prop_map(Step::Pass),
        ]
    }

    /// A plugin that works when `good` says so, driven as the manager does.
    struct Driven {
        machine: Machine<u8>,
        now: Instant,
        wanted: Option<u8>,
        runs: Option<(u64, u8)>,
        attempts: Vec<(u8, bool)>,
    }

    impl Driven {
        fn new() -> Self {
            Self {
                machine: Machine::new(),
                now: Instant::now(),
                wanted: None,
                runs: None,
                attempts: Vec::new(),
            }
        }

        fn load(&mut self, cause: Cause, good: bool) {
            let wanted = self.wanted.expect("loads only what is wanted");
            assert!(!self.machine.banned(), "never again once it is off for good");
            self.machine.trying();
            self.attempts.push((wanted, good));
            if good {
                let number = self.machine.generation();
                self.machine.succeeded(self.now, number);
                self.runs = Some((number, wanted));
            } else if let Some(at) = self.machine.failed(self.now, cause) {
                let wait = at - self.now;
                assert!((FIRST_BACK_OFF..=LAST_BACK_OFF).contains(&wait), "{wait:?}");
                self.runs = None;
            }
        }

        fn act(&mut self, what: Do, good: bool) {
            match what {
                Do::Nothing => {}
                Do::Load => self.load(Cause::File, good),
                Do::Replace(cause) => self.load(cause, good),
                Do::Stop | Do::Ban => self.runs = None,
                Do::SwitchOff(at) => {
                    let wait = at - self.now;
                    assert!((FIRST_BACK_OFF..=LAST_BACK_OFF).contains(&wait), "{wait:?}");
                    self.runs = None;
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn any_order_of_things_keeps_its_promises(
            steps in proptest::collection::vec((step(), any::<bool>()), 1..120),
        ) {
            let mut driven = Driven::new();
            for (step, good) in steps {
                let before = driven.attempts.len();
                let runs = driven.runs;
                match step {
                    Step::Want(wanted, again) => {
                        let same = wanted.is_some()
                            && driven.machine.tried() == wanted.as_ref();
                        driven.wanted = wanted;
                        let what = driven.machine.want(wanted, again);
                        prop_assert!(!matches!(what, Do::Replace(_) | Do::SwitchOff(_) | Do::Ban));
                        driven.act(what, good);
                        // What was tried already is not tried again unasked,
                        // and what runs as it should is never touched for it.
                        let as_wanted = runs.map(|(_, made_of)| made_of) == wanted;
                        if same && (!again || as_wanted) {
                            prop_assert_eq!(driven.attempts.len(), before);
                        }
                        // A failure keeps what runs.
                        if wanted.is_some() && !good {
                            prop_assert_eq!(driven.runs, runs);
                        }
                        if wanted.is_none() {
                            prop_assert_eq!(driven.runs, None);
                            prop_assert_eq!(driven.machine.state(), State::Off);
                        }
                    }
                    Step::Trouble(back, kind) => {
                        let number = driven.machine.last.saturating_sub(back);
                        let trouble = match kind {
                            0..15 => Trouble::Panicked,
                            15..28 => Trouble::Died,
                            _ => Trouble::Hung,
                        };
                        let current = driven.machine.current();
                        let what = driven.machine.trouble(driven.now, number, trouble);
                        // An older generation cannot hurt the one that runs, but
                        // for the number of threads that are stuck.
                        if current != Some(number) {
                            prop_assert!(matches!(what, Do::Nothing | Do::Ban));
                        } else {
                            prop_assert!(!matches!(what, Do::Nothing | Do::Load));
                        }
                        driven.act(what, good);
                    }
                    Step::Tick => {
                        let due = driven.machine.retry.is_some_and(|at| at <= driven.now);
                        let what = driven.machine.tick(driven.now);
                        prop_assert_eq!(due, what != Do::Nothing);
                        driven.act(what, good);
                    }
                    Step::Sample(cpu, queue) => {
                        if runs.is_some() {
                            let was = driven.machine.over;
                            let cpu = Duration::from_millis(cpu);
                            let told = driven.machine.sample(driven.now, cpu, queue, (0.5, 8));
                            // Told once when it changes.
                            prop_assert_eq!(told.is_some(), was != driven.machine.over);
                        }
                    }
                    Step::Pass(ms) => driven.now += Duration::from_millis(ms),
                }
                let machine = &driven.machine;
                prop_assert!(machine.hung() <= MAX_HUNG);
                prop_assert!(machine.incidents.len() < MAX_INCIDENTS);
                prop_assert!(machine.samples.len() <= 120);
                prop_assert_eq!(machine.current(), driven.runs.map(|(number, _)| number));
                prop_assert!(!(machine.retry.is_some() && machine.current().is_some()));
                // What is switched off comes back by itself.
                if machine.state() == State::BackingOff {
                    prop_assert!(machine.retry.is_some_and(|at| at <= driven.now + LAST_BACK_OFF));
                }
            }
        }
    }

    #[test]
    fn back_off_doubles_and_a_good_minute_ends_it() {
        let mut driven = Driven::new();
        driven.wanted = Some(1);
        let what = driven.machine.want(Some(1), false);
        driven.act(what, true);
        let mut waits = Vec::new();
        for _ in 0..12 {
            for incident in 1..=MAX_INCIDENTS {
                let number = driven.machine.current().unwrap();
                let what = driven.machine.trouble(driven.now, number, Trouble::Panicked);
                assert_eq!(matches!(what, Do::SwitchOff(_)), incident == MAX_INCIDENTS);
                driven.act(what, true);
            }
            let at = driven.machine.retry.unwrap();
            waits.push((at - driven.now).as_secs());
            assert_eq!(driven.machine.state(), State::BackingOff);
            assert_eq!(driven.machine.tick(at - Duration::from_millis(1)), Do::Nothing);
            driven.now = at;
            let what = driven.machine.tick(at);
            assert_eq!(what, Do::Replace(Cause::BackOff));
            driven.act(what, true);
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        driven.now += WINDOW;
        assert_eq!(driven.machine.tick(driven.now), Do::Nothing);
        assert_eq!(driven.machine.strikes, 0);
        // Two incidents a minute apart are no series.
        for _ in 0..6 {
            let number = driven.machine.current().unwrap();
            let what = driven.machine.trouble(driven.now, number, Trouble::Died);
            assert_eq!(what, Do::Replace(Cause::Died));
            driven.act(what, true);
            driven.now += WINDOW / 2;
        }
    }

    #[test]
    fn eight_stuck_threads_are_the_end() {
        let mut driven = Driven::new();
        driven.wanted = Some(1);
        let what = driven.machine.want(Some(1), false);
        driven.act(what, true);
        for stuck in 1..=MAX_HUNG {
            let number = driven.machine.current().unwrap();
            let what = driven.machine.trouble(driven.now, number, Trouble::Hung);
            assert_eq!(what == Do::Ban, stuck == MAX_HUNG, "{stuck}: {what:?}");
            driven.act(what, true);
            driven.now += WINDOW;
            let what = driven.machine.tick(driven.now);
            driven.act(what, true);
        }
        assert_eq!(driven.machine.state(), State::Off);
        driven.wanted = Some(2);
        assert_eq!(driven.machine.want(Some(2), true), Do::Nothing);
    }

    #[test]
    fn processor_time_counts_over_ten_seconds() {
        let mut machine = Machine::<u8>::new();
        machine.want(Some(1), false);
        machine.trying();
        let start = Instant::now();
        machine.succeeded(start, 1);
        let second = |n: u64| start + Duration::from_secs(n);
        let mut cpu = Duration::ZERO;
        for n in 0..10 {
            assert_eq!(machine.sample(second(n), cpu, 0, (0.5, 8)), None, "second {n}");
            cpu += Duration::from_millis(900);
        }
        let reason = machine.sample(second(10), cpu, 0, (0.5, 8)).unwrap();
        assert!(reason.contains("90 %") && reason.contains("50 %"), "{reason}");
        assert_eq!(machine.state(), State::OverBudget);
        let back = (11..30).find(|n| machine.sample(second(*n), cpu, 0, (0.5, 8)).is_some());
        assert_eq!((back, machine.state()), (Some(16), State::Running));
        assert!(machine.sample(second(30), cpu, 8, (0.5, 8)).unwrap().contains("8 messages"));
        assert_eq!(machine.sample(second(31), cpu, 5, (0.5, 8)), None);
        assert_eq!(machine.sample(second(32), cpu, 4, (0.5, 8)), Some(String::new()));
    }
}
