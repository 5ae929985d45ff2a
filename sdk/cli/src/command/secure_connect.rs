//! `secure connect`: sends a message through a secure channel and shows the
//! answer.

use std::io::IsTerminal;
use std::time::Duration;

use pilot_sdk::Address;
use pilot_wire::service::secure::{MAX_PLAINTEXT, PORT};
use serde_json::json;
use tokio::time::{Instant, timeout_at};

use super::connect::read_input;
use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::{Answer, printable};
use crate::peer;
use crate::secure::{Broken, Channel};
use crate::spec::{Flag, Spec};

pub(crate) const SPEC: Spec = Spec {
    name: "secure connect",
    usage: "secure connect <address|hostname> [--message <msg>] [--port <port>] [--timeout <dur>] [--bound]",
    about: "Send a message, or standard input, through a secure channel and show the answer",
    returns: "target, port, sent, response, bound (both ends have confirmed that they are the tunnel's)",
    flags: &[
        Flag::value("message", "msg", "what to send; standard input without it"),
        Flag::value("port", "port", "another port than 443"),
        Flag::value("timeout", "dur", "how long to wait for the answer, default 30s"),
        Flag::switch("bound", "send nothing unless the peer binds the channel"),
    ],
    positionals: (1, 1),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let port = args.number("port")?.unwrap_or(PORT);
    let patience = args.duration("timeout", Duration::from_secs(30))?;
    if args.value("message").is_none() && std::io::stdin().is_terminal() {
        return Err(Failure::invalid("interactive connections are not supported")
            .hint("use --message to send a single message, or pipe data via stdin"));
    }
    let client = cx.client().await?;
    let address = peer::resolve(cx, &client, args.at(0)?).await?;
    let sent = match args.value("message") {
        Some(message) => message.to_owned(),
        None => read_input().await?,
    };
    if sent.len() > MAX_PLAINTEXT {
        return Err(Failure::invalid(format!("the message exceeds {MAX_PLAINTEXT} bytes"))
            .hint("send it as a file: pilotctl send-file"));
    }
    let own = client.info().await.map_err(|e| Failure::daemon("info", &e))?.node_id;
    let stream = peer::dial(&client, address, port).await?;
    let failed = |doing, e: Broken| broken(address, port, doing, &e);
    let mut channel =
        Channel::open(stream, own, address.node).await.map_err(|e| failed("opening", e))?;
    if args.is_set("bound") && !channel.is_bound() {
        return Err(Failure::connection(format!(
            "{address} port {port} does not bind the channel to its node"
        ))
        .hint("leave --bound out to talk to a peer of the published protocol"));
    }
    channel.send(sent.as_bytes()).await.map_err(|e| failed("sending through", e))?;
    let deadline = Instant::now() + patience;
    let response = match timeout_at(deadline, channel.receive()).await {
        // As with connect, an end without an answer is an empty one.
        Ok(response) => response.map_err(|e| failed("receiving through", e))?.unwrap_or_default(),
        Err(_) => {
            return Err(Failure::timeout(format!(
                "no response from {address} port {port} within {} s",
                patience.as_secs_f64()
            ))
            .hint("increase with --timeout, or check if the target is listening on that port"));
        }
    };
    let response = String::from_utf8_lossy(&response).into_owned();
    let data = json!({
        "target": address,
        "port": port,
        "sent": sent,
        "response": response,
        "bound": channel.is_bound(),
    });
    Ok(Answer::new(data, printable(&response)))
}

fn broken(address: Address, port: u16, doing: &str, error: &Broken) -> Failure {
    let message = format!("{doing} the secure channel to {address} port {port} failed");
    match error {
        Broken::Own(_) => Failure::internal(message).reason(error),
        Broken::Slow => Failure::timeout(message)
            .reason(error)
            .hint("check that a secure channel service listens there"),
        Broken::Io(_) => Failure::connection(message)
            .reason(error)
            .hint(format!("check that {address} is reachable: pilotctl ping {address}")),
        Broken::Peer(_) => Failure::connection(message)
            .reason(error)
            .hint("check that a secure channel service listens there; do not trust what it sent"),
    }
}
