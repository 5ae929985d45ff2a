//! A picture of a bench: throughput, congestion window and round-trip time over
//! time, one below the other, as SVG 1.1 that brings its own background and so
//! is readable on any page; it turns dark where the reader's system is.

use std::fmt::Write as _;

use super::samples::{Sample, rates};

/// Of the picture, in its own units.
const WIDTH: f64 = 800.0;
const HEIGHT: f64 = 692.0;
/// Of the panels.
const LEFT: f64 = 80.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 98.0;
const PANEL: f64 = 158.0;
const GAP: f64 = 36.0;
/// Ticks that an axis has about.
const TICKS: f64 = 5.0;

/// Colours for a light system, then for a dark one. The two lines differ in
/// lightness and in their dashes as well, for readers who see few colours.
const STYLE: &str = "
  text { font-family: system-ui, sans-serif; font-size: 12px; fill: #24292f }
  .title { font-size: 17px; font-weight: 600 }
  .quiet { fill: #57606a }
  .page { fill: #ffffff; stroke: #d0d7de }
  .grid { stroke: #d8dee4; stroke-width: 1 }
  .axis { stroke: #57606a; stroke-width: 1 }
  .line { fill: none; stroke-width: 2; stroke-linejoin: round }
  .a { stroke: #0550ae } .b { stroke: #d4560a; stroke-dasharray: 6 3 }
  .c { stroke: #116329 } .d { stroke: #8250df }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 }
    .quiet { fill: #9da7b1 }
    .page { fill: #0d1117; stroke: #30363d }
    .grid { stroke: #262c36 }
    .axis { stroke: #9da7b1 }
    .a { stroke: #6cb6ff } .b { stroke: #ffa657 }
    .c { stroke: #56d364 } .d { stroke: #d2a8ff }
  }
";

/// What is drawn.
pub(super) struct Plot<'a> {
    /// Whom was measured.
    pub(super) peer: String,
    /// When, RFC 3339.
    pub(super) when: String,
    /// Name of the congestion controller, empty if not known.
    pub(super) congestion: String,
    /// Bytes of UDP payload.
    pub(super) path_mtu: Option<u64>,
    /// Bytes sent in all.
    pub(super) sent: u64,
    pub(super) samples: &'a [Sample],
}

/// One line of a panel: its name, its class and its points, with gaps.
struct Series {
    name: &'static str,
    class: &'static str,
    points: Vec<Option<(f64, f64)>>,
}

/// A unit of an axis.
struct Unit {
    name: &'static str,
    scale: f64,
}

const RATES: &[Unit] = &[
    Unit { name: "B/s", scale: 1.0 },
    Unit { name: "kB/s", scale: 1e3 },
    Unit { name: "MB/s", scale: 1e6 },
    Unit { name: "GB/s", scale: 1e9 },
];
const SIZES: &[Unit] = &[
    Unit { name: "bytes", scale: 1.0 },
    Unit { name: "KiB", scale: 1024.0 },
    Unit { name: "MiB", scale: 1_048_576.0 },
];
const TIMES: &[Unit] = &[
    Unit { name: "µs", scale: 1.0 },
    Unit { name: "ms", scale: 1e3 },
    Unit { name: "s", scale: 1e6 },
];

impl Plot<'_> {
    pub(super) fn to_svg(&self) -> String {
        let time = |s: &Sample| s.t_ms as f64 / 1e3;
        let pairs = || self.samples.windows(2);
        let each = |value: fn(&Sample) -> Option<u64>| -> Vec<Option<(f64, f64)>> {
            // Before the first answer of the daemon there is nothing to draw.
            self.samples.iter().map(|s| value(s).map(|v| (time(s), v as f64))).collect()
        };
        let sent = pairs().map(|w| Some((time(&w[1]), rates(&w[0], &w[1]).0))).collect();
        let echoed = pairs().map(|w| Some((time(&w[1]), rates(&w[0], &w[1]).1))).collect();
        let panels = [
            (
                "throughput",
                RATES,
                vec![
                    Series { name: "sent", class: "a", points: sent },
                    Series { name: "echoed", class: "b", points: echoed },
                ],
            ),
            (
                "congestion window",
                SIZES,
                vec![Series { name: "congestion window", class: "c", points: each(|s| s.cwnd) }],
            ),
            (
                "round-trip time",
                TIMES,
                vec![Series { name: "smoothed RTT", class: "d", points: each(|s| s.srtt_us) }],
            ),
        ];
        let seconds = self.samples.last().map_or(0.0, time).max(1e-3);
        let mut svg = self.head();
        for (at, (what, units, series)) in panels.iter().enumerate() {
            let top = TOP + at as f64 * (PANEL + GAP);
            panel(&mut svg, top, seconds, what, units, series);
        }
        let bottom = TOP + 3.0 * PANEL + 2.0 * GAP;
        let middle = LEFT + (WIDTH - LEFT - RIGHT) / 2.0;
        text(&mut svg, "quiet", middle, bottom + 36.0, "middle", "time (s)");
        svg.push_str("</svg>\n");
        svg
    }

    /// Everything above the panels.
    fn head(&self) -> String {
        let peer = escape(&self.peer);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             width=\"{WIDTH}\" height=\"{HEIGHT}\" role=\"img\">\n\
             <title>pilotctl bench {peer}</title>\n<style>{STYLE}</style>\n\
             <rect class=\"page\" x=\"0.5\" y=\"0.5\" width=\"{}\" height=\"{}\" rx=\"6\"/>\n",
            WIDTH - 1.0,
            HEIGHT - 1.0
        );
        text(&mut svg, "title", 20.0, 30.0, "start", &format!("pilotctl bench {}", self.peer));
        let mut facts = vec![self.when.clone()];
        if !self.congestion.is_empty() {
            facts.push(format!("congestion control {}", self.congestion));
        }
        facts.extend(self.path_mtu.map(|mtu| format!("path MTU {mtu} bytes")));
        text(&mut svg, "quiet", 20.0, 50.0, "start", &facts.join(" · "));
        let mut facts = vec![format!("{:.1} MB there and back", self.sent as f64 / 1e6)];
        if let Some(retransmits) = self.samples.last().and_then(|s| s.retransmits) {
            facts.push(format!("{retransmits} segments retransmitted"));
        }
        text(&mut svg, "quiet", 20.0, 67.0, "start", &facts.join(" · "));
        svg
    }
}

/// One panel: grid, axes, lines, legend.
fn panel(svg: &mut String, top: f64, seconds: f64, what: &str, units: &[Unit], series: &[Series]) {
    let (right, bottom) = (WIDTH - RIGHT, top + PANEL);
    let values = || series.iter().flat_map(|s| s.points.iter().flatten().map(|p| p.1));
    let highest = values().fold(0.0, f64::max);
    let fits = |u: &&Unit| highest >= u.scale;
    let unit = units.iter().rev().find(fits).unwrap_or(&units[0]);
    let highest = if highest > 0.0 { highest / unit.scale } else { 1.0 };
    let step = step(highest);
    let most = (highest / step).ceil() * step;
    let x = |t: f64| LEFT + t / seconds * (right - LEFT);
    let y = |v: f64| bottom - v / most * PANEL;
    let mut grid = |x1: f64, y1: f64, x2: f64, y2: f64, class: &str| {
        let _ = writeln!(
            svg,
            "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"
        );
    };
    for v in ticks(most, step) {
        grid(LEFT, y(v), right, y(v), "grid");
    }
    let time_step = self::step(seconds);
    for t in ticks(seconds, time_step) {
        grid(x(t), top, x(t), bottom, "grid");
    }
    grid(LEFT, top, LEFT, bottom, "axis");
    grid(LEFT, bottom, right, bottom, "axis");
    for v in ticks(most, step) {
        text(svg, "quiet", LEFT - 6.0, y(v) + 4.0, "end", &decimal(v, step));
    }
    for t in ticks(seconds, time_step) {
        text(svg, "quiet", x(t), bottom + 16.0, "middle", &decimal(t, time_step));
    }
    let label = format!("{what} ({})", unit.name);
    let (lx, ly) = (20.0, top + PANEL / 2.0);
    let _ = writeln!(
        svg,
        "<text transform=\"rotate(-90 {lx} {ly})\" x=\"{lx}\" y=\"{ly}\" text-anchor=\"middle\">{}</text>",
        escape(&label)
    );
    for s in series {
        for run in s.points.split(Option::is_none) {
            let at = |p: &(f64, f64)| (x(p.0), y(p.1 / unit.scale));
            let points: Vec<(f64, f64)> = run.iter().flatten().map(at).collect();
            line(svg, s.class, &points);
        }
    }
    let mut at = right;
    for s in series.iter().rev() {
        // About seven units a letter.
        at -= s.name.len() as f64 * 7.0;
        text(svg, "", at, top - 8.0, "start", s.name);
        line(svg, s.class, &[(at - 30.0, top - 12.0), (at - 6.0, top - 12.0)]);
        at -= 48.0;
    }
    if values().next().is_none() {
        let middle = LEFT + (right - LEFT) / 2.0;
        text(svg, "quiet", middle, top + PANEL / 2.0, "middle", "the daemon did not tell");
    }
}

/// A line through points; a single one becomes a short dash.
fn line(svg: &mut String, class: &str, points: &[(f64, f64)]) {
    let Some(&(x, y)) = points.first() else { return };
    let _ = write!(svg, "<polyline class=\"line {class}\" points=\"");
    if points.len() == 1 {
        let _ = write!(svg, "{:.1},{y:.1} ", x - 4.0);
    }
    let all: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let _ = writeln!(svg, "{}\"/>", all.join(" "));
}

fn text(svg: &mut String, class: &str, x: f64, y: f64, anchor: &str, text: &str) {
    let text = escape(text);
    let _ = writeln!(
        svg,
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
    );
}

/// Distance of ticks: 1, 2 or 5 times a power of ten.
fn step(highest: f64) -> f64 {
    let rough = highest / TICKS;
    let power = 10f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|f| f * power >= rough * 0.999);
    factor.unwrap_or(10.0) * power
}

fn ticks(most: f64, step: f64) -> impl Iterator<Item = f64> {
    (0..).map(move |i| f64::from(i) * step).take_while(move |v| *v <= most * 1.0001)
}

/// With the digits that tell ticks `step` apart.
fn decimal(value: f64, step: f64) -> String {
    let digits = (-step.log10().floor()).max(0.0);
    format!("{value:.*}", digits as usize)
}

/// For text and for attributes; what XML cannot hold is replaced.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => {
                escaped.push(char::REPLACEMENT_CHARACTER);
            }
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use roxmltree::{Document, Node};

    use super::*;

    fn sample(t_ms: u64, known: bool) -> Sample {
        Sample {
            t_ms,
            sent: t_ms * 500_000,
            received: t_ms * 400_000,
            cwnd: known.then_some(262_144 + t_ms),
            srtt_us: known.then_some(1_200),
            retransmits: known.then_some(3),
        }
    }

    fn draw(samples: &[Sample]) -> String {
        let plot = Plot {
            peer: "a<b>&\"c\" \u{1b}[2J".to_owned(),
            when: "2026-11-20T12:10:31Z".to_owned(),
            congestion: "cubic".to_owned(),
            path_mtu: Some(65_507),
            sent: 123_400_000,
            samples,
        };
        plot.to_svg()
    }

    /// The numbers of an attribute.
    fn numbers(node: &Node<'_, '_>, attribute: &str) -> Vec<f64> {
        let text = node.attribute(attribute).unwrap_or_default();
        text.split([' ', ',']).map(|n| n.parse().expect("a number")).collect()
    }

    fn texts<'a>(document: &'a Document<'_>) -> Vec<&'a str> {
        document.descendants().filter(|n| n.has_tag_name("text")).filter_map(|n| n.text()).collect()
    }

    #[test]
    fn it_is_well_formed_and_within_its_page() {
        let all: Vec<Sample> = (0..=100).map(|i| sample(i * 100, i != 0 && i != 50)).collect();
        let svg = draw(&all);
        let document = Document::parse(&svg).expect("XML");
        let lines: Vec<_> = document.descendants().filter(|n| n.has_tag_name("polyline")).collect();
        // Four legends, two rates, and two lines with a gap.
        assert_eq!(lines.len(), 4 + 2 + 2 * 2);
        for line in &lines {
            for xy in numbers(line, "points").chunks(2) {
                assert!(
                    (0.0..=WIDTH).contains(&xy[0]) && (0.0..=HEIGHT).contains(&xy[1]),
                    "{xy:?}"
                );
            }
        }
        let texts = texts(&document);
        let title = "pilotctl bench a<b>&\"c\" \u{fffd}[2J";
        let caption = "2026-11-20T12:10:31Z · congestion control cubic · path MTU 65507 bytes";
        let amounts = "123.4 MB there and back · 3 segments retransmitted";
        for expected in [
            title,
            caption,
            amounts,
            "throughput (MB/s)",
            "congestion window (KiB)",
            "round-trip time (ms)",
            "time (s)",
            "sent",
            "echoed",
            "smoothed RTT",
            "500",
            "10",
        ] {
            assert!(texts.contains(&expected), "{expected}: {texts:?}");
        }
        assert!(svg.contains("prefers-color-scheme: dark"));
    }

    #[test]
    fn little_is_drawn_as_well() {
        for samples in [&[][..], &[sample(0, true)], &[sample(0, false), sample(0, false)]] {
            let svg = draw(samples);
            let document = Document::parse(&svg).expect("XML");
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            assert!(texts(&document).contains(&"time (s)"));
        }
        let svg = draw(&[sample(0, false), sample(100, false)]);
        assert!(svg.contains("the daemon did not tell"));
    }

    #[test]
    fn steps_are_round() {
        for (highest, expected) in [(1.0, 0.2), (7.3, 2.0), (500.0, 100.0), (0.004, 0.001)] {
            assert!((step(highest) / expected - 1.0).abs() < 1e-9, "{highest}: {}", step(highest));
        }
        assert_eq!(decimal(0.30000000000000004, 0.1), "0.3");
        assert_eq!(decimal(1500.0, 500.0), "1500");
        assert_eq!(ticks(1.0, 0.2).count(), 6);
    }
}
