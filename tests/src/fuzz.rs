//! Mutation of known messages against every decoder, for a bounded time.
//!
//! An input depends on nothing but target, seed and run number, so each one
//! can be made again. It needs no instrumentation and so no special compiler.

mod acks;
mod core;
mod corpus;
mod lane;
mod mutate;
mod targets;
#[cfg(test)]
mod tests;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crate::harness::Pattern;

pub use targets::all;

/// A single run may take this long; more is a failure like a panic.
const RUN_LIMIT: Duration = Duration::from_secs(2);

/// Something that takes bytes from outside.
pub struct Target {
    /// Its name on the command line.
    pub name: &'static str,
    /// Sound messages to start from.
    corpus: fn() -> Vec<Vec<u8>>,
    /// Repairs what would stop every mutated input at the door, such as a
    /// checksum. Half of the inputs go without.
    repair: Option<fn(&mut [u8])>,
    /// Decodes, and asserts what must hold of the result.
    run: fn(&[u8]),
}

/// When to stop.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    /// After this long.
    Time(Duration),
    /// After this many runs.
    Runs(u64),
}

/// What a target has stood.
#[derive(Clone, Copy, Debug)]
pub struct Passed {
    /// Inputs.
    pub runs: u64,
    /// Time they took.
    pub elapsed: Duration,
}

impl Passed {
    /// Inputs per second.
    pub fn rate(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "for people to read")]
        let runs = self.runs as f64;
        runs / self.elapsed.as_secs_f64().max(1e-9)
    }
}

/// An input that a target has not stood.
#[derive(Clone, Debug)]
pub struct Failed {
    /// The target's name.
    pub target: &'static str,
    /// Seed of the whole.
    pub seed: u64,
    /// Number of the run.
    pub run: u64,
    /// The input.
    pub input: Vec<u8>,
    /// What happened.
    pub reason: String,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { target, seed, run, input, reason } = self;
        writeln!(f, "{target}: {reason}")?;
        writeln!(f, "  input ({} bytes): {}", input.len(), hex::encode(input))?;
        write!(
            f,
            "  again: cargo run -p pilot-tests --bin fuzz -- --target {target} --seed {seed} --run {run}"
        )
    }
}

impl Target {
    /// Runs inputs until the limit, or until one fails.
    ///
    /// # Errors
    /// The first input that panics or takes too long.
    pub fn fuzz(&self, seed: u64, limit: Limit) -> Result<Passed, Box<Failed>> {
        let corpus = (self.corpus)();
        let start = Instant::now();
        // Sound messages first: what fails on them is no finding but a mistake.
        for (at, message) in corpus.iter().enumerate() {
            self.check(message.clone(), seed, at as u64)?;
        }
        let mut runs = corpus.len() as u64;
        loop {
            let done = match limit {
                Limit::Time(time) => runs.is_multiple_of(64) && start.elapsed() >= time,
                Limit::Runs(max) => runs >= max,
            };
            if done {
                return Ok(Passed { runs, elapsed: start.elapsed() });
            }
            self.check(self.mutated(&corpus, seed, runs), seed, runs)?;
            runs += 1;
        }
    }

    /// Runs one input again.
    ///
    /// # Errors
    /// When it panics or takes too long.
    pub fn again(&self, seed: u64, run: u64) -> Result<(), Box<Failed>> {
        let corpus = (self.corpus)();
        let known = usize::try_from(run).ok().and_then(|run| corpus.get(run).cloned());
        self.check(known.unwrap_or_else(|| self.mutated(&corpus, seed, run)), seed, run)
    }

    fn mutated(&self, corpus: &[Vec<u8>], seed: u64, run: u64) -> Vec<u8> {
        let mut random = Pattern::new(seed ^ run.wrapping_mul(0xD6E8_FEB8_6659_FD93));
        let mut input = mutate::mutate(&mut random, corpus);
        if let Some(repair) = self.repair.filter(|_| random.below(2) == 0) {
            repair(&mut input);
        }
        input
    }

    fn check(&self, input: Vec<u8>, seed: u64, run: u64) -> Result<(), Box<Failed>> {
        let start = Instant::now();
        let caught = catch_unwind(AssertUnwindSafe(|| (self.run)(&input)));
        let took = start.elapsed();
        let reason = match caught {
            Ok(()) if took <= RUN_LIMIT => return Ok(()),
            Ok(()) => format!("took {took:?}"),
            Err(panic) => match panic.downcast::<String>() {
                Ok(text) => *text,
                Err(panic) => match panic.downcast::<&str>() {
                    Ok(text) => (*text).to_owned(),
                    Err(_) => "panicked".to_owned(),
                },
            },
        };
        Err(Box::new(Failed { target: self.name, seed, run, input, reason }))
    }
}
