//! What every server program does around its server: settings, logs, the
//! ready line, signals, one line and status 1 on failure.

use std::future::Future;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use crate::settings::{Invocation, Program, Settings, SettingsError};

/// Loads settings, starts logging and a runtime, runs `serve` to its end.
pub fn run<F>(program: &Program, serve: impl FnOnce(Settings) -> F) -> ExitCode
where
    F: Future<Output = anyhow::Result<()>>,
{
    match start(program, serve) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{}: {e:#}", program.name);
            ExitCode::FAILURE
        }
    }
}

fn start<F>(program: &Program, serve: impl FnOnce(Settings) -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let settings = match load(program)? {
        Invocation::Run(settings) => settings,
        Invocation::Print(text) => {
            std::io::stdout().write_all(text.as_bytes())?;
            return Ok(());
        }
    };
    start_logging(&settings)?;
    raise_open_files();
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(serve(settings))
}

/// What this process was told, with the file as it is now.
///
/// # Errors
/// When a flag or key is unknown or malformed, or the file unreadable.
pub fn load(program: &Program) -> Result<Invocation, SettingsError> {
    let args = std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned());
    let env = |name: &str| std::env::var_os(name).map(|v| v.to_string_lossy().into_owned());
    Settings::load(program, args, env)
}

/// Lifts the soft limit of open files to the hard one: every connection is one.
fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(e) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!("limit of open files stays: {e}");
    }
}

fn start_logging(settings: &Settings) -> Result<(), SettingsError> {
    let level = match settings.text("log-level") {
        "debug" => tracing::Level::DEBUG,
        "info" => tracing::Level::INFO,
        "warn" => tracing::Level::WARN,
        "error" => tracing::Level::ERROR,
        other => {
            let problem = format!("is {other:?}, expected debug, info, warn or error");
            return Err(settings.refuse("log-level", problem));
        }
    };
    let logs = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr);
    // A second initialisation in one process keeps the first; nothing is lost.
    let _ = match settings.text("log-format") {
        "text" => logs.with_ansi(false).try_init(),
        "json" => logs.json().try_init(),
        other => {
            let problem = format!("is {other:?}, expected text or json");
            return Err(settings.refuse("log-format", problem));
        }
    };
    Ok(())
}

/// Ends with the first SIGTERM or SIGINT. The handlers stand when it returns.
///
/// # Errors
/// When a handler cannot be installed.
pub fn shutdown() -> std::io::Result<impl Future<Output = ()>> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = term.recv() => tracing::info!("SIGTERM, ending"),
            _ = int.recv() => tracing::info!("SIGINT, ending"),
        }
    })
}

/// The one JSON line on standard output that says where a program serves.
#[derive(Debug)]
pub struct Ready(serde_json::Map<String, serde_json::Value>);

impl Ready {
    /// A line for the program of this name.
    pub fn new(program: &str) -> Self {
        let mut line = serde_json::Map::new();
        line.insert("ready".to_owned(), program.into());
        Self(line)
    }

    /// Adds an address.
    #[must_use]
    pub fn addr(mut self, key: &str, addr: SocketAddr) -> Self {
        self.0.insert(key.to_owned(), addr.to_string().into());
        self
    }

    /// Adds a text.
    #[must_use]
    pub fn text(mut self, key: &str, text: impl Into<String>) -> Self {
        self.0.insert(key.to_owned(), text.into().into());
        self
    }

    /// Prints it. A closed standard output is no reason to stop serving.
    ///
    /// # Errors
    /// When the line cannot be made.
    pub fn print(self) -> serde_json::Result<()> {
        let line = serde_json::to_string(&self.0)?;
        let mut out = std::io::stdout().lock();
        if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
            tracing::debug!("standard output is closed, the ready line was not read");
        }
        Ok(())
    }
}
