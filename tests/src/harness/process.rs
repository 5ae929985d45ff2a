//! One child process: started, its ready line read, ended and reaped. It knows
//! nothing of what the program does.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// How long a program may take until its ready line; far more than it needs,
/// since a loaded machine is not what a test is about.
pub const START_LIMIT: Duration = Duration::from_secs(30);
/// How often a condition that cannot be waited for is looked at.
pub const POLL: Duration = Duration::from_millis(5);

/// The file of one of the workspace's programs, beside the running executable
/// (or one folder up, for a test executable in `deps`).
///
/// # Errors
/// When it has not been built.
pub fn binary(name: &str) -> Result<PathBuf> {
    let exe = std::env::current_exe().context("cannot tell where this program is")?;
    for folder in exe.ancestors().skip(1).take(2) {
        let candidate = folder.join(name);
        if candidate.is_file() {
            return Ok(candidate);
        }
    }
    bail!(
        "{name} is not beside {}: build it first with `cargo build --workspace --bins`",
        exe.display()
    );
}

/// A command for one of the workspace's programs that sees nothing of the
/// caller's Pilot settings.
///
/// # Errors
/// When it has not been built.
pub fn command(name: &str) -> Result<Command> {
    let mut command = Command::new(binary(name)?);
    for (key, _) in std::env::vars_os() {
        if key.to_string_lossy().starts_with("PILOT_") {
            command.env_remove(key);
        }
    }
    Ok(command)
}

/// A running child. Dropping it kills and reaps it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    ready: Value,
    log: PathBuf,
    lines: Receiver<String>,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts `command`, appends its standard error to `log`, and waits for
    /// the first line of its standard output, which must be a JSON object.
    ///
    /// # Errors
    /// When it cannot be started, ends before that line, or takes longer than
    /// [`START_LIMIT`]; the text has the end of its log.
    pub fn start(name: &str, command: Command, log: &Path) -> Result<Self> {
        Self::start_with(name, command, log, Stdio::null())
    }

    /// The same for a program that is to be told something with [`Self::tell`].
    ///
    /// # Errors
    /// Like [`Self::start`].
    pub fn start_to_tell(name: &str, command: Command, log: &Path) -> Result<Self> {
        Self::start_with(name, command, log, Stdio::piped())
    }

    fn start_with(name: &str, mut command: Command, log: &Path, stdin: Stdio) -> Result<Self> {
        let stderr = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot open the log {}", log.display()))?;
        let mut child = command
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let lines = read_lines(child.stdout.take().context("no standard output")?);
        let mut process = Self {
            name: name.to_owned(),
            child,
            ready: Value::Null,
            log: log.to_owned(),
            lines,
            ended: None,
        };
        match process.lines.recv_timeout(START_LIMIT) {
            Ok(line) => {
                process.ready = serde_json::from_str(&line)
                    .with_context(|| format!("{name}: the first line is not JSON: {line}"))?;
                Ok(process)
            }
            Err(_) => {
                let status = process.try_status();
                bail!(
                    "{name} did not become ready (status: {status:?}); its log ends:\n{}",
                    process.log_tail()
                );
            }
        }
    }

    /// The ready line.
    pub fn ready(&self) -> &Value {
        &self.ready
    }

    /// A text in the ready line.
    ///
    /// # Errors
    /// When it is not there.
    pub fn ready_text(&self, key: &str) -> Result<&str> {
        self.ready[key]
            .as_str()
            .with_context(|| format!("{}: no text {key:?} in {}", self.name, self.ready))
    }

    /// Writes a line to its standard input.
    ///
    /// # Errors
    /// When it has none, or has ended.
    pub fn tell(&mut self, line: &str) -> Result<()> {
        let input = self.child.stdin.as_mut();
        let input = input.with_context(|| format!("{} was started without input", self.name))?;
        writeln!(input, "{line}").with_context(|| format!("{} does not listen", self.name))
    }

    /// The next line of standard output after the ready line, if one comes in
    /// time.
    pub fn next_line(&self, within: Duration) -> Option<String> {
        self.lines.recv_timeout(within).ok()
    }

    /// Process ID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All of its standard error so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The last lines of its standard error, for messages.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Its exit status, if it has ended.
    pub fn try_status(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.try_status().is_none()
    }

    /// Sends a signal; nothing happens if it has ended.
    pub fn signal(&mut self, signal: Signal) {
        if self.try_status().is_some() {
            return;
        }
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // It is our child and not reaped, so the ID cannot be another's.
            let _ = kill_process(pid, signal);
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it runs longer than `within`.
    pub fn wait(&mut self, within: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.try_status() {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!(
                    "{} still runs after {within:?}; its log ends:\n{}",
                    self.name,
                    self.log_tail()
                );
            }
            thread::sleep(POLL);
        }
    }

    /// Asks it to end (SIGTERM) and waits.
    ///
    /// # Errors
    /// When it runs longer than `within`.
    pub fn terminate(&mut self, within: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM);
        self.wait(within)
    }

    /// Ends it without warning (SIGKILL) and reaps it.
    pub fn kill(&mut self) {
        if self.try_status().is_none() {
            let _ = self.child.kill();
            self.ended = self.child.wait().ok();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a program that runs to its end has said.
#[derive(Debug)]
pub struct Finished {
    /// Exit status.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs a command to its end.
///
/// # Errors
/// When it cannot be started or runs longer than `within` (it is killed then).
pub fn run(name: &str, mut command: Command, within: Duration) -> Result<Finished> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    let stdout = read_all(child.stdout.take());
    let stderr = read_all(child.stderr.take());
    let deadline = Instant::now() + within;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if Instant::now() >= deadline {
            let _ = child.kill();
            let _ = child.wait();
            break None;
        }
        thread::sleep(POLL);
    };
    let (stdout, stderr) = (stdout.join().unwrap_or_default(), stderr.join().unwrap_or_default());
    match status {
        Some(status) => Ok(Finished { status, stdout, stderr }),
        None => bail!("{name} still runs after {within:?}; it said: {stdout}{stderr}"),
    }
}

fn read_all(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Reads lines until the pipe ends. The queue is unbounded: these programs
/// print a handful of lines, and a full pipe would stop them.
fn read_lines(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines() {
            let Ok(line) = line else { return };
            // When nobody listens any more, go on reading so that it can write.
            let _ = sender.send(line);
        }
    });
    receiver
}

/// User and system CPU time of a process so far, in clock ticks of 10 ms.
///
/// # Errors
/// When `/proc` does not say.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The command name is in parentheses and may hold anything; the numbers
    // follow the last one. utime and stime are fields 14 and 15 of proc(5).
    let rest = stat.rsplit_once(')').context("unexpected /proc/PID/stat")?.1;
    let mut fields = rest.split_whitespace().skip(11);
    let mut ticks = || -> Result<u64> { Ok(fields.next().context("short stat")?.parse()?) };
    Ok(Duration::from_millis((ticks()? + ticks()?) * 10))
}

/// CPU time of the threads that a process has now, in nanoseconds precision.
/// Threads that have ended are not in it, so it suits idle processes.
///
/// # Errors
/// When `/proc` does not say.
pub fn scheduled_time(pid: u32) -> Result<Duration> {
    let mut total = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end between the listing and the reading.
        let Ok(stat) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
        let ran = stat.split_whitespace().next().context("empty schedstat")?;
        total += ran.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(total))
}

/// Resident memory of a process, in bytes.
///
/// # Errors
/// When `/proc` does not say.
pub fn resident_bytes(pid: u32) -> Result<u64> {
    let status = File::open(format!("/proc/{pid}/status"))?;
    for line in BufReader::new(status).lines() {
        if let Some(value) = line?.strip_prefix("VmRSS:") {
            let kib: u64 = value.trim().trim_end_matches("kB").trim().parse()?;
            return Ok(kib * 1024);
        }
    }
    Err(io::Error::other("no VmRSS").into())
}
