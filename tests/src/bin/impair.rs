//! `impair`: puts a bad network between a UDP client and a server. Prints a
//! ready line as JSON to standard output, statistics every second and at its
//! end to standard error.

use std::net::{SocketAddr, ToSocketAddrs};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use pilot_tests::impair::{
    Counters, HEADERS, Profile, Relay, Statistics, parse_duration, parse_queue, parse_rate,
    parse_share,
};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

const USAGE: &str = "usage: impair --to HOST:PORT [options]
  --to HOST:PORT      where datagrams go
  --listen HOST:PORT  where they come from           [127.0.0.1:0]
  --rate RATE         bottleneck, e.g. 100mbit       [unlimited]
  --delay TIME        one way, e.g. 50ms             [0ms]
  --jitter TIME       more or less delay; in order   [0ms]
  --loss SHARE        lost after the bottleneck      [0%]
  --reorder SHARE     held back by a quarter of the delay, at least 1 ms [0%]
  --duplicate SHARE   delivered twice                [0%]
  --queue LENGTH      1bdp (rate x twice the delay), 64KiB, ... [1bdp]
  --mtu BYTES         largest IP packet; 28 bytes of headers count [1500]
  --seed N            same seed, same chances        [random, printed]
Each direction is a link of its own with these properties.";

struct Arguments {
    listen: SocketAddr,
    to: SocketAddr,
    profile: Profile,
    seed: u64,
}

fn resolve(text: &str) -> Result<SocketAddr> {
    let mut found = text.to_socket_addrs().with_context(|| format!("{text:?}: no HOST:PORT"))?;
    found.next().with_context(|| format!("{text:?} has no address"))
}

fn arguments() -> Result<Option<Arguments>> {
    let mut profile = Profile::default();
    let mut listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let (mut to, mut seed) = (None, rand::random());
    let mut given = std::env::args().skip(1);
    while let Some(name) = given.next() {
        if matches!(name.as_str(), "--help" | "-h") {
            return Ok(None);
        }
        let value = given.next().with_context(|| format!("{name} needs a value\n{USAGE}"))?;
        let bad = || format!("{name} {value}");
        match name.as_str() {
            "--listen" => listen = resolve(&value).with_context(bad)?,
            "--to" => to = Some(resolve(&value).with_context(bad)?),
            "--rate" => profile.rate = parse_rate(&value).with_context(bad)?,
            "--delay" => profile.delay = parse_duration(&value).with_context(bad)?,
            "--jitter" => profile.jitter = parse_duration(&value).with_context(bad)?,
            "--loss" => profile.loss = parse_share(&value).with_context(bad)?,
            "--reorder" => profile.reorder = parse_share(&value).with_context(bad)?,
            "--duplicate" => profile.duplicate = parse_share(&value).with_context(bad)?,
            "--queue" => profile.queue = parse_queue(&value).with_context(bad)?,
            "--mtu" => profile.mtu = value.parse().with_context(bad)?,
            "--seed" => seed = value.parse().with_context(bad)?,
            _ => bail!("unknown argument {name}\n{USAGE}"),
        }
    }
    let Some(to) = to else { bail!("--to is missing\n{USAGE}") };
    anyhow::ensure!(profile.mtu > HEADERS, "--mtu {}: headers take {HEADERS}", profile.mtu);
    Ok(Some(Arguments { listen, to, profile, seed }))
}

/// One direction between two looks.
fn show(now: &Counters, before: &Counters, seconds: f64) -> String {
    let mbit = |bytes: u64, datagrams: u64| {
        (bytes + datagrams * HEADERS as u64) as f64 * 8.0 / 1e6 / seconds
    };
    format!(
        "{:7.2} Mbit/s in {:7.2} out, lost {} queue {} mtu {}",
        mbit(now.offered_bytes - before.offered_bytes, now.offered - before.offered),
        mbit(now.delivered_bytes - before.delivered_bytes, now.delivered - before.delivered),
        now.lost - before.lost,
        now.queue_full - before.queue_full,
        now.too_large - before.too_large,
    )
}

fn summary(all: &Statistics) -> String {
    let direction = |c: &Counters| {
        format!(
            "{} datagrams ({} bytes) in, {} ({} bytes) out; {} lost, {} beyond the queue, \
             {} beyond the MTU, {} reordered, {} duplicated; longest queue {} bytes",
            c.offered,
            c.offered_bytes,
            c.delivered,
            c.delivered_bytes,
            c.lost,
            c.queue_full,
            c.too_large,
            c.reordered,
            c.duplicated,
            c.longest_queue
        )
    };
    format!(
        "to the target: {}\nback: {}\nsent late: median {:?}, p99 {:?}, worst {:?}; \
         {} from strangers, {} not sent",
        direction(&all.up),
        direction(&all.down),
        all.lateness.quantile(0.5),
        all.lateness.quantile(0.99),
        all.lateness.worst,
        all.strangers,
        all.send_errors
    )
}

async fn run(arguments: Arguments) -> Result<()> {
    let Arguments { listen, to, profile, seed } = arguments;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let relay = Relay::listen(listen, to, profile, seed)?;
    let ready = json!({
        "ready": "impair",
        "listen": relay.near().to_string(),
        "to": to.to_string(),
        "queue_bytes": profile.queue_bytes(),
        "seed": seed,
    });
    println!("{ready}");
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    seconds.tick().await;
    let mut looked = tokio::time::Instant::now();
    let mut before = relay.statistics();
    loop {
        tokio::select! {
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            _ = seconds.tick() => {
                let (now, at) = (relay.statistics(), tokio::time::Instant::now());
                let span = (at - looked).as_secs_f64();
                eprintln!("to the target {}", show(&now.up, &before.up, span));
                eprintln!("back          {}", show(&now.down, &before.down, span));
                (before, looked) = (now, at);
            }
        }
    }
    eprintln!("{}", summary(&relay.statistics()));
    Ok(())
}

fn main() -> ExitCode {
    let outcome = arguments().and_then(|arguments| {
        let Some(arguments) = arguments else {
            println!("{USAGE}");
            return Ok(());
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(run(arguments))
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("impair: {error:#}");
            ExitCode::from(2)
        }
    }
}
