//! The example programs with each other, over a daemon in memory.

#[path = "../../sdk/client/tests/mock/mod.rs"]
mod mock;

use std::process::Stdio;
use std::time::Duration;

use mock::{Behaviour, MockDaemon};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

const PATIENCE: Duration = Duration::from_secs(30);

/// A program that is killed when the test ends.
struct Server {
    _child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Server {
    async fn start(program: &str, daemon: &MockDaemon, args: &[&str]) -> (Self, String) {
        let mut child = command(program, daemon, args).spawn().expect("starts");
        let stdout = child.stdout.take().expect("piped");
        let mut server = Self { _child: child, lines: BufReader::new(stdout).lines() };
        let ready = server.line().await;
        (server, ready)
    }

    async fn line(&mut self) -> String {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await;
        line.expect("a line in time").expect("readable").expect("a line")
    }
}

fn command(program: &str, daemon: &MockDaemon, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .arg("--socket")
        .arg(daemon.socket())
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

async fn run(program: &str, daemon: &MockDaemon, args: &[&str]) -> (bool, String, String) {
    let output = tokio::time::timeout(PATIENCE, command(program, daemon, args).output()).await;
    let output = output.expect("ends in time").expect("ran");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (output.status.success(), text(output.stdout), text(output.stderr))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn web() {
    let daemon = MockDaemon::start(Behaviour::default());
    let (_server, ready) = Server::start(env!("CARGO_BIN_EXE_http_server"), &daemon, &[]).await;
    assert_eq!(ready, "serving HTTP on 0:0000.0000.0001:80");
    let get = env!("CARGO_BIN_EXE_http_get");
    let (ok, page, _) = run(get, &daemon, &["agent-b:80/"]).await;
    assert!(ok && page.contains("<h1>Hello, 0:0000.0000.0001:40000</h1>"), "{page}");
    let (ok, status, _) = run(get, &daemon, &["agent-b/status"]).await;
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    assert!(ok && status["hostname"] == "cli-node", "{status}");
    let (ok, _, error) = run(get, &daemon, &["agent-b/nowhere"]).await;
    assert_eq!((ok, error.as_str()), (false, "error: agent-b:80 answered 404 Not Found\n"));
    let (ok, _, error) = run(get, &daemon, &["agent-b:81/"]).await;
    assert!(!ok && error.starts_with("error: cannot reach agent-b:81: "), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy() {
    let daemon = MockDaemon::start(Behaviour::default());
    let dir = daemon.dir().join("taken");
    let dir = dir.to_str().expect("UTF-8");
    let program = env!("CARGO_BIN_EXE_file_copy");
    let receive = ["receive", "--port", "1101", "--dir", dir];
    let (mut server, ready) = Server::start(program, &daemon, &receive).await;
    assert_eq!(ready, "taking files on 0:0000.0000.0001:1101");
    let source = daemon.dir().join("data.bin");
    let bytes: Vec<u8> = (0..3_000_000u32).map(|i| (i % 253) as u8).collect();
    std::fs::write(&source, &bytes).expect("write");
    let source = source.to_str().expect("UTF-8");
    let (ok, said, error) = run(program, &daemon, &["send", "1:1101", source]).await;
    assert!(ok && said.contains("3000000 bytes"), "{said}{error}");
    assert!(server.line().await.contains("data.bin"));
    let copied = std::fs::read(format!("{dir}/data.bin")).expect("copied");
    assert!(copied == bytes, "the copy differs");
    // What is there already is kept.
    let (ok, _, error) = run(program, &daemon, &["send", "1:1101", source]).await;
    assert!(!ok && error.contains("1:1101 did not confirm"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn echo() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let daemon = MockDaemon::start(Behaviour::default());
    let args = ["--port", "7001"];
    let (_server, ready) = Server::start(env!("CARGO_BIN_EXE_echo_server"), &daemon, &args).await;
    assert_eq!(ready, "echoing on 0:0000.0000.0001:7001");
    let client = pilot_sdk::Client::connect_to(daemon.socket()).await.expect("connect");
    let mut stream = client.dial("1:7001").await.expect("dial");
    stream.write_all(b"hello").await.expect("write");
    stream.shutdown().await.expect("shutdown");
    let mut echoed = String::new();
    let read = stream.read_to_string(&mut echoed);
    tokio::time::timeout(PATIENCE, read).await.expect("in time").expect("read");
    assert_eq!(echoed, "hello");
}
