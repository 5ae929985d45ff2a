//! Counts as Prometheus text, version 0.0.4. Names and bounds of what the
//! published registry has are the published ones.

use std::fmt::Write as _;
use std::sync::atomic::Ordering::Relaxed;

use super::histogram::Seen;
use super::{Kind, Metrics};

/// Something that is looked at when it is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Gauge {
    /// Name.
    pub(crate) name: &'static str,
    /// For people.
    pub(crate) help: &'static str,
    /// Whether it only grows.
    pub(crate) counter: bool,
    /// Value.
    pub(crate) value: f64,
}

impl Gauge {
    /// A value of now.
    pub(crate) fn now(name: &'static str, help: &'static str, value: u64) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "no gauge is near 2^53")]
        let value = value as f64;
        Self { name, help, counter: false, value }
    }

    /// A count since the start.
    pub(crate) fn count(name: &'static str, help: &'static str, value: u64) -> Self {
        Self { counter: true, ..Self::now(name, help, value) }
    }
}

/// Everything, with `gauges` of elsewhere.
pub(crate) fn render(metrics: &Metrics, gauges: &[Gauge]) -> String {
    let mut out = String::with_capacity(16 * 1024);
    requests(&mut out, metrics);
    for (name, help, kind) in [
        ("pilot_registrations_total", "Registrations.", "register"),
        ("pilot_deregistrations_total", "Nodes that left by themselves.", "deregister"),
        ("pilot_trust_reports_total", "Statements of trust.", "report_trust"),
        ("pilot_trust_revocations_total", "Trust that was ended.", "revoke_trust"),
        ("pilot_handshake_requests_total", "Handshake requests.", "request_handshake"),
    ] {
        single(&mut out, &Gauge::count(name, help, metrics.succeeded(kind)));
    }
    let uptime = Gauge::now("pilot_uptime_seconds", "Time since the start.", 0);
    single(&mut out, &Gauge { value: metrics.uptime().as_secs_f64(), ..uptime });
    gauges.iter().for_each(|gauge| single(&mut out, gauge));
    let connections = &metrics.connections;
    for gauge in [
        Gauge::now("pilot_connections", "Open connections.", connections.open.load(Relaxed)),
        Gauge::count(
            "pilot_connections_accepted_total",
            "Accepted connections.",
            connections.accepted.load(Relaxed),
        ),
        Gauge::count(
            "pilot_connections_refused_total",
            "Connections beyond max-connections.",
            connections.refused.load(Relaxed),
        ),
        Gauge::count(
            "pilot_pushes_total",
            "Batches of news sent on sessions.",
            connections.pushes.load(Relaxed),
        ),
        Gauge::count(
            "pilot_tls_handshakes_failed_total",
            "TLS handshakes that came to nothing.",
            connections.failed_handshakes.load(Relaxed),
        ),
    ] {
        single(&mut out, &gauge);
    }
    store(&mut out, metrics);
    admin(&mut out, metrics);
    out
}

fn requests(out: &mut String, metrics: &Metrics) {
    let totals: Vec<_> = Kind::all()
        .map(|kind| (kind.name(), metrics.requests().total(kind)))
        .filter(|(_, total)| total.count > 0)
        .collect();
    head(out, "pilot_requests_total", "Requests answered, by type.", "counter");
    for (kind, total) in &totals {
        line(out, "pilot_requests_total", &format!("type=\"{kind}\""), total.count);
    }
    head(out, "pilot_errors_total", "Requests answered with an error, by type.", "counter");
    for (kind, total) in totals.iter().filter(|(_, total)| total.errors > 0) {
        line(out, "pilot_errors_total", &format!("type=\"{kind}\""), total.errors);
    }
    let name = "pilot_request_duration_seconds";
    head(out, name, "Time from a request to its answer, by type.", "histogram");
    for (kind, total) in &totals {
        histogram(out, name, &format!("type=\"{kind}\""), &total.durations);
    }
}

fn store(out: &mut String, metrics: &Metrics) {
    let store = &metrics.store;
    for (name, help, seen) in [
        ("pilot_store_batch_commands", "Commands made durable together.", store.batch.seen()),
        ("pilot_store_commit_seconds", "Time to make them durable.", store.commit.seen()),
        ("pilot_store_checkpoint_seconds", "Time of checkpoints.", store.checkpoint.seen()),
    ] {
        head(out, name, help, "histogram");
        histogram(out, name, "", &seen);
    }
    single(
        out,
        &Gauge::count(
            "pilot_store_errors_total",
            "Writes of the store that failed.",
            store.errors.load(Relaxed),
        ),
    );
    single(
        out,
        &Gauge::now(
            "pilot_store_failing",
            "1 while the last write has failed.",
            u64::from(store.failing.load(Relaxed)),
        ),
    );
    single(
        out,
        &Gauge::now(
            "pilot_store_log_commands",
            "Commands since the last checkpoint of this run.",
            store.log.load(Relaxed),
        ),
    );
}

fn admin(out: &mut String, metrics: &Metrics) {
    head(out, "pilot_http_answers_total", "Answers of this server, by status.", "counter");
    for (class, count) in metrics.admin.answers.iter().enumerate().skip(1) {
        let label = format!("status=\"{class}xx\"");
        line(out, "pilot_http_answers_total", &label, count.load(Relaxed));
    }
    single(
        out,
        &Gauge::count(
            "pilot_admin_denied_total",
            "Requests that needed an administrator and were refused.",
            metrics.admin.denied.load(Relaxed),
        ),
    );
    single(
        out,
        &Gauge::count(
            "pilot_admin_slow_listeners_total",
            "Listeners of live events that were dropped as too slow.",
            metrics.admin.slow.load(Relaxed),
        ),
    );
}

// Writing to a String does not fail.

fn head(out: &mut String, name: &str, help: &str, kind: &str) {
    let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
}

fn single(out: &mut String, gauge: &Gauge) {
    let kind = if gauge.counter { "counter" } else { "gauge" };
    head(out, gauge.name, gauge.help, kind);
    let _ = writeln!(out, "{} {}", gauge.name, gauge.value);
}

fn line(out: &mut String, name: &str, labels: &str, value: u64) {
    let _ = writeln!(out, "{name}{{{labels}}} {value}");
}

fn histogram(out: &mut String, name: &str, labels: &str, seen: &Seen) {
    let comma = if labels.is_empty() { "" } else { "," };
    let braces = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
    for (bound, count) in &seen.buckets {
        let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {count}");
    }
    let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {}", seen.count);
    let _ = writeln!(out, "{name}_sum{braces} {}", seen.sum);
    let _ = writeln!(out, "{name}_count{braces} {}", seen.count);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_as_prometheus_reads_it() {
        let metrics = Metrics::default();
        metrics.requests().answered(Kind::of("register"), 200_000, false);
        metrics.requests().answered(Kind::of("bogus"), 1, true);
        metrics.store.committed(3, std::time::Duration::from_millis(2), None);
        let text = render(&metrics, &[Gauge::now("pilot_nodes_total", "Nodes.", 7)]);
        for wanted in [
            "pilot_requests_total{type=\"register\"} 1\n",
            "pilot_errors_total{type=\"unknown\"} 1\n",
            "pilot_request_duration_seconds_bucket{type=\"register\",le=\"0.0001\"} 0\n",
            "pilot_request_duration_seconds_bucket{type=\"register\",le=\"0.00025\"} 1\n",
            "pilot_request_duration_seconds_bucket{type=\"register\",le=\"+Inf\"} 1\n",
            "pilot_request_duration_seconds_sum{type=\"register\"} 0.0002\n",
            "# TYPE pilot_nodes_total gauge\npilot_nodes_total 7\n",
            "pilot_registrations_total 1\n",
            "pilot_store_batch_commands_bucket{le=\"4\"} 1\n",
            "pilot_store_commit_seconds_count 1\n",
            "pilot_store_log_commands 3\n",
        ] {
            assert!(text.contains(wanted), "{wanted:?} is missing in\n{text}");
        }
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(name.starts_with("pilot_") && value.parse::<f64>().is_ok(), "{line}");
        }
        let mut heads: Vec<_> = text.lines().filter(|l| l.starts_with("# TYPE")).collect();
        let count = heads.len();
        heads.sort_unstable();
        heads.dedup();
        assert_eq!(heads.len(), count);
    }
}
