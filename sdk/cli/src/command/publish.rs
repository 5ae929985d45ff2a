//! `publish`: puts an event onto a peer's event stream.

use pilot_wire::service::event_stream::{Event, Options, PORT};
use serde_json::json;
use tokio::io::AsyncWriteExt;

use super::subscribe::{encode, subscription};
use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::Answer;
use crate::peer;
use crate::spec::{Flag, Spec};

pub(crate) const SPEC: Spec = Spec {
    name: "publish",
    usage: "publish <address|hostname> <topic> --data <text>",
    about: "Publish an event on a topic at a peer",
    returns: "target, topic, bytes",
    flags: &[Flag::value("data", "text", "the event")],
    positionals: (2, 2),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let topic = args.at(1)?;
    let data = args.value("data").ok_or_else(|| Failure::invalid("--data is required"))?;
    // The first event of a connection is a subscription, also for publishers.
    let options = Options { patterns: false, dropped: false, publish_only: true };
    let mut bytes = subscription(topic, options)?;
    bytes.extend_from_slice(&encode(&Event::new(topic, data))?);
    let client = cx.client().await?;
    let address = peer::resolve(cx, &client, args.at(0)?).await?;
    let mut stream = peer::dial(&client, address, PORT).await?;
    let sent = async {
        stream.write_all(&bytes).await?;
        stream.shutdown().await
    };
    sent.await.map_err(|e| peer::broken(address, "publishing at", &e))?;
    let text = format!("published {} bytes on {topic:?} at {address}", data.len());
    Ok(Answer::new(json!({"target": address, "topic": topic, "bytes": data.len()}), text))
}
