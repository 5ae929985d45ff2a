//! The replay window: which counters of one (key, nonce prefix) were seen.

/// Counters remembered below the highest one seen.
pub(crate) const WINDOW: u64 = 8192;

const WORDS: usize = (WINDOW / 64) as usize;

/// A ring bitmap under the highest counter (as in RFC 6479). A fresh window
/// accepts any counter but 0.
#[derive(Clone, Debug)]
pub(crate) struct ReplayWindow {
    highest: u64,
    bits: Box<[u64; WORDS]>,
}

impl ReplayWindow {
    pub(crate) fn new() -> Self {
        Self { highest: 0, bits: Box::new([0; WORDS]) }
    }

    /// The highest counter recorded.
    pub(crate) fn highest(&self) -> u64 {
        self.highest
    }

    /// Whether `counter` may still be accepted. Changes nothing: a frame is
    /// recorded only once its tag was verified.
    pub(crate) fn allows(&self, counter: u64) -> bool {
        if counter == 0 {
            return false;
        }
        if counter > self.highest {
            return true;
        }
        if self.highest - counter >= WINDOW {
            return false;
        }
        let (word, bit) = slot(counter);
        self.bits[word] & bit == 0
    }

    /// Records an authenticated counter. Returns whether it is the highest yet.
    pub(crate) fn record(&mut self, counter: u64) -> bool {
        let newest = counter > self.highest;
        if newest {
            self.clear_between(self.highest, counter);
            self.highest = counter;
        }
        let (word, bit) = slot(counter);
        self.bits[word] |= bit;
        newest
    }

    /// Forgets the counters in `(from, to]`, whose slots are used again.
    fn clear_between(&mut self, from: u64, to: u64) {
        if to - from >= WINDOW {
            self.bits.fill(0);
            return;
        }
        for counter in from + 1..=to {
            let (word, bit) = slot(counter);
            self.bits[word] &= !bit;
        }
    }
}

fn slot(counter: u64) -> (usize, u64) {
    let index = counter % WINDOW;
    // Below WINDOW / 64, so it fits.
    ((index / 64) as usize, 1 << (index % 64))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    /// The obvious implementation: a set, and the bound below the highest.
    #[derive(Default)]
    struct Model {
        highest: u64,
        seen: HashSet<u64>,
    }

    impl Model {
        fn accept(&mut self, counter: u64) -> bool {
            let old = self.highest >= WINDOW && counter <= self.highest - WINDOW;
            if counter == 0 || old || !self.seen.insert(counter) {
                return false;
            }
            self.highest = self.highest.max(counter);
            true
        }
    }

    #[test]
    fn agrees_with_a_set_on_random_sequences() {
        for seed in 0..50 {
            let mut rng = StdRng::seed_from_u64(seed);
            let (mut window, mut model) = (ReplayWindow::new(), Model::default());
            let mut base = 1u64;
            for step in 0..4000 {
                if rng.random_ratio(1, 100) {
                    base += rng.random_range(0..2 * WINDOW);
                }
                base += 1;
                let counter = base.saturating_sub(rng.random_range(0..WINDOW + 200));
                let got = window.allows(counter);
                if got {
                    window.record(counter);
                }
                assert_eq!(got, model.accept(counter), "seed {seed}, step {step}, {counter}");
            }
        }
    }

    /// The published window holds 256 counters, this one more: what it accepts
    /// is accepted, and so is what only lies too far back for it. Counter 0,
    /// which it takes first, is never used and never taken here.
    #[test]
    fn agrees_with_the_published_window_inside_its_width() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/replay_window.json");
        let text = std::fs::read_to_string(file).expect("the vectors are there");
        let vectors: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let mut compared = 0;
        for case in vectors["cases"].as_array().expect("a list") {
            let (mut window, mut highest) = (ReplayWindow::new(), 0u64);
            let mut seen = HashSet::new();
            for step in case["steps"].as_array().expect("a list") {
                let counter = step["counter"].as_str().expect("text").parse().expect("a number");
                let accepted = window.allows(counter);
                if accepted {
                    window.record(counter);
                }
                let too_far_back = highest.saturating_sub(counter) >= 256;
                let expected = counter != 0
                    && (step["accepted"] == true || (too_far_back && !seen.contains(&counter)));
                if highest.saturating_sub(counter) < WINDOW {
                    assert_eq!(accepted, expected, "{}: {counter}", case["name"]);
                    compared += 1;
                }
                highest = highest.max(counter);
                if accepted {
                    seen.insert(counter);
                }
            }
        }
        assert!(compared > 15, "{compared} steps");
    }

    #[test]
    fn survives_the_last_counter() {
        let mut window = ReplayWindow::new();
        assert!(window.allows(u64::MAX));
        assert!(window.record(u64::MAX));
        assert!(!window.allows(u64::MAX));
        assert!(window.allows(u64::MAX - 1));
        assert!(!window.allows(1));
    }
}
