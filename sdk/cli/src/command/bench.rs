//! `bench`: how fast data goes to a peer's echo port and back, and how the
//! connection does meanwhile.

mod live;
mod plot;
mod samples;
mod transfer;
mod watch;

use std::path::Path;
use std::time::{Duration, SystemTime};

use pilot_sdk::{Address, Congestion, Stream};
use serde_json::json;
use tokio::time::{sleep, timeout};

use crate::args::{Args, number};
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::{Answer, microseconds, or_dash, rfc3339};
use crate::peer;
use crate::spec::{Flag, Spec};

use live::Live;
use plot::Plot;
use samples::Sample;
use transfer::{Amount, Progress, Times};
use watch::Watch;

pub(crate) const SPEC: Spec = Spec {
    name: "bench",
    usage: "bench <address|hostname> [size_mb] [--duration <dur>] [--congestion <name>] [--plot <file.svg>] [--timeout <dur>]",
    about: "Measure the throughput to a peer's echo port and back",
    returns: "target, sent_bytes, recv_bytes, send_duration_ms, total_duration_ms, send_mbps, total_mbps (MiB/s), retransmits, srtt_us, min_rtt_us (null if the daemon does not tell), samples (t_ms, sent, received, cwnd, srtt_us, retransmits); with --plot: plot",
    flags: &[
        Flag::value("duration", "dur", "send for so long, instead of size_mb"),
        Flag::value("congestion", "name", "congestion control to send with: cubic, newreno or bbr"),
        Flag::value("plot", "file.svg", "draw throughput, congestion window and RTT over time"),
        Flag::switch("force", "let --plot replace a file"),
        Flag::value("timeout", "dur", "for everything, default 120s more than --duration"),
    ],
    positionals: (1, 2),
    run: |cx, args| Box::pin(run(cx, args)),
};

/// The echo port.
const PORT: u16 = 7;
const MIB: f64 = 1_048_576.0;
/// Without `--timeout`.
const PATIENCE: Duration = Duration::from_secs(120);

async fn run(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let amount = amount(args)?;
    let sending = if let Amount::Time(time) = amount { time } else { Duration::ZERO };
    let patience = args.duration("timeout", PATIENCE.saturating_add(sending))?;
    let file = plot_file(args)?;
    let congestion = congestion(args)?;
    let client = cx.client().await?;
    let address = peer::resolve(cx, &client, args.at(0)?).await?;
    let stream = peer::dial(&client, address, PORT).await?;
    if let Some(congestion) = congestion {
        stream.set_congestion(congestion).map_err(|e| {
            Failure::daemon(&format!("--congestion {congestion}"), &e)
                .hint("restart the daemon in this version, or leave --congestion out")
        })?;
    }
    // A connection of its own, so that questions do not wait behind data.
    let mut watch = Watch::new(cx.client().await?, stream.id());
    let progress = Progress::new(amount);
    let result = measure(cx, stream, &mut watch, &progress, patience).await;
    let received = progress.received();
    let times = match result {
        Some(times) => times?,
        None => {
            return Err(Failure::timeout(format!(
                "{address} echoed {received} of {} bytes within {} s",
                progress.total().unwrap_or(progress.sent()),
                patience.as_secs_f64()
            ))
            .hint(format!("increase with --timeout, or check peer: pilotctl ping {address}")));
        }
    };
    let size = progress.sent();
    let rate = |duration: Duration| size as f64 / duration.as_secs_f64().max(1e-9);
    let last = watch.last();
    let mut data = json!({
        "target": address,
        "sent_bytes": size,
        "recv_bytes": received,
        "send_duration_ms": milliseconds(times.sent),
        "total_duration_ms": milliseconds(times.total),
        "send_mbps": rate(times.sent) / MIB,
        "total_mbps": rate(times.total) / MIB,
        "retransmits": last.retransmits,
        "srtt_us": last.srtt_us,
        "min_rtt_us": watch.min_rtt_us(),
        "samples": watch.samples().iter().copied().map(Sample::to_json).collect::<Vec<_>>(),
    });
    let mut fields = summary(&times, &progress, &watch);
    if let Some(file) = file {
        let plot = Plot {
            peer: named(args.at(0)?, address),
            when: rfc3339(unix_now()),
            congestion: watch.path().congestion.clone(),
            path_mtu: watch.path().mtu,
            sent: size,
            samples: watch.samples(),
        };
        write_plot(file, &plot.to_svg(), args.is_set("force")).map_err(|f| f.data(data.clone()))?;
        data["plot"] = json!(file);
        fields.push(("plot", file.to_owned()));
    }
    Ok(Answer::new(data, cx.out.fields(&fields)))
}

/// Runs the transfer and watches it; `None` when it took longer than `patience`.
async fn measure(
    cx: &Cx,
    stream: Stream,
    watch: &mut Watch,
    progress: &Progress,
    patience: Duration,
) -> Option<Result<Times, Failure>> {
    let address = stream.remote_addr().address;
    let (mut read, mut write) = stream.into_split();
    let mut live = Live::new(&cx.out, progress.amount());
    let transfer = timeout(patience, transfer::both(&mut read, &mut write, progress, address));
    tokio::pin!(transfer);
    let result = loop {
        tokio::select! {
            result = &mut transfer => break result,
            () = sleep(watch.pause()) => {}
        }
        // The transfer goes on while the daemon is asked.
        tokio::select! {
            result = &mut transfer => break result,
            () = watch.take(progress) => {}
        }
        live.show(watch.last(), watch.path());
    };
    // Before the stream goes, and with it what the daemon tells of it.
    watch.finish(progress).await;
    live.end(watch.last(), watch.path());
    result.ok()
}

/// What a person is told at the end.
fn summary(times: &Times, progress: &Progress, watch: &Watch) -> Vec<(&'static str, String)> {
    let flow = |what: u64, time: Duration| {
        let seconds = time.as_secs_f64();
        format!("{what} bytes in {seconds:.3} s, {:.1} MB/s", what as f64 / seconds.max(1e-9) / 1e6)
    };
    let mut fields = vec![
        ("sent", flow(progress.sent(), times.sent)),
        ("echoed", flow(progress.received(), times.total)),
    ];
    let (last, path) = (watch.last(), watch.path());
    if let Some(retransmits) = last.retransmits {
        fields.push(("retransmitted", format!("{retransmits} segments")));
    }
    if let Some(srtt) = last.srtt_us {
        let shortest = watch.min_rtt_us().map(|us| format!(", shortest {}", microseconds(us)));
        fields.push((
            "round trip",
            format!("{}{}", microseconds(srtt), shortest.unwrap_or_default()),
        ));
    }
    if let Some(mtu) = path.mtu {
        let control = or_dash(&path.congestion);
        fields.push(("path", format!("MTU {mtu} bytes, congestion control {control}")));
    }
    fields
}

fn amount(args: &Args) -> Result<Amount, Failure> {
    if args.value("duration").is_some() {
        if args.get(1).is_some() {
            return Err(Failure::invalid("size_mb and --duration exclude each other"));
        }
        let time = args.duration("duration", Duration::ZERO)?;
        if time.is_zero() {
            return Err(Failure::invalid("invalid --duration: it is nothing")
                .hint("write a duration like 10s, 1m or 500ms"));
        }
        return Ok(Amount::Time(time));
    }
    let size_mb: f64 = args.get(1).map_or(Ok(1.0), |text| number("size_mb", text))?;
    if !size_mb.is_finite() || size_mb <= 0.0 || size_mb > 1e9 {
        return Err(Failure::invalid(format!("invalid size_mb \"{size_mb}\""))
            .hint("write a number of MiB above 0, like 100 or 0.5"));
    }
    // Within f64's exact integers, as checked above.
    Ok(Amount::Bytes((size_mb * MIB) as u64))
}

/// What `--congestion` names.
fn congestion(args: &Args) -> Result<Option<Congestion>, Failure> {
    let parsed = args.value("congestion").map(str::parse::<Congestion>).transpose();
    parsed.map_err(|e| Failure::invalid(format!("--congestion {e}")))
}

/// The file of `--plot`, refused before anything is measured if it is there.
fn plot_file(args: &Args) -> Result<Option<&str>, Failure> {
    let Some(file) = args.value("plot") else {
        return match args.is_set("force") {
            true => Err(Failure::invalid("--force is for --plot, which is not there")),
            false => Ok(None),
        };
    };
    if file.is_empty() {
        return Err(Failure::invalid("--plot needs a file name: --plot <file.svg>"));
    }
    let path = Path::new(file);
    if path.is_dir() {
        return Err(Failure::invalid(format!("--plot {file}: is a folder, not a file")));
    }
    if path.symlink_metadata().is_ok() && !args.is_set("force") {
        return Err(there_already(file));
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        let folder = folder.display();
        return Err(Failure::not_found(format!("--plot {file}: there is no folder {folder}")));
    }
    Ok(Some(file))
}

fn there_already(file: &str) -> Failure {
    Failure::new("already_exists", format!("--plot {file}: the file exists"))
        .hint("choose another name, or replace it with --force")
}

fn write_plot(file: &str, svg: &str, replace: bool) -> Result<(), Failure> {
    use std::io::Write;
    let mut options = std::fs::OpenOptions::new();
    options.write(true);
    if replace {
        options.create(true).truncate(true)
    } else {
        options.create_new(true)
    };
    match options.open(file).and_then(|mut f| f.write_all(svg.as_bytes())) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Err(there_already(file)),
        Err(e) => Err(Failure::internal(format!("--plot {file}: cannot be written"))
            .reason(e)
            .hint("choose a file in a folder that you may write to")),
    }
}

/// The peer as it was written, and its address where that is something else.
fn named(target: &str, address: Address) -> String {
    let address = address.to_string();
    if target == address { address } else { format!("{target} ({address})") }
}

fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
