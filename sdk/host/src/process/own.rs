//! The process of a child: started in a group of its own, looked after, and
//! ended with everything it has started.

use std::fs;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

/// Bytes of a dead child's standard error that are shown.
const MAX_WORDS: usize = 4096;
/// How long a child that was told to end may take.
pub(super) const END_LIMIT: Duration = Duration::from_secs(5);

pub(super) struct Process {
    child: Child,
    reaped: bool,
}

impl Process {
    /// Starts `program` with `stdin`.
    pub(super) fn spawn(program: &Path, argument: &str, stdin: OwnedFd) -> io::Result<Self> {
        let child = Command::new(program)
            .arg(argument)
            .stdin(Stdio::from(stdin))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // What it starts is ended with it.
            .process_group(0)
            .spawn()?;
        Ok(Self { child, reaped: false })
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn stderr(&mut self) -> Option<ChildStderr> {
        self.child.stderr.take()
    }

    /// Whether it has ended. Its number stays its own until it is waited for.
    pub(super) fn has_ended(&self) -> bool {
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        self.reaped || !matches!(waitid(WaitId::Pid(Pid::from_child(&self.child)), look), Ok(None))
    }

    /// Kills everything in its group.
    pub(super) fn kill_group(&self) {
        if !self.reaped {
            // All of it may have ended by itself.
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        }
    }

    pub(super) fn kill(&mut self) -> Option<ExitStatus> {
        self.kill_group();
        self.reaped = true;
        self.child.wait().ok()
    }

    /// Waits for the end of a child that has closed its socket; none when it
    /// had to be killed.
    pub(super) async fn ended(&mut self) -> Option<ExitStatus> {
        let until = Instant::now() + END_LIMIT;
        while !self.has_ended() {
            if Instant::now() >= until {
                self.kill();
                return None;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.kill()
    }

    /// What a child that has closed its socket died of, with what it wrote to
    /// standard error.
    pub(super) async fn last_words(&mut self, otherwise: &str) -> String {
        let status = self.ended().await;
        let text = status.map_or_else(|| otherwise.to_owned(), |status| said(status, otherwise));
        let words = self.stderr().map(words).unwrap_or_default();
        let words = words.trim();
        if words.is_empty() { text } else { format!("{text}; it wrote: {words}") }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.reaped {
            self.kill();
        }
    }
}

/// What there is to read now: somebody else may hold the other end open.
fn words(mut stderr: ChildStderr) -> String {
    let mut words = vec![0; MAX_WORDS];
    let mut len = 0;
    if rustix::io::ioctl_fionbio(&stderr, true).is_ok() {
        while let Ok(n @ 1..) = stderr.read(&mut words[len..]) {
            len += n;
        }
    }
    String::from_utf8_lossy(&words[..len]).into_owned()
}

/// What an exit status says, for a person.
pub(super) fn said(status: ExitStatus, otherwise: &str) -> String {
    match (status.signal(), status.code()) {
        (Some(6), _) => "aborted (SIGABRT): out of memory, or a failed assertion".to_owned(),
        (Some(7), _) => "bus error (SIGBUS)".to_owned(),
        (Some(9), _) => "killed (SIGKILL)".to_owned(),
        (Some(11), _) => "segmentation fault (SIGSEGV)".to_owned(),
        (Some(signal), _) => format!("ended by signal {signal}"),
        (None, Some(0)) => otherwise.to_owned(),
        (None, Some(code)) => format!("exited with status {code}"),
        (None, None) => otherwise.to_owned(),
    }
}

/// Processor time and resident bytes of a process, while it lives.
pub(super) fn usage(pid: u64) -> Option<(Duration, u64)> {
    // proc(5): fields 14, 15 (clock ticks of 1/100 s) and 24 (pages), counted
    // behind the name, which may hold anything.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let ticks = number(14)? + number(15)?;
    let page = rustix::param::page_size() as u64;
    Some((Duration::from_millis(ticks * 10), number(24)? * page))
}

/// Longest line of a child's standard error; the rest of it is left out.
const MAX_LINE: usize = 4096;

/// Cuts what a child writes to standard error into lines of bounded length.
#[derive(Default)]
pub(super) struct Lines {
    line: Vec<u8>,
}

impl Lines {
    /// Takes the next bytes; calls `each` with every line that ended.
    pub(super) fn take(&mut self, bytes: &[u8], mut each: impl FnMut(&str)) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let ends = piece.ends_with(b"\n");
            let text = piece.strip_suffix(b"\n").unwrap_or(piece);
            let room = MAX_LINE - self.line.len();
            self.line.extend_from_slice(&text[..text.len().min(room)]);
            if ends {
                self.end(&mut each);
            }
        }
    }

    /// No more comes.
    pub(super) fn end(&mut self, mut each: impl FnMut(&str)) {
        if !self.line.is_empty() {
            each(&String::from_utf8_lossy(&self.line));
            self.line.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_without_end_is_cut() {
        let (mut lines, mut seen) = (Lines::default(), Vec::new());
        lines.take(b"one\ntw", |line| seen.push(line.to_owned()));
        lines.take(b"o\n\n\xff", |line| seen.push(line.to_owned()));
        for _ in 0..100 {
            lines.take(&[b'x'; 1000], |line| seen.push(line.to_owned()));
        }
        assert!(lines.line.len() == MAX_LINE && lines.line.capacity() < 4 * MAX_LINE);
        lines.take(b"\nlast", |line| seen.push(line.to_owned()));
        lines.end(|line| seen.push(line.to_owned()));
        assert_eq!((&*seen[0], &*seen[1], &*seen[3]), ("one", "two", "last"));
        assert_eq!(seen[2].len(), MAX_LINE + "\u{fffd}".len() - 1);
    }
}
