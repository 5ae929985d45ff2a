//! A registry that is killed while daemons have sessions.

use anyhow::{Context, Result, ensure};
use pilot_tests::harness::{establish_trust, eventually};

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_come_back_and_nothing_was_missed() -> Result<()> {
    let mut network = with_admin()?;
    create(&network, "lab", &["--rule", "open"])?;
    let configured = |name: &str| network.options(name).lines("networks: [lab]\n");
    let a = network.daemon_with(configured("agent-a")).await?;
    let b = network.daemon_with(configured("agent-b")).await?;
    let c = network.daemon("agent-c").await?;
    establish_trust(&a, &c).await?;
    for daemon in [&a, &b] {
        until_state(daemon, "lab", "joined").await?;
    }
    for daemon in [&a, &b, &c] {
        until_session(daemon).await?;
    }
    let (mut by_network, mut by_trust) = (Held::open(&a, &b).await?, Held::open(&a, &c).await?);
    for round in 0..3 {
        network.kill_registry();
        for daemon in [&a, &b, &c] {
            let down = until_registry(daemon, "the registry to be down", |r| {
                r["state"] == "unreachable" && r["session"] == "none"
            })
            .await?;
            ensure!(down["last_error"].as_str().is_some_and(|e| !e.is_empty()), "{down}");
            ensure!(standing(daemon, "lab")?["state"] != "refused");
        }
        let text = a.pilotctl_text(&["info"])?;
        ensure!(text.contains("unreachable, session none"), "{text}");
        let error = b.pilotctl_error(&["network", "list"])?;
        says(&error, "not connected to the registry")?;
        // Known peers go on.
        for held in [&mut by_network, &mut by_trust] {
            held.lives().await?;
        }
        works(&a, &echo_of(&b).await?, round).await.context("in a network, without a registry")?;
        works(&c, &echo_of(&a).await?, round).await.context("trusted, without a registry")?;
        network.restart_registry()?;
        for daemon in [&a, &b, &c] {
            until_session(daemon).await?;
        }
        for held in [&mut by_network, &mut by_trust] {
            held.lives().await?;
        }
    }

    // The session that came back tells.
    network.pilotctl(&["network", "remove", "lab", &b.node().await?.to_string()])?;
    by_network.ends().await?;
    by_trust.lives().await?;
    c.client().await?.revoke(a.node().await?).await?;
    by_trust.ends().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_revoked_during_the_outage_arrives() -> Result<()> {
    let mut network = with_admin()?;
    let (mut a, b) = network.pair().await?;
    let (node_a, node_b) = (a.node().await?, b.node().await?);
    works(&a, &echo_of(&b).await?, 1).await?;
    network.kill_registry();
    until_registry(&b, "the registry to be down", |r| r["state"] == "unreachable").await?;
    // It is told by nobody but the registry: it was not there, and is elsewhere.
    let before = a.udp()?;
    a.process.kill();
    let taken = std::net::UdpSocket::bind(before)?;
    b.client().await?.revoke(node_a).await?;
    trusts_for_long(&a)?;
    a.start_again()?;
    let trusted = a.client().await?.trusted().await?;
    ensure!(trusted.iter().any(|t| t.node_id == node_b), "{trusted:?}");
    network.restart_registry()?;
    for daemon in [&a, &b] {
        until_session(daemon).await?;
    }
    let client = a.client().await?;
    eventually("the revocation to arrive", async || {
        let trusted = client.trusted().await.ok()?;
        trusted.is_empty().then_some(())
    })
    .await
    .with_context(|| a.process.log_tail())?;
    drop(taken);
    cannot_open(&client, &echo_of(&b).await?).await
}

/// A registry that has lost everything is another one: it is told again whom
/// daemons trust, instead of being believed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_lost_its_state_is_told_again() -> Result<()> {
    let mut network = with_admin()?;
    let (a, b) = network.pair().await?;
    until_session(&a).await?;
    until_session(&b).await?;
    works(&a, &echo_of(&b).await?, 1).await?;
    // Numbers are given in the order in which nodes come.
    let (first, mut second) = if a.node().await? < b.node().await? { (a, b) } else { (b, a) };
    let numbers = (first.node().await?, second.node().await?);
    network.kill_registry();
    second.process.kill();
    for entry in std::fs::read_dir(network.folder())? {
        let path = entry?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if name.starts_with("registry.db") || name.starts_with("audit.db") {
            std::fs::remove_file(path)?;
        }
    }
    network.restart_registry()?;
    until_session(&first).await?;
    second.start_again()?;
    second.joined().await?;
    until_session(&second).await?;
    ensure!(numbers == (first.node().await?, second.node().await?), "other numbers");
    works(&first, &echo_of(&second).await?, 2).await?;
    works(&second, &echo_of(&first).await?, 3).await
}
