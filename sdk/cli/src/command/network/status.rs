//! `network status`: the networks of this node, as its daemon keeps them.

use serde_json::{Value, json};

use super::until;
use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::{Answer, or_dash, printable_line};
use crate::registry::{Asker, ask_daemon, refusal};
use crate::spec::Spec;

/// The state of a network that the node is in.
const JOINED: &str = "joined";

pub(crate) const SPEC: Spec = Spec {
    name: "network status",
    usage: "network status",
    about: "Show this node's networks: which it is in, which it tries to join, and why not",
    returns: "networks (name, id, state, reason, expires, next_try)",
    flags: &[],
    positionals: (0, 0),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(cx: &Cx, _args: &Args) -> Result<Answer, Failure> {
    let data = ask(&Asker::node(cx).await?).await?;
    let text = match data["networks"].as_array() {
        Some(list) if !list.is_empty() => table(cx, list),
        _ => "no networks; join one with: pilotctl network join <network>".to_owned(),
    };
    Ok(Answer::new(data, text))
}

/// Whether the daemon is in a network.
pub(super) async fn is_joined(asker: &Asker, network: u16) -> Result<bool, Failure> {
    let data = ask(asker).await?;
    let list = data["networks"].as_array().map_or(&[][..], Vec::as_slice);
    Ok(list.iter().any(|n| n["id"] == network && n["state"] == JOINED))
}

async fn ask(asker: &Asker) -> Result<Value, Failure> {
    let what = "network status";
    let Asker::Node(client) = asker else {
        return Err(Failure::internal("only a daemon has networks"));
    };
    let data = ask_daemon(client, what, &json!({"type": "network_status"})).await?;
    match refusal(&data) {
        Some(reply) => Err(Failure::refused(what, &reply)),
        None => Ok(data),
    }
}

/// Networks as the daemon tells of them.
pub(crate) fn table(cx: &Cx, list: &[Value]) -> String {
    let rows: Vec<_> = list.iter().map(|n| row(cx, n)).collect();
    cx.out.table(&["NETWORK", "ID", "ENDS", "NEXT TRY", "STATE"], &rows)
}

fn row(cx: &Cx, n: &Value) -> Vec<String> {
    let text = |key: &str| printable_line(n[key].as_str().unwrap_or_default());
    let (state, reason) = (text("state"), text("reason"));
    let state = match state.as_str() {
        JOINED => cx.out.good(&state),
        "" => "-".to_owned(),
        _ => cx.out.bad(&state),
    };
    // Colour only in the last column: its width does not matter.
    let nothing_new = reason.is_empty() || reason == text("state");
    let state = if nothing_new { state } else { format!("{state}: {reason}") };
    let next = n["next_try"].as_u64().map_or_else(|| "-".to_owned(), |at| until(Some(at)));
    let id = n["id"].as_u64().map_or_else(|| "-".to_owned(), |id| id.to_string());
    vec![or_dash(&text("name")), id, until(n["expires"].as_u64()), next, state]
}
