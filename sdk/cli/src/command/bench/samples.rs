//! What was seen at each moment, in a bounded number of samples.

use serde_json::{Value, json};

/// Samples kept; beyond it every second one goes, and from then on half as
/// many are taken.
pub(super) const MOST: usize = 512;

/// One moment. What the daemon does not tell is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Sample {
    /// Milliseconds since the start.
    pub(super) t_ms: u64,
    /// Bytes sent so far: those that left the daemon where it tells, else those
    /// written to it.
    pub(super) sent: u64,
    /// Bytes that came back so far.
    pub(super) received: u64,
    /// Congestion window, bytes.
    pub(super) cwnd: Option<u64>,
    /// Smoothed round-trip time, microseconds.
    pub(super) srtt_us: Option<u64>,
    /// Segments sent again so far.
    pub(super) retransmits: Option<u64>,
}

impl Sample {
    pub(super) fn to_json(self) -> Value {
        json!({
            "t_ms": self.t_ms,
            "sent": self.sent,
            "received": self.received,
            "cwnd": self.cwnd,
            "srtt_us": self.srtt_us,
            "retransmits": self.retransmits,
        })
    }
}

/// Bytes per second sent and echoed between two moments.
pub(super) fn rates(from: &Sample, to: &Sample) -> (f64, f64) {
    let seconds = to.t_ms.saturating_sub(from.t_ms).max(1) as f64 / 1e3;
    let rate = |before: u64, after: u64| after.saturating_sub(before) as f64 / seconds;
    (rate(from.sent, to.sent), rate(from.received, to.received))
}

/// All samples, evenly thinned, and the last of all.
#[derive(Debug)]
pub(super) struct Samples {
    kept: Vec<Sample>,
    /// One of so many is kept.
    stride: usize,
    /// Samples since the last one kept.
    passed: usize,
    last: Sample,
}

impl Samples {
    /// Begins with a sample of nothing at time zero.
    pub(super) fn new() -> Self {
        let first = Sample::default();
        Self { kept: vec![first], stride: 1, passed: 0, last: first }
    }

    pub(super) fn push(&mut self, sample: Sample) {
        self.last = sample;
        self.passed += 1;
        if self.passed < self.stride {
            return;
        }
        self.passed = 0;
        self.kept.push(sample);
        if self.kept.len() == MOST {
            let mut odd = false;
            self.kept.retain(|_| {
                odd = !odd;
                odd
            });
            // The newest went, so that the distances stay equal.
            self.passed = self.stride;
            self.stride *= 2;
        }
    }

    /// Puts another sample in the place of the last.
    pub(super) fn amend(&mut self, sample: Sample) {
        if self.kept.len() > 1 && self.kept.last() == Some(&self.last) {
            self.kept.pop();
        }
        self.last = sample;
    }

    pub(super) fn last(&self) -> &Sample {
        &self.last
    }

    /// What is kept, with the last of all at the end.
    pub(super) fn finish(&mut self) {
        if self.kept.last() != Some(&self.last) {
            self.kept.push(self.last);
        }
    }

    pub(super) fn kept(&self) -> &[Sample] {
        &self.kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn their_number_is_bounded_and_they_stay_even() {
        let mut samples = Samples::new();
        for i in 1..=100_000u64 {
            samples.push(Sample { t_ms: i, sent: i * 10, ..Sample::default() });
            assert!(samples.kept().len() < MOST);
        }
        samples.finish();
        let kept = samples.kept();
        assert!((MOST / 2..=MOST).contains(&kept.len()), "{}", kept.len());
        assert_eq!((kept[0].t_ms, kept[kept.len() - 1].t_ms), (0, 100_000));
        let step = kept[1].t_ms - kept[0].t_ms;
        assert!(kept[..kept.len() - 1].windows(2).all(|w| w[1].t_ms - w[0].t_ms == step));
    }

    #[test]
    fn rates_are_those_of_the_interval() {
        let at = |t_ms, sent, received| Sample { t_ms, sent, received, ..Sample::default() };
        assert_eq!(rates(&at(500, 100, 0), &at(1000, 1100, 50)), (2000.0, 100.0));
        assert_eq!(rates(&at(5, 0, 0), &at(5, 1, 1)), (1000.0, 1000.0), "no division by zero");
    }
}
