//! `plot`: the charts of docs/PERFORMANCE.md, drawn from what the benches wrote.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::bench::target_dir;

mod charts;
mod svg;

use charts::{Bar, Figure, Words};

const USAGE: &str = "usage: plot [--from FOLDER] [--to FOLDER]
  --from FOLDER  report.json, runs.json and series.json (default: target/bench)
  --to FOLDER    where the SVG files go (default: docs/plots)";

/// Row, what it compares, which way is better.
const RATIOS: [(&str, &str, &str); 4] = [
    ("stream.oneway.vs_tcp", "one stream / TCP", "more is better"),
    ("stream.oneway.vs_iroh", "one stream / iroh", "more is better"),
    ("rtt.vs_tcp", "round trip / TCP", "less is better"),
    ("rtt.vs_iroh", "round trip / iroh", "less is better"),
];
/// Loss in percent and round trip in milliseconds of each cell.
const CELLS: [(&str, &str); 8] = [
    ("0", "20"),
    ("0.1", "20"),
    ("1", "20"),
    ("3", "20"),
    ("0", "100"),
    ("0.1", "100"),
    ("1", "100"),
    ("3", "100"),
];
/// The cells that are drawn over time.
const OVER_TIME: [(&str, &str); 2] = [("0", "100"), ("1", "100")];
/// More points than this are no easier to read.
const MOST_POINTS: usize = 200;

/// Runs the program.
///
/// # Errors
/// When the command line is wrong, or a file cannot be read or written.
pub fn main(args: &[String]) -> Result<()> {
    let (mut from, mut to) = (target_dir()?.join("bench"), PathBuf::from("docs/plots"));
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let mut folder =
            || rest.next().map(PathBuf::from).with_context(|| format!("{arg} FOLDER\n{USAGE}"));
        match arg.as_str() {
            "--from" => from = folder()?,
            "--to" => to = folder()?,
            "--help" | "-h" => {
                println!("{USAGE}");
                return Ok(());
            }
            other => bail!("unknown argument {other}\n{USAGE}"),
        }
    }
    let bench = Bench::read(&from)?;
    fs::create_dir_all(&to).with_context(|| format!("cannot make {}", to.display()))?;
    for (name, drawing) in drawings(&bench) {
        let Some(drawing) = drawing else {
            println!("skipped {name}: not measured yet; run make bench and make bench-peers");
            continue;
        };
        let path = to.join(format!("{name}.svg"));
        fs::write(&path, drawing).with_context(|| format!("cannot write {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}

/// Every chart by the name of its file, as far as its rows were measured.
fn drawings(bench: &Bench) -> Vec<(String, Option<String>)> {
    let mut all = vec![
        ("streams".to_owned(), streams(bench)),
        ("loss".to_owned(), loss(bench)),
        ("mtu.blackhole".to_owned(), black_hole(bench)),
    ];
    for (loss, round_trip) in OVER_TIME {
        all.push((format!("loss.{loss}.{round_trip}"), over_time(bench, loss, round_trip)));
    }
    all
}

fn streams(bench: &Bench) -> Option<String> {
    let bars: Vec<Bar> = RATIOS
        .into_iter()
        .filter_map(|(row, name, note)| {
            let (name, note) = (name.to_owned(), note.to_owned());
            Some(Bar { name, note, figure: bench.figure(row)? })
        })
        .collect();
    let words = Words {
        heading: "Pilot beside TCP and iroh, over loopback".to_owned(),
        axis: "Pilot / other (ratio; the whisker is the range of three runs)".to_owned(),
        caption: bench.caption(&RATIOS.map(|(row, ..)| row)),
    };
    (!bars.is_empty()).then(|| charts::ratios(&words, &bars))
}

fn loss(bench: &Bench) -> Option<String> {
    let mut groups = Vec::new();
    let mut rows = Vec::new();
    for (loss, round_trip) in CELLS {
        let (ours, theirs) = pair(loss, round_trip);
        // Where both were measured in one call, those two belong together.
        let alone = format!("loss.{loss}.{round_trip}");
        let figures =
            vec![bench.figure(&ours).or_else(|| bench.figure(&alone)), bench.figure(&theirs)];
        groups.push((format!("{loss} %, {round_trip} ms"), figures));
        rows.extend([ours, theirs, alone]);
    }
    let rows: Vec<&str> = rows.iter().map(String::as_str).collect();
    let words = Words {
        heading: "One stream through a bottleneck of 100 Mbit/s".to_owned(),
        axis: "goodput / bottleneck (ratio)".to_owned(),
        caption: bench.caption(&rows),
    };
    let any = groups.iter().any(|(_, figures)| figures.iter().any(Option::is_some));
    any.then(|| {
        let below = "loss in each direction, round-trip time; queue of one BDP";
        charts::groups(&words, below, &["Pilot", "quinn"], &groups)
    })
}

/// The rows of a cell in `make bench-peers`.
fn pair(loss: &str, round_trip: &str) -> (String, String) {
    let row = |who| format!("peer.{who}.loss.{loss}.{round_trip}");
    (row("pilot"), row("quinn"))
}

fn over_time(bench: &Bench, loss: &str, round_trip: &str) -> Option<String> {
    let (ours, theirs) = pair(loss, round_trip);
    let alone = format!("loss.{loss}.{round_trip}");
    let ours = if bench.series.get(&ours).is_some() { ours } else { alone };
    let (span, values) = bench.curve(&ours)?;
    let mut curves = vec![("Pilot", values)];
    if let Some((other_span, values)) = bench.curve(&theirs)
        && other_span == span
    {
        curves.push(("quinn", values));
    }
    let words = Words {
        heading: format!(
            "{loss} % loss, {round_trip} ms, 100 Mbit/s: the middle one of three runs"
        ),
        axis: "goodput (Mbit/s)".to_owned(),
        caption: bench.caption(&[&ours, &theirs]),
    };
    Some(charts::curves(&words, span, &curves, None))
}

fn black_hole(bench: &Bench) -> Option<String> {
    const ROW: &str = "mtu.blackhole";
    let (span, values) = bench.curve(ROW)?;
    let mark = &bench.series[ROW]["mark"];
    let mark = mark["at"].as_f64().zip(mark["what"].as_str());
    let words = Words {
        heading: "A path MTU that shrinks without a word: the middle one of three runs".to_owned(),
        axis: "goodput (Mbit/s)".to_owned(),
        caption: bench.caption(&[ROW]),
    };
    Some(charts::curves(&words, span, &[("Pilot", values)], mark))
}

/// What the benches wrote.
struct Bench {
    report: Value,
    runs: Value,
    series: Value,
}

impl Bench {
    fn read(folder: &Path) -> Result<Self> {
        let file = |name: &str| -> Result<Value> {
            let path = folder.join(name);
            let text = fs::read(&path)
                .with_context(|| format!("cannot read {}: run make bench first", path.display()))?;
            serde_json::from_slice(&text).with_context(|| format!("{} is not JSON", path.display()))
        };
        Ok(Self {
            report: file("report.json")?,
            runs: file("runs.json")?,
            series: file("series.json")?,
        })
    }

    fn figure(&self, row: &str) -> Option<Figure> {
        let median = self.report[row].as_f64()?;
        let runs = self.runs[row]["runs"].as_array()?.iter().filter_map(Value::as_f64);
        let (low, high) =
            runs.fold((median, median), |(low, high), run| (low.min(run), high.max(run)));
        Some(Figure { median, low, high })
    }

    /// The run in the middle by what it moved, as seconds between values and
    /// values.
    fn curve(&self, row: &str) -> Option<(f64, Vec<f64>)> {
        let entry = &self.series[row];
        let numbers = |run: &Value| -> Option<Vec<f64>> {
            run.as_array()?.iter().map(Value::as_f64).collect()
        };
        let mut runs: Vec<Vec<f64>> =
            entry["runs"].as_array()?.iter().filter_map(numbers).collect();
        let total = |run: &Vec<f64>| run.iter().sum::<f64>();
        runs.sort_by(|a, b| total(a).total_cmp(&total(b)));
        let middle = runs.get(runs.len() / 2)?;
        let gathered = middle.len().div_ceil(MOST_POINTS).max(1);
        let mean = |span: &[f64]| span.iter().sum::<f64>() / span.len() as f64;
        let values = middle.chunks_exact(gathered).map(mean).collect();
        Some((entry["span"].as_f64()? * gathered as f64, values))
    }

    /// When, and on what: the newest date of the rows.
    fn caption(&self, rows: &[&str]) -> String {
        let date = |row: &&str| {
            let dated = [&self.runs, &self.series].map(|file| file[*row]["date"].as_str());
            dated.into_iter().flatten().max()
        };
        let date = rows.iter().filter_map(date).max().unwrap_or("undated");
        let machine = &self.report["machine"];
        let text = |key: &str| machine[key].as_str().unwrap_or("unknown").to_owned();
        format!(
            "{date}; {} cores, {}, Linux {}; medians of three runs",
            machine["cores"],
            text("cpu"),
            text("kernel")
        )
    }
}

#[cfg(test)]
mod tests;
