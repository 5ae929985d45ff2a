//! `make bench`: the rows of docs/PERFORMANCE.md, measured on real processes.
//!
//! The bench program runs the daemons and registry like a user does, and itself
//! again as client and server application (`bench role ...`), so that every
//! side is a process of its own. The program of `tests/peers` does the same with
//! other projects' transports, and runs the rows of `peers`.

mod client;
mod cost;
mod loss;
mod peers;
mod plugins;
mod process_platform;
mod receiver;
mod registry;
mod registry_load;
mod registry_push;
mod registry_state;
mod report;
mod rows;
mod series;
mod server;
mod timed;
mod transport;
mod workers;

use anyhow::{Result, bail, ensure};
use report::Report;
pub(crate) use report::target_dir;
use rows::Plan;
use transport::Others;
pub use transport::{Answer, Dial, Io, Listen, Stream, Transport};

/// What the command line asks for.
const USAGE: &str = "usage: bench [--quick] [--only ROW[,ROW...]] [--set KEY=VALUE]
  --quick      smaller workloads, for a look; figures are not comparable and go
               to target/bench/quick
  --only ROW   only the workloads that give these rows (prefix, e.g. stream.)
  --set K=V    a setting of the daemons, for a comparison";

/// Runs the program of `make bench`.
///
/// # Errors
/// When the command line is wrong or a workload cannot be run.
pub fn main(args: &[String]) -> Result<()> {
    program(args, &[])
}

/// Runs the program of `make bench-peers`, which compares with these.
///
/// # Errors
/// When the command line is wrong or a workload cannot be run.
pub fn main_with_peers(args: &[String], peers: &[&dyn Transport]) -> Result<()> {
    ensure!(!peers.is_empty(), "nothing to compare with");
    program(args, peers)
}

fn program(args: &[String], others: Others<'_>) -> Result<()> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    if let ["role", rest @ ..] = args.as_slice() {
        return role(rest, others);
    }
    let mut plan = Plan::default();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        match *arg {
            "--quick" => plan.quick = true,
            "--only" => match rest.next() {
                Some(rows) => plan.only.extend(rows.split(',').map(str::to_owned)),
                None => bail!("--only needs a row\n{USAGE}"),
            },
            "--set" => match rest.next().and_then(|pair| pair.split_once('=')) {
                Some((key, value)) => plan.settings.push((key.to_owned(), value.to_owned())),
                None => bail!("--set needs KEY=VALUE\n{USAGE}"),
            },
            "--help" | "-h" => {
                println!("{USAGE}");
                return Ok(());
            }
            other => bail!("unknown argument {other}\n{USAGE}"),
        }
    }
    let mut report = Report::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        match others {
            [] => rows::run(&plan, &mut report).await,
            _ => peers::run(&plan, &mut report).await,
        }
    });
    // What was measured before a failure is worth having.
    report.print();
    let path = report.write(plan.quick)?;
    println!("\nwritten to {}", path.display());
    outcome
}

/// Runs as one application of a workload.
fn role(args: &[&str], others: Others<'_>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match args {
            ["serve", rest @ ..] => server::run(rest, others).await,
            ["client", rest @ ..] => client::run(rest, others).await,
            ["workers", rest @ ..] => workers::application(rest).await,
            ["registry", rest @ ..] => registry_load::run(rest).await,
            _ => bail!("unknown role {args:?}"),
        }
    })
}
