//! `set-tags`: describes this node.

use serde_json::json;

use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::Answer;
use crate::spec::Spec;

pub(crate) const SPEC: Spec = Spec {
    name: "set-tags",
    usage: "set-tags <tag> [tag] [tag]",
    about: "Set up to three tags of this node",
    returns: "node_id, tags",
    flags: &[],
    positionals: (1, usize::MAX),
    run: |cx, args| Box::pin(run(cx, args)),
};

/// Tags a node may have (protocol page "Registry").
const MAX_TAGS: usize = 3;

async fn run(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let tags = args.all();
    if tags.len() > MAX_TAGS {
        let message = format!("set-tags: maximum {MAX_TAGS} tags allowed, got {}", tags.len());
        return Err(Failure::invalid(message));
    }
    let answer = cx.client().await?.set_tags(tags).await;
    let answer = answer.map_err(|e| Failure::daemon("set-tags", &e))?;
    let data = json!({"node_id": answer["node_id"], "tags": answer["tags"]});
    Ok(Answer::new(data, format!("tags: {}", tags.join(", "))))
}
