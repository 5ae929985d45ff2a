//! `node revoke`: an administrator removes a node and forbids its key.

use pilot_wire::registry::{Extended, NodeRevoked};

use super::network;
use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::Answer;
use crate::registry::{ADMIN_TOKEN, Asker, FINGERPRINT};
use crate::spec::{Flag, Spec};

pub(crate) const SPEC: Spec = Spec {
    name: "node revoke",
    usage: "node revoke <node_id|address|hostname> --reason <text> [--admin-token <token>]",
    about: "Remove a node from the registry and forbid its key for ever, as an administrator",
    returns: "the registry's answer: node_id",
    flags: &[Flag::value("reason", "text", "why, for the audit log"), ADMIN_TOKEN, FINGERPRINT],
    positionals: (1, 1),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let reason = args.value("reason").filter(|r| !r.trim().is_empty()).ok_or_else(|| {
        Failure::invalid("--reason is missing").hint("it goes into the audit log: --reason TEXT")
    })?;
    let node_id = network::node(cx, args.at(0)?).await?;
    let request = Extended::NodeRevoke { node_id, reason: reason.to_owned() };
    let mut asker = Asker::admin(cx, args).await?;
    let (data, revoked) = asker.ask::<NodeRevoked>("node revoke", request).await?;
    let text = format!("node {} is removed; its key registers no more", revoked.node_id);
    Ok(Answer::new(data, text))
}
