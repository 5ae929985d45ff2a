//! `daemon stop`: ends the daemon that `daemon start` started.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::Answer;
use crate::process::{is_daemon, running_pid, signal};
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
    let Some(pid) = running_pid(&cx.home) else {
        // A file that names nobody is of no use to anybody.
        let _ = std::fs::remove_file(cx.home.pid_path());
        let failure = Failure::not_running("daemon is not running");
        return Err(match cx.probe().await {
            Some(_) => {
                let socket = cx.socket()?;
                Failure::not_running("the daemon was not started by pilotctl daemon start").hint(
                    format!(
                        "find and kill the process manually: lsof -U | grep {}",
                        socket.display()
                    ),
                )
            }
            None => failure,
        });
    };
    signal(pid, Signal::TERM)?;
    let forced = !gone(pid, PATIENCE).await;
    if forced {
        signal(pid, Signal::KILL)?;
        if !gone(pid, KILLED).await {
            return Err(Failure::internal(format!("the daemon (pid {pid}) cannot be ended")));
        }
    }
    let _ = std::fs::remove_file(cx.home.pid_path());
    let mut data = json!({ "pid": pid });
    let mut text = format!("daemon stopped (pid {pid})");
    if forced {
        data["forced"] = json!(true);
        text.push_str(", killed: it did not end in time");
    }
    Ok(Answer::new(data, text))
}

async fn gone(pid: i32, patience: Duration) -> bool {
    let start = Instant::now();
    while is_daemon(pid) {
        if start.elapsed() > patience {
            return false;
        }
        sleep(INTERVAL).await;
    }
    true
}
