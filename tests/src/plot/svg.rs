//! A writer of SVG: shapes in pixels, text escaped. It knows no data.

use std::fmt::Write as _;

/// The paper, a card of its own so that any page around it will do.
const PAPER: &str = "#ffffff";
/// Around the card.
const BORDER: &str = "#d0d7de";
/// Text and axes.
pub(super) const INK: &str = "#1f2328";
/// Lesser text.
pub(super) const PALE: &str = "#57606a";
/// Lines of the grid.
pub(super) const GRID: &str = "#d8dee4";

/// Where a text stands relative to its point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

impl Anchor {
    const fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Middle => "middle",
            Self::End => "end",
        }
    }
}

/// A drawing. The origin is at the top left.
#[derive(Debug)]
pub(super) struct Svg {
    out: String,
}

impl Svg {
    /// An empty card; `title` is also what a screen reader says.
    pub(super) fn new(width: f64, height: f64, title: &str) -> Self {
        let (width, height) = (number(width), number(height));
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
             width=\"{width}\" height=\"{height}\" role=\"img\" \
             font-family=\"system-ui, sans-serif\" font-size=\"12\">\n"
        );
        let _ = writeln!(out, "<title>{}</title>", escape(title));
        let _ = writeln!(
            out,
            "<rect x=\"0.5\" y=\"0.5\" width=\"{}\" height=\"{}\" rx=\"6\" fill=\"{PAPER}\" \
             stroke=\"{BORDER}\"/>",
            number(width.parse().unwrap_or(1.0) - 1.0),
            number(height.parse().unwrap_or(1.0) - 1.0),
        );
        Self { out }
    }

    pub(super) fn text(&mut self, x: f64, y: f64, anchor: Anchor, colour: &str, text: &str) {
        self.styled(x, y, anchor, colour, "", text);
    }

    /// The title of the drawing.
    pub(super) fn heading(&mut self, x: f64, y: f64, text: &str) {
        self.styled(x, y, Anchor::Start, INK, " font-size=\"15\" font-weight=\"600\"", text);
    }

    /// Read from the bottom to the top.
    pub(super) fn upright(&mut self, x: f64, y: f64, text: &str) {
        let turn = format!(" transform=\"rotate(-90 {} {})\"", number(x), number(y));
        self.styled(x, y, Anchor::Middle, PALE, &turn, text);
    }

    fn styled(&mut self, x: f64, y: f64, anchor: Anchor, colour: &str, style: &str, text: &str) {
        let _ = writeln!(
            self.out,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"{}\" fill=\"{colour}\"{style}>{}</text>",
            number(x),
            number(y),
            anchor.name(),
            escape(text)
        );
    }

    pub(super) fn line(&mut self, from: (f64, f64), to: (f64, f64), colour: &str, dashed: bool) {
        let _ = writeln!(
            self.out,
            "<line x1=\"{}\" y1=\"{}\" x2=\"{}\" y2=\"{}\" stroke=\"{colour}\"{}/>",
            number(from.0),
            number(from.1),
            number(to.0),
            number(to.1),
            if dashed { " stroke-dasharray=\"4 3\"" } else { "" }
        );
    }

    pub(super) fn rect(&mut self, at: (f64, f64), width: f64, height: f64, colour: &str) {
        let _ = writeln!(
            self.out,
            "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"{colour}\"/>",
            number(at.0),
            number(at.1),
            number(width.max(0.0)),
            number(height.max(0.0))
        );
    }

    /// A line through points.
    pub(super) fn curve(&mut self, points: &[(f64, f64)], colour: &str) {
        let points: Vec<String> =
            points.iter().map(|(x, y)| format!("{},{}", number(*x), number(*y))).collect();
        let _ = writeln!(
            self.out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" \
             stroke-linejoin=\"round\"/>",
            points.join(" ")
        );
    }

    /// The file.
    pub(super) fn finish(mut self) -> String {
        self.out.push_str("</svg>\n");
        self.out
    }
}

/// Two digits after the point at most.
fn number(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Text as XML content or inside double quotes. Control characters that XML
/// does not allow are left out.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => {}
            c => out.push(c),
        }
    }
    out
}

/// From values to pixels, straight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Scale {
    /// The value at the end.
    pub(super) top: f64,
    /// Pixels at zero and at the end.
    pixels: (f64, f64),
}

impl Scale {
    /// From zero to the first round number that is not below `most`.
    pub(super) fn new(most: f64, pixels: (f64, f64)) -> Self {
        let most = if most.is_finite() && most > 0.0 { most } else { 1.0 };
        let step = round_step(most);
        Self { top: (most / step - 1e-9).ceil() * step, pixels }
    }

    /// From zero to exactly `top`, for a span of time.
    pub(super) fn exact(top: f64, pixels: (f64, f64)) -> Self {
        Self { top, pixels }
    }

    pub(super) fn at(&self, value: f64) -> f64 {
        let (zero, end) = self.pixels;
        zero + (end - zero) * value / self.top
    }

    /// Round values from zero to the end.
    pub(super) fn ticks(&self) -> Vec<f64> {
        let step = round_step(self.top);
        // A few at most: the step is at least a sixth of the whole.
        (0..=10).map(|n| f64::from(n) * step).filter(|v| *v <= self.top + step * 1e-6).collect()
    }
}

/// 1, 2 or 5 times a power of ten, so that three to six of them make `whole`.
fn round_step(whole: f64) -> f64 {
    let power = 10f64.powf((whole / 6.0).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0];
    let enough = steps.into_iter().find(|s| s * power * 6.0 >= whole * (1.0 - 1e-9));
    enough.unwrap_or(10.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_value_has_its_place() {
        let scale = Scale::new(0.93, (300.0, 100.0));
        assert_eq!(scale.top, 1.0);
        assert_eq!(scale.at(0.0), 300.0);
        assert_eq!(scale.at(0.25), 250.0);
        assert_eq!(scale.at(1.0), 100.0);
    }

    #[test]
    fn ticks_are_round_and_few() {
        let ticks = |most| Scale::new(most, (0.0, 1.0)).ticks();
        assert_eq!(ticks(1.0).len(), 6);
        assert_eq!(ticks(100.0), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!(ticks(1.3), [0.0, 0.5, 1.0, 1.5]);
        for most in [0.001, 0.7, 3.0, 6.0, 9.9, 61.0, 12_345.0] {
            let (scale, ticks) = (Scale::new(most, (0.0, 1.0)), ticks(most));
            assert!((3..=8).contains(&ticks.len()), "{most}: {ticks:?}");
            assert!(scale.top >= most && scale.top < most * 2.0, "{most}: {}", scale.top);
        }
    }

    #[test]
    fn nothing_measured_still_has_a_scale() {
        for most in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(Scale::new(most, (0.0, 10.0)).at(1.0).is_finite());
        }
    }

    #[test]
    fn text_cannot_leave_its_place() {
        assert_eq!(escape("a<b & \"c\" 'd'>\u{1b}"), "a&lt;b &amp; &quot;c&quot; &#39;d&#39;&gt;");
        let mut svg = Svg::new(10.0, 10.0, "</title><script>");
        svg.text(1.0, 2.0, Anchor::Start, INK, "</text><script>");
        assert!(!svg.finish().contains("<script>"));
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(number(1.0), "1");
        assert_eq!(number(100.0), "100");
        assert_eq!(number(1.2345), "1.23");
        assert_eq!(number(0.5), "0.5");
    }
}
