//! The daemon as a process: its executable, its PID file, signals to it.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
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

/// The number in the PID file, whoever has it.
pub(crate) fn noted_pid(home: &Home) -> Option<i32> {
    fs::read_to_string(home.pid_path()).ok()?.trim().parse().ok()
}

/// Removes the PID file, unless it names somebody else by now.
pub(crate) fn forget_pid(home: &Home, pid: i32) {
    if noted_pid(home) == Some(pid) {
        // What remains names nobody that runs.
        let _ = fs::remove_file(home.pid_path());
    }
}

/// The PID in the PID file, if it belongs to a daemon that serves `socket`.
pub(crate) fn running_pid(home: &Home, socket: &Path) -> Option<i32> {
    noted_pid(home).filter(|pid| is_daemon(*pid, socket))
}

/// Whether this process runs and is the daemon that serves `socket`. The
/// number in a PID file may long belong to somebody else, also to the daemon
/// of another home.
pub(crate) fn is_daemon(pid: i32, socket: &Path) -> bool {
    let Some(served) = daemon_socket(pid) else { return false };
    // `daemon start` hands the daemon an absolute path.
    served == socket || std::path::absolute(socket).is_ok_and(|socket| served == socket)
}

/// The socket that the command line of a running daemon names; `None` for any
/// other process.
pub(crate) fn daemon_socket(pid: i32) -> Option<PathBuf> {
    let words: Vec<Vec<u8>> = if Path::new("/proc/self/cmdline").exists() {
        // Empty for a process that has ended and is not yet reaped.
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|b| *b == 0).map(<[u8]>::to_vec).collect()
    } else {
        let out = Command::new("ps").args(["-p", &pid.to_string(), "-o", "args="]).output();
        let line = out.map(|o| o.stdout).unwrap_or_default();
        line.split(u8::is_ascii_whitespace).map(<[u8]>::to_vec).collect()
    };
    socket_of(&words)
}

fn socket_of(words: &[Vec<u8>]) -> Option<PathBuf> {
    let (program, flags) = words.split_first()?;
    let path = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
    if path(program).file_name().is_none_or(|name| name != DAEMON) {
        return None;
    }
    let mut flags = flags.iter();
    let mut socket = None;
    while let Some(word) = flags.next() {
        let Some(flag) = word.strip_prefix(b"-") else { continue };
        match flag.strip_prefix(b"-").unwrap_or(flag) {
            b"socket" => socket = flags.next().map(|value| path(value)),
            flag => {
                if let Some(value) = flag.strip_prefix(b"socket=") {
                    socket = Some(path(value));
                }
            }
        }
    }
    socket
}

/// Sends a signal to the daemon that serves `socket`; to nobody else, and
/// false if it has gone.
pub(crate) fn signal(pid: i32, socket: &Path, signal: Signal) -> Result<bool, Failure> {
    let ours = Pid::from_raw(pid).filter(|_| is_daemon(pid, socket));
    let Some(target) = ours else { return Ok(false) };
    match kill_process(target, signal) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::SRCH) => Ok(false),
        Err(e) => Err(Failure::internal(format!("cannot signal {DAEMON} (pid {pid})"))
            .reason(e)
            .hint("run as the user that started the daemon")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_is_known_by_its_socket() {
        let socket = |line: &str| {
            let words: Vec<_> = line.split(' ').map(|w| w.as_bytes().to_vec()).collect();
            socket_of(&words)
        };
        let of = |path: &str| Some(PathBuf::from(path));
        assert_eq!(socket("/bin/pilot-daemon --socket=/a/p.sock --public"), of("/a/p.sock"));
        assert_eq!(socket("pilot-daemon --registry=x -socket /a/p.sock"), of("/a/p.sock"));
        assert_eq!(socket("pilot-daemon --socket"), None);
        assert_eq!(socket("pilot-daemon --owner=--socket=/a/p.sock"), None);
        assert_eq!(socket("sleep --socket=/a/p.sock"), None);
        assert_eq!(socket("pilotctl _daemon-run -- pilot-daemon --socket=/a/p.sock"), None);
        assert_eq!(socket(""), None);
    }
}
