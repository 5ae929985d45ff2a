//! `info`: what the daemon says of itself.

use pilot_sdk::Info;
use serde_json::Value;

use super::connections;
use super::network::status;
use super::peers;
use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::{Answer, bytes, or_dash, printable_line, seconds};
use crate::spec::Spec;

pub(crate) const SPEC: Spec = Spec {
    name: "info",
    usage: "info",
    about: "Show the daemon's address, peers and connections",
    returns: "node_id, address, hostname, uptime_secs, connections, ports, peers, encrypted_peers, authenticated_peers, encrypt, identity, public_key, owner, bytes_sent, bytes_recv, pkts_sent, pkts_recv, peer_list, conn_list, registry, networks (name, id, state, reason, expires, next_try)",
    flags: &[],
    positionals: (0, 0),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(cx: &Cx, _args: &Args) -> Result<Answer, Failure> {
    let data = cx.client().await?.info_json().await.map_err(|e| Failure::daemon("info", &e))?;
    let info: Info = serde_json::from_value(data.clone())
        .map_err(|e| Failure::internal("the daemon's answer cannot be read").reason(e))?;
    let registered = info.node_id.0 != 0;
    let mut fields = vec![
        (
            "address",
            if registered {
                cx.out.strong(&info.address)
            } else {
                cx.out.bad("not registered yet")
            },
        ),
        ("node", if registered { info.node_id.to_string() } else { "-".to_owned() }),
        ("hostname", or_dash(&printable_line(&info.hostname))),
        ("owner", or_dash(&info.owner)),
        ("public key", or_dash(&info.public_key)),
        ("uptime", seconds(info.uptime_secs)),
        (
            "peers",
            format!(
                "{} ({} encrypted, {} authenticated)",
                info.peers, info.encrypted_peers, info.authenticated_peers
            ),
        ),
        ("connections", info.connections.to_string()),
        ("ports", info.ports.to_string()),
        ("sent", format!("{} in {} packets", bytes(info.bytes_sent), info.pkts_sent)),
        ("received", format!("{} in {} packets", bytes(info.bytes_recv), info.pkts_recv)),
    ];
    fields.extend(info.extra.get("registry").and_then(registry).map(|text| ("registry", text)));
    let udp = info.extra.get("udp");
    fields.extend(udp.and_then(batches).map(|text| ("datagrams", text)));
    fields.extend(info.extra.get("plugins").and_then(plugins).map(|text| ("plugins", text)));
    fields.extend(info.extra.get("events").and_then(events).map(|text| ("events", text)));
    let mut text = cx.out.fields(&fields);
    if let Some(shortfall) = udp.and_then(|u| u["buffer_shortfall"].as_str()) {
        text.push_str(&format!("\n\n{} {}", cx.out.bad("warning:"), printable_line(shortfall)));
    }
    let revoked = info.extra.get("registry").and_then(|r| r["revoked"].as_str());
    if let Some(revoked) = revoked {
        text.push_str(&format!("\n\n{} {}", cx.out.bad("warning:"), printable_line(revoked)));
    }
    let networks = info.extra.get("networks").and_then(Value::as_array);
    if let Some(list) = networks.filter(|list| !list.is_empty()) {
        text.push_str(&format!("\n\n{}", status::table(cx, list)));
    }
    if !info.peer_list.is_empty() {
        text.push_str(&format!("\n\n{}", peers::table(cx, &info.peer_list)));
    }
    if !info.conn_list.is_empty() {
        text.push_str(&format!("\n\n{}", connections::table(cx, &info.conn_list)));
    }
    Ok(Answer::new(data, text))
}

/// How the registry is reached: by a session on which it tells of changes, or
/// by asking again and again, as registries of the published protocol want it.
fn registry(status: &Value) -> Option<String> {
    let text = |key: &str| status[key].as_str().filter(|t| !t.is_empty()).map(printable_line);
    let mut parts = vec![text("state")?];
    let session = &status["session"];
    parts.extend(match session {
        Value::Object(session) => {
            session.get("state").and_then(Value::as_str).map(|s| format!("session {s}"))
        }
        Value::String(state) => Some(format!("session {state}")),
        _ => None,
    });
    parts.extend(status["since_secs"].as_u64().map(|s| format!("for {}", seconds(s))));
    parts.extend(text("address"));
    parts.extend(text("last_error").filter(|_| status["state"] != "up"));
    Some(parts.join(", "))
}

/// How many plugins and scripts run, and which do not as they should.
fn plugins(list: &Value) -> Option<String> {
    let list = list.as_array().filter(|list| !list.is_empty())?;
    let running = list.iter().filter(|p| p["state"] == "running").count();
    let mut parts = vec![format!("{running} running")];
    for state in ["failed", "backing-off", "over-budget"] {
        let names: Vec<_> = list
            .iter()
            .filter(|p| p["state"] == state)
            .filter_map(|p| p["name"].as_str().map(printable_line))
            .collect();
        if !names.is_empty() {
            parts.push(format!("{state}: {}", names.join(" ")));
        }
    }
    Some(parts.join(", "))
}

/// What became of events.
fn events(journal: &Value) -> Option<String> {
    let mut parts = vec![format!("{} emitted", journal["emitted"].as_u64()?)];
    if let Some(lost) = journal["lost"].as_u64().filter(|lost| *lost > 0) {
        parts.push(format!("{lost} lost"));
    }
    for sink in journal["sinks"].as_array().into_iter().flatten() {
        let name = printable_line(sink["sink"].as_str().unwrap_or_default());
        parts.push(format!("{} waiting for {name}", sink["waiting"].as_u64().unwrap_or_default()));
    }
    Some(parts.join(", "))
}

/// How well the socket under the tunnels batches; not every daemon tells.
fn batches(udp: &Value) -> Option<String> {
    let (sends, segments) = (udp["sends"].as_u64()?, udp["segments"].as_u64()?);
    let each = segments as f64 / sends.max(1) as f64;
    Some(format!("{segments} sent in {sends} calls, {each:.1} each"))
}
