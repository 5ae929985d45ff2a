//! `handshake`: asks a node for trust.

use pilot_sdk::{ErrorKind, Host};
use serde_json::json;

use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::Answer;
use crate::spec::Spec;

pub(crate) const SPEC: Spec = Spec {
    name: "handshake",
    usage: "handshake <node_id|address|hostname> [justification]",
    about: "Ask a node for trust",
    returns: "status, node_id",
    flags: &[],
    positionals: (1, 2),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let target = args.at(0)?;
    let host: Host = target.parse().map_err(|e| Failure::invalid(format!("{e}")))?;
    let client = cx.client().await?;
    let node = match host {
        Host::Address(address) => address.node,
        Host::Name(name) => match client.resolve(&name).await {
            Ok(resolved) => resolved.node_id,
            Err(e) => {
                let message = format!("resolve {name:?}: resolve_hostname: daemon: {e}");
                return Err(match e.kind() {
                    ErrorKind::Disconnected => Failure::connection(message),
                    _ => Failure::not_found(message).hint(
                        "a private node is found only by its number: pilotctl handshake <node_id>",
                    ),
                });
            }
        },
    };
    let answer = client.handshake_request(node, args.get(1).unwrap_or_default()).await;
    let answer = answer.map_err(|e| Failure::daemon("handshake", &e))?;
    let text = format!(
        "trust request {} to node {}; it approves with: pilotctl approve <own node_id>",
        answer.status, answer.node_id
    );
    Ok(Answer::new(json!({"status": answer.status, "node_id": answer.node_id}), text))
}
