//! The audit log of a run, as an administrator reads it and as its verifier does.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use pilot_tests::harness::{Finished, Network, RegistryOptions, command, establish_trust, run};
use serde_json::Value;

use super::*;

/// The records that fit.
fn audit(network: &Network, more: &[&str]) -> Result<Vec<Value>> {
    let args = [&["audit"], more].concat();
    let done = run("pilotctl", network.admin_command(&args)?, NOTICE)?;
    ensure!(done.status.success(), "{}", done.stderr);
    let lines = done.stdout.lines();
    lines.map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

fn registry_tool(args: &[&str], store: &Path) -> Result<Finished> {
    let mut tool: Command = command("pilot-registry")?;
    tool.args(args).arg("-store").arg(store);
    run("pilot-registry", tool, NOTICE)
}

fn is_sound(network: &Network) -> Result<()> {
    let done = registry_tool(&["audit", "verify"], &network.folder().join("registry.db"))?;
    ensure!(done.status.success(), "{done:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_says_who_did_what() -> Result<()> {
    let options = RegistryOptions::new().with_admin().set("network-creation", "any");
    let mut network = Network::start_with(options)?;
    let a = network.daemon_with(network.options("agent-a").set("owner", "ops")).await?;
    let b = network.daemon("agent-b").await?;
    let (node_a, node_b) = (a.node().await?, b.node().await?);
    let id = create(&network, "lab", &["--rule", "token"])?;
    a.pilotctl(&["network", "create", "club"])?;
    let secret = token(&network, "lab", &["--uses", "1"])?;
    join(&a, "lab", &secret)?;
    let error = b.pilotctl_error(&["network", "join", "lab", "--token", "a wrong one"])?;
    ensure!(error["code"] == "not_admitted", "{error}");
    establish_trust(&a, &b).await?;
    a.client().await?.revoke(node_b).await?;
    a.pilotctl(&["network", "leave", "lab"])?;
    let reason = ["node", "revoke", &node_b.to_string(), "--reason", "stolen laptop"];
    network.pilotctl(&reason)?;
    // Somebody without the right.
    let error = a.pilotctl_error(&["audit", "--admin-token", "not the administrator's"])?;
    ensure!(error["code"] == "bad_admin_token", "{error}");

    let in_lab = |node| format!("node {node} in network {id}");
    // What is about a token names it before the network.
    let expected: [(&str, String, &str, Value, &str); 7] = [
        ("network_create", format!("network {id}"), "allowed", Value::Null, "admin"),
        ("token_create", format!("network {id}"), "allowed", Value::Null, "admin"),
        ("network_join", in_lab(node_a), "allowed", json!(node_a), "node"),
        ("network_join", in_lab(node_b), "denied", json!(node_b), "node"),
        ("network_leave", in_lab(node_a), "allowed", json!(node_a), "node"),
        ("revoke_trust", format!("node {node_b}"), "allowed", json!(node_a), "node"),
        ("node_revoke", format!("node {node_b}"), "allowed", Value::Null, "admin"),
    ];
    let all = eventually("the records", async || {
        let all = audit(&network, &[]).ok()?;
        all.iter().any(|r| r["operation"] == "node_revoke").then_some(all)
    })
    .await?;
    for (operation, object, result, actor, kind) in expected {
        let found = all.iter().find(|r| {
            r["operation"] == operation
                && r["result"] == result
                && r["actor"]["node_id"] == actor
                && r["actor"]["kind"] == kind
        });
        let shown = || all.iter().map(Value::to_string).collect::<Vec<_>>().join("\n");
        let found = found.with_context(|| format!("no {operation} by {kind}:\n{}", shown()))?;
        let about = found["object"].as_str().unwrap_or_default();
        ensure!(about.ends_with(&object), "{found} is not about {object:?}");
        let source = found["source"].as_str().unwrap_or_default();
        ensure!(source.starts_with("127.0.0.1:"), "{found}");
        ensure!(!found["request_id"].as_str().unwrap_or_default().is_empty(), "{found}");
    }
    let numbers: Vec<_> = all.iter().filter_map(|r| r["seq"].as_u64()).collect();
    ensure!(numbers == (1..=all.len() as u64).collect::<Vec<_>>(), "{numbers:?}");
    let text: String = all.iter().map(Value::to_string).collect();
    ensure!(!text.contains(&secret) && !text.contains("a wrong one"), "a secret is in the log");
    ensure!(text.contains("stolen laptop"), "the reason is missing");

    // Who is asked for, and nobody else.
    let of_a = audit(&network, &["--actor", &a.address().await?])?;
    ensure!(of_a.len() > 2 && of_a.iter().all(|r| r["actor"]["node_id"] == json!(node_a)));
    let ops = audit(&network, &["--actor", "ops", "--operation", "network_join"])?;
    ensure!(ops.len() == 1 && ops[0]["rule"] == "token", "{ops:?}");
    let denied = audit(&network, &["--result", "denied", "--since", "1h"])?;
    ensure!(denied.iter().any(|r| r["code"] == "not_admitted" && r["rule"] == "token"));
    ensure!(denied.iter().any(|r| r["code"] == "bad_admin_token"), "{denied:?}");
    ensure!(audit(&network, &["--limit", "2"])?.len() == 2);

    // While it runs, once it has been started after a kill, and after an end.
    is_sound(&network)?;
    network.kill_registry();
    network.restart_registry()?;
    is_sound(&network)?;
    network.registry().terminate(NOTICE)?;
    is_sound(&network)?;
    let heads = registry_tool(&["audit", "heads"], &network.folder().join("registry.db"))?;
    ensure!(heads.status.success() && !heads.stdout.is_empty(), "{heads:?}");
    Ok(())
}
