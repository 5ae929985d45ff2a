//! `send`: sends one message and shows the answer.

use std::time::Duration;

use serde_json::json;

use super::connect::exchange;
use crate::args::{Args, number};
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::{Answer, printable};
use crate::peer;
use crate::spec::{Flag, Spec};

pub(crate) const SPEC: Spec = Spec {
    name: "send",
    usage: "send <address|hostname> <port> --data <msg> [--timeout <dur>]",
    about: "Send one message to a peer's port and show the answer",
    returns: "target, port, sent, response",
    flags: &[
        Flag::value("data", "msg", "what to send"),
        Flag::value("timeout", "dur", "how long to wait for the answer, default 30s"),
    ],
    positionals: (2, 2),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let port = number("port", args.at(1)?)?;
    let sent = args.value("data").ok_or_else(|| Failure::invalid("--data is required"))?;
    let patience = args.duration("timeout", Duration::from_secs(30))?;
    let client = cx.client().await?;
    let address = peer::resolve(cx, &client, args.at(0)?).await?;
    let hint = format!("increase with --timeout, or check peer: pilotctl ping {address}");
    let response = exchange(&client, address, port, sent.as_bytes(), patience, &hint).await?;
    let data = json!({"target": address, "port": port, "sent": sent, "response": response});
    Ok(Answer::new(data, printable(&response)))
}
