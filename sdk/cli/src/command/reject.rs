//! `reject`: refuses a pending trust request.

use serde_json::json;

use crate::args::{Args, number};
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::Answer;
use crate::spec::Spec;

pub(crate) const SPEC: Spec = Spec {
    name: "reject",
    usage: "reject <node_id> [reason]",
    about: "Reject a pending trust request",
    returns: "status, node_id",
    flags: &[],
    positionals: (1, 2),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let node: u32 = number("node_id", args.at(0)?)?;
    let answer = cx.client().await?.reject(node, args.get(1).unwrap_or_default()).await;
    let answer = answer.map_err(|e| Failure::daemon("reject", &e))?;
    let text = format!("rejected node {}", answer.node_id);
    Ok(Answer::new(json!({"status": answer.status, "node_id": answer.node_id}), text))
}
