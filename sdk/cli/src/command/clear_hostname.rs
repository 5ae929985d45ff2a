//! `clear-hostname`: takes this node's name away.

use serde_json::json;

use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::Answer;
use crate::spec::Spec;

pub(crate) const SPEC: Spec = Spec {
    name: "clear-hostname",
    usage: "clear-hostname",
    about: "Take this node's hostname away",
    returns: "hostname (empty)",
    flags: &[],
    positionals: (0, 0),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(cx: &Cx, _args: &Args) -> Result<Answer, Failure> {
    let answer = cx.client().await?.set_hostname("").await;
    answer.map_err(|e| Failure::daemon("clear-hostname", &e))?;
    let mut config = cx.home.config()?;
    if config.remove("hostname").is_some() {
        cx.home.save_config(&config)?;
    }
    Ok(Answer::new(json!({ "hostname": "" }), "this node has no hostname"))
}
