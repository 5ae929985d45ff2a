//! Running pilotctl as a user would, with a home and a daemon of the test.
#![allow(dead_code, reason = "each test crate uses a part of it")]
#![allow(unreachable_pub, reason = "a module of several test crates")]

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// What a run left behind.
#[derive(Debug)]
pub struct Run {
    pub exit: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    /// `data` of a success.
    pub fn data(&self) -> Value {
        assert_eq!(self.exit, 0, "{self:?}");
        let mut answer: Value = serde_json::from_str(&self.stdout).expect("JSON on stdout");
        assert_eq!(answer["status"], "ok", "{self:?}");
        assert_eq!(self.stdout.lines().count(), 1, "one object on one line: {self:?}");
        answer["data"].take()
    }

    /// The error object of a failure.
    pub fn error(&self) -> Value {
        assert_eq!(self.exit, 1, "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
        let answer: Value = serde_json::from_str(&self.stderr).expect("JSON on stderr");
        assert_eq!(answer["status"], "error", "{self:?}");
        answer
    }
}

/// A user: a home, a socket, a registry.
pub struct User<'a> {
    pub home: &'a Path,
    pub socket: &'a Path,
    pub registry: String,
    pub program: &'a Path,
}

impl<'a> User<'a> {
    pub fn new(home: &'a Path, socket: &'a Path) -> Self {
        let program = Path::new(env!("CARGO_BIN_EXE_pilotctl"));
        // Nothing listens on port 1.
        Self { home, socket, registry: "127.0.0.1:1".to_owned(), program }
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.program);
        command
            .args(args)
            .env("PILOT_HOME", self.home)
            .env("PILOT_SOCKET", self.socket)
            .env("PILOT_REGISTRY", &self.registry)
            .env_remove("NO_COLOR")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    pub async fn run(&self, args: &[&str]) -> Run {
        self.run_with(args, "").await
    }

    pub async fn run_with(&self, args: &[&str], input: &str) -> Run {
        let mut child = self.command(args).spawn().expect("pilotctl starts");
        let mut stdin = child.stdin.take().expect("piped");
        // A command that reads no input may have gone by now.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        let output = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output());
        let output = output.await.unwrap_or_else(|_| panic!("pilotctl {args:?} does not end"));
        let output = output.expect("pilotctl ran");
        Run {
            exit: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).expect("UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }
}
