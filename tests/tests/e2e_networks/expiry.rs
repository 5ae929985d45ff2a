//! Memberships that end by the clock.

use anyhow::{Context, Result, ensure};
use pilot_tests::harness::{Network, RegistryOptions};
use rustix::process::Signal;
use serde_json::Value;

use super::*;

/// A rule that lets everybody in, for the seconds that the network says.
const TERM: &str = r#"
return {
  kind = "rule",
  validate = function(request)
    return { allow = true, expires_at_ms = request.at_ms + request.config.seconds * 1000 }
  end,
}
"#;

fn with_term(seconds: u64) -> Result<Network> {
    let options = RegistryOptions::new().with_admin().script("term.lua", TERM);
    let network = Network::start_with(options)?;
    let config = format!("term={}", json!({ "seconds": seconds }));
    create(&network, "lab", &["--rule", "term", "--rule-config", &config])?;
    Ok(network)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_membership_that_expires_ends_its_streams() -> Result<()> {
    // As long as the stream needs to open, and then some.
    let network = with_term(10)?;
    let a = network.daemon("agent-a").await?;
    let b = network.daemon("agent-b").await?;
    for daemon in [&a, &b] {
        let joined = daemon.pilotctl(&["network", "join", "lab", "--wait"])?;
        ensure!(joined["membership"]["expires"].is_u64(), "{joined}");
    }
    let mut held = Held::open(&a, &b).await?;
    held.ends().await?;
    // Nobody configured it, so nobody joins again.
    for daemon in [&a, &b] {
        until_standing(daemon, "lab", "the end", |n| {
            n["state"] == "left" && n["reason"] == "expired" && n["expires"] == Value::Null
        })
        .await?;
    }
    // A daemon ends it by its own clock, which the registry may follow a little later.
    pilot_tests::harness::eventually("the registry to end it as well", async || {
        let members = network.pilotctl(&["network", "members", "lab"]).ok()?;
        (members["members"] == json!([])).then_some(())
    })
    .await?;
    cannot_open(&a.client().await?, &echo_of(&b).await?).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_expires_alone_is_cut_off_by_the_others() -> Result<()> {
    let rule = r#"
return {
  kind = "rule",
  validate = function(request)
    if request.hostname == "guest" then
      return { allow = true, expires_at_ms = request.at_ms + 10000 }
    end
    return true
  end,
}
"#;
    let options = RegistryOptions::new().with_admin().script("guests.lua", rule);
    let network = Network::start_with(options)?;
    create(&network, "lab", &["--rule", "guests"])?;
    let host = network.daemon("host").await?;
    let mut guest = network.daemon("guest").await?;
    for daemon in [&host, &guest] {
        daemon.pilotctl(&["network", "join", "lab", "--wait"])?;
    }
    let mut held = Held::open(&host, &guest).await?;
    // The guest does not end it: its host has to.
    guest.process.signal(Signal::STOP);
    held.ends_where_dialled().await?;
    guest.process.signal(Signal::CONT);
    held.ends_where_accepted().await?;
    ensure!(standing(&host, "lab")?["state"] == "joined");
    cannot_open(&host.client().await?, &echo_of(&guest).await?).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memberships_are_renewed_and_expire_without_a_registry() -> Result<()> {
    let mut network = with_term(15)?;
    let configured = |name: &str| network.options(name).lines("networks:\n  - lab\n");
    let a = network.daemon_with(configured("agent-a")).await?;
    let b = network.daemon_with(configured("agent-b")).await?;
    let first = until_state(&a, "lab", "joined").await?;
    until_state(&b, "lab", "joined").await?;
    let mut held = Held::open(&a, &b).await?;
    // Renewed before its end, under the same stream.
    let end = first["expires"].as_u64().context("no end")?;
    for daemon in [&a, &b] {
        let later = |n: &Value| n["state"] == "joined" && n["expires"].as_u64() > Some(end);
        until_standing(daemon, "lab", "a renewal", later).await?;
    }
    held.lives().await?;

    network.kill_registry();
    held.ends().await?;
    for daemon in [&a, &b] {
        let stood = until_state(daemon, "lab", "waiting").await?;
        ensure!(stood["reason"].as_str().is_some_and(|r| !r.is_empty()), "{stood}");
    }
    cannot_open(&a.client().await?, &echo_of(&b).await?).await?;

    network.restart_registry()?;
    for daemon in [&a, &b] {
        until_state(daemon, "lab", "joined").await?;
    }
    works(&a, &echo_of(&b).await?, 1).await?;
    works(&b, &echo_of(&a).await?, 2).await
}
