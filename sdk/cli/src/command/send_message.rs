//! `send-message`: puts a message into a peer's inbox.

use pilot_wire::service::data_exchange::{FrameHeader, Kind, MAX_PAYLOAD};
use serde_json::json;
use tokio::io::AsyncWriteExt;

use super::send_file::{PORT, read_answer};
use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::{Answer, printable};
use crate::peer;
use crate::spec::{Flag, Spec};

pub(crate) const SPEC: Spec = Spec {
    name: "send-message",
    usage: "send-message <address|hostname> --data <text> [--type text|json|binary]",
    about: "Put a message into a peer's inbox",
    returns: "target, type, bytes, ack",
    flags: &[
        Flag::value("data", "text", "the message"),
        Flag::value("type", "type", "text, json or binary; default text"),
    ],
    positionals: (1, 1),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let data = args.value("data").ok_or_else(|| Failure::invalid("--data is required"))?;
    let kind = match args.value("type").unwrap_or("text") {
        "text" => Kind::Text,
        "json" => Kind::Json,
        "binary" => Kind::Binary,
        other => {
            let message = format!("unknown type {other:?} (use text, json, or binary)");
            return Err(Failure::invalid(message));
        }
    };
    if data.len() > MAX_PAYLOAD {
        return Err(Failure::invalid("the message exceeds 16 MiB")
            .hint("send it as a file: pilotctl send-file"));
    }
    let client = cx.client().await?;
    let address = peer::resolve(cx, &client, args.at(0)?).await?;
    let mut stream = peer::dial(&client, address, PORT).await?;
    let mut frame = FrameHeader { kind, len: data.len() }.encode().to_vec();
    frame.extend_from_slice(data.as_bytes());
    let sent = stream.write_all(&frame).await;
    sent.map_err(|e| peer::broken(address, "sending to", &e))?;
    let ack = read_answer(&mut stream, address).await?;
    let data = json!({
        "target": address,
        "type": kind.to_string().to_lowercase(),
        "bytes": data.len(),
        "ack": ack,
    });
    Ok(Answer::new(data, printable(&ack)))
}
