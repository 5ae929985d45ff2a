//! `listen`: shows the datagrams that come to a port.

use std::time::Duration;

use pilot_sdk::{Datagram, Datagrams};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use crate::args::{Args, number};
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::Answer;
use crate::spec::{Flag, Spec};

pub(crate) const SPEC: Spec = Spec {
    name: "listen",
    usage: "listen <port> [--count <n>] [--timeout <dur>]",
    about: "Show the datagrams that come to a port",
    returns: "messages (src_addr, src_port, data, bytes; null if none), timeout; without --count one object per line",
    flags: &[
        Flag::value("count", "n", "end after so many; without it show each at once"),
        Flag::value("timeout", "dur", "end after this time; default never"),
    ],
    positionals: (1, 1),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let port: u16 = number("port", args.at(0)?)?;
    let count: Option<usize> = args.number("count")?;
    let patience = args.value("timeout").map(|_| args.duration("timeout", Duration::ZERO));
    let deadline = patience.transpose()?.map(|p| Instant::now() + p);
    let client = cx.client().await?;
    let mut datagrams = client.datagrams();
    let mut messages = Vec::new();
    let mut timed_out = false;
    while count.is_none_or(|count| messages.len() < count) {
        let next = to_port(&mut datagrams, port);
        let datagram = match deadline {
            Some(deadline) => timeout_at(deadline, next).await.ok(),
            None => Some(next.await),
        };
        let Some(datagram) = datagram else {
            timed_out = true;
            break;
        };
        let datagram = datagram?;
        let data = String::from_utf8_lossy(&datagram.data);
        let message = json!({
            "src_addr": datagram.source.address,
            "src_port": datagram.source.port,
            "data": data,
            "bytes": datagram.data.len(),
        });
        let line = format!("{}: {data}", datagram.source);
        if count.is_some() {
            cx.out.remark(&line);
            messages.push(message);
        } else if cx.out.line(&message, &line).is_err() {
            // Whoever read this has gone.
            return Ok(Answer::done());
        }
    }
    if count.is_none() {
        return Ok(Answer::done());
    }
    let received =
        format!("{} received{}", messages.len(), if timed_out { ", timeout" } else { "" });
    let messages = if messages.is_empty() { Value::Null } else { json!(messages) };
    Ok(Answer::new(json!({"messages": messages, "timeout": timed_out}), received))
}

async fn to_port(datagrams: &mut Datagrams, port: u16) -> Result<Datagram, Failure> {
    loop {
        let datagram = datagrams.recv().await.map_err(|e| Failure::daemon("listen", &e))?;
        if datagram.destination_port == port {
            return Ok(datagram);
        }
    }
}
