//! `info`: what the daemon says of itself.

use pilot_sdk::Info;
use serde_json::Value;

use super::connections;
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
    returns: "node_id, address, hostname, uptime_secs, connections, ports, peers, encrypted_peers, authenticated_peers, encrypt, identity, public_key, owner, bytes_sent, bytes_recv, pkts_sent, pkts_recv, peer_list, conn_list",
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
    let udp = info.extra.get("udp");
    fields.extend(udp.and_then(batches).map(|text| ("datagrams", text)));
    let mut text = cx.out.fields(&fields);
    if let Some(shortfall) = udp.and_then(|u| u["buffer_shortfall"].as_str()) {
        text.push_str(&format!("\n\n{} {}", cx.out.bad("warning:"), printable_line(shortfall)));
    }
    if !info.peer_list.is_empty() {
        text.push_str(&format!("\n\n{}", peers::table(cx, &info.peer_list)));
    }
    if !info.conn_list.is_empty() {
        text.push_str(&format!("\n\n{}", connections::table(cx, &info.conn_list)));
    }
    Ok(Answer::new(data, text))
}

/// How well the socket under the tunnels batches; not every daemon tells.
fn batches(udp: &Value) -> Option<String> {
    let (sends, segments) = (udp["sends"].as_u64()?, udp["segments"].as_u64()?);
    let each = segments as f64 / sends.max(1) as f64;
    Some(format!("{segments} sent in {sends} calls, {each:.1} each"))
}
