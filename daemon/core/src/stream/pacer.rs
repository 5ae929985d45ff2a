//! Spreads what is sent over time, in bursts that one system call carries.
//!
//! A token bucket with one timer: when it has run dry, nothing is sent until it
//! holds a whole burst again, so that pacing costs one wake-up a burst and not
//! one a packet.

use std::time::Duration;

use crate::time::Time;

/// What one wake-up sends: a millisecond's worth, which is how fine timers
/// are...
const BURST: Duration = Duration::from_millis(1);
/// ...and what a late wake-up may make up for.
const SLACK: Duration = Duration::from_millis(3);
/// Segments that may always leave together: less would send packets in pairs
/// at low rates and double the wake-ups (RFC 9002, section 7.7, allows ten).
const MIN_BURST_SEGMENTS: usize = 4;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pacer {
    /// When the bucket was, or will be, empty.
    empty_at: Time,
    /// The bucket fills until then.
    hold_until: Option<Time>,
}

impl Pacer {
    /// Whether something may be sent now.
    pub(super) fn allows(&self, now: Time) -> bool {
        self.hold_until.is_none_or(|at| at <= now)
    }

    /// When something may be sent again, if not now.
    pub(super) fn next(&self) -> Option<Time> {
        self.hold_until
    }

    /// A hold that has passed is no deadline any more, whatever else holds the
    /// stream back.
    pub(super) fn expire(&mut self, now: Time) {
        self.hold_until = self.hold_until.filter(|at| *at > now);
    }

    /// `len` bytes leave, at `rate` bytes per second.
    pub(super) fn sent(&mut self, len: usize, segment: usize, rate: Option<u64>, now: Time) {
        let Some(rate) = rate.filter(|r| *r > 0) else {
            *self = Self::default();
            return;
        };
        let time = |bytes: u64| Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / rate);
        let few = time((MIN_BURST_SEGMENTS * segment) as u64);
        let most = SLACK.max(few);
        self.empty_at = self.empty_at.max(now - most) + time(len as u64);
        self.hold_until = (self.empty_at >= now).then(|| self.empty_at + BURST.max(few));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_kept_over_time_and_bursts_are_bounded() {
        let (rate, segment) = (12_500_000, 1400);
        let mut pacer = Pacer::default();
        let mut now = Time::ZERO + Duration::from_secs(1);
        let start = now;
        let (mut sent, mut burst, mut largest, mut wakes) = (0u64, 0, 0, 0u32);
        while now.since(start) < Duration::from_secs(1) {
            if pacer.allows(now) {
                pacer.sent(segment, segment, Some(rate), now);
                sent += segment as u64;
                burst += segment;
                largest = largest.max(burst);
            } else {
                // Timers are late by up to half a millisecond.
                let late = Duration::from_micros(u64::from(wakes % 5) * 125);
                now = pacer.next().expect("held") + late;
                (burst, wakes) = (0, wakes + 1);
            }
        }
        assert!((12_400_000..12_600_000).contains(&sent), "{sent} bytes in a second");
        assert!(largest <= 52_000, "{largest} bytes at once");
        assert!(wakes <= 1000, "{wakes} wake-ups");
    }

    #[test]
    fn slow_streams_send_a_few_segments_at_once() {
        let mut pacer = Pacer::default();
        let now = Time::ZERO + Duration::from_secs(1);
        let mut count = 0;
        while pacer.allows(now) {
            pacer.sent(1000, 1000, Some(10_000), now);
            count += 1;
        }
        assert_eq!(count, 4);
        assert_eq!(pacer.next(), Some(now + Duration::from_millis(400)));
    }

    #[test]
    fn without_a_rate_nothing_is_held() {
        let mut pacer = Pacer::default();
        pacer.sent(1 << 20, 1000, None, Time::ZERO);
        assert!(pacer.allows(Time::ZERO));
    }
}
