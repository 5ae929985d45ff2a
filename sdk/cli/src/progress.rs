//! Progress of long work on standard error: how much, rate and time left.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::Output;

/// A bar for `total` bytes; invisible unless a person is watching.
pub(crate) fn bar(out: &Output, what: &str, total: u64) -> ProgressBar {
    let template =
        "{msg} {bar:30} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta} left";
    styled(out, what, total, template)
}

/// A bar for `total` of something; invisible unless a person is watching.
pub(crate) fn count(out: &Output, what: &str, total: u64) -> ProgressBar {
    styled(out, what, total, "{msg:10} {bar:30} {human_pos}/{human_len} {per_sec} {eta} left")
}

fn styled(out: &Output, what: &str, total: u64, template: &str) -> ProgressBar {
    if !out.shows_progress() {
        return ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
    }
    let bar = ProgressBar::new(total);
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(what.to_owned());
    bar
}
