//! What a phase of the fleet took: counts, times, refusals.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use pilot_wire::registry::ErrorReply;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::output::microseconds;

/// Longest time that is told apart; a longer one counts as this.
const LONGEST: Duration = Duration::from_secs(600);
/// Different codes of refusals that are told apart; the rest are `other`.
const MAX_CODES: usize = 32;

/// Times and refusals of one connection or of all.
#[derive(Debug)]
pub(super) struct Tally {
    /// Microseconds, to two digits.
    times: Histogram<u32>,
    refusals: BTreeMap<String, u64>,
}

impl Tally {
    pub(super) fn new() -> Result<Self, Failure> {
        let longest = u64::try_from(LONGEST.as_micros()).unwrap_or(u64::MAX);
        let times = Histogram::new_with_bounds(1, longest, 2)
            .map_err(|e| Failure::internal(format!("cannot measure: {e}")))?;
        Ok(Self { times, refusals: BTreeMap::new() })
    }

    /// Notes an answer and how long it took.
    pub(super) fn took(&mut self, time: Duration) {
        let us = time.min(LONGEST).as_micros();
        self.times.saturating_record(u64::try_from(us).unwrap_or(u64::MAX));
    }

    /// Notes that an answer was a refusal.
    pub(super) fn refused(&mut self, reply: &ErrorReply) {
        let code = reply.code.as_deref().unwrap_or(&reply.error);
        let known = self.refusals.len() < MAX_CODES || self.refusals.contains_key(code);
        let code = if known { code } else { "other" };
        *self.refusals.entry(code.to_owned()).or_default() += 1;
    }

    pub(super) fn add(&mut self, other: &Self) -> Result<(), Failure> {
        self.times
            .add(&other.times)
            .map_err(|e| Failure::internal(format!("cannot measure: {e}")))?;
        for (code, n) in &other.refusals {
            *self.refusals.entry(code.clone()).or_default() += n;
        }
        Ok(())
    }
}

/// A phase that is over.
#[derive(Debug)]
pub(crate) struct Phase {
    pub(crate) name: &'static str,
    time: Duration,
    tally: Tally,
}

impl Phase {
    pub(super) const fn new(name: &'static str, time: Duration, tally: Tally) -> Self {
        Self { name, time, tally }
    }

    /// Refusals by code.
    pub(crate) fn refusals(&self) -> impl Iterator<Item = (&str, u64)> {
        self.tally.refusals.iter().map(|(code, n)| (code.as_str(), *n))
    }

    fn per_second(&self) -> f64 {
        self.tally.times.len() as f64 / self.time.as_secs_f64().max(1e-9)
    }

    fn quantile(&self, quantile: f64) -> u64 {
        self.tally.times.value_at_quantile(quantile)
    }

    pub(crate) fn to_json(&self) -> Value {
        let ms = |us: u64| us as f64 / 1e3;
        json!({
            "requests": self.tally.times.len(),
            "seconds": self.time.as_secs_f64(),
            "per_second": self.per_second(),
            "p50_ms": ms(self.quantile(0.5)),
            "p99_ms": ms(self.quantile(0.99)),
            "max_ms": ms(self.tally.times.max()),
            "refused": self.refusals().map(|(_, n)| n).sum::<u64>(),
            "refusals": self.tally.refusals,
        })
    }

    pub(crate) fn row(&self) -> Vec<String> {
        vec![
            self.name.to_owned(),
            self.tally.times.len().to_string(),
            format!("{:.2}", self.time.as_secs_f64()),
            format!("{:.0}", self.per_second()),
            microseconds(self.quantile(0.5)),
            microseconds(self.quantile(0.99)),
            microseconds(self.tally.times.max()),
            self.refusals().map(|(_, n)| n).sum::<u64>().to_string(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_add_up() {
        let mut all = Tally::new().expect("a tally");
        for ms in [1, 2, 100] {
            let mut one = Tally::new().expect("a tally");
            one.took(Duration::from_millis(ms));
            let code = Some("private".to_owned());
            one.refused(&ErrorReply { code, ..ErrorReply::default() });
            all.add(&one).expect("equal bounds");
        }
        all.took(Duration::from_secs(100_000));
        let phase = Phase::new("test", Duration::from_secs(2), all);
        let data = phase.to_json();
        assert_eq!((&data["requests"], &data["per_second"]), (&json!(4), &json!(2.0)));
        assert_eq!((&data["refused"], &data["refusals"]["private"]), (&json!(3), &json!(3)));
        let p50 = data["p50_ms"].as_f64().expect("a number");
        assert!((1.9..2.1).contains(&p50), "{data}");
    }

    #[test]
    fn codes_are_bounded() {
        let mut tally = Tally::new().expect("a tally");
        for n in 0..1000 {
            let code = Some(format!("code_{n}"));
            tally.refused(&ErrorReply { code, ..ErrorReply::default() });
        }
        assert_eq!(tally.refusals.len(), MAX_CODES + 1);
        assert_eq!(tally.refusals.values().sum::<u64>(), 1000);
    }
}
