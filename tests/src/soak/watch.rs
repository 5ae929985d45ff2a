//! What two daemons hold on to: memory, file descriptors, and what they sent
//! again.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use pilot_sdk::Client;

use crate::harness::resident_bytes;

/// Memory in bytes and file descriptors of the dialling and the accepting
/// daemon.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) memory: [f64; 2],
    pub(super) files: [f64; 2],
}

/// Looks at both daemons.
pub(super) struct Watch {
    client: Client,
    pids: [u32; 2],
    /// Of each connection that was listed when last looked.
    seen: BTreeMap<u64, u64>,
    retransmits: u64,
}

impl Watch {
    pub(super) fn new(client: Client, pids: [u32; 2]) -> Self {
        Self { client, pids, seen: BTreeMap::new(), retransmits: 0 }
    }

    pub(super) async fn look(&mut self) -> Result<Sample> {
        let info = self.client.info_json().await.context("the dialling daemon does not answer")?;
        let mut seen = BTreeMap::new();
        for connection in info["conn_list"].as_array().context("no conn_list")? {
            let number = |key: &str| connection[key].as_u64();
            let (Some(id), Some(again)) = (number("id"), number("retransmits")) else { continue };
            self.retransmits += again - self.seen.get(&id).copied().unwrap_or(0).min(again);
            seen.insert(id, again);
        }
        self.seen = seen;
        let [a, b] = self.pids.map(resident_bytes);
        let files = self.files()?;
        Ok(Sample { memory: [a? as f64, b? as f64], files: files.map(|n| n as f64) })
    }

    /// Segments that the dialling daemon sent again; what a connection did
    /// after it was last looked at is not in it.
    pub(super) fn retransmits(&self) -> u64 {
        self.retransmits
    }

    /// Open file descriptors.
    pub(super) fn files(&self) -> Result<[usize; 2]> {
        let [a, b] = self.pids.map(|pid| -> Result<usize> {
            let folder = format!("/proc/{pid}/fd");
            Ok(std::fs::read_dir(&folder).with_context(|| folder.clone())?.count())
        });
        Ok([a?, b?])
    }
}

/// Medians of memory and file descriptors in a part of the run.
pub(super) fn medians(
    samples: &[(Duration, Sample)],
    from: Duration,
    to: Duration,
) -> ([f64; 2], [f64; 2]) {
    let part = |value: &dyn Fn(&Sample) -> f64| {
        let within = samples.iter().filter(|(at, _)| (from..to).contains(at));
        let mut values: Vec<f64> = within.map(|(_, sample)| value(sample)).collect();
        values.sort_unstable_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(0.0)
    };
    ([0, 1].map(|i| part(&|s| s.memory[i])), [0, 1].map(|i| part(&|s| s.files[i])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_of_its_part_only() {
        let sample = |n: u32| Sample { memory: [f64::from(n), 1.0], files: [2.0, f64::from(n)] };
        let samples: Vec<_> =
            (0..100).map(|n| (Duration::from_secs(n.into()), sample(n))).collect();
        let (memory, files) = medians(&samples, Duration::from_secs(20), Duration::from_secs(31));
        assert_eq!((memory, files), ([25.0, 1.0], [2.0, 25.0]));
        let none = medians(&samples, Duration::from_secs(200), Duration::from_secs(300));
        assert_eq!(none, ([0.0; 2], [0.0; 2]));
    }
}
