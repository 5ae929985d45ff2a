//! `lookup`: what the registry knows of a node, asked directly.

use std::time::Duration;

use pilot_sdk::NodeId;
use pilot_wire::registry::{FrameBuffer, Request};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::args::{Args, number};
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::{Answer, printable_line};
use crate::spec::Spec;

pub(crate) const SPEC: Spec = Spec {
    name: "lookup",
    usage: "lookup <node_id>",
    about: "Ask the registry for a node",
    returns: "the registry's answer",
    flags: &[],
    positionals: (1, 1),
    run: |cx, args| Box::pin(run(cx, args)),
};

/// How long the registry may take, connecting included.
const PATIENCE: Duration = Duration::from_secs(10);

async fn run(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let node: u32 = number("node_id", args.at(0)?)?;
    let address = cx.registry()?;
    let request = Request::Lookup { node_id: NodeId(node) };
    let answer = timeout(PATIENCE, ask(&address, &request)).await.unwrap_or_else(|_| {
        Err(unreachable(&address).reason(format!("no answer within {} s", PATIENCE.as_secs())))
    })?;
    if let Some(error) = answer.get("error").and_then(Value::as_str) {
        let more = answer.get("message").and_then(Value::as_str);
        let failure = Failure::connection(format!("lookup: registry: {error}"));
        return Err(match more {
            Some(more) => failure.reason(more),
            None => failure,
        }
        .hint(format!("check that node {node} is registered at {address}")));
    }
    let fields: Vec<(&str, String)> = match &answer {
        Value::Object(map) => map
            .iter()
            .filter(|(key, _)| *key != "type")
            .map(|(key, value)| {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                (key.as_str(), printable_line(&text))
            })
            .collect(),
        _ => Vec::new(),
    };
    let text = cx.out.fields(&fields);
    Ok(Answer::new(answer, text))
}

async fn ask(address: &str, request: &Request<'_>) -> Result<Value, Failure> {
    let failed = |e: std::io::Error| unreachable(address).reason(e);
    let garbled = |reason: String| {
        Failure::connection(format!("what listens on {address} is not a registry")).reason(reason)
    };
    let mut stream = TcpStream::connect(address).await.map_err(failed)?;
    let mut message = Vec::new();
    request.append_to(&mut message).map_err(|e| Failure::internal(e.to_string()))?;
    stream.write_all(&message).await.map_err(failed)?;
    let mut frames = FrameBuffer::new();
    loop {
        if let Some(body) = frames.next_body().map_err(|e| garbled(e.to_string()))? {
            return serde_json::from_slice(body).map_err(|e| garbled(e.to_string()));
        }
        if stream.read_buf(frames.space(4096)).await.map_err(failed)? == 0 {
            return Err(garbled("it closed the connection".to_owned()));
        }
    }
}

fn unreachable(address: &str) -> Failure {
    Failure::connection(format!("cannot reach registry at {address}"))
        .hint(format!("check that the registry is running at {address}, or set PILOT_REGISTRY"))
}
