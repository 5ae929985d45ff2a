//! Trust that a peer ends without being able to say so itself, and nodes that
//! an administrator shuts out.

use anyhow::{Context, Result, ensure};
use pilot_tests::harness::{Daemon, Network, establish_trust, eventually};
use pilot_wire::NodeId;
use rustix::process::Signal;
use serde_json::Value;

use super::raw::KeyHolder;
use super::*;

async fn forgets(daemon: &Daemon, node: NodeId) -> Result<()> {
    let client = daemon.client().await?;
    eventually("the trust to be forgotten", async || {
        let trusted = client.trusted().await.ok()?;
        (!trusted.iter().any(|t| t.node_id == node)).then_some(())
    })
    .await
    .with_context(|| daemon.process.log_tail())
}

/// The registry alone tells the other side: the daemon that is said to have
/// revoked is halted, so that its tunnel carries nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_registry_tells_what_the_tunnel_cannot() -> Result<()> {
    let network = with_admin()?;
    let (a, mut b) = network.pair().await?;
    let (node_a, node_b) = (a.node().await?, b.node().await?);
    let (mut to_b, mut to_a) = (Held::open(&a, &b).await?, Held::open(&b, &a).await?);
    let holder = KeyHolder::of(&b).await?;
    b.process.signal(Signal::STOP);
    holder.revoke_trust(&network, node_a).await?;
    to_b.ends_where_dialled().await?;
    to_a.ends_where_accepted().await?;
    forgets(&a, node_b).await?;
    b.process.signal(Signal::CONT);
    // At the other side they end as well, by what the first one says.
    to_b.ends_where_accepted().await?;
    to_a.ends_where_dialled().await?;
    cannot_open(&a.client().await?, &echo_of(&b).await?).await?;

    // It can be made again, by both.
    b.client().await?.revoke(node_a).await?;
    trust_again(&a, &b).await?;
    works(&a, &echo_of(&b).await?, 1).await?;
    works(&b, &echo_of(&a).await?, 2).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_dies_after_revoking_has_revoked() -> Result<()> {
    let network = with_admin()?;
    let (a, mut b) = network.pair().await?;
    let (node_a, node_b) = (a.node().await?, b.node().await?);
    let mut held = Held::open(&a, &b).await?;
    b.client().await?.revoke(node_a).await?;
    b.process.kill();
    held.ends_where_dialled().await?;
    // The registry may not have heard of it before the daemon is back.
    b.start_again()?;
    b.joined().await?;
    forgets(&a, node_b).await?;
    forgets(&b, node_a).await?;
    cannot_open(&a.client().await?, &echo_of(&b).await?).await
}

/// What was revoked while a daemon was away counts when it comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_away_learns_of_it() -> Result<()> {
    let mut network = with_admin()?;
    let (mut a, mut b) = network.pair().await?;
    let (node_a, node_b) = (a.node().await?, b.node().await?);
    works(&a, &echo_of(&b).await?, 1).await?;
    let holder = KeyHolder::of(&b).await?;
    for restart in [false, true] {
        a.process.kill();
        b.process.signal(Signal::STOP);
        holder.revoke_trust(&network, node_a).await?;
        if restart {
            network.restart_registry()?;
        }
        trusts_for_long(&a)?;
        a.start_again()?;
        a.joined().await?;
        forgets(&a, node_b).await?;
        b.process.signal(Signal::CONT);
        cannot_open(&a.client().await?, &echo_of(&b).await?).await?;
        until_session(&b).await?;
        b.client().await?.revoke(node_a).await?;
        trust_again(&a, &b).await?;
        works(&a, &echo_of(&b).await?, 2).await?;
    }
    Ok(())
}

/// Trust of a moment ago is given a minute, in which the peer may state it
/// again; then what the registry says counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn young_trust_that_was_revoked_ends_as_well() -> Result<()> {
    let network = with_admin()?;
    let (mut a, mut b) = network.pair().await?;
    let (node_a, node_b) = (a.node().await?, b.node().await?);
    let holder = KeyHolder::of(&b).await?;
    a.process.kill();
    b.process.signal(Signal::STOP);
    holder.revoke_trust(&network, node_a).await?;
    a.start_again()?;
    a.joined().await?;
    let mut forgotten = forgets(&a, node_b).await;
    for _ in 0..2 {
        if forgotten.is_err() {
            forgotten = forgets(&a, node_b).await;
        }
    }
    forgotten
}

/// A node that others trust, that is in a network with others, and whose
/// streams are open to both.
struct Lost {
    lost: Daemon,
    friend: Daemon,
    member: Daemon,
    network: Network,
}

impl Lost {
    async fn start() -> Result<Self> {
        let network = with_admin()?;
        create(&network, "lab", &["--rule", "open"])?;
        let configured = |name: &str| network.options(name).lines("networks: [lab]\n");
        let lost = network.daemon_with(configured("lost")).await?;
        let member = network.daemon_with(configured("member")).await?;
        let friend = network.daemon("friend").await?;
        for daemon in [&lost, &member] {
            until_state(daemon, "lab", "joined").await?;
        }
        establish_trust(&lost, &friend).await?;
        Ok(Self { lost, friend, member, network })
    }

    fn revoke(&self, node: NodeId) -> Result<()> {
        let args = ["node", "revoke", &node.to_string(), "--reason", "stolen laptop"];
        let revoked = self.network.pilotctl(&args)?;
        ensure!(revoked["node_id"] == json!(node), "{revoked}");
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_node_loses_everything_and_says_so() -> Result<()> {
    let mut all = Lost::start().await?;
    let node = all.lost.node().await?;
    let holder = KeyHolder::of(&all.lost).await?;
    let mut streams =
        [Held::open(&all.lost, &all.friend).await?, Held::open(&all.lost, &all.member).await?];
    // It does not help them: they have to cut it off.
    all.lost.process.signal(Signal::STOP);
    all.revoke(node)?;
    for held in &mut streams {
        held.ends_where_accepted().await?;
    }
    forgets(&all.friend, node).await?;
    all.lost.process.signal(Signal::CONT);
    for held in &mut streams {
        held.ends_where_dialled().await?;
    }
    let told = |r: &Value| {
        r["registered"] == false && r["revoked"].as_str().is_some_and(|r| r.contains("revoked"))
    };
    until_registry(&all.lost, "to be told of the revocation", told).await?;
    let text = all.lost.pilotctl_text(&["info"])?;
    ensure!(text.contains("an administrator has revoked this node"), "{text}");
    let members = all.network.pilotctl(&["network", "members", "lab"])?;
    ensure!(!members.to_string().contains("\"lost\""), "{members}");
    let stands = standing(&all.lost, "lab")?;
    ensure!(stands["state"] != "joined", "{stands}");

    // In neither direction, although endpoints and keys are known.
    let lost = all.lost.client().await?;
    for other in [&all.friend, &all.member] {
        cannot_open(&lost, &echo_of(other).await?).await?;
        let target = format!("{}:7", pilot_wire::Address::backbone(node));
        cannot_open(&other.client().await?, &target).await?;
    }

    // Nor after a restart, which says it again; nor by hand.
    all.lost.stop()?;
    all.lost.start_again()?;
    until_registry(&all.lost, "to be told of the revocation again", told).await?;
    for other in [&all.friend, &all.member] {
        cannot_open(&all.lost.client().await?, &echo_of(other).await?).await?;
    }
    let answer = holder.register(&all.network).await?;
    ensure!(answer["code"] == "revoked", "{answer}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_revoked_while_others_are_away_is_cut_off() -> Result<()> {
    let mut all = Lost::start().await?;
    let node = all.lost.node().await?;
    let target = echo_of(&all.lost).await?;
    for other in [&all.friend, &all.member] {
        works(other, &target, 1).await?;
    }
    all.friend.process.kill();
    all.member.process.kill();
    all.revoke(node)?;
    all.network.restart_registry()?;
    trusts_for_long(&all.friend)?;
    for other in [&mut all.friend, &mut all.member] {
        other.start_again()?;
        other.joined().await?;
    }
    forgets(&all.friend, node).await?;
    let lost = all.lost.client().await?;
    for other in [&all.friend, &all.member] {
        let away = all.network.pilotctl(&["network", "members", "lab"])?;
        ensure!(!away.to_string().contains("\"lost\""), "{away}");
        until_session(other).await?;
        eventually("the revoked node to be cut off", async || {
            let sent = cannot_open(&lost, &echo_of(other).await.ok()?).await;
            sent.ok()
        })
        .await?;
        cannot_open(&other.client().await?, &target).await?;
    }
    Ok(())
}
