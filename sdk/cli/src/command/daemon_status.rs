//! `daemon status`: whether the daemon runs and answers.

use serde_json::{Value, json};

use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::{Answer, or_dash, printable_line, seconds};
use crate::process::running_pid;
use crate::spec::{Flag, Spec};

pub(crate) const SPEC: Spec = Spec {
    name: "daemon status",
    usage: "daemon status [--check]",
    about: "Show whether the daemon runs and answers",
    returns: "running, responsive, pid, pid_file, socket; if responsive also node_id, address, hostname, uptime_secs, peers, connections",
    flags: &[Flag::switch("check", "print nothing; exit status 0 if the daemon answers, else 1")],
    positionals: (0, 0),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let info = cx.probe().await;
    if args.is_set("check") {
        return info.map(|_| Answer::done()).ok_or_else(Failure::silent);
    }
    let socket = cx.socket()?;
    let pid = running_pid(&cx.home, &socket);
    let running = pid.is_some() || info.is_some();
    let mut data = json!({
        "running": running,
        "responsive": info.is_some(),
        "pid": pid.unwrap_or(0),
        "pid_file": cx.home.pid_path(),
        "socket": socket,
    });
    let state = match (running, &info) {
        (_, Some(_)) => cx.out.good("running"),
        (true, None) => cx.out.bad("running, but it does not answer"),
        (false, None) => cx.out.bad("not running"),
    };
    let mut fields = vec![("daemon", state), ("socket", socket.display().to_string())];
    if let Some(pid) = pid {
        fields.push(("pid", pid.to_string()));
    }
    if let Some(info) = &info {
        for key in ["node_id", "address", "hostname", "uptime_secs", "peers", "connections"] {
            data[key] = info.get(key).cloned().unwrap_or(Value::Null);
        }
        let part = |key: &str| or_dash(&printable_line(data[key].as_str().unwrap_or_default()));
        fields.push(("address", part("address")));
        fields.push(("hostname", part("hostname")));
        fields.push(("uptime", seconds(data["uptime_secs"].as_u64().unwrap_or(0))));
        fields.push(("peers", data["peers"].to_string()));
        fields.push(("connections", data["connections"].to_string()));
    }
    let mut text = cx.out.fields(&fields);
    if !running {
        text.push_str("\n\nstart it with: pilotctl daemon start");
    }
    Ok(Answer::new(data, text))
}
