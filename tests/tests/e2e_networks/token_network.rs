//! Daemons that do not trust each other, in a network for who has a token.

use anyhow::{Context, Result, ensure};
use pilot_sdk::Datagrams;
use pilot_tests::harness::{Daemon, Network, eventually};
use serde_json::Value;
use tokio::time::timeout;

use super::*;

/// Two members of `lab`, and one daemon that is not. All are public, so that
/// what keeps the third out is the daemons themselves.
struct Lab {
    a: Daemon,
    b: Daemon,
    outsider: Daemon,
    id: u64,
    network: Network,
}

impl Lab {
    async fn start() -> Result<Self> {
        let network = with_admin()?;
        let id = create(&network, "lab", &["--rule", "token", "--broadcast", "members"])?;
        let public = |name: &str| network.options(name).set("public", "true");
        let a = network.daemon_with(public("agent-a")).await?;
        let b = network.daemon_with(public("agent-b")).await?;
        let outsider = network.daemon_with(public("outsider")).await?;
        let secret = token(&network, "lab", &["--uses", "2", "--tag", "gpu"])?;
        for member in [&a, &b] {
            let membership = join(member, "lab", &secret)?;
            ensure!(membership["network"] == id, "{membership}");
            ensure!(membership["tags"] == json!(["gpu"]), "{membership}");
            ensure!(membership["may_broadcast"] == true, "{membership}");
        }
        Ok(Self { a, b, outsider, id, network })
    }
}

async fn untrusted(daemon: &Daemon) -> Result<u64> {
    let info = daemon.info().await?;
    info["refused"]["untrusted"].as_u64().with_context(|| format!("not counted in {info}"))
}

/// Nothing of what `outsider` sends comes through, and it is counted.
async fn is_kept_out(member: &Daemon, outsider: &Daemon, inbox: &mut Datagrams) -> Result<()> {
    let client = outsider.client().await?;
    let before = untrusted(member).await?;
    cannot_open(&client, &echo_of(member).await?).await?;
    eventually("the refusal to be counted", async || {
        (untrusted(member).await.ok()? > before).then_some(())
    })
    .await?;
    let (before, target) =
        (untrusted(member).await?, format!("{}:{PORT}", member.address().await?));
    eventually("the datagram to be refused", async || {
        client.send_datagram(&target, b"psst").await.ok()?;
        (untrusted(member).await.ok()? > before).then_some(())
    })
    .await?;
    let came = timeout(std::time::Duration::from_millis(200), inbox.recv()).await;
    ensure!(came.is_err(), "a datagram of an outsider was delivered");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_reach_each_other_without_trust_and_others_do_not() -> Result<()> {
    let Lab { a, b, outsider, id, network } = Lab::start().await?;
    let (node_a, node_b) = (a.node().await?, b.node().await?);
    works(&a, &echo_of(&b).await?, 1).await?;
    works(&b, &echo_of(&a).await?, 2).await?;
    datagram_arrives(&a, &b, "one way").await?;
    datagram_arrives(&b, &a, "and back").await?;
    for daemon in [&a, &b] {
        let trusted = daemon.client().await?.trusted().await?;
        ensure!(trusted.is_empty(), "{} trusts {trusted:?}", daemon.name);
    }
    let server = b.client().await?;
    is_kept_out(&b, &outsider, &mut server.datagrams()).await?;

    // Both by name and by number, as a member and as the administrator.
    let number = id.to_string();
    for members in [
        a.pilotctl(&["network", "members", "lab"])?,
        network.pilotctl(&["network", "members", &number])?,
    ] {
        let members = members["members"].as_array().context("no members")?;
        let nodes: Vec<_> = members.iter().map(|m| m["node_id"].clone()).collect();
        ensure!(nodes == [json!(node_a), json!(node_b)], "{members:?}");
        ensure!(members.iter().all(|m| m["rule"] == "token" && m["registered"] == true));
        ensure!(members[0]["hostname"] == "agent-a", "{members:?}");
    }
    let error = outsider.pilotctl_error(&["network", "members", "lab"])?;
    ensure!(error["code"] == "not_member", "{error}");

    let list = a.pilotctl(&["network", "list"])?;
    let mut lab = list["networks"].as_array().context("no networks")?.iter();
    let lab = lab.find(|n| n["id"] == id).cloned().context("lab is not listed")?;
    ensure!(lab["name"] == "lab" && lab["members"] == 2 && lab["join_rule"] == "token", "{lab}");
    ensure!(lab["membership"]["tags"] == json!(["gpu"]), "{lab}");
    let shown = outsider.pilotctl(&["network", "list"])?.to_string();
    ensure!(shown.contains("\"lab\"") && !shown.contains("membership\""), "{shown}");

    let status = a.pilotctl(&["network", "status"])?;
    let info = standing(&a, "lab")?;
    ensure!(status["networks"] == json!([info]), "{status} is not {info}");
    ensure!(info["state"] == "joined" && info["id"] == id, "{info}");
    ensure!(info["reason"] == Value::Null, "{info}");
    let text = a.pilotctl_text(&["info"])?;
    ensure!(text.contains("lab") && text.contains("joined"), "{text}");

    // Both uses of the token are gone.
    let error = {
        let file = a.home.join("token");
        let file = file.to_str().context("path")?;
        outsider.pilotctl_error(&["network", "join", "lab", "--token-file", file])?
    };
    ensure!(error["code"] == "not_admitted", "{error}");
    says(&error, "used up")?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaving_ends_streams_and_new_ones_fail() -> Result<()> {
    let Lab { a, b, id, network, .. } = Lab::start().await?;
    let mut from_a = Held::open(&a, &b).await?;
    b.pilotctl(&["network", "leave", "lab"])?;
    from_a.ends().await?;
    for (from, to) in [(&a, &b), (&b, &a)] {
        cannot_open(&from.client().await?, &echo_of(to).await?).await?;
    }
    let left = standing(&b, "lab")?;
    ensure!(left["state"] == "left" && left["reason"] == "left", "{left}");
    ensure!(standing(&a, "lab")?["state"] == "joined");
    let members = a.pilotctl(&["network", "members", "lab"])?;
    ensure!(members["members"].as_array().is_some_and(|m| m.len() == 1), "{members}");

    // Who comes back is reached again; who is removed is not, and hears why.
    let secret = token(&network, "lab", &[])?;
    join(&b, "lab", &secret)?;
    works(&a, &echo_of(&b).await?, 3).await?;
    let mut from_b = Held::open(&b, &a).await?;
    network.pilotctl(&["network", "remove", &id.to_string(), &b.node().await?.to_string()])?;
    from_b.ends().await?;
    until_standing(&b, "lab", "the removal", |n| n["state"] == "left" && n["reason"] == "removed")
        .await?;
    cannot_open(&a.client().await?, &echo_of(&b).await?).await?;

    // A network that is deleted ends for all.
    join(&b, "lab", &secret)?;
    let mut last = Held::open(&a, &b).await?;
    network.pilotctl(&["network", "delete", "lab"])?;
    last.ends().await?;
    for daemon in [&a, &b] {
        until_standing(daemon, "lab", "the end", |n| n["reason"] == "deleted").await?;
    }
    cannot_open(&a.client().await?, &echo_of(&b).await?).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_has_an_address_in_the_network() -> Result<()> {
    let Lab { a, b, id, network: _network, .. } = Lab::start().await?;
    let lab = standing(&b, "lab")?;
    let address = lab["address"].as_str().with_context(|| format!("no address in {lab}"))?;
    ensure!(address.starts_with(&format!("{id}:")), "{lab}");
    works(&a, &format!("{address}:7"), 1).await?;
    // Trust outlives the network; streams to an address in it do not.
    pilot_tests::harness::establish_trust(&a, &b).await?;
    let mut inside = Held::open_at(&a, &b, address).await?;
    let mut outside = Held::open(&b, &a).await?;
    a.pilotctl(&["network", "leave", "lab"])?;
    inside.ends().await?;
    outside.lives().await?;
    works(&a, &echo_of(&b).await?, 2).await
}
