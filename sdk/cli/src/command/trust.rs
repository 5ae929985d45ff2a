//! `trust`: the nodes that are trusted.

use serde_json::json;

use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::{Answer, rfc3339};
use crate::spec::Spec;

pub(crate) const SPEC: Spec = Spec {
    name: "trust",
    usage: "trust",
    about: "List trusted nodes",
    returns: "trusted (node_id, public_key, approved_at, mutual, network)",
    flags: &[],
    positionals: (0, 0),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(cx: &Cx, _args: &Args) -> Result<Answer, Failure> {
    let list = cx.client().await?.trusted().await.map_err(|e| Failure::daemon("trust", &e))?;
    if list.is_empty() {
        let text = "no trusted nodes; ask one with: pilotctl handshake <node> \"reason\"";
        return Ok(Answer::new(json!({ "trusted": list }), text));
    }
    let rows: Vec<_> = list
        .iter()
        .map(|t| {
            let mutual = if t.mutual { cx.out.good("mutual") } else { cx.out.bad("one-sided") };
            vec![t.node_id.to_string(), rfc3339(t.approved_at), t.network.to_string(), mutual]
        })
        .collect();
    // Colour only in the last column: its width does not matter.
    let text = cx.out.table(&["NODE", "SINCE", "NETWORK", "TRUST"], &rows);
    Ok(Answer::new(json!({ "trusted": list }), text))
}
