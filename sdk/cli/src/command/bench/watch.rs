//! Asks the daemon how the connection does while data moves.

use std::time::{Duration, Instant};

use pilot_sdk::{Client, ConnectionInfo};

use super::milliseconds;
use super::samples::{Sample, Samples};
use super::transfer::Progress;

/// Between two questions.
const INTERVAL: Duration = Duration::from_millis(100);
/// An answer takes at most this share of the time: a daemon with thousands of
/// connections tells of all of them, which must not become what is measured.
const SHARE: u32 = 20;
/// A daemon that does not answer for so long is not waited for.
const LIMIT: Duration = Duration::from_secs(1);

/// What a path and its connection are, beside what changes all the time.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct PathFacts {
    /// Bytes of UDP payload.
    pub(super) mtu: Option<u64>,
    /// Name of the congestion controller, empty if not told.
    pub(super) congestion: String,
}

pub(super) struct Watch {
    client: Client,
    connection: u32,
    samples: Samples,
    path: PathFacts,
    min_rtt_us: Option<u64>,
    /// How long the last answer took.
    took: Duration,
}

impl Watch {
    pub(super) fn new(client: Client, connection: u32) -> Self {
        Self {
            client,
            connection,
            samples: Samples::new(),
            path: PathFacts::default(),
            min_rtt_us: None,
            took: Duration::ZERO,
        }
    }

    /// Until the next question.
    pub(super) fn pause(&self) -> Duration {
        INTERVAL.max(self.took * SHARE)
    }

    /// Takes a sample now.
    pub(super) async fn take(&mut self, progress: &Progress) {
        let asked = Instant::now();
        let info = tokio::time::timeout(LIMIT, self.client.info()).await;
        self.took = asked.elapsed();
        let list = info.ok().and_then(Result::ok).map(|info| info.conn_list).unwrap_or_default();
        let found = list.into_iter().find(|c| c.id == self.connection);
        // The bytes are those of the moment of the answer.
        self.add(progress, found);
    }

    /// Takes the last sample. When the daemon tells of the connection no more,
    /// what it told last stands.
    pub(super) async fn finish(&mut self, progress: &Progress) {
        let before = *self.samples.last();
        let end = milliseconds(progress.start.elapsed());
        self.take(progress).await;
        let last = *self.samples.last();
        self.samples.amend(Sample {
            t_ms: end,
            sent: progress.sent(),
            cwnd: last.cwnd.or(before.cwnd),
            srtt_us: last.srtt_us.or(before.srtt_us),
            retransmits: last.retransmits.or(before.retransmits),
            ..last
        });
        self.samples.finish();
    }

    fn add(&mut self, progress: &Progress, connection: Option<ConnectionInfo>) {
        let mut sample = Sample {
            t_ms: milliseconds(progress.start.elapsed()),
            sent: progress.sent(),
            received: progress.received(),
            ..Sample::default()
        };
        if let Some(c) = connection {
            // A published daemon tells milliseconds.
            let srtt = if c.srtt_us > 0 { c.srtt_us } else { (c.srtt_ms * 1e3) as u64 };
            // What was written leaves the daemon in its own time; what was sent
            // again is in its count, so that it may be more.
            sample.sent = sample.sent.min(c.bytes_sent);
            sample.cwnd = Some(c.cong_win);
            sample.srtt_us = (srtt > 0).then_some(srtt);
            sample.retransmits = Some(c.retransmits);
            self.min_rtt_us = (c.min_rtt_us > 0).then_some(c.min_rtt_us).or(self.min_rtt_us);
            self.path.mtu = (c.path_mtu > 0).then_some(c.path_mtu).or(self.path.mtu);
            if !c.congestion.is_empty() {
                self.path.congestion = c.congestion;
            }
        }
        // An answer that is missing must not make it fall later.
        sample.sent = sample.sent.max(self.samples.last().sent);
        self.samples.push(sample);
    }

    pub(super) fn last(&self) -> &Sample {
        self.samples.last()
    }

    pub(super) fn samples(&self) -> &[Sample] {
        self.samples.kept()
    }

    pub(super) fn path(&self) -> &PathFacts {
        &self.path
    }

    pub(super) fn min_rtt_us(&self) -> Option<u64> {
        self.min_rtt_us
    }
}
