//! `lookup`: what the registry knows of a node, asked directly.

use pilot_sdk::NodeId;
use pilot_wire::registry::Request;
use serde_json::Value;

use crate::args::{Args, number};
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::{Answer, printable_line};
use crate::registry::{self, FINGERPRINT, Link};
use crate::spec::Spec;

pub(crate) const SPEC: Spec = Spec {
    name: "lookup",
    usage: "lookup <node_id> [--fingerprint <sha256>]",
    about: "Ask the registry for a node",
    returns: "the registry's answer",
    flags: &[FINGERPRINT],
    positionals: (1, 1),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let node: u32 = number("node_id", args.at(0)?)?;
    let address = cx.registry()?;
    let mut link = Link::open(&address, registry::fingerprint(cx, args)?.as_ref()).await?;
    let answer = link.ask(&Request::Lookup { node_id: NodeId(node) }).await?;
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
