//! The processes of the demo: found beside this program, each agent with its
//! own folder, all ended and reaped at the end.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use crate::report::complain;

/// How long a program may take until it says that it is ready.
const START_LIMIT: Duration = Duration::from_secs(15);
/// How long a program may take to end when asked.
const STOP_LIMIT: Duration = Duration::from_secs(12);
/// How long a condition is waited for.
const CONDITION_LIMIT: Duration = Duration::from_secs(20);

/// Everything that runs.
pub(crate) struct Network {
    folder: PathBuf,
    rendezvous: Option<(Program, String, String)>,
    daemons: Vec<(Program, Agent)>,
}

/// One agent's daemon, as its user sees it.
#[derive(Debug)]
pub(crate) struct Agent {
    /// Its hostname.
    pub(crate) name: String,
    /// Its folder.
    pub(crate) home: PathBuf,
    /// Its virtual address.
    pub(crate) address: String,
    /// Its node number.
    pub(crate) node: u64,
    socket: PathBuf,
}

/// A running program. Dropping it kills it.
pub(crate) struct Program {
    name: String,
    child: Child,
    ready: Value,
    log: PathBuf,
}

impl Network {
    /// Nothing runs yet.
    pub(crate) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), rendezvous: None, daemons: Vec::new() }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) async fn start_rendezvous(&mut self) -> Result<()> {
        let store = self.folder.join("registry.db");
        let mut command = command("pilot-rendezvous")?;
        command
            .args(["-registry-addr", "127.0.0.1:0", "-beacon-addr", "127.0.0.1:0", "-store"])
            .arg(store);
        let program = Program::start("pilot-rendezvous", command, &self.folder).await?;
        let text = |key: &str| {
            program.ready[key].as_str().map(str::to_owned).with_context(|| format!("no {key}"))
        };
        let (registry, beacon) = (text("registry_addr")?, text("beacon_addr")?);
        self.rendezvous = Some((program, registry, beacon));
        Ok(())
    }

    pub(crate) async fn start_daemon(&mut self, name: &str) -> Result<()> {
        let (_, registry, beacon) = self.rendezvous.as_ref().context("no rendezvous")?;
        let home = self.folder.join(name);
        std::fs::create_dir(&home)?;
        let socket = home.join("pilot.sock");
        let mut command = command("pilot-daemon")?;
        // A short keepalive: the agents learn from the registry within a
        // second, not half a minute, that somebody asks for trust.
        command
            .env("PILOT_HOME", &home)
            .args(["-registry", registry, "-beacon", beacon, "-hostname", name])
            .args(["-listen", "127.0.0.1:0", "-keepalive", "1s", "-socket"])
            .arg(&socket);
        let program = Program::start(name, command, &self.folder).await?;
        let mut agent =
            Agent { name: name.to_owned(), home, address: String::new(), node: 0, socket };
        poll_until("the daemon to have an address and its hostname", || async {
            let info = agent.pilotctl(&["info"]).await?;
            Ok(info["node_id"].as_u64().is_some_and(|n| n > 0)
                && info["hostname"].as_str() == Some(name))
        })
        .await?;
        let info = agent.pilotctl(&["info"]).await?;
        agent.node = info["node_id"].as_u64().context("no node_id")?;
        agent.address = info["address"].as_str().context("no address")?.to_owned();
        self.daemons.push((program, agent));
        Ok(())
    }

    pub(crate) fn agent(&self, name: &str) -> Result<&Agent> {
        let found = self.daemons.iter().find(|(_, a)| a.name == name);
        found.map(|(_, a)| a).with_context(|| format!("{name} does not run"))
    }

    /// Runs the example web server for an agent.
    pub(crate) async fn http_server(&self, agent: &Agent) -> Result<Program> {
        let mut command = command("http_server")?;
        command.arg("--socket").arg(&agent.socket);
        Program::start("http_server", command, &self.folder).await
    }

    /// Asks everything to end, in the order in which it depends on each other,
    /// and reaps it.
    pub(crate) async fn stop(&mut self) {
        for (program, _) in &mut self.daemons {
            program.terminate();
        }
        for (program, _) in &mut self.daemons {
            program.stop().await;
        }
        if let Some((program, _, _)) = &mut self.rendezvous {
            program.stop().await;
        }
    }

    /// The end of every log, for a failed run.
    pub(crate) fn show_logs(&self) {
        let rendezvous = self.rendezvous.iter().map(|(p, _, _)| p);
        for program in rendezvous.chain(self.daemons.iter().map(|(p, _)| p)) {
            complain(format_args!(
                "--- end of the log of {}:\n{}",
                program.name,
                tail(&program.log)
            ));
        }
    }
}

impl Agent {
    /// Runs `pilotctl` as this agent's user and returns `data` of its answer.
    pub(crate) async fn pilotctl(&self, args: &[&str]) -> Result<Value> {
        let what = format!("pilotctl {}", args.join(" "));
        let mut command = command("pilotctl")?;
        command
            .env("PILOT_HOME", &self.home)
            .env("PILOT_SOCKET", &self.socket)
            .arg("--json")
            .args(args);
        let out = run(&what, command).await?;
        let mut answer: Value =
            serde_json::from_str(&out).with_context(|| format!("{what} said {out:?}"))?;
        Ok(answer["data"].take())
    }

    /// Runs the example web client and returns the page.
    pub(crate) async fn http_get(&self, url: &str) -> Result<String> {
        let mut command = command("http_get")?;
        command.arg("--socket").arg(&self.socket).arg(url);
        run("http_get", command).await
    }
}

impl Program {
    /// Starts a program and waits for its ready line, a JSON object.
    async fn start(name: &str, mut command: Command, folder: &Path) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let stderr = std::fs::OpenOptions::new().create(true).append(true).open(&log)?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let stdout = child.stdout.take().context("no standard output")?;
        let mut lines = BufReader::new(stdout).lines();
        let line = match timeout(START_LIMIT, lines.next_line()).await {
            Ok(Ok(Some(line))) => line,
            Ok(_) => bail!("{name} ended at once: {}", tail(&log)),
            Err(_) => {
                bail!("{name} is not ready after {} s: {}", START_LIMIT.as_secs(), tail(&log))
            }
        };
        // Keep reading, so that it never blocks on a full pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let ready = serde_json::from_str(&line).unwrap_or(Value::Null);
        Ok(Self { name: name.to_owned(), child, ready, log })
    }

    /// Sends SIGTERM.
    fn terminate(&self) {
        // `id` is None once it is reaped, so the signal cannot hit another.
        let id = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(id) = id {
            let _ = kill_process(id, Signal::TERM);
        }
    }

    /// Asks it to end, kills it if it does not, and reaps it.
    pub(crate) async fn stop(&mut self) {
        self.terminate();
        if timeout(STOP_LIMIT, self.child.wait()).await.is_err() {
            complain(format_args!("demo: {} does not end when asked; killed", self.name));
            let _ = self.child.kill().await;
        }
    }
}

/// A program beside this one, without the caller's Pilot settings.
fn command(name: &str) -> Result<Command> {
    let exe = std::env::current_exe()?;
    let path = exe.with_file_name(name);
    if !path.is_file() {
        bail!("{name} is not beside {}: run it with `make demo`", exe.display());
    }
    let mut command = Command::new(path);
    for (key, _) in std::env::vars_os() {
        if key.to_string_lossy().starts_with("PILOT_") {
            command.env_remove(key);
        }
    }
    Ok(command)
}

/// Runs a command to its end and returns its standard output.
async fn run(what: &str, mut command: Command) -> Result<String> {
    let out = command
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("cannot start {what}"))?;
    if !out.status.success() {
        bail!("{what} failed: {}", String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Asks again and again until the answer is yes.
pub(crate) async fn poll_until<F, R>(what: &str, mut ask: F) -> Result<()>
where
    F: FnMut() -> R,
    R: Future<Output = Result<bool>>,
{
    let deadline = Instant::now() + CONDITION_LIMIT;
    loop {
        let answer = ask().await;
        if matches!(answer, Ok(true)) {
            return Ok(());
        }
        if Instant::now() > deadline {
            let why = answer.err().map_or_else(String::new, |e| format!(" (last: {e:#})"));
            bail!("waited {} s for {what}{why}", CONDITION_LIMIT.as_secs());
        }
        sleep(Duration::from_millis(50)).await;
    }
}

fn tail(log: &Path) -> String {
    let log = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
