//! `daemon stop`: ends the daemon that `daemon start` started.

use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::Answer;
use crate::process::{daemon_socket, forget_pid, is_daemon, noted_pid, running_pid, signal};
use crate::spec::Spec;

pub(crate) const SPEC: Spec = Spec {
    name: "daemon stop",
    usage: "daemon stop",
    about: "Stop the daemon",
    returns: "pid, forced (true, only if it had to be killed)",
    flags: &[],
    positionals: (0, 0),
    run: |cx, args| Box::pin(run(cx, args)),
};

/// How long the daemon may take to end in order.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a killed process may take to go.
const KILLED: Duration = Duration::from_secs(2);
/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(20);

async fn run(cx: &Cx, _args: &Args) -> Result<Answer, Failure> {
    let socket = cx.socket()?;
    let Some(pid) = running_pid(&cx.home, &socket) else {
        return Err(nobody(cx, &socket).await);
    };
    signal(pid, &socket, Signal::TERM)?;
    let forced = !gone(pid, &socket, PATIENCE).await;
    if forced {
        signal(pid, &socket, Signal::KILL)?;
        if !gone(pid, &socket, KILLED).await {
            return Err(Failure::internal(format!("the daemon (pid {pid}) cannot be ended")));
        }
    }
    forget_pid(&cx.home, pid);
    let mut data = json!({ "pid": pid });
    let mut text = format!("daemon stopped (pid {pid})");
    if forced {
        data["forced"] = json!(true);
        text.push_str(", killed: it did not end in time");
    }
    Ok(Answer::new(data, text))
}

/// What there is to say when no daemon of ours runs.
async fn nobody(cx: &Cx, socket: &Path) -> Failure {
    if let Some(pid) = noted_pid(&cx.home) {
        if let Some(other) = daemon_socket(pid) {
            // Perhaps of another home, after its number has come round.
            return Failure::not_running(format!(
                "no daemon serves {}; process {pid} serves {}",
                socket.display(),
                other.display()
            ))
            .hint(format!(
                "if that one is meant: pilotctl daemon stop --socket {}",
                other.display()
            ));
        }
        // A file that names nobody is of no use to anybody, unless it names
        // what is about to become the daemon.
        if let Ok(Some(_lock)) = cx.home.lock_start() {
            forget_pid(&cx.home, pid);
        }
    }
    match cx.probe().await {
        Some(_) => {
            Failure::not_running("the daemon was not started by pilotctl daemon start").hint(
                format!("find and kill the process manually: lsof -U | grep {}", socket.display()),
            )
        }
        None => Failure::not_running("daemon is not running"),
    }
}

async fn gone(pid: i32, socket: &Path, patience: Duration) -> bool {
    let start = Instant::now();
    while is_daemon(pid, socket) {
        if start.elapsed() > patience {
            return false;
        }
        sleep(INTERVAL).await;
    }
    true
}
