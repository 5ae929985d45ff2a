//! The daemon as a process: its executable, its PID file, signals to it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};

use crate::failure::Failure;
use crate::home::Home;

/// Name of the daemon's executable.
pub(crate) const DAEMON: &str = "pilot-daemon";

/// The daemon's executable: beside this one, else in `PATH`.
pub(crate) fn find_daemon() -> Result<PathBuf, Failure> {
    let beside = std::env::current_exe().ok().and_then(|p| Some(p.parent()?.join(DAEMON)));
    let in_path = std::env::var_os("PATH")
        .map(|path| std::env::split_paths(&path).map(|dir| dir.join(DAEMON)).collect::<Vec<_>>())
        .unwrap_or_default();
    beside.into_iter().chain(in_path).find(|p| p.is_file()).ok_or_else(|| {
        Failure::not_found(format!("{DAEMON} is neither beside pilotctl nor in PATH"))
            .hint("install it, or build it with: cargo build --release -p pilot-daemon")
    })
}

/// The PID in the PID file, if it belongs to a daemon that runs.
pub(crate) fn running_pid(home: &Home) -> Option<i32> {
    let pid = fs::read_to_string(home.pid_path()).ok()?.trim().parse().ok()?;
    is_daemon(pid).then_some(pid)
}

/// Whether this process runs and is a daemon. The number in a PID file may
/// long belong to somebody else.
pub(crate) fn is_daemon(pid: i32) -> bool {
    let proc_dir = PathBuf::from(format!("/proc/{pid}"));
    let program = if Path::new("/proc/self/cmdline").exists() {
        // Empty for a process that has ended and is not yet reaped.
        let line = fs::read(proc_dir.join("cmdline")).unwrap_or_default();
        let first = line.split(|b| *b == 0).next().unwrap_or_default();
        String::from_utf8_lossy(first).into_owned()
    } else {
        let out = Command::new("ps").args(["-p", &pid.to_string(), "-o", "comm="]).output();
        out.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default()
    };
    Path::new(&program).file_name().is_some_and(|name| name == DAEMON)
}

/// Sends a signal to a daemon; to nobody else, and false if it has gone.
pub(crate) fn signal(pid: i32, signal: Signal) -> Result<bool, Failure> {
    let Some(target) = Pid::from_raw(pid).filter(|_| is_daemon(pid)) else { return Ok(false) };
    match kill_process(target, signal) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::SRCH) => Ok(false),
        Err(e) => Err(Failure::internal(format!("cannot signal {DAEMON} (pid {pid})"))
            .reason(e)
            .hint("run as the user that started the daemon")),
    }
}
