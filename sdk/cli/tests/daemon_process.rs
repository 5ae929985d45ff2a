//! `daemon start`, `stop` and `status` with a process of its own: this
//! program, under the name `pilot-daemon`, serves the daemon in memory.
//!
//! It has its own `main` because the daemon's flags are not a test runner's.

mod common;
#[path = "../../client/tests/mock/mod.rs"]
mod mock;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::User;
use mock::{Behaviour, MockDaemon};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

fn main() {
    let name = std::env::args().next().map(PathBuf::from).unwrap_or_default();
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    if name.file_name().is_some_and(|n| n == "pilot-daemon") {
        return runtime.block_on(daemon());
    }
    runtime.block_on(async {
        start_status_stop().await;
        a_daemon_that_does_not_listen_is_killed().await;
        a_daemon_that_fails_is_told().await;
        a_foreign_process_is_left_alone().await;
        the_daemon_of_another_home_is_left_alone().await;
        of_two_starts_one_wins().await;
        a_start_at_work_is_not_disturbed().await;
    });
    println!("daemon processes: 7 passed");
}

/// The daemon: behaves as its flags and `MOCK` say.
async fn daemon() {
    let flag = |name: &str| {
        let prefix = format!("--{name}=");
        std::env::args().find_map(|a| a.strip_prefix(&prefix).map(str::to_owned))
    };
    let mode = std::env::var("MOCK").unwrap_or_default();
    if mode == "fail" {
        eprintln!("first line\nerror: address 127.0.0.1:4000 in use");
        std::process::exit(1);
    }
    let flags: Vec<String> = std::env::args().skip(1).collect();
    let home = PathBuf::from(std::env::var_os("PILOT_HOME").expect("PILOT_HOME"));
    std::fs::write(home.join("flags"), flags.join("\n")).expect("write");
    let mut term = signal(SignalKind::terminate()).expect("signal");
    let socket = flag("socket").expect("--socket");
    let mock = MockDaemon::start(Behaviour::default());
    let _ = std::fs::remove_file(&socket);
    std::os::unix::fs::symlink(mock.socket(), &socket).expect("link");
    println!("ready");
    loop {
        term.recv().await;
        if mode != "stubborn" {
            let _ = std::fs::remove_file(&socket);
            return;
        }
    }
}

/// A folder with pilotctl and this program as pilot-daemon side by side.
struct Place {
    dir: tempfile::TempDir,
    program: PathBuf,
    socket: PathBuf,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let program = dir.path().join("pilotctl");
        std::fs::copy(env!("CARGO_BIN_EXE_pilotctl"), &program).expect("copy");
        let this = std::env::current_exe().expect("own path");
        std::fs::copy(this, dir.path().join("pilot-daemon")).expect("copy");
        let socket = dir.path().join("home.sock");
        Self { dir, program, socket }
    }

    fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }
}

fn user<'a>(place: &'a Place, home: &'a Path) -> User<'a> {
    User { program: &place.program, ..User::new(home, &place.socket) }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).expect("metadata").permissions().mode() & 0o777
}

async fn start_status_stop() {
    let place = Place::new();
    let home = place.home();
    let user = user(&place, &home);
    let status = user.run(&["daemon", "status"]).await.data();
    assert_eq!((&status["running"], &status["pid"]), (&json!(false), &json!(0)));
    assert_eq!(user.run(&["daemon", "status", "--check"]).await.exit, 1);
    let error = user.run(&["daemon", "stop"]).await.error();
    assert_eq!(
        (&error["code"], &error["message"]),
        (&json!("not_running"), &json!("daemon is not running"))
    );

    user.run(&["init", "--hostname", "cli-node", "--beacon", "127.0.0.1:5"]).await.data();
    let started =
        user.run(&["daemon", "start", "--listen", "127.0.0.1:0", "--public"]).await.data();
    let pid = started["pid"].as_i64().expect("a number");
    assert_eq!((&started["address"], &started["node_id"]), (&json!("0:0000.0000.0001"), &json!(1)));
    assert_eq!(started["socket"], json!(place.socket));
    let flags = std::fs::read_to_string(home.join("flags")).expect("flags");
    let flags: Vec<&str> = flags.lines().collect();
    let identity = format!("--identity={}", home.join("identity.key").display());
    for flag in [
        "--listen=127.0.0.1:0",
        "--public=true",
        "--hostname=cli-node",
        "--beacon=127.0.0.1:5",
        "--registry=127.0.0.1:9000",
        &identity,
    ] {
        assert!(flags.contains(&flag), "{flag}: {flags:?}");
    }
    assert_eq!(mode(&home.join("pilot.log")), 0o600);
    assert_eq!(mode(&home.join("pilot.pid")), 0o600);
    assert_eq!(mode(&home.join("config.json")), 0o644);
    assert_eq!(std::fs::read_to_string(home.join("pilot.log")).expect("log"), "ready\n");
    // A session of its own.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let session: i64 = stat
        .rsplit(") ")
        .next()
        .expect("fields")
        .split(' ')
        .nth(3)
        .expect("session")
        .parse()
        .expect("a number");
    assert_eq!(session, pid);

    let status = user.run(&["daemon", "status"]).await.data();
    assert_eq!((&status["running"], &status["responsive"]), (&json!(true), &json!(true)));
    assert_eq!((&status["pid"], &status["uptime_secs"]), (&json!(pid), &json!(61)));
    assert_eq!(user.run(&["daemon", "status", "--check"]).await.exit, 0);
    let error = user.run(&["daemon", "start"]).await.error();
    assert_eq!(error["message"], format!("daemon is already running (pid {pid})"));
    assert_eq!(error["hint"], "stop it first with: pilotctl daemon stop");

    let stopped = user.run(&["daemon", "stop"]).await.data();
    assert_eq!(stopped, json!({ "pid": pid }));
    assert!(!home.join("pilot.pid").exists());
    assert_eq!(user.run(&["daemon", "status"]).await.data()["running"], false);
}

async fn a_daemon_that_does_not_listen_is_killed() {
    let place = Place::new();
    let home = place.home();
    let user = user(&place, &home);
    let mut start = user.command(&["daemon", "start"]);
    let output = start.env("MOCK", "stubborn").output().await.expect("pilotctl ran");
    assert!(output.status.success(), "{output:?}");
    let stopped = user.run(&["daemon", "stop"]).await.data();
    assert_eq!(stopped["forced"], true);
}

async fn a_daemon_that_fails_is_told() {
    let place = Place::new();
    let home = place.home();
    let user = user(&place, &home);
    let mut start = user.command(&["daemon", "start"]);
    let output = start.env("MOCK", "fail").output().await.expect("pilotctl ran");
    assert_eq!(output.status.code(), Some(1));
    let error: serde_json::Value = serde_json::from_slice(&output.stderr).expect("JSON");
    assert_eq!(error["reason"], "error: address 127.0.0.1:4000 in use");
    assert!(error["hint"].as_str().expect("text").contains("pilot.log"), "{error}");
    assert!(!home.join("pilot.pid").exists());
    std::fs::remove_file(place.dir.path().join("pilot-daemon")).expect("remove");
    let mut start = user.command(&["daemon", "start"]);
    let output = start.env("PATH", "/nonexistent").output().await.expect("pilotctl ran");
    let error: serde_json::Value = serde_json::from_slice(&output.stderr).expect("JSON");
    assert_eq!(error["code"], "not_found");
}

async fn a_foreign_process_is_left_alone() {
    let place = Place::new();
    let home = place.home();
    std::fs::create_dir(&home).expect("create");
    let user = user(&place, &home);
    let mut other =
        tokio::process::Command::new("sleep").arg("60").kill_on_drop(true).spawn().expect("sleep");
    let pid = other.id().expect("running");
    std::fs::write(home.join("pilot.pid"), format!("{pid}\n")).expect("write");
    assert_eq!(user.run(&["daemon", "status"]).await.data()["running"], false);
    assert_eq!(user.run(&["daemon", "stop"]).await.error()["code"], "not_running");
    let ended = tokio::time::timeout(Duration::from_millis(100), other.wait()).await;
    assert!(ended.is_err(), "the process must still run");
    other.kill().await.expect("kill");
}

async fn the_daemon_of_another_home_is_left_alone() {
    let (place, other) = (Place::new(), Place::new());
    let (home, other_home) = (place.home(), other.home());
    let (user, neighbour) = (user(&place, &home), user(&other, &other_home));
    let pid = neighbour.run(&["daemon", "start"]).await.data()["pid"].clone();
    std::fs::create_dir(&home).expect("create");
    // The number has come round: ours had it, theirs has it now.
    std::fs::copy(other_home.join("pilot.pid"), home.join("pilot.pid")).expect("copy");
    let status = user.run(&["daemon", "status"]).await.data();
    assert_eq!((&status["running"], &status["pid"]), (&json!(false), &json!(0)));
    let error = user.run(&["daemon", "stop"]).await.error();
    assert_eq!(error["code"], "not_running");
    let socket = other.socket.display().to_string();
    assert!(error["hint"].as_str().expect("text").ends_with(&socket), "{error}");
    let ours = user.run(&["daemon", "start"]).await.data()["pid"].clone();
    assert_ne!(ours, pid);
    assert_eq!(user.run(&["daemon", "stop"]).await.data(), json!({ "pid": ours }));
    let status = neighbour.run(&["daemon", "status"]).await.data();
    assert_eq!((&status["running"], &status["pid"]), (&json!(true), &pid));
    assert_eq!(neighbour.run(&["daemon", "stop"]).await.data(), json!({ "pid": pid }));
}

async fn of_two_starts_one_wins() {
    let place = Place::new();
    let home = place.home();
    let user = user(&place, &home);
    let start = &["daemon", "start"];
    let (one, two) = tokio::join!(user.run(start), user.run(start));
    let (winner, loser) = if one.exit == 0 { (one, two) } else { (two, one) };
    let pid = winner.data()["pid"].clone();
    let error = loser.error();
    assert_eq!(error["code"], "already_exists");
    assert_eq!(error["message"], format!("daemon is already running (pid {pid})"));
    let noted = std::fs::read_to_string(home.join("pilot.pid")).expect("PID file");
    assert_eq!(noted, format!("{pid}\n"));
    assert_eq!(user.run(&["daemon", "stop"]).await.data(), json!({ "pid": pid }));
}

async fn a_start_at_work_is_not_disturbed() {
    let place = Place::new();
    let home = place.home();
    let user = user(&place, &home);
    std::fs::create_dir(&home).expect("create");
    let lock = std::fs::File::create(home.join("start.lock")).expect("lock file");
    lock.lock().expect("lock");
    // This process stands for one that has not become the daemon yet.
    let noted = format!("{}\n", std::process::id());
    std::fs::write(home.join("pilot.pid"), &noted).expect("write");
    assert_eq!(user.run(&["daemon", "stop"]).await.error()["code"], "not_running");
    assert_eq!(user.run(&["daemon", "start"]).await.error()["code"], "already_exists");
    assert_eq!(std::fs::read_to_string(home.join("pilot.pid")).expect("PID file"), noted);
    lock.unlock().expect("unlock");
    assert_eq!(user.run(&["daemon", "stop"]).await.error()["code"], "not_running");
    assert!(!home.join("pilot.pid").exists());
}
