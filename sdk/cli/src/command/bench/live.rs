//! What a person sees while it runs, on standard error: a row each second, the
//! row of this moment below it, and how far it is.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::milliseconds;
use super::samples::{Sample, rates};
use super::transfer::Amount;
use super::watch::PathFacts;
use crate::output::{Output, bytes, microseconds};

/// Between two rows that stay, in milliseconds.
const ROW_MS: u64 = 1000;

pub(super) struct Live {
    bar: ProgressBar,
    amount: Amount,
    /// The sample of the last row that stays, and the last of all.
    row: Sample,
    last: Sample,
}

impl Live {
    /// Draws nothing unless a person is watching.
    pub(super) fn new(out: &Output, amount: Amount) -> Self {
        let total = match amount {
            Amount::Bytes(size) => size,
            Amount::Time(time) => milliseconds(time),
        };
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
        if let Ok(style) = ProgressStyle::with_template("{msg}\n{bar:40} {percent:>3} %") {
            bar.set_style(style);
        }
        if out.shows_progress() {
            bar.set_draw_target(ProgressDrawTarget::stderr());
            bar.println(header());
        }
        Self { bar, amount, row: Sample::default(), last: Sample::default() }
    }

    pub(super) fn show(&mut self, sample: &Sample, path: &PathFacts) {
        if self.bar.is_hidden() {
            return;
        }
        if sample.t_ms >= self.row.t_ms + ROW_MS {
            self.bar.println(line(&self.row, sample, path));
            self.row = *sample;
        }
        self.bar.set_message(line(&self.last, sample, path));
        self.bar.set_position(match self.amount {
            Amount::Bytes(_) => sample.received,
            Amount::Time(_) => sample.t_ms,
        });
        self.last = *sample;
    }

    /// Ends with the row of what is left, and takes away what moves.
    pub(super) fn end(&self, sample: &Sample, path: &PathFacts) {
        if sample.t_ms > self.row.t_ms {
            self.bar.println(line(&self.row, sample, path));
        }
        self.bar.finish_and_clear();
    }
}

fn header() -> String {
    row(["TIME", "SENT", "ECHOED", "RETRANSMITTED", "RTT", "WINDOW", "PATH MTU"].map(String::from))
}

/// What happened from `before` to `now`.
fn line(before: &Sample, now: &Sample, path: &PathFacts) -> String {
    let (sent, echoed) = rates(before, now);
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    // Since the row before, like the rates.
    let again = now.retransmits.map(|n| n.saturating_sub(before.retransmits.unwrap_or(0)));
    row([
        format!("{:.1} s", now.t_ms as f64 / 1e3),
        format!("{:.1} MB/s", sent / 1e6),
        format!("{:.1} MB/s", echoed / 1e6),
        or_dash(again.map(|n| n.to_string())),
        or_dash(now.srtt_us.map(microseconds)),
        or_dash(now.cwnd.map(bytes)),
        or_dash(path.mtu.map(|mtu| mtu.to_string())),
    ])
}

/// Columns that stay where they are, in 80 of a terminal.
fn row(cells: [String; 7]) -> String {
    const WIDTHS: [usize; 7] = [8, 12, 12, 14, 9, 11, 9];
    cells.iter().zip(WIDTHS).map(|(cell, width)| format!("{cell:>width$}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stand_below_their_header() {
        let before =
            Sample { t_ms: 1000, sent: 1_000_000, retransmits: Some(2), ..Sample::default() };
        let now = Sample {
            t_ms: 1500,
            sent: 501_000_000,
            received: 250_000_000,
            cwnd: Some(262_144),
            srtt_us: Some(1_250),
            retransmits: Some(5),
        };
        let path = PathFacts { mtu: Some(65_507), congestion: "cubic".to_owned() };
        assert_eq!(
            [header(), line(&before, &now, &path)].join("\n"),
            "    TIME        SENT      ECHOED RETRANSMITTED      RTT     WINDOW PATH MTU\n   \
             1.5 s 1000.0 MB/s  500.0 MB/s             3  1.25 ms 256.00 KiB    65507"
        );
        assert!(header().len() < 80);
        let unknown = Sample { t_ms: 2000, ..Sample::default() };
        let text = line(&Sample::default(), &unknown, &PathFacts::default());
        assert_eq!(text.split_whitespace().filter(|cell| *cell == "-").count(), 4, "{text}");
    }
}
