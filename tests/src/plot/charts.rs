//! The kinds of chart: bars beside one, groups of bars, curves over time. Each
//! has a heading, named axes with units, a legend and a caption.

use super::svg::{Anchor, GRID, INK, PALE, Scale, Svg};

/// Width of every chart.
const WIDTH: f64 = 760.0;
/// Height of those with an upright axis.
const HEIGHT: f64 = 380.0;
/// Pilot's colour, and those of what it is compared with.
const COLOURS: [&str; 3] = ["#1f6feb", "#d4760a", "#6e7781"];
const MARGIN: f64 = 20.0;

/// Words around a chart.
#[derive(Clone, Debug)]
pub(super) struct Words {
    pub(super) heading: String,
    /// What the axis of values means, with its unit.
    pub(super) axis: String,
    /// Below: when and on what it was measured.
    pub(super) caption: String,
}

/// A measured value with the range of its runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Figure {
    pub(super) median: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

/// One bar of a chart of ratios.
#[derive(Clone, Debug)]
pub(super) struct Bar {
    pub(super) name: String,
    /// Which way is better.
    pub(super) note: String,
    pub(super) figure: Figure,
}

/// Lying bars of ratios, with a line at one.
pub(super) fn ratios(words: &Words, bars: &[Bar]) -> String {
    const LEFT: f64 = 190.0;
    const STEP: f64 = 46.0;
    let bottom = 60.0 + STEP * bars.len() as f64;
    let height = bottom + 74.0;
    let mut svg = Svg::new(WIDTH, height, &words.heading);
    svg.heading(MARGIN, 30.0, &words.heading);
    let most = bars.iter().map(|b| b.figure.high).fold(1.0, f64::max);
    let scale = Scale::new(most, (LEFT, WIDTH - 70.0));
    for tick in scale.ticks() {
        let x = scale.at(tick);
        svg.line((x, 50.0), (x, bottom), GRID, false);
        svg.text(x, bottom + 16.0, Anchor::Middle, PALE, &tick_text(tick));
    }
    svg.text((LEFT + WIDTH - 70.0) / 2.0, bottom + 34.0, Anchor::Middle, PALE, &words.axis);
    for (index, bar) in bars.iter().enumerate() {
        let y = 60.0 + STEP * index as f64;
        svg.text(LEFT - 10.0, y + 14.0, Anchor::End, INK, &bar.name);
        svg.text(LEFT - 10.0, y + 28.0, Anchor::End, PALE, &bar.note);
        svg.rect((LEFT, y + 4.0), scale.at(bar.figure.median) - LEFT, 24.0, COLOURS[0]);
        let (low, high) = (scale.at(bar.figure.low), scale.at(bar.figure.high));
        let middle = y + 16.0;
        svg.line((low, middle), (high, middle), INK, false);
        for x in [low, high] {
            svg.line((x, middle - 4.0), (x, middle + 4.0), INK, false);
        }
        svg.text(high + 8.0, y + 20.0, Anchor::Start, INK, &format!("{:.2}", bar.figure.median));
    }
    let one = scale.at(1.0);
    svg.line((one, 46.0), (one, bottom), INK, true);
    svg.text(one, 42.0, Anchor::Middle, PALE, "equal");
    svg.text(MARGIN, height - 14.0, Anchor::Start, PALE, &words.caption);
    svg.finish()
}

/// Groups of standing bars: for each group its name and the figure of each of
/// `sides`, if there is one.
pub(super) fn groups(
    words: &Words,
    below: &str,
    sides: &[&str],
    groups: &[(String, Vec<Option<Figure>>)],
) -> String {
    let most = groups.iter().flat_map(|(_, f)| f).flatten().map(|f| f.high).fold(0.0, f64::max);
    let mut frame = Frame::new(words, most, sides);
    let wide = (frame.right - frame.left) / groups.len().max(1) as f64;
    let bar = wide * 0.7 / sides.len().max(1) as f64;
    for (index, (name, figures)) in groups.iter().enumerate() {
        let left = frame.left + wide * (index as f64 + 0.15);
        let (scale, svg) = (frame.scale, &mut frame.svg);
        for (side, figure) in figures.iter().enumerate() {
            let Some(figure) = figure else { continue };
            let x = left + bar * side as f64;
            let top = scale.at(figure.median);
            svg.rect((x, top), bar - 2.0, scale.at(0.0) - top, COLOURS[side % COLOURS.len()]);
            let (low, high, middle) =
                (scale.at(figure.low), scale.at(figure.high), x + bar / 2.0 - 1.0);
            svg.line((middle, low), (middle, high), INK, false);
            for y in [low, high] {
                svg.line((middle - 3.0, y), (middle + 3.0, y), INK, false);
            }
            let text = format!("{:.2}", figure.median);
            svg.text(middle, high - 5.0, Anchor::Middle, PALE, &text);
        }
        svg.text(left + wide * 0.35, scale.at(0.0) + 18.0, Anchor::Middle, INK, name);
    }
    frame.below(below);
    frame.svg.finish()
}

/// Curves over time: for each its name and the values, `span` seconds apart.
/// `mark` is a moment that has a name.
pub(super) fn curves(
    words: &Words,
    span: f64,
    curves: &[(&str, Vec<f64>)],
    mark: Option<(f64, &str)>,
) -> String {
    let most = curves.iter().flat_map(|(_, v)| v).copied().fold(0.0, f64::max);
    let names: Vec<&str> = curves.iter().map(|(name, _)| *name).collect();
    let mut frame = Frame::new(words, most, &names);
    let longest = curves.iter().map(|(_, v)| v.len()).max().unwrap_or(0).max(1);
    let time = Scale::exact(span * longest as f64, (frame.left, frame.right));
    for tick in time.ticks() {
        let (x, y) = (time.at(tick), frame.scale.at(0.0));
        frame.svg.line((x, y), (x, y + 4.0), INK, false);
        frame.svg.text(x, y + 18.0, Anchor::Middle, PALE, &tick_text(tick));
    }
    for (index, (_, values)) in curves.iter().enumerate() {
        // A value is the mean of its span and stands at its middle.
        let place =
            |(n, value): (usize, &f64)| (time.at(span * (n as f64 + 0.5)), frame.scale.at(*value));
        let points: Vec<_> = values.iter().enumerate().map(place).collect();
        frame.svg.curve(&points, COLOURS[index % COLOURS.len()]);
    }
    if let Some((at, what)) = mark {
        let x = time.at(at);
        frame.svg.line((x, frame.scale.at(frame.scale.top)), (x, frame.scale.at(0.0)), INK, true);
        let y = frame.scale.at(frame.scale.top) + 12.0;
        frame.svg.text(x + 6.0, y, Anchor::Start, INK, what);
    }
    frame.below("seconds since the first byte was written");
    frame.svg.finish()
}

/// What charts with an upright axis share.
struct Frame {
    svg: Svg,
    scale: Scale,
    left: f64,
    right: f64,
}

impl Frame {
    fn new(words: &Words, most: f64, legend: &[&str]) -> Self {
        let mut svg = Svg::new(WIDTH, HEIGHT, &words.heading);
        svg.heading(MARGIN, 30.0, &words.heading);
        let mut x = MARGIN;
        for (index, name) in legend.iter().enumerate() {
            svg.rect((x, 43.0), 12.0, 12.0, COLOURS[index % COLOURS.len()]);
            svg.text(x + 18.0, 53.0, Anchor::Start, INK, name);
            x += 40.0 + 7.0 * name.chars().count() as f64;
        }
        let (left, right) = (70.0, WIDTH - MARGIN);
        let scale = Scale::new(most, (HEIGHT - 80.0, 86.0));
        for tick in scale.ticks() {
            let y = scale.at(tick);
            svg.line((left, y), (right, y), if tick == 0.0 { INK } else { GRID }, false);
            svg.text(left - 8.0, y + 4.0, Anchor::End, PALE, &tick_text(tick));
        }
        svg.upright(24.0, (HEIGHT - 80.0 + 86.0) / 2.0, &words.axis);
        svg.text(MARGIN, HEIGHT - 14.0, Anchor::Start, PALE, &words.caption);
        Self { svg, scale, left, right }
    }

    /// Names the axis that lies.
    fn below(&mut self, text: &str) {
        let middle = (self.left + self.right) / 2.0;
        self.svg.text(middle, HEIGHT - 42.0, Anchor::Middle, PALE, text);
    }
}

fn tick_text(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
