//! Networks that a daemon's configuration lists.

use std::fs;

use anyhow::{Context, Result, ensure};
use pilot_tests::harness::{Daemon, Network};
use serde_json::Value;

use super::*;

/// One network for each source of a proof.
const SOURCES: [&str; 4] = ["by-value", "by-env", "by-file", "by-command"];

struct Site {
    a: Daemon,
    /// In every network of [`SOURCES`].
    fellow: Daemon,
    network: Network,
}

impl Site {
    async fn start() -> Result<Self> {
        let network = with_admin()?;
        let fellow = network.daemon("fellow").await?;
        let mut secrets = Vec::new();
        for name in SOURCES {
            create(&network, name, &["--rule", "token"])?;
            let secret = token(&network, name, &[])?;
            join(&fellow, name, &secret)?;
            secrets.push(secret);
        }
        let home = network.folder().join("agent-a");
        fs::create_dir_all(home.join("secrets"))?;
        // With white space around, as editors and programs leave it.
        fs::write(home.join("secrets/token"), format!("{}\n", secrets[2]))?;
        let printed = home.join("printed");
        fs::write(&printed, format!("  {}\n\n", secrets[3]))?;
        let lines = format!(
            "networks:\n\
             - name: by-value\n  proofs: {{token: {{value: {value}}}}}\n\
             - name: by-env\n  proofs: {{token: {{env: BY_ENV_TOKEN}}}}\n\
             - name: by-file\n  proofs: {{token: {{file: secrets/token}}}}\n\
             - name: by-command\n  proofs: {{token: {{command: [cat, {printed}]}}}}\n",
            value = json!(secrets[0]),
            printed = json!(printed),
        );
        let options = network.options("agent-a").lines(&lines).env("BY_ENV_TOKEN", &secrets[1]);
        let a = network.daemon_with(options).await?;
        Ok(Self { a, fellow, network })
    }

    async fn is_in_all(&self) -> Result<()> {
        for name in SOURCES {
            let stands = until_state(&self.a, name, "joined").await?;
            ensure!(stands["configured"] == true && stands["next_try"] == Value::Null, "{stands}");
            let members = self.network.pilotctl(&["network", "members", name])?;
            ensure!(members["members"].as_array().is_some_and(|m| m.len() == 2), "{members}");
        }
        works(&self.fellow, &echo_of(&self.a).await?, 1).await?;
        works(&self.a, &echo_of(&self.fellow).await?, 2).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_source_of_a_proof_joins_again_and_again() -> Result<()> {
    let mut site = Site::start().await?;
    site.is_in_all().await?;

    site.a.stop()?;
    site.a.start_again()?;
    site.a.joined().await?;
    site.is_in_all().await.context("after a restart of the daemon")?;

    site.a.process.kill();
    site.network.restart_registry()?;
    site.a.start_again()?;
    site.a.joined().await?;
    until_session(&site.fellow).await?;
    site.is_in_all().await.context("after a restart of both")?;

    site.network.restart_registry()?;
    until_session(&site.a).await?;
    site.is_in_all().await.context("after a restart of the registry")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_removed_is_back_after_a_restart() -> Result<()> {
    let mut site = Site::start().await?;
    site.is_in_all().await?;
    let node = site.a.node().await?.to_string();
    site.network.pilotctl(&["network", "remove", "by-file", &node])?;
    let left = until_state(&site.a, "by-file", "left").await?;
    ensure!(left["reason"] == "removed", "{left}");
    site.a.pilotctl(&["network", "leave", "by-env"])?;
    ensure!(standing(&site.a, "by-env")?["state"] == "left");
    // Neither comes back by itself, also not on another session.
    site.network.restart_registry()?;
    until_session(&site.a).await?;
    for name in ["by-file", "by-env"] {
        let stands = standing(&site.a, name)?;
        ensure!(stands["state"] == "left", "{stands}");
    }
    site.a.stop()?;
    site.a.start_again()?;
    site.is_in_all().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_proof_is_refused_until_it_is_right() -> Result<()> {
    let network = with_admin()?;
    for name in ["lab", "gone", "unset"] {
        create(&network, name, &["--rule", "token"])?;
    }
    let secret = token(&network, "lab", &[])?;
    let lines = "networks:\n\
                 - name: lab\n  proofs: {token: {file: token}}\n\
                 - name: gone\n  proofs: {token: {file: not-there}}\n\
                 - name: unset\n  proofs: {token: {env: NOT_SET_ANYWHERE}}\n\
                 - name: failing\n  proofs: {token: {command: ['false']}}\n\
                 - nowhere\n";
    let home = network.folder().join("agent-a");
    fs::create_dir_all(&home)?;
    fs::write(home.join("token"), "not the token")?;
    let a = network.daemon_with(network.options("agent-a").lines(lines)).await?;
    for (name, reason) in [
        ("lab", "the token is wrong"),
        ("gone", "not-there"),
        ("unset", "NOT_SET_ANYWHERE"),
        ("failing", "false"),
        ("nowhere", "there is no network"),
    ] {
        let stands = until_state(&a, name, "refused").await?;
        let said = stands["reason"].as_str().unwrap_or_default();
        ensure!(said.contains(reason), "{stands} does not say {reason:?}");
        ensure!(!said.contains("not the token"), "a secret is shown: {stands}");
        ensure!(stands["next_try"].is_u64(), "{stands}");
    }
    let text = a.pilotctl_text(&["info"])?;
    ensure!(text.contains("refused: ") && text.contains("the token is wrong"), "{text}");
    ensure!(!a.process.log().contains("not the token"), "a secret is in the log");

    fs::write(home.join("token"), secret)?;
    until_state(&a, "lab", "joined").await?;
    Ok(())
}
