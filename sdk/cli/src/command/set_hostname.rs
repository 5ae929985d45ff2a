//! `set-hostname`: names this node.

use serde_json::json;

use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::Answer;
use crate::spec::Spec;

pub(crate) const SPEC: Spec = Spec {
    name: "set-hostname",
    usage: "set-hostname <hostname>",
    about: "Name this node",
    returns: "hostname, node_id",
    flags: &[],
    positionals: (1, 1),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let name = args.at(0)?;
    let answer = cx.client().await?.set_hostname(name).await;
    let answer = answer.map_err(|e| Failure::daemon("set-hostname", &e))?;
    // Known to the next daemon that is started.
    let mut config = cx.home.config()?;
    config.insert("hostname".to_owned(), json!(name));
    cx.home.save_config(&config)?;
    let data = json!({"hostname": answer["hostname"], "node_id": answer["node_id"]});
    Ok(Answer::new(data, format!("this node is {name}")))
}
