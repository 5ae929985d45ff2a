//! Figures, their median, the table and the file.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

/// The middle of some runs; the mean of the two middle ones for an even count.
pub(super) fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

/// What was measured so far.
#[derive(Debug, Default)]
pub(super) struct Report {
    rows: Vec<(&'static str, &'static str)>,
    values: BTreeMap<&'static str, Vec<f64>>,
}

impl Report {
    /// Notes one run of a row.
    pub(super) fn add(&mut self, row: &'static str, unit: &'static str, value: f64) {
        eprintln!("  {row} = {} {unit}", show(value));
        if !self.values.contains_key(row) {
            self.rows.push((row, unit));
        }
        self.values.entry(row).or_default().push(value);
    }

    fn median(&self, row: &str) -> f64 {
        median(&mut self.values.get(row).cloned().unwrap_or_default())
    }

    /// The table.
    pub(super) fn print(&self) {
        println!(
            "\n{:<24} {:>12} {:<10} {:>5}  lowest .. highest",
            "row", "median", "unit", "runs"
        );
        println!("{}", "-".repeat(78));
        for (row, unit) in &self.rows {
            let runs = self.values.get(row).map_or(&[][..], Vec::as_slice);
            let low = runs.iter().copied().fold(f64::INFINITY, f64::min);
            let high = runs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            println!(
                "{row:<24} {:>12} {unit:<10} {:>5}  {} .. {}",
                show(self.median(row)),
                runs.len(),
                show(low),
                show(high)
            );
        }
    }

    /// Writes `target/bench/report.json`.
    pub(super) fn write(&self) -> Result<PathBuf> {
        let mut object = Map::new();
        for (row, _) in &self.rows {
            object.insert((*row).to_owned(), json!(self.median(row)));
        }
        object.insert("machine".to_owned(), machine());
        object.insert("commit".to_owned(), json!(commit()));
        let folder = target_dir()?.join("bench");
        fs::create_dir_all(&folder)?;
        let path = folder.join("report.json");
        fs::write(&path, format!("{:#}\n", Value::Object(object)))
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

/// Three digits that matter.
fn show(value: f64) -> String {
    let digits = if value.abs() >= 100.0 {
        0
    } else if value.abs() >= 10.0 {
        1
    } else {
        3
    };
    format!("{value:.digits$}")
}

/// The build folder this program lies in.
pub(super) fn target_dir() -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    Ok(exe.ancestors().nth(2).context("not in a build folder")?.to_owned())
}

fn machine() -> Value {
    let cpu = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let line = text.lines().find(|l| l.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    });
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    json!({
        "cores": std::thread::available_parallelism().map_or(0, |n| n.get()),
        "kernel": kernel.trim(),
        "cpu": cpu.unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
    })
}

fn commit() -> String {
    let git = |args: &[&str]| {
        let out = Command::new("git").args(args).output().ok().filter(|o| o.status.success())?;
        Some(String::from_utf8_lossy(&out.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "HEAD"]) else { return "unknown".to_owned() };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]);
    if changed.is_some_and(|c| !c.is_empty()) { format!("{commit}+changes") } else { commit }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&mut []).is_nan());
    }
}
