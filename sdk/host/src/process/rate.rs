//! How much a child may say: so many a second, and twice as many at once, as
//! what it counts by its own clock may arrive together.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

pub(super) struct Rate {
    per_second: f64,
    state: Mutex<State>,
}

struct State {
    left: f64,
    at: Instant,
    left_out: u64,
}

impl Rate {
    pub(super) fn new(per_second: u32) -> Self {
        let per_second = f64::from(per_second);
        let state = State { left: 2.0 * per_second, at: Instant::now(), left_out: 0 };
        Self { per_second, state: Mutex::new(state) }
    }

    /// Whether one more may pass; otherwise it is counted.
    pub(super) fn take(&self) -> bool {
        self.take_at(Instant::now())
    }

    fn take_at(&self, now: Instant) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let more = now.saturating_duration_since(state.at).as_secs_f64() * self.per_second;
        state.left = (state.left + more).min(2.0 * self.per_second);
        state.at = now;
        if state.left < 1.0 {
            state.left_out += 1;
            return false;
        }
        state.left -= 1.0;
        true
    }

    /// How many were left out since it was last asked.
    pub(super) fn left_out(&self) -> u64 {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut state.left_out)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_too_much_is_left_out_and_counted() {
        let rate = Rate::new(10);
        let now = Instant::now();
        assert_eq!((0..50).filter(|_| rate.take_at(now)).count(), 20);
        assert_eq!((rate.left_out(), rate.left_out()), (30, 0));
        let later = now + Duration::from_secs(1);
        assert_eq!((0..50).filter(|_| rate.take_at(later)).count(), 10);
    }
}
