//! `clear-tags`: takes this node's tags away.

use serde_json::json;

use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::Answer;
use crate::spec::Spec;

pub(crate) const SPEC: Spec = Spec {
    name: "clear-tags",
    usage: "clear-tags",
    about: "Take this node's tags away",
    returns: "tags (empty)",
    flags: &[],
    positionals: (0, 0),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(cx: &Cx, _args: &Args) -> Result<Answer, Failure> {
    let answer = cx.client().await?.set_tags(&[] as &[&str]).await;
    answer.map_err(|e| Failure::daemon("clear-tags", &e))?;
    Ok(Answer::new(json!({ "tags": [] }), "this node has no tags"))
}
