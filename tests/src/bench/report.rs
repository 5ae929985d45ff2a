//! Figures, their median, the table and the files.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::series::Series;

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
    rows: Vec<Row>,
    /// Goodput over time, of the rows that have it.
    pub(super) series: Series,
}

/// One row's runs.
#[derive(Debug)]
struct Row {
    name: String,
    unit: &'static str,
    runs: Vec<f64>,
}

impl Row {
    fn median(&self) -> f64 {
        median(&mut self.runs.clone())
    }
}

impl Report {
    /// Notes one run of a row.
    pub(super) fn add(&mut self, name: &str, unit: &'static str, value: f64) {
        eprintln!("  {name} = {} {unit}", show(value));
        match self.rows.iter_mut().find(|row| row.name == name) {
            Some(row) => row.runs.push(value),
            None => self.rows.push(Row { name: name.to_owned(), unit, runs: vec![value] }),
        }
    }

    /// The table.
    pub(super) fn print(&self) {
        println!(
            "\n{:<26} {:>12} {:<10} {:>5}  lowest .. highest",
            "row", "median", "unit", "runs"
        );
        println!("{}", "-".repeat(80));
        for row in &self.rows {
            let low = row.runs.iter().copied().fold(f64::INFINITY, f64::min);
            let high = row.runs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            println!(
                "{:<26} {:>12} {:<10} {:>5}  {} .. {}",
                row.name,
                show(row.median()),
                row.unit,
                row.runs.len(),
                show(low),
                show(high)
            );
        }
    }

    /// Writes `report.json`, `runs.json` and `series.json` in `target/bench`, or
    /// its folder `quick` for figures that cannot be compared. Rows that are
    /// there and were not measured now stay: `runs.json` says from when each is.
    pub(super) fn write(&self, quick: bool) -> Result<PathBuf> {
        let mut folder = target_dir()?.join("bench");
        if quick {
            folder.push("quick");
        }
        fs::create_dir_all(&folder)?;
        self.write_to(&folder, &commit(), &today())?;
        Ok(folder.join("report.json"))
    }

    fn write_to(&self, folder: &Path, commit: &str, date: &str) -> Result<()> {
        let medians = self.rows.iter().map(|row| (row.name.clone(), json!(row.median())));
        let whole = [("machine", machine()), ("commit", json!(commit)), ("date", json!(date))];
        let whole = whole.map(|(key, value)| (key.to_owned(), value));
        merge(&folder.join("report.json"), medians.chain(whole))?;
        let runs = self.rows.iter().map(|row| {
            let entry =
                json!({ "unit": row.unit, "runs": row.runs, "date": date, "commit": commit });
            (row.name.clone(), entry)
        });
        merge(&folder.join("runs.json"), runs)?;
        let series = self.series.entries().map(|(row, mut entry)| {
            entry["date"] = json!(date);
            (row.to_owned(), entry)
        });
        merge(&folder.join("series.json"), series)
    }
}

/// Puts entries into the object that a file holds, one a line.
fn merge(path: &Path, entries: impl Iterator<Item = (String, Value)>) -> Result<()> {
    let mut object: Map<String, Value> = match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).with_context(|| {
            format!("{} is not what a bench writes: remove it and measure again", path.display())
        })?,
        Err(e) if e.kind() == ErrorKind::NotFound => Map::new(),
        Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
    };
    object.extend(entries);
    let lines: Vec<String> =
        object.iter().map(|(key, value)| format!("  {}: {value}", json!(key))).collect();
    fs::write(path, format!("{{\n{}\n}}\n", lines.join(",\n")))
        .with_context(|| format!("cannot write {}", path.display()))
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
pub(crate) fn target_dir() -> Result<PathBuf> {
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

/// The date in UTC, like 2026-11-20.
fn today() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    date(since.as_secs() / 86_400)
}

/// The date that many days after 1970-01-01.
fn date(days: u64) -> String {
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let (mut year, mut left) = (1970, days);
    while left >= 365 + u64::from(leap(year)) {
        left -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if left < length {
            break;
        }
        left -= length;
        month += 1;
    }
    format!("{year}-{month:02}-{:02}", left + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_follow_the_calendar() {
        assert_eq!(date(0), "1970-01-01");
        assert_eq!(date(11_016), "2000-02-29");
        assert_eq!(date(11_017), "2000-03-01");
        assert_eq!(date(20_453), "2025-12-31");
        assert_eq!(date(20_454), "2026-01-01");
    }

    #[test]
    fn what_was_not_measured_stays() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = Report::default();
        for run in [1.0, 9.0, 2.0] {
            first.add("a", "s", run);
        }
        first.add("b", "s", 5.0);
        first.write_to(folder.path(), "one", "2026-01-01").unwrap();
        let mut second = Report::default();
        second.add("b", "ratio", 6.0);
        second.write_to(folder.path(), "two", "2026-01-02").unwrap();
        let read = |name: &str| -> Value {
            serde_json::from_slice(&fs::read(folder.path().join(name)).unwrap()).unwrap()
        };
        let report = read("report.json");
        assert_eq!((&report["a"], &report["b"]), (&json!(2.0), &json!(6.0)));
        assert_eq!(report["commit"], "two");
        let runs = read("runs.json");
        assert_eq!(runs["a"]["runs"], json!([1.0, 9.0, 2.0]));
        assert_eq!((&runs["a"]["commit"], &runs["b"]["commit"]), (&json!("one"), &json!("two")));
        assert_eq!(runs["b"]["unit"], "ratio");
    }

    #[test]
    fn a_broken_report_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("report.json"), "{").unwrap();
        let error = Report::default().write_to(folder.path(), "one", "2026-01-01").unwrap_err();
        assert!(format!("{error:#}").contains("report.json"), "{error:#}");
        assert_eq!(fs::read(folder.path().join("report.json")).unwrap(), b"{");
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&mut []).is_nan());
    }
}
