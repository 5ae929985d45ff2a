//! The table at the end.

use std::fmt::Arguments;
use std::io::Write;
use std::time::Duration;

/// Prints a line. Whoever read may have gone, with the pipe or the terminal;
/// what remains is to clean up all the same.
pub(crate) fn say(line: Arguments<'_>) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// The same on standard error.
pub(crate) fn complain(line: Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// What the daemons say of the tunnel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Protection {
    /// Frames are sealed.
    pub(crate) encrypted: bool,
    /// Both identities are proven.
    pub(crate) authenticated: bool,
}

#[derive(Debug)]
struct Row {
    step: String,
    outcome: Outcome,
}

#[derive(Debug)]
enum Outcome {
    Passed { time: Duration, bytes: Option<u64>, note: String },
    Failed { why: String },
}

/// What was done and how it went.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
    protection: Option<Protection>,
}

impl Report {
    pub(crate) fn pass(&mut self, step: &str, time: Duration, bytes: Option<u64>, note: String) {
        say(format_args!("  ok      {step} ({:.2} s)", time.as_secs_f64()));
        self.push(step, Outcome::Passed { time, bytes, note });
    }

    pub(crate) fn fail(&mut self, step: &str, why: String) {
        say(format_args!("  FAILED  {step}: {why}"));
        self.push(step, Outcome::Failed { why });
    }

    /// Steps that could not be tried count as failed.
    pub(crate) fn skip(&mut self, steps: &[&str], why: &str) {
        for step in steps {
            self.push(step, Outcome::Failed { why: format!("not tried: {why}") });
        }
    }

    pub(crate) fn protect(&mut self, protection: Protection) {
        self.protection = Some(protection);
    }

    fn push(&mut self, step: &str, outcome: Outcome) {
        self.rows.push(Row { step: step.to_owned(), outcome });
    }

    pub(crate) fn failed(&self) -> usize {
        self.rows.iter().filter(|r| matches!(r.outcome, Outcome::Failed { .. })).count()
    }

    /// Table, what to try next, and the verdict as the last line.
    pub(crate) fn print(&self) {
        // "start" and "establish trust" are not traffic between the agents.
        let over_tunnel =
            |step: &str| !matches!(step, "start" | "establish trust" | "run to the end");
        say(format_args!(
            "\n{:<18} {:>8} {:>8}  {:<26} result",
            "step", "time", "MB/s", "encrypted+authenticated"
        ));
        say(format_args!("{}", "-".repeat(100)));
        for row in &self.rows {
            let step = &row.step;
            match &row.outcome {
                Outcome::Passed { time, bytes, note } => {
                    // A rate says nothing of a file that is sent in no time.
                    let rate = bytes.filter(|b| *b >= 1 << 20).map_or_else(String::new, |b| {
                        format!("{:.0}", b as f64 / 1e6 / time.as_secs_f64().max(1e-9))
                    });
                    let guarded = match self.protection {
                        Some(p) if over_tunnel(step) => {
                            format!("{} + {}", yes_no(p.encrypted), yes_no(p.authenticated))
                        }
                        None if over_tunnel(step) => "unknown".to_owned(),
                        _ => "-".to_owned(),
                    };
                    let time = format!("{:.2} s", time.as_secs_f64());
                    say(format_args!("{step:<18} {time:>8} {rate:>8}  {guarded:<26} {note}"));
                }
                Outcome::Failed { why } => {
                    say(format_args!("{step:<18} {:>8} {:>8}  {:<26} FAILED: {why}", "", "", ""));
                }
            }
        }
        say(format_args!("\nTimes include starting pilotctl, and for files hashing both ends."));
        if self.failed() == 0 {
            say(format_args!(
                "\nNext: run your own network with the tour in README.md; read \
                 examples/src/bin for agents in 50 lines;\n      `make test` runs every test, \
                 `make bench` measures this machine."
            ));
        } else {
            say(format_args!(
                "\nNext: see above for what failed and why; docs/CONFIG.md explains the settings."
            ));
        }
        let passed = self.rows.len() - self.failed();
        say(format_args!("\ndemo: {passed} passed, {} failed", self.failed()));
    }
}

fn yes_no(yes: bool) -> &'static str {
    if yes { "yes" } else { "NO" }
}
