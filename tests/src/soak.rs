//! Connections that come and go for minutes over a path that loses datagrams:
//! every byte is checked, and memory and file descriptors must stay flat.

mod app;
mod watch;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::task::JoinSet;

use crate::harness::{Daemon, LIFTED, Network, Pattern, establish_trust, eventually};
use crate::impair::{Profile, Relay};

use app::{Counts, Server};
use watch::{Sample, Watch};

/// How often a line is printed.
const LINE: Duration = Duration::from_secs(10);
/// How often memory and file descriptors are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// One way through the relay.
const DELAY: Duration = Duration::from_millis(5);
/// Connections may take this long after the end of the run: the last ones have
/// a lifetime to go, and losses to recover from.
const FINISH: Duration = Duration::from_secs(60);
/// Memory at the end may be above that of the third tenth by this share...
const MEMORY_SHARE: f64 = 0.10;
/// ...and this much: what an allocator keeps of a burst, in bytes.
const MEMORY_SLACK: f64 = (2 << 20) as f64;
/// File descriptors may differ by this many: a client that looks in.
const FILES_SLACK: f64 = 4.0;

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How long connections are made.
    pub length: Duration,
    /// Connections open at once.
    pub connections: usize,
    /// Share of datagrams lost in each direction.
    pub loss: f64,
    /// Longest life of a connection.
    pub lifetime: Duration,
    /// Seed of sizes, lifetimes and losses.
    pub seed: u64,
}

impl Default for Plan {
    /// Ten minutes with 200 connections under one per cent of loss.
    fn default() -> Self {
        Self {
            length: Duration::from_secs(600),
            connections: 200,
            loss: 0.01,
            lifetime: Duration::from_secs(20),
            seed: 1,
        }
    }
}

/// What a run showed.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Connections whose bytes all arrived as they were sent, both ways.
    pub whole: u64,
    /// Connections that were dropped on purpose in the middle.
    pub abandoned: u64,
    /// What went wrong, the first of each kind; empty when nothing did.
    pub errors: Vec<String>,
    /// Datagrams that the relay lost.
    pub lost: u64,
    /// Memory of both daemons in the third and the last tenth of the run, in
    /// bytes.
    pub memory: [[f64; 2]; 2],
    /// File descriptors of both daemons likewise.
    pub files: [[f64; 2]; 2],
    /// File descriptors of both before the first connection and after the last.
    pub files_idle: [[usize; 2]; 2],
}

impl Verdict {
    /// Whether no connection failed and nothing was left open.
    pub fn sound(&self) -> bool {
        let left = (0..2).any(|i| self.files_idle[1][i] > self.files_idle[0][i]);
        self.errors.is_empty() && self.whole > 0 && !left
    }

    /// Whether memory and file descriptors were flat. Says something only when
    /// the run was long enough for the first tenths to fill every buffer.
    pub fn flat(&self) -> bool {
        let within =
            |early: f64, late: f64, share: f64, slack: f64| late <= early * (1.0 + share) + slack;
        (0..2).all(|i| {
            within(self.memory[0][i], self.memory[1][i], MEMORY_SHARE, MEMORY_SLACK)
                && within(self.files[0][i], self.files[1][i], 0.0, FILES_SLACK)
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} connections whole, {} abandoned on purpose, {} datagrams lost on the way",
            self.whole, self.abandoned, self.lost
        )?;
        for error in &self.errors {
            writeln!(f, "error: {error}")?;
        }
        for (i, name) in ["dialling", "accepting"].into_iter().enumerate() {
            let mib = |tenth: usize| self.memory[tenth][i] / f64::from(1 << 20);
            writeln!(
                f,
                "{name} daemon: {:.1} MiB in the third tenth, {:.1} in the last (allowed: \
                 {:.0} % and {:.0} MiB more); file descriptors {:.0} and {:.0}, idle {} before \
                 and {} after",
                mib(0),
                mib(1),
                MEMORY_SHARE * 100.0,
                MEMORY_SLACK / f64::from(1 << 20),
                self.files[0][i],
                self.files[1][i],
                self.files_idle[0][i],
                self.files_idle[1][i],
            )?;
        }
        Ok(())
    }
}

/// Runs a soak; `say` gets a line every ten seconds.
///
/// # Errors
/// When the programs are not built, do not start or do not answer. What goes
/// wrong with a connection is in the verdict.
pub async fn run(plan: Plan, mut say: impl FnMut(String)) -> Result<Verdict> {
    let clean = Profile { delay: DELAY, ..Profile::default() };
    let network = Network::start()?;
    let relay = Relay::between(clean, plan.seed)?;
    let [a, b] = joined(&network, &relay).await?;
    let counts = Arc::new(Counts::default());
    let _server = Server::start(&b, counts.clone()).await?;
    let target = format!("{}:{}", b.address().await?, app::PORT);
    let client = Arc::new(a.client().await?);
    let mut watch = Watch::new(a.client().await?, [a.process.pid(), b.process.pid()]);
    let idle = watch.files()?;
    relay.set_profile(Profile { loss: plan.loss, ..clean });

    let start = Instant::now();
    let mut pattern = Pattern::new(plan.seed);
    let mut running = JoinSet::new();
    let mut samples: Vec<(Duration, Sample)> = Vec::new();
    let mut line = LINE;
    let mut look = tokio::time::interval(LOOK);
    while start.elapsed() < plan.length {
        while running.len() < plan.connections {
            let visit = app::Visit::random(&mut pattern, plan.lifetime);
            running.spawn(app::visit(client.clone(), target.clone(), visit, counts.clone()));
        }
        tokio::select! {
            _ = running.join_next() => {}
            _ = look.tick() => {
                let sample = watch.look().await?;
                let at = start.elapsed();
                samples.push((at, sample));
                if at >= line {
                    line += LINE;
                    say(describe(at, &counts, running.len(), sample, watch.retransmits()));
                }
            }
        }
    }
    let finished =
        tokio::time::timeout(FINISH, async { while running.join_next().await.is_some() {} });
    if finished.await.is_err() {
        let what = format!("{} connections do not end within {FINISH:?}", running.len());
        counts.fail(what);
        running.abort_all();
    }
    // What was dropped on purpose leaves when the other side has heard of it.
    let settled = eventually("both daemons to have as few files open as before", async || {
        let files = watch.files().ok()?;
        (files[0] <= idle[0] && files[1] <= idle[1]).then_some(files)
    });
    let after = match settled.await {
        Ok(files) => files,
        Err(_) => watch.files()?,
    };
    let tenth = |n: u32| watch::medians(&samples, plan.length * n / 10, plan.length * (n + 1) / 10);
    let ((early_memory, early_files), (late_memory, late_files)) = (tenth(2), tenth(9));
    let statistics = relay.statistics();
    Ok(Verdict {
        whole: counts.whole(),
        abandoned: counts.abandoned(),
        errors: counts.errors(),
        lost: statistics.up.lost + statistics.down.lost,
        memory: [early_memory, late_memory],
        files: [early_files, late_files],
        files_idle: [idle, after],
    })
}

/// Two daemons that reach each other through the relay only.
async fn joined(network: &Network, relay: &Relay) -> Result<[Daemon; 2]> {
    let far = relay.far().context("a relay without a far side")?;
    // Without a beacon nobody hears of an address behind the relay.
    let options = |name: &str, endpoint: std::net::SocketAddr| {
        let options = network.options(name).set("beacon", "");
        let options = options.set("endpoint", &endpoint.to_string());
        LIFTED.iter().fold(options, |options, (key, value)| options.set(key, value))
    };
    let a = Daemon::start(network.folder(), options("soak-a", far))?;
    let b = Daemon::start(network.folder(), options("soak-b", relay.near()))?;
    relay.connect(a.udp()?, b.udp()?);
    establish_trust(&a, &b).await?;
    let client = a.client().await?;
    let target = format!("{}:7", b.address().await?);
    eventually("a stream through the relay", async || client.dial(&target).await.ok()).await?;
    let before = relay.statistics().up.delivered_bytes;
    ensure!(before > 0, "the daemons reach each other without the relay");
    Ok([a, b])
}

fn describe(
    at: Duration,
    counts: &Counts,
    open: usize,
    sample: Sample,
    retransmits: u64,
) -> String {
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    format!(
        "{:>4} s: {} made, {} whole, {} abandoned, {open} open; {:.1} MB checked; at least \
         {retransmits} segments sent again; {:.1} and {:.1} MiB; {:.0} and {:.0} files{}",
        at.as_secs(),
        counts.made(),
        counts.whole(),
        counts.abandoned(),
        counts.bytes() as f64 / 1e6,
        mib(sample.memory[0]),
        mib(sample.memory[1]),
        sample.files[0],
        sample.files[1],
        if counts.errors().is_empty() { "" } else { "; ERRORS" },
    )
}
