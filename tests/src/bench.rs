//! `make bench`: the rows of docs/PERFORMANCE.md, measured on real processes.
//!
//! The bench program runs the daemons and registry like a user does, and itself
//! again as client and server application (`bench role ...`), so that every
//! side is a process of its own.

mod client;
mod loss;
mod registry_load;
mod report;
mod rows;
mod server;
mod transport;
mod workers;

use anyhow::{Result, bail};
use report::Report;
use rows::Plan;

/// What the command line asks for.
const USAGE: &str = "usage: bench [--quick] [--only ROW[,ROW...]]
  --quick      smaller workloads, for a look; figures are not comparable
  --only ROW   only the workloads that give these rows (prefix, e.g. stream.)";

/// Runs the program.
///
/// # Errors
/// When the command line is wrong or a workload cannot be run.
pub fn main(args: &[String]) -> Result<()> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    if let ["role", rest @ ..] = args.as_slice() {
        return role(rest);
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
            "--help" | "-h" => {
                println!("{USAGE}");
                return Ok(());
            }
            other => bail!("unknown argument {other}\n{USAGE}"),
        }
    }
    let mut report = Report::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(rows::run(&plan, &mut report));
    // What was measured before a failure is worth having.
    report.print();
    let path = report.write()?;
    println!("\nwritten to {}", path.display());
    outcome
}

/// Runs as one application of a workload.
fn role(args: &[&str]) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match args {
            ["serve", rest @ ..] => server::run(rest).await,
            ["client", rest @ ..] => client::run(rest).await,
            ["workers", rest @ ..] => workers::application(rest).await,
            ["registry", rest @ ..] => registry_load::run(rest).await,
            _ => bail!("unknown role {args:?}"),
        }
    })
}
