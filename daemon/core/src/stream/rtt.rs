//! Round-trip time estimation and the retransmission timeout (RFC 6298).

use std::time::Duration;

/// RTO before the first sample (RFC 6298, section 2.1).
const INITIAL: Duration = Duration::from_secs(1);
/// Smallest and largest RTO (protocol page "Transport layer", section 1).
const MIN: Duration = Duration::from_millis(200);
const MAX: Duration = Duration::from_secs(10);
/// Smallest RTO towards a peer of ours, which does not delay an acknowledgement
/// for longer than [`Rtt::ack_delay`]. A timeout that was a mistake is undone.
const MIN_PROMPT: Duration = Duration::from_millis(50);
/// Longest and shortest delay of an acknowledgement (RFC 9293, section 3.8.6.3,
/// allows 500 ms; 40 ms as published).
pub(crate) const MAX_ACK_DELAY: Duration = Duration::from_millis(40);
const MIN_ACK_DELAY: Duration = Duration::from_millis(5);
/// Clock granularity G (same page).
const GRANULARITY: Duration = Duration::from_millis(10);

#[derive(Clone, Debug, Default)]
pub(crate) struct Rtt {
    smoothed: Option<Duration>,
    variation: Duration,
    min: Option<Duration>,
    backoff: u32,
    /// The peer is one of ours.
    prompt: bool,
}

impl Rtt {
    pub(crate) fn sample(&mut self, rtt: Duration) {
        self.min = Some(self.min.map_or(rtt, |min| min.min(rtt)));
        match self.smoothed {
            None => {
                self.smoothed = Some(rtt);
                self.variation = rtt / 2;
            }
            Some(srtt) => {
                self.variation = self.variation * 3 / 4 + srtt.abs_diff(rtt) / 4;
                self.smoothed = Some(srtt * 7 / 8 + rtt / 8);
            }
        }
    }

    /// The peer is one of ours: it delays acknowledgements as we do.
    pub(crate) fn peer_is_prompt(&mut self) {
        self.prompt = true;
    }

    /// How long an acknowledgement may wait for another segment: a quarter of
    /// the round trip between peers of ours.
    pub(crate) fn ack_delay(&self) -> Duration {
        match self.min {
            Some(min) if self.prompt => (min / 4).clamp(MIN_ACK_DELAY, MAX_ACK_DELAY),
            _ => MAX_ACK_DELAY,
        }
    }

    pub(crate) fn smoothed(&self) -> Option<Duration> {
        self.smoothed
    }

    pub(crate) fn variation(&self) -> Duration {
        self.variation
    }

    pub(crate) fn min(&self) -> Option<Duration> {
        self.min
    }

    /// The timeout now, with back-off.
    pub(crate) fn timeout(&self) -> Duration {
        let (min, wait) =
            if self.prompt { (MIN_PROMPT, self.ack_delay()) } else { (MIN, Duration::ZERO) };
        let base = self.smoothed.map_or(INITIAL, |srtt| {
            (srtt + GRANULARITY.max(self.variation * 4) + wait).clamp(min, MAX)
        });
        (base * 2u32.pow(self.backoff.min(16))).min(MAX)
    }

    /// The timer fired (RFC 6298, section 5.5).
    pub(crate) fn back_off(&mut self) {
        self.backoff += 1;
    }

    /// New data was acknowledged.
    pub(crate) fn reset_backoff(&mut self) {
        self.backoff = 0;
    }

    pub(crate) fn backoff(&self) -> u32 {
        self.backoff
    }
}
