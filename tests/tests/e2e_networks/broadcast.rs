//! One datagram to all members of a network.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pilot_sdk::Datagrams;
use pilot_tests::harness::{Daemon, Network, eventually};
use pilot_wire::{Address, NodeId};
use tokio::time::timeout;

use super::*;

/// Whether this is the next datagram.
async fn takes(inbox: &mut Datagrams, text: &str) -> bool {
    let next = timeout(Duration::from_millis(300), inbox.recv()).await;
    matches!(next, Ok(Ok(datagram)) if datagram.data == text.as_bytes())
}

/// Four members of `lab`, in which who may broadcast is as `right` says.
async fn four(network: &Network, right: &str) -> Result<Vec<Daemon>> {
    create(network, "lab", &["--rule", "open", "--broadcast", right])?;
    let mut members = Vec::new();
    for name in ["agent-a", "agent-b", "agent-c", "agent-d"] {
        let daemon = network.daemon(name).await?;
        daemon.pilotctl(&["network", "join", "lab", "--wait"])?;
        members.push(daemon);
    }
    Ok(members)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_member_gets_it_and_nobody_else() -> Result<()> {
    let network = with_admin()?;
    let members = four(&network, "members").await?;
    let outsider = network.daemon("outsider").await?;
    // It knows every member, but not by the network.
    for member in &members {
        pilot_tests::harness::establish_trust(&outsider, member).await?;
        works(&outsider, &echo_of(member).await?, 1).await?;
    }
    let mut clients = Vec::new();
    for daemon in members.iter().chain([&outsider]) {
        clients.push(daemon.client().await?);
    }
    let mut inboxes: Vec<_> = clients.iter().map(|c| c.datagrams()).collect();
    for (from, member) in members.iter().enumerate() {
        for (to, inbox) in inboxes.iter_mut().enumerate().take(members.len()) {
            let text = format!("from {from} to {to}");
            if from == to {
                continue;
            }
            // A datagram may be lost, and comes again then.
            eventually(&text, async || {
                member.pilotctl(&["broadcast", "lab", "5000", &text]).ok()?;
                loop {
                    let next = timeout(Duration::from_millis(500), inbox.recv()).await.ok()?;
                    let next = next.ok()?;
                    if next.data == text.as_bytes() {
                        return (next.destination_port == 5000).then_some(());
                    }
                }
            })
            .await?;
        }
    }
    ensure!(!takes(&mut inboxes[4], "").await, "an outsider was told");
    let heard = timeout(Duration::from_millis(200), inboxes[4].recv()).await;
    ensure!(heard.is_err(), "an outsider got {heard:?}");
    let error = outsider.pilotctl_error(&["broadcast", "lab", "5000", "psst"])?;
    ensure!(error["code"] == "not_found", "{error}");
    says(&error, "not a member")?;

    // Who has left gets no more, although it is a peer that was sent to.
    members[3].pilotctl(&["network", "leave", "lab"])?;
    let mut late = clients[3].datagrams();
    eventually("another broadcast", async || {
        members[0].pilotctl(&["broadcast", "lab", "5000", "the rest"]).ok()?;
        while let Ok(Ok(next)) = timeout(Duration::from_millis(500), inboxes[1].recv()).await {
            if next.data == b"the rest"[..] {
                return Some(());
            }
        }
        None
    })
    .await?;
    let heard = timeout(Duration::from_millis(200), late.recv()).await;
    ensure!(heard.is_err(), "who has left got {heard:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_right_an_error_says_so() -> Result<()> {
    let network = with_admin()?;
    let members = four(&network, "nobody").await?;
    let client = members[1].client().await?;
    let mut inbox = client.datagrams();
    let error = members[0].pilotctl_error(&["broadcast", "lab", "5000", "hear me"])?;
    says(&error, "this node may not broadcast in network lab")?;
    ensure!(!takes(&mut inbox, "hear me").await, "it was sent all the same");

    // The right is given while the daemon runs, and taken again.
    network.pilotctl(&["network", "update", "lab", "--broadcast", "members"])?;
    until_standing(&members[0], "lab", "the right", |n| n["may_broadcast"] == true).await?;
    eventually("a broadcast", async || {
        members[0].pilotctl(&["broadcast", "lab", "5000", "hear me"]).ok()?;
        takes(&mut inbox, "hear me").await.then_some(())
    })
    .await?;
    network.pilotctl(&["network", "update", "lab", "--broadcast", "tag:loud"])?;
    until_standing(&members[0], "lab", "the end of the right", |n| n["may_broadcast"] == false)
        .await?;
    let error = members[0].pilotctl_error(&["broadcast", "lab", "5000", "hear me"])?;
    says(&error, "may not broadcast")?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_and_what_is_too_large_are_refused() -> Result<()> {
    let network = with_admin()?;
    let members = four(&network, "members").await?;
    let client = members[0].client().await?;
    let lab = standing(&members[0], "lab")?;
    let number = u16::try_from(lab["id"].as_u64().context("no number")?)?;
    let all = Address { network: number, node: NodeId::BROADCAST }.port(PORT);
    // Far more than a second's, at once.
    for _ in 0..200 {
        // An error is of an earlier one; it is looked for below.
        let _ = client.send_datagram_to(all, b"flood").await;
    }
    client.info_json().await?;
    let refused = client.datagram_error().context("200 broadcasts at once were taken")?;
    ensure!(refused.to_string().contains("broadcasts a second"), "{refused}");
    // What is let through again is too large.
    let large = "x".repeat(1025);
    let error = members[1].pilotctl_error(&["broadcast", "lab", "5000", &large])?;
    says(&error, "too large")?;
    Ok(())
}
