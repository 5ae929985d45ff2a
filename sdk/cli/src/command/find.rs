//! `find`: whose a hostname is.

use serde_json::json;

use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::{Answer, printable_line};
use crate::spec::Spec;

pub(crate) const SPEC: Spec = Spec {
    name: "find",
    usage: "find <hostname>",
    about: "Find a node by its hostname",
    returns: "hostname, node_id, address, public",
    flags: &[],
    positionals: (1, 1),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let name = args.at(0)?;
    let found = cx.client().await?.resolve(name).await.map_err(|e| {
        Failure::not_found(format!("cannot find {name:?} — hostname not found or no mutual trust"))
            .reason(e)
            .hint(format!("establish trust first: pilotctl handshake {name} \"reason\""))
    })?;
    let data = json!({
        "hostname": found.hostname,
        "node_id": found.node_id,
        "address": found.address,
        "public": found.public,
    });
    let text = cx.out.fields(&[
        ("hostname", printable_line(&found.hostname)),
        ("node", found.node_id.to_string()),
        ("address", printable_line(&found.address)),
        ("visibility", if found.public { "public" } else { "private" }.to_owned()),
    ]);
    Ok(Answer::new(data, text))
}
