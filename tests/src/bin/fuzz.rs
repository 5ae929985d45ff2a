//! Throws mutated messages at every decoder: `fuzz [--seconds N]
//! [--target NAME] [--seed S] [--run R]`. Ends with 1 when an input fails, and
//! says how to run that input again.

use std::process::ExitCode;
use std::time::Duration;

use pilot_tests::fuzz::{Limit, Target, all};

const USAGE: &str = "usage: fuzz [--seconds N per target] [--target NAME] [--seed S] [--run R]";

struct Arguments {
    seconds: u64,
    target: Option<String>,
    seed: Option<u64>,
    run: Option<u64>,
}

fn arguments() -> Result<Arguments, String> {
    let mut parsed = Arguments { seconds: 10, target: None, seed: None, run: None };
    let mut given = std::env::args().skip(1);
    while let Some(name) = given.next() {
        let value = given.next().ok_or_else(|| format!("{name} needs a value\n{USAGE}"))?;
        let number = || value.parse().map_err(|_| format!("{name} {value}: not a number\n{USAGE}"));
        match name.as_str() {
            "--seconds" => parsed.seconds = number()?,
            "--seed" => parsed.seed = Some(number()?),
            "--run" => parsed.run = Some(number()?),
            "--target" => parsed.target = Some(value),
            _ => return Err(format!("unknown argument {name}\n{USAGE}")),
        }
    }
    Ok(parsed)
}

fn selected(name: Option<&str>) -> Result<Vec<Target>, String> {
    let mut targets = all();
    let Some(name) = name else { return Ok(targets) };
    let names: Vec<_> = targets.iter().map(|t| t.name).collect();
    targets.retain(|t| t.name == name);
    if targets.is_empty() {
        return Err(format!("no target {name}; there are: {}", names.join(", ")));
    }
    Ok(targets)
}

fn run() -> Result<bool, String> {
    let arguments = arguments()?;
    let targets = selected(arguments.target.as_deref())?;
    let seed = arguments.seed.unwrap_or_else(rand::random);
    if let Some(run) = arguments.run {
        if arguments.target.is_none() || arguments.seed.is_none() {
            return Err(format!("--run needs --target and --seed\n{USAGE}"));
        }
        // With its panic message and backtrace.
        let failed = targets.iter().filter_map(|t| t.again(seed, run).err());
        return Ok(failed.map(|f| println!("{f}")).count() == 0);
    }
    println!("seed {seed}, {} s for each of {} targets", arguments.seconds, targets.len());
    // A failure is printed once, with how to repeat it.
    std::panic::set_hook(Box::new(|_| {}));
    let mut failures = 0;
    for target in &targets {
        match target.fuzz(seed, Limit::Time(Duration::from_secs(arguments.seconds))) {
            Ok(passed) => {
                println!(
                    "{:<18}{:>12} runs {:>12.0} runs/s",
                    target.name,
                    passed.runs,
                    passed.rate()
                );
            }
            Err(failed) => {
                failures += 1;
                println!("{failed}");
            }
        }
    }
    println!("fuzz: {} passed, {failures} failed", targets.len() - failures);
    Ok(failures == 0)
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("fuzz: {message}");
            ExitCode::from(2)
        }
    }
}
