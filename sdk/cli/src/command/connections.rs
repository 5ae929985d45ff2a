//! `connections`: the streams of this daemon.

use pilot_sdk::ConnectionInfo;
use serde_json::{Value, json};

use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::{Answer, bytes};
use crate::spec::Spec;

pub(crate) const SPEC: Spec = Spec {
    name: "connections",
    usage: "connections",
    about: "List the connections of this daemon",
    returns: "connections (entries of info's conn_list), total",
    flags: &[],
    positionals: (0, 0),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(cx: &Cx, _args: &Args) -> Result<Answer, Failure> {
    let mut info = cx.client().await?.info_json().await.map_err(|e| Failure::daemon("info", &e))?;
    let list = match info["conn_list"].take() {
        Value::Array(list) => list,
        _ => Vec::new(),
    };
    let data = json!({"total": list.len(), "connections": list});
    let typed: Vec<ConnectionInfo> = serde_json::from_value(data["connections"].clone())
        .map_err(|e| Failure::internal("the daemon's answer cannot be read").reason(e))?;
    let text = if typed.is_empty() { "no connections".to_owned() } else { table(cx, &typed) };
    Ok(Answer::new(data, text))
}

pub(super) fn table(cx: &Cx, list: &[ConnectionInfo]) -> String {
    let rows: Vec<_> = list
        .iter()
        .map(|c| {
            vec![
                c.id.to_string(),
                c.local_port.to_string(),
                format!("{}:{}", c.remote_addr, c.remote_port),
                c.state.clone(),
                bytes(c.bytes_sent),
                bytes(c.bytes_recv),
                format!("{} ms", c.srtt_ms),
                c.retransmits.to_string(),
            ]
        })
        .collect();
    let header =
        ["CONNECTION", "PORT", "REMOTE", "STATE", "SENT", "RECEIVED", "RTT", "RETRANSMITTED"];
    cx.out.table(&header, &rows)
}
