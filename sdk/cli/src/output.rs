//! What is printed: for people on a terminal, else one JSON object.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use comfy_table::presets::NOTHING;
use comfy_table::{Attribute, Cell, ContentArrangement, Table};
use owo_colors::OwoColorize;
pub(crate) use pilot_wire::service::rfc3339::format as rfc3339;
use serde_json::{Value, json};

use crate::failure::Failure;

/// Rows of a table for people; JSON always has all.
const MAX_ROWS: usize = 50;

/// How to print.
pub(crate) struct Output {
    /// One JSON object instead of text.
    pub(crate) json: bool,
    /// JSON was asked for, not chosen because nobody is watching.
    pub(crate) json_asked: bool,
    colour: bool,
    error_colour: bool,
}

/// What a command has to say.
pub(crate) struct Answer {
    pub(crate) data: Value,
    text: String,
    /// Everything has been printed already.
    done: bool,
    /// The text is meant for another program unless JSON was asked for.
    raw: bool,
}

impl Answer {
    pub(crate) fn new(data: Value, text: impl Into<String>) -> Self {
        Self { data, text: text.into(), done: false, raw: false }
    }

    /// Nothing more to print.
    pub(crate) fn done() -> Self {
        Self { data: Value::Null, text: String::new(), done: true, raw: false }
    }

    /// Text such as a script, printed as it is.
    pub(crate) fn raw(data: Value, text: String) -> Self {
        Self { data, text, done: false, raw: true }
    }
}

impl Output {
    /// `asked` is what `--json` says, if it is there.
    pub(crate) fn new(asked: Option<bool>) -> Self {
        let tty = io::stdout().is_terminal();
        let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty())
            || std::env::var_os("TERM").is_some_and(|t| t == "dumb");
        Self {
            json: asked.unwrap_or(!tty),
            json_asked: asked == Some(true),
            colour: tty && !plain,
            error_colour: io::stderr().is_terminal() && !plain,
        }
    }

    /// Prints an answer; a reader that went away is no failure of ours.
    pub(crate) fn answer(&self, answer: &Answer) -> ExitCode {
        if answer.done {
            return ExitCode::SUCCESS;
        }
        if answer.raw && !self.json_asked {
            return self.raw(&answer.text);
        }
        if self.json {
            return self.raw(&format!("{}\n", json!({"status": "ok", "data": answer.data})));
        }
        let end = if answer.text.is_empty() || answer.text.ends_with('\n') { "" } else { "\n" };
        self.raw(&format!("{}{end}", answer.text))
    }

    pub(crate) fn raw(&self, text: &str) -> ExitCode {
        let mut out = io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
            Err(e) => {
                eprintln!("error: cannot write to standard output: {e}");
                ExitCode::FAILURE
            }
        }
    }

    /// One line as soon as it is there: bare JSON or text.
    ///
    /// # Errors
    /// When nobody reads any more.
    pub(crate) fn line(&self, data: &Value, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{data}")?;
        } else {
            writeln!(out, "{}", printable(text))?;
        }
        out.flush()
    }

    pub(crate) fn failure(&self, failure: &Failure) -> ExitCode {
        if failure.silent {
            return ExitCode::FAILURE;
        }
        let mut err = io::stderr().lock();
        // Nobody can be told when standard error fails.
        let _ = if self.json {
            writeln!(err, "{}", failure.to_json())
        } else {
            let text = printable(&failure.text());
            let text = match text.strip_prefix("error:") {
                Some(rest) if self.error_colour => format!("{}{rest}", "error:".red().bold()),
                _ => text,
            };
            let hint = failure
                .hint
                .as_ref()
                .map(|h| format!("\nhint:  {}", printable(h)))
                .unwrap_or_default();
            writeln!(err, "{text}{hint}")
        };
        ExitCode::FAILURE
    }

    /// A remark on standard error, for people only.
    pub(crate) fn remark(&self, text: &str) {
        if !self.json {
            eprintln!("{}", printable(text));
        }
    }

    /// Columns of the terminal that text is printed on, if it is one.
    pub(crate) fn columns(&self) -> Option<u16> {
        Table::new().width().filter(|_| io::stdout().is_terminal())
    }

    /// Whether progress may be drawn on standard error.
    pub(crate) fn shows_progress(&self) -> bool {
        !self.json && io::stderr().is_terminal()
    }

    pub(crate) fn good(&self, text: &str) -> String {
        if self.colour { text.green().to_string() } else { text.to_owned() }
    }

    pub(crate) fn bad(&self, text: &str) -> String {
        if self.colour { text.red().to_string() } else { text.to_owned() }
    }

    pub(crate) fn strong(&self, text: &str) -> String {
        if self.colour { text.bold().to_string() } else { text.to_owned() }
    }

    /// A table with at most [`MAX_ROWS`] rows, and how many are left out.
    pub(crate) fn table(&self, header: &[&str], rows: &[Vec<String>]) -> String {
        let mut table = Table::new();
        table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        if self.colour {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        table.set_header(header.iter().map(|h| Cell::new(h).add_attribute(Attribute::Bold)));
        for row in rows.iter().take(MAX_ROWS) {
            table.add_row(row);
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let mut text = table.trim_fmt();
        if rows.len() > MAX_ROWS {
            text.push_str(&format!("\n... and {} more (--json shows all)", rows.len() - MAX_ROWS));
        }
        text
    }

    /// Names and values in two columns.
    pub(crate) fn fields(&self, fields: &[(&str, String)]) -> String {
        let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let line = |(name, value): &(&str, String)| {
            format!("{}{}  {value}", self.strong(name), " ".repeat(width - name.len()))
        };
        fields.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// Text of peers for a terminal: without control characters, which could
/// move the cursor, change the title or hide what was written, except for
/// newlines and tabs.
pub(crate) fn printable(text: &str) -> String {
    let text = text.replace("\r\n", "\n");
    text.chars()
        .map(|c| match c {
            '\n' | '\t' => c,
            c if c.is_control() => char::REPLACEMENT_CHARACTER,
            c => c,
        })
        .collect()
}

/// The same on one line, for a table.
pub(crate) fn printable_line(text: &str) -> String {
    printable(text).replace(['\n', '\t'], " ")
}

/// Bytes for people, in powers of 1024.
pub(crate) fn bytes(n: u64) -> String {
    indicatif::BinaryBytes(n).to_string()
}

/// Microseconds for people: `85 us`, `1.25 ms`.
pub(crate) fn microseconds(us: u64) -> String {
    match us {
        0..1000 => format!("{us} us"),
        1000..100_000 => format!("{:.2} ms", us as f64 / 1e3),
        100_000..10_000_000 => format!("{:.0} ms", us as f64 / 1e3),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

/// Text or a placeholder for nothing.
pub(crate) fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

/// Seconds for people: `3d 4h`, `2h 5m`, `1m 3s`.
pub(crate) fn seconds(total: u64) -> String {
    let (d, h, m, s) = (total / 86_400, total / 3600 % 24, total / 60 % 60, total % 60);
    match (d, h, m) {
        (0, 0, 0) => format!("{s}s"),
        (0, 0, _) => format!("{m}m {s}s"),
        (0, _, _) => format!("{h}h {m}m"),
        _ => format!("{d}d {h}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(1_795_176_631), "2026-11-20T12:10:31Z");
        assert_eq!(rfc3339(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(seconds(61), "1m 1s");
        assert_eq!(seconds(7_500), "2h 5m");
        assert_eq!(seconds(200_000), "2d 7h");
        assert_eq!(microseconds(85), "85 us");
        assert_eq!(microseconds(1_254), "1.25 ms");
        assert_eq!(microseconds(120_400), "120 ms");
        assert_eq!(microseconds(12_340_000), "12.3 s");
    }

    #[test]
    fn peers_do_not_steer_the_terminal() {
        assert_eq!(printable("a\tb\r\nc é"), "a\tb\nc é");
        assert_eq!(
            printable("\u{1b}[2Jx\u{7}\u{9b}1m\ry"),
            "\u{fffd}[2Jx\u{fffd}\u{fffd}1m\u{fffd}y"
        );
        assert_eq!(printable_line("a\nb\tc\u{0}"), "a b c\u{fffd}");
    }

    #[test]
    fn long_tables_say_what_is_left_out() {
        let out = Output { json: false, json_asked: false, colour: false, error_colour: false };
        let rows: Vec<_> = (0..60).map(|i| vec![i.to_string(), "x".to_owned()]).collect();
        let text = out.table(&["N", "WHAT"], &rows);
        assert!(text.starts_with("N   WHAT\n0   x\n"), "{text}");
        assert!(text.ends_with("... and 10 more (--json shows all)"), "{text}");
    }
}
