//! `approve`: grants a pending trust request.

use serde_json::json;

use crate::args::{Args, number};
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::Answer;
use crate::spec::Spec;

pub(crate) const SPEC: Spec = Spec {
    name: "approve",
    usage: "approve <node_id>",
    about: "Approve a pending trust request",
    returns: "status, node_id",
    flags: &[],
    positionals: (1, 1),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let node: u32 = number("node_id", args.at(0)?)?;
    let answer = cx.client().await?.approve(node).await;
    let answer = answer.map_err(|e| Failure::daemon("approve", &e))?;
    let text = format!("approved node {}", answer.node_id);
    Ok(Answer::new(json!({"status": answer.status, "node_id": answer.node_id}), text))
}
