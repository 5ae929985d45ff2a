//! How fast the path delivers: one sample per acknowledgement
//! (draft-ietf-ccwg-bbr, section 4.1, "Delivery Rate Samples").
//!
//! Every segment remembers what had been delivered when it was sent; when it
//! arrives, the difference over the longer of the time that sending and the
//! time that acknowledging took is a rate that the path has sustained.

use std::time::Duration;

use crate::time::Time;

/// What a segment remembers of the moment it was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stamp {
    delivered: u64,
    delivered_at: Time,
    flight_started: Time,
    /// Bytes in flight, this segment included.
    in_flight: u32,
    lost: u64,
    app_limited: bool,
}

/// The sampler of one stream.
#[derive(Debug, Default)]
pub(super) struct Rate {
    delivered: u64,
    delivered_at: Time,
    flight_started: Time,
    lost: u64,
    /// Delivered bytes up to which samples are limited by the application; 0
    /// when it is not.
    app_limited_until: u64,
}

/// What an acknowledgement says of the path's rate.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RateSample {
    /// Bytes per second; `None` when the acknowledgement delivered nothing new
    /// or the interval was too short to mean anything.
    pub(crate) rate: Option<u64>,
    /// Bytes delivered before the newest segment that this acknowledges was
    /// sent.
    pub(crate) prior_delivered: u64,
    /// Bytes delivered since the newest acknowledged segment was sent.
    pub(crate) delivered: u64,
    /// Bytes in flight when that segment had been sent.
    pub(crate) flight: usize,
    /// Bytes lost since that segment was sent.
    pub(crate) lost: u64,
    /// The application, not the path, set the rate.
    pub(crate) app_limited: bool,
}

/// The newest segment that an acknowledgement covers.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Newest(Option<(Stamp, Time)>);

impl Rate {
    /// A segment of `len` bytes leaves while `in_flight` bytes are out.
    pub(super) fn sent(&mut self, len: usize, in_flight: usize, now: Time) -> Stamp {
        if in_flight == 0 {
            self.flight_started = now;
            self.delivered_at = now;
        }
        Stamp {
            delivered: self.delivered,
            delivered_at: self.delivered_at,
            flight_started: self.flight_started,
            in_flight: u32::try_from(in_flight + len).unwrap_or(u32::MAX),
            lost: self.lost,
            app_limited: self.app_limited_until > 0,
        }
    }

    /// A segment that was sent at `sent` has arrived.
    pub(super) fn arrived(
        &mut self,
        stamp: Stamp,
        sent: Time,
        len: usize,
        newest: &mut Newest,
        now: Time,
    ) {
        self.delivered += len as u64;
        self.delivered_at = now;
        let newer = newest.0.is_none_or(|(n, at)| (stamp.delivered, sent) >= (n.delivered, at));
        if newer {
            newest.0 = Some((stamp, sent));
        }
    }

    pub(super) fn lost(&mut self, bytes: usize) {
        self.lost += bytes as u64;
    }

    /// Total bytes delivered.
    pub(super) fn delivered(&self) -> u64 {
        self.delivered
    }

    /// The application has nothing more to send while `in_flight` bytes are
    /// out.
    pub(super) fn app_limited(&mut self, in_flight: usize) {
        self.app_limited_until = (self.delivered + in_flight as u64).max(1);
    }

    /// The sample of an acknowledgement whose newest segment is `newest`.
    /// Intervals shorter than the least round trip are noise.
    pub(super) fn sample(&mut self, newest: Newest, min_rtt: Option<Duration>) -> RateSample {
        if self.app_limited_until > 0 && self.delivered > self.app_limited_until {
            self.app_limited_until = 0;
        }
        let Some((stamp, sent)) = newest.0 else { return RateSample::default() };
        self.flight_started = sent;
        let sending = sent.since(stamp.flight_started);
        let acknowledging = self.delivered_at.since(stamp.delivered_at);
        let interval = sending.max(acknowledging);
        let delivered = self.delivered - stamp.delivered;
        let valid = !interval.is_zero() && min_rtt.is_none_or(|min| interval >= min);
        let rate = valid.then(|| {
            let per_second = u128::from(delivered) * 1_000_000_000 / interval.as_nanos();
            u64::try_from(per_second).unwrap_or(u64::MAX)
        });
        RateSample {
            rate,
            prior_delivered: stamp.delivered,
            delivered,
            flight: stamp.in_flight as usize,
            lost: self.lost - stamp.lost,
            app_limited: stamp.app_limited,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_steady_flow_is_sampled_at_its_rate() {
        let mut rate = Rate::default();
        let mut now = Time::ZERO;
        let mut flight = std::collections::VecDeque::new();
        let mut last = RateSample::default();
        // 1,000 bytes a millisecond over a path of 10 ms.
        for step in 0..100u32 {
            let in_flight = flight.len() * 1000;
            flight.push_back((rate.sent(1000, in_flight, now), now));
            now = now + MS;
            if step >= 10 {
                let (stamp, sent) = flight.pop_front().expect("in flight");
                let mut newest = Newest::default();
                rate.arrived(stamp, sent, 1000, &mut newest, now);
                last = rate.sample(newest, Some(MS * 10));
            }
        }
        assert_eq!(last.rate, Some(1_000_000));
        assert_eq!((last.lost, last.app_limited), (0, false));
    }

    #[test]
    fn samples_of_an_idle_application_say_so() {
        let mut rate = Rate::default();
        let stamp = rate.sent(1000, 0, Time::ZERO);
        rate.app_limited(1000);
        let limited = rate.sent(1000, 1000, Time::ZERO);
        assert!(!stamp.app_limited && limited.app_limited);
        let now = Time::ZERO + MS;
        for stamp in [stamp, limited] {
            let mut newest = Newest::default();
            rate.arrived(stamp, Time::ZERO, 1000, &mut newest, now);
            rate.sample(newest, None);
        }
        assert!(!rate.sent(1000, 0, now).app_limited, "all of it has arrived");
    }

    #[test]
    fn what_was_lost_in_between_is_counted() {
        let mut rate = Rate::default();
        rate.lost(7);
        let stamp = rate.sent(1000, 0, Time::ZERO);
        rate.lost(500);
        let mut newest = Newest::default();
        rate.arrived(stamp, Time::ZERO, 1000, &mut newest, Time::ZERO + MS);
        assert_eq!(rate.sample(newest, None).lost, 500);
    }
}
