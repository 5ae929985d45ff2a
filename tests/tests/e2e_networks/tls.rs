//! A registry with TLS, known by the fingerprint of its certificate.

use anyhow::{Context, Result, ensure};
use pilot_tests::harness::{Daemon, Network, RegistryOptions, run};
use serde_json::Value;

use super::*;

fn with_tls() -> Result<Network> {
    Network::start_with(RegistryOptions::new().with_admin().with_tls())
}

/// Another fingerprint than the registry's.
fn wrong(fingerprint: &str) -> String {
    let (first, rest) = fingerprint.split_at(1);
    format!("{}{rest}", if first == "0" { "1" } else { "0" })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_goes_over_tls() -> Result<()> {
    let mut network = with_tls()?;
    let fingerprint = network.fingerprint().context("no fingerprint")?.to_owned();
    create(&network, "lab", &["--rule", "token"])?;
    let secret = token(&network, "lab", &[])?;
    let a = network.daemon("agent-a").await?;
    // As published: capitals and colons are all right.
    let bytes: Vec<String> = fingerprint
        .as_bytes()
        .chunks(2)
        .map(|b| String::from_utf8_lossy(b).to_uppercase())
        .collect();
    let options = network.options("agent-b").set("registry-fingerprint", &bytes.join(":"));
    let b = network.daemon_with(options).await?;
    for daemon in [&a, &b] {
        join(daemon, "lab", &secret)?;
        until_session(daemon).await?;
    }
    works(&a, &echo_of(&b).await?, 1).await?;
    let mut held = Held::open(&b, &a).await?;
    let node = b.node().await?.to_string();
    let found = a.pilotctl(&["lookup", &node, "--fingerprint", &fingerprint])?;
    ensure!(found["hostname"] == "agent-b", "{found}");

    // The same certificate after a restart, and news over it.
    network.kill_registry();
    network.restart_registry()?;
    ensure!(network.fingerprint() == Some(fingerprint.as_str()), "another certificate");
    for daemon in [&a, &b] {
        until_session(daemon).await?;
    }
    held.lives().await?;
    network.pilotctl(&["network", "remove", "lab", &node])?;
    held.ends().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_fingerprint_is_told_with_the_right_one() -> Result<()> {
    let network = with_tls()?;
    let fingerprint = network.fingerprint().context("no fingerprint")?.to_owned();
    let wrong = wrong(&fingerprint);
    let names_both = |text: &str| text.contains(&fingerprint) && text.contains(&wrong);
    let options = network.options("agent-a").set("registry-fingerprint", &wrong);
    let a = Daemon::start(network.folder(), options)?;
    let stands = until_registry(&a, "the reason", |r| r["last_error"].is_string()).await?;
    let reason = stands["last_error"].as_str().unwrap_or_default();
    ensure!(names_both(reason), "{reason}");
    ensure!(stands["state"] != "up" && stands["registered"] == false, "{stands}");
    let text = a.pilotctl_text(&["info"])?;
    ensure!(names_both(&text), "{text}");

    let error = a.pilotctl_error(&["lookup", "1", "--fingerprint", &wrong])?;
    ensure!(error["code"] == "connection_failed", "{error}");
    says(&error, &fingerprint)?;
    says(&error, &wrong)?;
    // The administrator's token does not leave for somebody else's registry.
    let mut command = network.admin_command(&["audit"])?;
    command.args(["--fingerprint", &wrong]);
    let done = run("pilotctl", command, NOTICE)?;
    ensure!(!done.status.success() && done.stderr.contains("fingerprint"), "{done:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_tcp_and_tls_do_not_meet() -> Result<()> {
    let (tls, plain) = (with_tls()?, with_admin()?);
    let pin = tls.fingerprint().context("no fingerprint")?;
    let to_tls = tls.options("plain").set("registry-tls", "false");
    let to_plain =
        plain.options("pinned").set("registry-tls", "true").set("registry-fingerprint", pin);
    let refused = Daemon::start(tls.folder(), to_tls);
    // A fingerprint without TLS is a mistake, or it never gets through.
    if let Ok(daemon) = refused {
        until_registry(&daemon, "the reason", |r| r["last_error"].is_string()).await?;
        ensure!(daemon.info().await?["registry"]["registered"] == false);
    }
    let daemon = Daemon::start(plain.folder(), to_plain)?;
    let stands = until_registry(&daemon, "the reason", |r| r["last_error"].is_string()).await?;
    ensure!(stands["registered"] == false && stands["state"] != "up", "{stands}");
    let error: Value = daemon.pilotctl_error(&["lookup", "1", "--fingerprint", pin])?;
    ensure!(error["code"] == "connection_failed", "{error}");
    Ok(())
}
