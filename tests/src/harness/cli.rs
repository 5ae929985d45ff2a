//! `pilotctl` as the user of one daemon runs it, or as the administrator of a
//! registry does.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::network::{ADMIN_TOKEN, Daemon, Network};
use super::process::{Finished, command, run};

/// No command of a test takes longer unless it hangs.
const LIMIT: Duration = Duration::from_secs(90);

impl Daemon {
    /// Runs `pilotctl --json` and returns how it ended.
    ///
    /// # Errors
    /// When it cannot be run or hangs.
    pub fn pilotctl_raw(&self, args: &[&str]) -> Result<Finished> {
        run("pilotctl", self.pilotctl_command("--json", args)?, LIMIT)
    }

    /// Runs `pilotctl` as on a terminal, which must succeed, and returns what
    /// it wrote to standard output.
    ///
    /// # Errors
    /// When it fails.
    pub fn pilotctl_text(&self, args: &[&str]) -> Result<String> {
        let done = run("pilotctl", self.pilotctl_command("--json=false", args)?, LIMIT)?;
        ensure!(done.status.success(), "pilotctl {args:?} failed: {}", done.stderr.trim());
        Ok(done.stdout)
    }

    /// `pilotctl` with `form` (`--json` or `--json=false`) and these arguments,
    /// for who starts it.
    ///
    /// # Errors
    /// When it has not been built.
    pub fn pilotctl_command(&self, form: &str, args: &[&str]) -> Result<Command> {
        let mut pilotctl = command("pilotctl")?;
        pilotctl
            .env("PILOT_HOME", &self.home)
            .env("PILOT_SOCKET", &self.socket)
            .env("PILOT_REGISTRY", self.registry())
            .arg(form)
            .args(args);
        Ok(pilotctl)
    }

    /// Runs `pilotctl --json`, which must succeed, and returns `data`.
    ///
    /// # Errors
    /// When it fails or says something else than JSON.
    pub fn pilotctl(&self, args: &[&str]) -> Result<Value> {
        data(args, self.pilotctl_raw(args)?)
    }

    /// Runs `pilotctl --json`, which must fail, and returns the error object.
    ///
    /// # Errors
    /// When it succeeds or says something else than JSON.
    pub fn pilotctl_error(&self, args: &[&str]) -> Result<Value> {
        error(args, self.pilotctl_raw(args)?)
    }
}

impl Network {
    /// `pilotctl --json` with these arguments, as the registry's administrator,
    /// for who starts it.
    ///
    /// # Errors
    /// When it has not been built.
    pub fn admin_command(&self, args: &[&str]) -> Result<Command> {
        let mut pilotctl = command("pilotctl")?;
        pilotctl
            .env("PILOT_HOME", self.folder())
            .env("PILOT_REGISTRY", self.registry_addr())
            .env("PILOT_ADMIN_TOKEN", ADMIN_TOKEN)
            .arg("--json")
            .args(args);
        if let Some(pin) = self.fingerprint() {
            pilotctl.args(["--fingerprint", pin]);
        }
        Ok(pilotctl)
    }

    /// Runs `pilotctl --json` as the registry's administrator, which must
    /// succeed, and returns `data`.
    ///
    /// # Errors
    /// When it fails or says something else than JSON.
    pub fn pilotctl(&self, args: &[&str]) -> Result<Value> {
        data(args, run("pilotctl", self.admin_command(args)?, LIMIT)?)
    }

    /// Runs it, which must fail, and returns the error object.
    ///
    /// # Errors
    /// When it succeeds or says something else than JSON.
    pub fn pilotctl_error(&self, args: &[&str]) -> Result<Value> {
        error(args, run("pilotctl", self.admin_command(args)?, LIMIT)?)
    }
}

/// `data` of a run that succeeded.
fn data(args: &[&str], done: Finished) -> Result<Value> {
    ensure!(done.status.success(), "pilotctl {args:?} failed: {}", done.stderr.trim());
    let mut answer: Value = serde_json::from_str(&done.stdout)
        .with_context(|| format!("pilotctl {args:?} said {:?}", done.stdout))?;
    ensure!(answer["status"] == "ok", "pilotctl {args:?} said {answer}");
    Ok(answer["data"].take())
}

/// The error object of a run that failed.
fn error(args: &[&str], done: Finished) -> Result<Value> {
    ensure!(done.status.code() == Some(1), "pilotctl {args:?}: {:?}", done.status);
    serde_json::from_str(&done.stderr)
        .with_context(|| format!("pilotctl {args:?} said {:?}", done.stderr))
}
