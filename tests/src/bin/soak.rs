//! `make soak`: `soak [--seconds N] [--connections N] [--loss PERCENT]
//! [--seed S]`. Ends with 1 when a connection failed or something grew.

use std::process::ExitCode;
use std::time::Duration;

use pilot_tests::soak::{Plan, run};

const USAGE: &str = "usage: soak [--seconds N] [--connections N] [--loss PERCENT] [--seed S]";

fn plan() -> Result<Plan, String> {
    let mut plan = Plan::default();
    let mut given = std::env::args().skip(1);
    while let Some(name) = given.next() {
        let value = given.next().ok_or_else(|| format!("{name} needs a value\n{USAGE}"))?;
        let wrong = |what: &str| format!("{name} {value}: not {what}\n{USAGE}");
        let number = || value.parse::<u64>().map_err(|_| wrong("a whole number"));
        match name.as_str() {
            "--seconds" => plan.length = Duration::from_secs(number()?),
            "--connections" => {
                plan.connections = usize::try_from(number()?).map_err(|_| wrong("possible"))?;
            }
            "--seed" => plan.seed = number()?,
            "--loss" => {
                let percent = value.parse::<f64>().ok().filter(|p| (0.0..=50.0).contains(p));
                plan.loss = percent.ok_or_else(|| wrong("a percentage up to 50"))? / 100.0;
            }
            _ => return Err(format!("unknown argument {name}\n{USAGE}")),
        }
    }
    if plan.connections == 0 || plan.length.is_zero() {
        return Err(format!("neither --connections nor --seconds may be 0\n{USAGE}"));
    }
    Ok(plan)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let plan = match plan() {
        Ok(plan) => plan,
        Err(message) => {
            eprintln!("soak: {message}");
            return ExitCode::from(2);
        }
    };
    println!(
        "soak: {} s, {} connections at once, {} % of the datagrams lost each way, seed {}",
        plan.length.as_secs(),
        plan.connections,
        plan.loss * 100.0,
        plan.seed
    );
    match run(plan, |line| println!("{line}")).await {
        Ok(verdict) => {
            print!("{verdict}");
            let (sound, flat) = (verdict.sound(), verdict.flat());
            println!(
                "soak: {}, memory and files {}",
                if sound { "every connection as it should be" } else { "connections FAILED" },
                if flat { "flat" } else { "GREW" }
            );
            if sound && flat { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("soak: {error:#}");
            ExitCode::FAILURE
        }
    }
}
