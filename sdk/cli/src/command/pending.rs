//! `pending`: trust requests that wait for approval.

use serde_json::json;

use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::{Answer, or_dash, printable_line, rfc3339};
use crate::spec::Spec;

pub(crate) const SPEC: Spec = Spec {
    name: "pending",
    usage: "pending",
    about: "List trust requests that wait for approval",
    returns: "pending (node_id, public_key, justification, received_at)",
    flags: &[],
    positionals: (0, 0),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(cx: &Cx, _args: &Args) -> Result<Answer, Failure> {
    let list = cx.client().await?.pending().await.map_err(|e| Failure::daemon("pending", &e))?;
    if list.is_empty() {
        return Ok(Answer::new(json!({ "pending": list }), "no pending requests"));
    }
    let rows: Vec<_> = list
        .iter()
        .map(|p| {
            vec![
                p.node_id.to_string(),
                rfc3339(p.received_at),
                or_dash(&printable_line(&p.justification)),
            ]
        })
        .collect();
    let mut text = cx.out.table(&["NODE", "RECEIVED", "JUSTIFICATION"], &rows);
    text.push_str("\n\napprove with: pilotctl approve <node>");
    Ok(Answer::new(json!({ "pending": list }), text))
}
