//! `registry.rss_1m` and `registry.restart_1m`: a registry with a million nodes,
//! a million trust pairs and ten networks of 10,000 members. The state comes
//! from `pilot-registry import`, which is the quickest way to it; every run
//! starts from the same file, as an earlier one that was killed left it.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pilot_wire::NodeId;
use pilot_wire::registry::{FrameBuffer, Lookup, PublicKey, Request, parse_reply};
use sha2::{Digest, Sha256};

use super::registry::{start, store_folder};
use super::report::Report;
use super::rows::{MIB, Plan, RUNS};
use crate::harness::{command, resident_bytes, run as run_program};

/// The rows.
pub(super) const ROWS: [&str; 2] = ["registry.rss_1m", "registry.restart_1m"];
const NODES: u64 = 1_000_000;
const PAIRS: u64 = 1_000_000;
const NETWORKS: u64 = 10;
const MEMBERS: u64 = 10_000;
/// An import takes no longer unless it hangs.
const IMPORT_LIMIT: Duration = Duration::from_secs(180);

/// Runs both rows.
pub(super) fn run(plan: &Plan, report: &mut Report) -> Result<()> {
    let (nodes, pairs) = (plan.size(NODES), plan.size(PAIRS));
    eprintln!("registry.*_1m: making a state of {nodes} nodes and {pairs} trust pairs");
    let store = store_folder()?;
    let from = store.path().join("published.json");
    write_published(&from, nodes, pairs, plan.size(MEMBERS))?;
    let mut import = command("pilot-registry")?;
    import.args(["import", "-from"]).arg(&from).arg("-store").arg(store.path().join("registry.db"));
    let done = run_program("pilot-registry import", import, IMPORT_LIMIT)?;
    ensure!(done.status.success(), "import failed: {}{}", done.stdout, done.stderr);
    std::fs::remove_file(&from)?;
    for _ in 0..RUNS {
        let since = Instant::now();
        let mut server = start(&store)?;
        let answer = lookup(server.ready_text("addr")?, nodes)?;
        let took = since.elapsed();
        ensure!(answer.public_key == key(nodes), "node {nodes} has another key: {answer:?}");
        report.add("registry.restart_1m", "s", took.as_secs_f64());
        let resident = resident_bytes(server.pid())? as f64 / MIB as f64;
        report.add("registry.rss_1m", "MiB", resident);
        server.kill();
    }
    Ok(())
}

fn lookup(addr: &str, node: u64) -> Result<Lookup> {
    let mut frame = Vec::new();
    let node_id = NodeId(u32::try_from(node)?);
    Request::Lookup { node_id }.append_to(&mut frame)?;
    let mut stream = TcpStream::connect(addr)?;
    stream.write_all(&frame)?;
    let mut frames = FrameBuffer::new();
    let mut buffer = [0; 4096];
    loop {
        if let Some(body) = frames.next_body()? {
            return Ok(parse_reply(body)?);
        }
        let n = stream.read(&mut buffer)?;
        ensure!(n > 0, "the registry closed the connection");
        frames.push(&buffer[..n]);
    }
}

/// Any 32 bytes: nobody signs here.
fn key(node: u64) -> PublicKey {
    PublicKey(Sha256::digest(node.to_le_bytes()).into())
}

/// The published registry's state file (protocol page "Registry", section 7).
fn write_published(path: &Path, nodes: u64, pairs: u64, members: u64) -> Result<()> {
    let file = File::create(path).with_context(|| path.display().to_string())?;
    let mut out = BufWriter::new(file);
    write!(out, "{{\"next_node\":{},\"next_net\":{},\"nodes\":{{", nodes + 1, NETWORKS + 1)?;
    for node in 1..=nodes {
        let comma = if node > 1 { "," } else { "" };
        let (key, port) = (key(node), 1024 + node % 60_000);
        let [_, b, c, d] = u32::try_from(node)?.to_be_bytes();
        write!(
            out,
            "{comma}\"{node}\":{{\"id\":{node},\"public_key\":\"{key}\",\"networks\":[0],\
             \"real_addr\":\"10.{b}.{c}.{d}:{port}\",\"last_seen\":\"2026-11-20T12:00:00Z\"}}"
        )?;
    }
    out.write_all(b"},\"networks\":{")?;
    for network in 1..=NETWORKS {
        let comma = if network > 1 { "," } else { "" };
        write!(
            out,
            "{comma}\"{network}\":{{\"id\":{network},\"name\":\"network-{network}\",\
             \"join_rule\":\"open\",\"created\":\"2026-11-20T12:00:00Z\",\"members\":["
        )?;
        for member in 0..members {
            let comma = if member > 0 { "," } else { "" };
            write!(out, "{comma}{}", (network * members + member) % nodes + 1)?;
        }
        out.write_all(b"]}")?;
    }
    out.write_all(b"},\"trust_pairs\":[")?;
    for pair in 0..pairs {
        // Each pair once: neighbours at a distance that grows by the round.
        let (a, distance) = (pair % nodes, 1 + pair / nodes);
        let (a, b) = (a + 1, (a + distance) % nodes + 1);
        let comma = if pair > 0 { "," } else { "" };
        write!(out, "{comma}\"{}:{}\"", a.min(b), a.max(b))?;
    }
    out.write_all(b"]}")?;
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use serde_json::Value;

    use super::*;

    #[test]
    fn the_state_is_what_it_says() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("published.json");
        write_published(&path, 100, 150, 20).unwrap();
        let state: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert_eq!(state["nodes"].as_object().unwrap().len(), 100);
        assert_eq!(state["networks"].as_object().unwrap().len(), 10);
        let members = state["networks"]["10"]["members"].as_array().unwrap();
        assert_eq!(members.iter().collect::<HashSet<_>>().len(), 20);
        let pairs = state["trust_pairs"].as_array().unwrap();
        assert_eq!(pairs.iter().collect::<HashSet<_>>().len(), 150);
    }
}
