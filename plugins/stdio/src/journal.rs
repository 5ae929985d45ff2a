//! What peers wrote, in a file of bounded size.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use pilot_plugin::wire::SocketAddress;
use pilot_plugin::wire::service::rfc3339;

/// Bytes of a line; a longer one continues on the next.
const MAX_LINE: usize = 4096;

/// A file that is rotated.
pub(crate) struct Journal {
    path: PathBuf,
    max_bytes: u64,
    open: Option<(File, u64)>,
}

impl Journal {
    /// Appends to `path`, which becomes `path.1` before it has more than
    /// `max_bytes`.
    pub(crate) fn new(path: PathBuf, max_bytes: u64) -> Self {
        Self { path, max_bytes, open: None }
    }

    /// Appends; blocks.
    ///
    /// # Errors
    /// When the file cannot be written; the text names it.
    pub(crate) fn append(&mut self, data: &[u8]) -> io::Result<()> {
        let result = self.try_append(data);
        if result.is_err() {
            // The next attempt opens it anew.
            self.open = None;
        }
        result.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", self.path.display())))
    }

    fn try_append(&mut self, data: &[u8]) -> io::Result<()> {
        let more = data.len() as u64;
        if let Some((_, len)) = &self.open
            && len.saturating_add(more) > self.max_bytes
        {
            self.open = None;
            let mut old = self.path.clone().into_os_string();
            old.push(".1");
            fs::rename(&self.path, old)?;
        }
        let (file, len) = match &mut self.open {
            Some(open) => open,
            None => {
                let mut options = OpenOptions::new();
                let file = options.append(true).create(true).mode(0o600).open(&self.path)?;
                let len = file.metadata()?.len();
                if len > 0 && len.saturating_add(more) > self.max_bytes {
                    self.open = Some((file, len));
                    return self.try_append(data);
                }
                self.open.insert((file, len))
            }
        };
        file.write_all(data)?;
        *len += more;
        Ok(())
    }
}

/// Lines of one peer.
pub(crate) struct Lines {
    from: SocketAddress,
    /// The line so far.
    line: Vec<u8>,
}

impl Lines {
    pub(crate) fn new(from: SocketAddress) -> Self {
        Self { from, line: Vec::new() }
    }

    /// Takes the next bytes; gives the lines that they end.
    pub(crate) fn push(&mut self, data: &[u8], now: SystemTime) -> Vec<u8> {
        let mut out = String::new();
        for byte in data {
            if *byte == b'\n' {
                self.end(now, &mut out);
                continue;
            }
            // Not within a character, unless it is none.
            let within = byte & 0xc0 == 0x80 && self.line.len() < MAX_LINE + 4;
            if self.line.len() >= MAX_LINE && !within {
                self.end(now, &mut out);
            }
            self.line.push(*byte);
        }
        out.into_bytes()
    }

    /// The last line, if it was not ended.
    pub(crate) fn finish(&mut self, now: SystemTime) -> Vec<u8> {
        let mut out = String::new();
        if !self.line.is_empty() {
            self.end(now, &mut out);
        }
        out.into_bytes()
    }

    fn end(&mut self, now: SystemTime, out: &mut String) {
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let time = rfc3339::format(i64::try_from(seconds).unwrap_or(i64::MAX));
        let line = self.line.strip_suffix(b"\r").unwrap_or(&self.line);
        out.push_str(&format!("{time} {} ", self.from));
        for c in String::from_utf8_lossy(line).chars() {
            if c == '\t' || is_harmless(c) {
                out.push(c);
            } else {
                out.extend(c.escape_default());
            }
        }
        out.push('\n');
        self.line.clear();
    }
}

/// Whether a character neither moves the cursor nor reorders text.
fn is_harmless(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn lines() -> Lines {
        Lines::new("0:0000.0000.0007:9".parse().unwrap())
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn lines_carry_time_and_peer_however_they_are_cut() {
        let mut lines = lines();
        assert!(lines.push(b"he", at(0)).is_empty());
        let out = lines.push(b"llo\r\n\nlast", at(1));
        let text = String::from_utf8(out).unwrap();
        let peer = "0:0000.0000.0007:9";
        assert_eq!(
            text,
            format!("1970-01-01T00:00:01Z {peer} hello\n1970-01-01T00:00:01Z {peer} \n")
        );
        let last = String::from_utf8(lines.finish(at(2))).unwrap();
        assert_eq!(last, format!("1970-01-01T00:00:02Z {peer} last\n"));
        assert!(lines.finish(at(3)).is_empty());
    }

    #[test]
    fn a_peer_cannot_write_to_the_terminal_of_who_reads() {
        let out = lines().push("\x1b[2Jx\r1970 fake\u{202e}\u{9b}ü\tend\n".as_bytes(), at(0));
        let text = String::from_utf8(out).unwrap();
        assert!(text.ends_with("\\u{1b}[2Jx\\r1970 fake\\u{202e}\\u{9b}ü\tend\n"), "{text}");
        assert_eq!(text.lines().count(), 1);
    }

    #[test]
    fn a_long_line_is_continued_between_characters() {
        let long = "ü".repeat(3000);
        let mut lines = lines();
        let mut out = lines.push(long.as_bytes(), at(0));
        out.extend(lines.finish(at(0)));
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.lines().count(), 2);
        assert_eq!(text.matches('ü').count(), 3000);
    }

    #[test]
    fn a_file_is_rotated_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stdio.log");
        fs::write(&path, "12345678").unwrap();
        let mut journal = Journal::new(path.clone(), 10);
        journal.append(b"abcd").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"abcd");
        assert_eq!(fs::read(dir.path().join("stdio.log.1")).unwrap(), b"12345678");
        journal.append(b"efgh").unwrap();
        journal.append(b"ijkl").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"ijkl");
        assert_eq!(fs::read(dir.path().join("stdio.log.1")).unwrap(), b"abcdefgh");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_folder_that_is_missing_is_named() {
        let why = Journal::new("/nonexistent/stdio.log".into(), 10).append(b"x").unwrap_err();
        assert!(why.to_string().contains("/nonexistent/stdio.log"), "{why}");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_become_lines_of_bounded_length(
            data in proptest::collection::vec(proptest::num::u8::ANY, 0..20_000),
            cut in 1usize..5000,
        ) {
            let mut lines = lines();
            let mut out = Vec::new();
            for piece in data.chunks(cut) {
                out.extend(lines.push(piece, at(0)));
            }
            out.extend(lines.finish(at(0)));
            let text = String::from_utf8(out).unwrap();
            for line in text.lines() {
                proptest::prop_assert!(line.starts_with("1970-01-01T00:00:00Z 0:0000.0000.0007:9 "));
                proptest::prop_assert!(line.len() <= 50 + 6 * (MAX_LINE + 4));
            }
        }
    }
}
