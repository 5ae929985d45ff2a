//! The pages name what is there: every setting, every command, every test that
//! an invariant relies on, and no file that is gone.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pilot_tests::harness::{command, run};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn page(name: &str) -> Result<String> {
    fs::read_to_string(root().join(name)).with_context(|| name.to_owned())
}

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn sources(folder: &Path, all: &mut String) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            sources(&path, all)?;
        } else if name.ends_with(".rs") {
            all.push_str(&fs::read_to_string(&path)?);
        }
    }
    Ok(())
}

#[test]
fn every_test_that_an_invariant_names_exists() -> Result<()> {
    let text = page("docs/ARCHITECTURE.md")?;
    let (_, rest) = text.split_once("## Invariants").context("no invariants")?;
    let (invariants, _) = rest.split_once("\n## ").context("nothing after the invariants")?;
    let mut all = String::new();
    sources(&root(), &mut all)?;
    // Long snake case: a test. The rest are files, commands and code.
    let tests: HashSet<&str> = quoted(invariants)
        .filter(|q| q.contains('_') && q.bytes().all(|b| b == b'_' || b.is_ascii_alphanumeric()))
        .collect();
    ensure!(tests.len() > 30, "only {} tests are named", tests.len());
    for test in tests {
        ensure!(all.contains(&format!("fn {test}(")), "no test is called {test}");
    }
    Ok(())
}

#[test]
fn every_setting_is_explained() -> Result<()> {
    let text = page("docs/CONFIG.md")?;
    let explained: HashSet<&str> = quoted(&text).collect();
    for program in ["pilot-daemon", "pilot-registry", "pilot-beacon", "pilot-rendezvous"] {
        let mut help = command(program)?;
        help.arg("-help");
        let help = run(program, help, Duration::from_secs(10))?.stdout;
        let keys: Vec<&str> = help
            .lines()
            .filter_map(|line| line.strip_prefix("  -")?.split_whitespace().next())
            .collect();
        ensure!(keys.len() > 5, "{program} -help shows {keys:?}");
        for key in keys.into_iter().filter(|key| *key != "config") {
            ensure!(explained.contains(key), "docs/CONFIG.md does not explain {program} {key}");
        }
    }
    Ok(())
}

#[test]
fn every_command_is_listed() -> Result<()> {
    let text = page("docs/CLI.md")?;
    let listed: HashSet<&str> = quoted(&text).collect();
    let mut context = command("pilotctl")?;
    context.args(["context", "--json"]);
    let said = run("pilotctl", context, Duration::from_secs(10))?.stdout;
    let said: serde_json::Value = serde_json::from_str(&said)?;
    let commands = said["data"]["commands"].as_object().context("no commands")?;
    for name in commands.keys() {
        ensure!(listed.contains(name.as_str()), "docs/CLI.md does not list {name}");
    }
    for code in said["data"]["error_codes"].as_object().context("no codes")?.keys() {
        ensure!(listed.contains(code.as_str()), "docs/CLI.md does not explain {code}");
    }
    Ok(())
}

#[test]
fn the_readme_names_files_that_exist() -> Result<()> {
    let text = page("README.md")?;
    let (_, table) = text.split_once("## Where things are").context("no table")?;
    for name in quoted(table).filter(|q| q.contains('/') && !q.contains(' ')) {
        ensure!(root().join(name).exists(), "README.md names {name}, which is not there");
    }
    Ok(())
}
