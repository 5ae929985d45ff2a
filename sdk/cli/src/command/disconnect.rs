//! `disconnect`: closes a connection.

use serde_json::json;

use crate::args::{Args, number};
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::Answer;
use crate::spec::Spec;

pub(crate) const SPEC: Spec = Spec {
    name: "disconnect",
    usage: "disconnect <conn_id>",
    about: "Close a connection by its number",
    returns: "conn_id",
    flags: &[],
    positionals: (1, 1),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let id: u32 = number("connection ID", args.at(0)?)?;
    let answer = cx.client().await?.disconnect(id).await;
    answer.map_err(|e| {
        Failure::daemon("disconnect", &e).hint("list them with: pilotctl connections")
    })?;
    Ok(Answer::new(json!({ "conn_id": id }), format!("connection {id} closed")))
}
