//! `daemon start`: starts `pilot-daemon` in the background and waits for it.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep};

use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::home::text;
use crate::output::{Answer, printable_line};
use crate::process::{find_daemon, forget_pid, running_pid};
use crate::spec::{Flag, Spec};

pub(crate) const SPEC: Spec = Spec {
    name: "daemon start",
    usage: "daemon start [--registry <addr>] [--beacon <addr>] [--hostname <name>] [flags]",
    about: "Start the daemon in the background",
    returns: "pid, node_id, address, hostname, socket, log_file; warning if it has not the hostname",
    flags: &[
        Flag::value("config", "file", "configuration file of the daemon"),
        Flag::value("registry", "addr", "host:port of the registry"),
        Flag::value("beacon", "addr", "host:port of the beacon"),
        Flag::value("listen", "addr", "UDP address to listen on"),
        Flag::value("identity", "file", "identity file, default identity.key in the Pilot home"),
        Flag::value("owner", "text", "owner given at registration"),
        Flag::value("hostname", "name", "name of this node"),
        Flag::value("log-level", "level", "debug, info, warn or error"),
        Flag::value("log-format", "format", "text or json"),
        Flag::value("webhook", "url", "where the daemon reports events"),
        Flag::switch("public", "let every registered node resolve this one"),
        Flag::switch("foreground", "do not go into the background"),
    ],
    positionals: (0, 0),
    run: |cx, args| Box::pin(run(cx, args)),
};

/// How long the daemon may take to answer on its socket.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long a daemon that answers may take to be registered as well, under
/// the name it should have.
const REGISTERED: Duration = Duration::from_secs(3);
/// How long another start of the same home is waited for.
const TURN: Duration = Duration::from_secs(3);
/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(30);
/// Bytes of the log looked at when the daemon ends at once.
const TAIL: u64 = 2048;

async fn run(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    cx.home.create()?;
    // Until this returns, nobody else starts a daemon of this home.
    let _lock = lock(cx).await?;
    let pid = running_pid(&cx.home, &cx.socket()?);
    if pid.is_some() || cx.probe().await.is_some() {
        let pid = pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
        return Err(Failure::new("already_exists", format!("daemon is already running{pid}"))
            .hint("stop it first with: pilotctl daemon stop"));
    }
    let flags = flags(cx, args)?;
    if args.is_set("foreground") {
        return Err(foreground(cx, &flags));
    }
    let log_path = cx.home.log_path();
    // Before the daemon can write, or the reason of a fast end is skipped.
    let log_start = fs::metadata(&log_path).map_or(0, |m| m.len());
    let mut child = spawn(&flags, &log_path)?;
    let pid = child.id();
    cx.home.write(&cx.home.pid_path(), format!("{pid}\n").as_bytes(), 0o600)?;
    let wanted = flags.iter().find_map(|f| f.strip_prefix("--hostname=")).filter(|w| !w.is_empty());
    let info = match ready(cx, &mut child, &log_path, log_start, wanted).await {
        Ok(info) => info,
        Err(failure) => {
            // It has not become a daemon; the file must not say that it has.
            if !matches!(child.try_wait(), Ok(None)) {
                forget_pid(&cx.home, pid.cast_signed());
            }
            return Err(failure);
        }
    };
    let part = |key: &str| info.get(key).cloned().unwrap_or(Value::Null);
    let mut data = json!({
        "pid": pid,
        "node_id": part("node_id"),
        "address": part("address"),
        "hostname": part("hostname"),
        "socket": cx.socket()?,
        "log_file": log_path,
    });
    let address = match part("node_id").as_u64() {
        Some(id) if id > 0 => part("address").as_str().unwrap_or_default().to_owned(),
        _ => {
            "not registered yet: the registry does not answer, the daemon goes on trying".to_owned()
        }
    };
    let mut text = cx.out.fields(&[
        ("daemon", format!("running, pid {pid}")),
        ("address", address),
        ("socket", cx.socket()?.display().to_string()),
        ("log", log_path.display().to_string()),
    ]);
    if let Some(warning) = hostname_warning(&info, wanted) {
        text.push_str(&format!("\n\nwarning: {}", printable_line(&warning)));
        data["warning"] = json!(warning);
    }
    Ok(Answer::new(data, text))
}

/// What is to be said when the node does not bear the name it should.
fn hostname_warning(info: &Map<String, Value>, wanted: Option<&str>) -> Option<String> {
    if let Some(refused) = hostname_error(info) {
        return Some(refused.to_owned());
    }
    let has = info.get("hostname").and_then(Value::as_str).unwrap_or_default();
    let wanted = wanted.filter(|wanted| !wanted.is_empty() && *wanted != has)?;
    Some(match has {
        "" => format!("the hostname {wanted:?} is not taken yet; see: pilotctl info"),
        has => format!("the hostname is {has:?}, not {wanted:?}; see: pilotctl info"),
    })
}

/// Why the registry did not take the hostname.
fn hostname_error(info: &Map<String, Value>) -> Option<&str> {
    info.get("registry").and_then(|r| r["hostname_error"].as_str())
}

/// The right to start this home's daemon. Whoever waits for it mostly finds
/// the other's daemon running.
async fn lock(cx: &Cx) -> Result<fs::File, Failure> {
    let start = Instant::now();
    loop {
        if let Some(lock) = cx.home.lock_start()? {
            return Ok(lock);
        }
        if start.elapsed() > TURN {
            let dir = cx.home.dir.display();
            return Err(Failure::new(
                "already_exists",
                format!("another pilotctl is starting the daemon of {dir}"),
            )
            .hint("see how it went with: pilotctl daemon status"));
        }
        sleep(INTERVAL).await;
    }
}

/// The daemon's flags: the command line before the configuration; the registry
/// also from the environment, last.
fn flags(cx: &Cx, args: &Args) -> Result<Vec<String>, Failure> {
    let config = cx.home.config()?;
    // With a configuration file of its own, the daemon takes from there what
    // the command line does not say.
    let own = |key: &str| if args.value("config").is_some() { None } else { text(&config, key) };
    let from_env = std::env::var("PILOT_REGISTRY").ok().filter(|v| !v.is_empty());
    // Absolute, because `daemon stop` knows its daemon by it.
    let socket = std::path::absolute(cx.socket()?)
        .map_err(|e| Failure::invalid("the socket has no usable path").reason(e))?;
    let mut flags = vec![format!("--socket={}", socket.display())];
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            flags.push(format!("--{name}={value}"));
        }
    };
    let given = |name: &str| args.value(name).map(str::to_owned);
    add("config", given("config"));
    add("registry", given("registry").or_else(|| own("registry")).or(from_env));
    for name in ["beacon", "hostname", "webhook"] {
        add(name, given(name).or_else(|| own(name)));
    }
    let identity = given("identity").or_else(|| {
        args.value("config").is_none().then(|| cx.home.identity_path().display().to_string())
    });
    add("identity", identity);
    for name in ["listen", "owner", "log-level", "log-format"] {
        add(name, given(name));
    }
    if args.value("public").is_some() {
        add("public", Some(args.is_set("public").to_string()));
    }
    Ok(flags)
}

/// Becomes the daemon; returns only if that fails.
fn foreground(cx: &Cx, flags: &[String]) -> Failure {
    let become_daemon = || {
        let daemon = find_daemon()?;
        let pid = std::process::id();
        cx.home.write(&cx.home.pid_path(), format!("{pid}\n").as_bytes(), 0o600)?;
        let error = Command::new(&daemon).args(flags).exec();
        Err(Failure::internal(format!("cannot run {}", daemon.display())).reason(error))
    };
    match become_daemon() {
        Ok(()) => Failure::silent(),
        Err(failure) => failure,
    }
}

/// Starts the daemon through `_daemon-run`, which leaves the terminal's
/// session before it becomes the daemon.
fn spawn(flags: &[String], log_path: &Path) -> Result<Child, Failure> {
    let daemon = find_daemon()?;
    let failed = |what: &str, e: std::io::Error| Failure::internal(what.to_owned()).reason(e);
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(log_path)
        .map_err(|e| failed(&format!("cannot write {}", log_path.display()), e))?;
    let stdout = log.try_clone().map_err(|e| failed("cannot share the log file", e))?;
    let this = std::env::current_exe().map_err(|e| failed("cannot find pilotctl itself", e))?;
    Command::new(this)
        .arg("_daemon-run")
        .arg("--")
        .arg(&daemon)
        .args(flags)
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(log)
        .spawn()
        .map_err(|e| failed(&format!("cannot start {}", daemon.display()), e))
}

/// What the daemon says of itself once it answers: at once if it is
/// registered and has its name, else after it had some time to.
async fn ready(
    cx: &Cx,
    child: &mut Child,
    log_path: &Path,
    log_start: u64,
    wanted: Option<&str>,
) -> Result<Map<String, Value>, Failure> {
    let start = Instant::now();
    let mut answered: Option<(Instant, Map<String, Value>)> = None;
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Err(Failure::internal(format!("the daemon ended at once ({status})"))
                .reason(tail(log_path, log_start))
                .hint(format!("check logs: tail -f {}", log_path.display())));
        }
        if let Some(info) = cx.probe().await {
            let registered = info.get("node_id").and_then(Value::as_u64).is_some_and(|id| id > 0);
            let since = answered.as_ref().map_or_else(Instant::now, |(since, _)| *since);
            // The name is asked for once the node is registered.
            let settled = hostname_error(&info).is_some()
                || wanted.is_none_or(|w| info.get("hostname").is_some_and(|has| has == w));
            if registered && settled || since.elapsed() > REGISTERED {
                return Ok(info);
            }
            answered = Some((since, info));
        } else if start.elapsed() > PATIENCE {
            return Err(Failure::timeout(format!(
                "the daemon does not answer within {} s",
                PATIENCE.as_secs()
            ))
            .hint(format!("check logs: tail -f {}", log_path.display())));
        }
        sleep(INTERVAL).await;
    }
}

/// The last line of the log that is not empty.
fn tail(path: &Path, from: u64) -> String {
    let read = || {
        let mut file = fs::File::open(path)?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(from.min(len).max(len.saturating_sub(TAIL))))?;
        let mut bytes = Vec::new();
        file.take(TAIL).read_to_end(&mut bytes)?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let last = text.lines().rev().find(|line| !line.trim().is_empty());
    last.unwrap_or("it said nothing").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_was_not_taken_is_told() {
        let warn = |info: Value, wanted| {
            let Value::Object(info) = info else { panic!("an object") };
            hostname_warning(&info, wanted)
        };
        let good = json!({"hostname": "me", "registry": {"hostname_error": null}});
        assert_eq!(warn(good.clone(), Some("me")), None);
        assert_eq!(warn(good.clone(), None), None);
        assert!(warn(good, Some("you")).is_some_and(|w| w.contains("\"me\", not \"you\"")));
        let refused = json!({"hostname": "", "registry": {"hostname_error": "taken"}});
        assert_eq!(warn(refused, None).as_deref(), Some("taken"));
        // A published daemon says nothing of its registry.
        assert!(warn(json!({"hostname": ""}), Some("me")).is_some());
    }
}
