//! Looking again for a moment before sleeping. To be woken from sleep costs a
//! request more than everything that the loop does for it, on virtual machines
//! above all, where an idle core is given back to the host.
//!
//! It is done only while it pays: after turns that moved little, as requests and
//! answers do, and while the waits before were short. A loop that is idle sleeps
//! at once, and one that moves much is better off with what gathers meanwhile.

use std::time::{Duration, Instant};

/// Longest look.
const LOOK: Duration = Duration::from_micros(60);
/// A wait up to this long would have been worth a look.
const SHORT: Duration = Duration::from_micros(150);
/// A turn that moved more than this is no request or answer.
const LITTLE: usize = 8 << 10;
/// So many short waits in a row are wanted before the first look.
const WANTED: u32 = 4;

/// Whether to look, learned from the waits so far.
#[derive(Default)]
pub(super) struct Spin {
    short: u32,
    /// Bytes the turn has moved through the tunnel's socket.
    pub(super) moved: usize,
}

impl Spin {
    /// Until when to look before this wait, if at all.
    pub(super) fn until(&mut self, now: Instant) -> Option<Instant> {
        let little = std::mem::take(&mut self.moved) <= LITTLE;
        (little && self.short >= WANTED).then(|| now + LOOK)
    }

    /// A wait has ended.
    pub(super) fn waited(&mut self, time: Duration) {
        self.short = if time <= SHORT { self.short.saturating_add(1) } else { 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_short_waits_after_small_turns_are_worth_it() {
        let now = Instant::now();
        let mut spin = Spin::default();
        assert_eq!(spin.until(now), None);
        for _ in 0..WANTED {
            spin.waited(SHORT);
        }
        assert_eq!(spin.until(now), Some(now + LOOK));
        spin.moved = LITTLE + 1;
        assert_eq!(spin.until(now), None, "much was moved");
        assert_eq!(spin.until(now), Some(now + LOOK), "that was the turn before");
        spin.waited(SHORT + Duration::from_nanos(1));
        assert_eq!(spin.until(now), None, "nothing comes");
    }
}
