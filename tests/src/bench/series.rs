//! Goodput over time, as the timed rows measured it: `series.json`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::timed::{BUCKET, Received};

/// Buckets of the measurement that make one of the file.
const GATHERED: usize = 5;

/// Something that happened to all runs of a row.
#[derive(Clone, Debug)]
pub(super) struct Mark {
    /// From the first byte written.
    pub(super) at: Duration,
    pub(super) what: String,
}

/// The runs of one row.
#[derive(Clone, Debug, Default)]
struct Runs {
    /// Mbit/s in each span.
    rates: Vec<Vec<f64>>,
    mark: Option<Mark>,
}

/// What was measured over time so far.
#[derive(Debug, Default)]
pub(super) struct Series {
    rows: BTreeMap<String, Runs>,
}

impl Series {
    /// Notes what a run received.
    pub(super) fn add(&mut self, row: &str, received: &Received) {
        let seconds = (BUCKET * GATHERED as u32).as_secs_f64();
        let rate = |span: &[u64]| span.iter().sum::<u64>() as f64 * 8.0 / 1e6 / seconds;
        // A last span that is not whole has no rate to compare.
        let rates = received.buckets.chunks_exact(GATHERED).map(rate).collect();
        self.rows.entry(row.to_owned()).or_default().rates.push(rates);
    }

    /// Notes what happened. The runs of a row differ by a few milliseconds in
    /// when: the first is kept.
    pub(super) fn mark(&mut self, row: &str, mark: Mark) {
        self.rows.entry(row.to_owned()).or_default().mark.get_or_insert(mark);
    }

    /// One entry for each row.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&str, Value)> {
        self.rows.iter().map(|(row, runs)| {
            // Three digits after the point are bytes.
            let round = |rate: &f64| (rate * 1000.0).round() / 1000.0;
            let rates: Vec<Vec<f64>> =
                runs.rates.iter().map(|run| run.iter().map(round).collect()).collect();
            let mut entry = json!({
                "unit": "Mbit/s",
                "span": (BUCKET * GATHERED as u32).as_secs_f64(),
                "runs": rates,
            });
            if let Some(mark) = &runs.mark {
                entry["mark"] = json!({ "at": mark.at.as_secs_f64(), "what": mark.what });
            }
            (row.as_str(), entry)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_in_megabits_per_second() {
        let mut series = Series::default();
        // 125,000 bytes in 10 ms are 100 Mbit/s; the eleventh bucket is over.
        let mut buckets = vec![125_000; 5];
        buckets.extend([0, 0, 0, 0, 125_000, 7]);
        series.add("row", &Received { start: Duration::ZERO, buckets });
        series.mark("row", Mark { at: Duration::from_millis(20), what: "x".to_owned() });
        let (row, entry) = series.entries().next().unwrap();
        assert_eq!(row, "row");
        assert_eq!(entry["runs"], json!([[100.0, 20.0]]));
        assert_eq!(entry["span"], json!(0.05));
        assert_eq!(entry["mark"], json!({ "at": 0.02, "what": "x" }));
    }
}
