//! `untrust`: ends trust with a node.

use serde_json::json;

use crate::args::{Args, number};
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::Answer;
use crate::spec::Spec;

pub(crate) const SPEC: Spec = Spec {
    name: "untrust",
    usage: "untrust <node_id>",
    about: "End trust with a node; its streams are closed",
    returns: "node_id",
    flags: &[],
    positionals: (1, 1),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let node: u32 = number("node_id", args.at(0)?)?;
    let answer = cx.client().await?.revoke(node).await;
    answer.map_err(|e| Failure::daemon("untrust: revoke", &e))?;
    Ok(Answer::new(json!({ "node_id": node }), format!("node {node} is no longer trusted")))
}
