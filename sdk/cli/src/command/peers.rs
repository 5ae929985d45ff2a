//! `peers`: the nodes this daemon has a tunnel to.

use pilot_sdk::PeerInfo;
use serde_json::{Value, json};

use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::{Answer, or_dash};
use crate::spec::{Flag, Spec};

pub(crate) const SPEC: Spec = Spec {
    name: "peers",
    usage: "peers [--search <text>]",
    about: "List the peers of this daemon",
    returns: "peers (node_id, endpoint, encrypted, authenticated; null if none), total",
    flags: &[Flag::value("search", "text", "only peers whose number or endpoint contains this")],
    positionals: (0, 0),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let info = cx.client().await?.info().await.map_err(|e| Failure::daemon("info", &e))?;
    let wanted = args.value("search").unwrap_or_default();
    let list: Vec<PeerInfo> = info
        .peer_list
        .into_iter()
        .filter(|p| p.node_id.to_string().contains(wanted) || p.endpoint.contains(wanted))
        .collect();
    let total = list.len();
    if list.is_empty() {
        return Ok(Answer::new(json!({"peers": null, "total": 0}), "no peers"));
    }
    let text = table(cx, &list);
    Ok(Answer::new(json!({"peers": list, "total": total}), text))
}

pub(super) fn table(cx: &Cx, list: &[PeerInfo]) -> String {
    let yes = |on: bool| if on { "yes" } else { "no" }.to_owned();
    let rows: Vec<_> = list
        .iter()
        .map(|p| {
            let path = match p.extra.get("relay").and_then(Value::as_bool) {
                Some(true) => "relayed",
                Some(false) => "direct",
                // A published daemon does not say.
                None => "",
            };
            let mtu = p.extra.get("path_mtu").and_then(Value::as_u64);
            let batches = p.extra.get("offload").and_then(Value::as_bool);
            vec![
                p.node_id.to_string(),
                or_dash(&p.endpoint),
                or_dash(path),
                or_dash(&mtu.map(|m| m.to_string()).unwrap_or_default()),
                batches.map_or_else(|| "-".to_owned(), yes),
                yes(p.encrypted),
                yes(p.authenticated),
            ]
        })
        .collect();
    cx.out
        .table(&["PEER", "ENDPOINT", "PATH", "MTU", "OFFLOAD", "ENCRYPTED", "AUTHENTICATED"], &rows)
}
