//! Invitations: for a node, for an owner, accepted, declined, taken back.

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, VerifyingKey};
use pilot_tests::harness::{Daemon, Network, RegistryOptions, eventually};
use pilot_wire::registry::challenge;
use pilot_wire::registry::network::Invitee;
use serde_json::Value;

use super::*;

struct Club {
    owner: Daemon,
    guest: Daemon,
    network: Network,
}

impl Club {
    /// A network that a node made, with the rule that is there without a word.
    async fn start() -> Result<Self> {
        let options = RegistryOptions::new().with_admin().set("network-creation", "any");
        let network = Network::start_with(options)?;
        let owner = network.daemon("owner").await?;
        let guest = network.daemon("guest").await?;
        let made = owner.pilotctl(&["network", "create", "club"])?;
        ensure!(made["network"]["join_rule"] == "invite", "{made}");
        ensure!(made["network"]["owner"] == json!(owner.node().await?), "{made}");
        // Who makes a network decides who is in it, and is not yet.
        let club = Self { owner, guest, network };
        club.invite(&club.owner.node().await?.to_string())?;
        club.owner.pilotctl(&["network", "join", "club", "--wait"])?;
        Ok(club)
    }

    fn invite(&self, whom: &str) -> Result<Value> {
        let mut made = self.owner.pilotctl(&["network", "invite", "club", whom])?;
        Ok(made["invitation"].take())
    }
}

/// The invitations that a daemon's user sees.
fn waiting(daemon: &Daemon) -> Result<Vec<Value>> {
    let mut list = daemon.pilotctl(&["network", "invitations"])?;
    serde_json::from_value(list["invitations"].take()).context("no invitations")
}

fn is_not_admitted(daemon: &Daemon) -> Result<()> {
    let error = daemon.pilotctl_error(&["network", "join", "club"])?;
    ensure!(error["code"] == "not_admitted", "{error}");
    says(&error, "there is no invitation for this node")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_invited_joins_and_who_declines_does_not() -> Result<()> {
    let club = Club::start().await?;
    let (owner, guest) = (&club.owner, &club.guest);
    is_not_admitted(guest)?;
    let node = guest.node().await?;
    let made = club.invite(&node.to_string())?;
    let seen = waiting(guest)?;
    ensure!(seen == [made.clone()], "{seen:?} is not {made}");
    ensure!(waiting(owner)?.is_empty(), "the inviter is not invited");
    is_signed(&made, Invitee::Node(node))?;
    // The daemon has been told without asking.
    eventually("the daemon to say so in its log", async || {
        guest.process.log().contains("invited to network club").then_some(())
    })
    .await?;

    let joined = guest.pilotctl(&["network", "join", "club", "--wait"])?;
    ensure!(joined["membership"]["name"] == "club", "{joined}");
    works(owner, &echo_of(guest).await?, 1).await?;
    works(guest, &echo_of(owner).await?, 2).await?;
    ensure!(waiting(guest)?.is_empty(), "an invitation is good once");
    guest.pilotctl(&["network", "leave", "club"])?;
    is_not_admitted(guest)?;

    let made = club.invite(&node.to_string())?;
    let id = made["id"].to_string();
    guest.pilotctl(&["network", "decline", &id])?;
    ensure!(waiting(guest)?.is_empty(), "a declined invitation still waits");
    is_not_admitted(guest)?;
    let error = guest.pilotctl_error(&["network", "decline", &id])?;
    ensure!(error["code"] == "invitation_gone", "{error}");
    Ok(())
}

fn is_signed(invitation: &Value, to: Invitee) -> Result<()> {
    let bytes = |key: &str| {
        let text = invitation[key].as_str().with_context(|| format!("no {key}: {invitation}"))?;
        anyhow::Ok(STANDARD.decode(text)?)
    };
    let key = VerifyingKey::from_bytes(bytes("key")?.first_chunk().context("a short key")?)?;
    let signature = Signature::from_slice(&bytes("signature")?)?;
    let network = u16::try_from(invitation["network"].as_u64().context("no network")?)?;
    let expires = invitation["expires"].as_u64().context("no expires")?;
    let text = challenge::invite(network, &to, expires);
    key.verify_strict(text.as_bytes(), &signature).context("the inviter's signature")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invitations_are_for_one_and_can_be_taken_back() -> Result<()> {
    let club = Club::start().await?;
    let other = club.network.daemon("other").await?;
    club.guest.client().await?.set_visibility(true).await?;
    // By its name, as it is public.
    let made = club.invite("guest")?;
    is_not_admitted(&other)?;
    let id = made["id"].to_string();
    let error = other.pilotctl_error(&["network", "uninvite", &id])?;
    ensure!(error["code"] == "invitation_gone", "{error}");
    let listed = club.owner.pilotctl(&["network", "invitations", "club"])?;
    ensure!(listed["invitations"] == json!([made]), "{listed}");
    club.owner.pilotctl(&["network", "uninvite", &id])?;
    is_not_admitted(&club.guest)?;
    // A member that is no owner invites where the rule asks for it.
    let node = club.guest.node().await?.to_string();
    club.invite(&node)?;
    club.guest.pilotctl(&["network", "join", "club", "--wait"])?;
    let node = other.node().await?.to_string();
    club.guest.pilotctl(&["network", "invite", "club", &node])?;
    other.pilotctl(&["network", "join", "club", "--wait"])?;
    works(&other, &echo_of(&club.owner).await?, 1).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_is_invited_with_all_its_nodes() -> Result<()> {
    let club = Club::start().await?;
    let options = club.network.options("theirs").set("owner", "somebody else");
    let theirs = club.network.daemon_with(options).await?;
    let made = club.network.pilotctl(&["network", "invite", "club", "owner:somebody else"])?;
    ensure!(made["invitation"]["to"] == json!({"owner": "somebody else"}), "{made}");
    ensure!(made["invitation"]["signature"] == Value::Null, "an administrator signs nothing");
    is_not_admitted(&club.guest)?;
    ensure!(waiting(&theirs)?.len() == 1);
    theirs.pilotctl(&["network", "join", "club", "--wait"])?;
    works(&club.owner, &echo_of(&theirs).await?, 1).await
}
