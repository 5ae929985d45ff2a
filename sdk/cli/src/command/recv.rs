//! `recv`: takes streams on a port and shows the first message of each.

use std::time::Duration;

use pilot_sdk::{Listener, Stream};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::time::{Instant, timeout, timeout_at};

use crate::args::{Args, number};
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::Answer;
use crate::spec::{Flag, Spec};

pub(crate) const SPEC: Spec = Spec {
    name: "recv",
    usage: "recv <port> [--count <n>] [--timeout <dur>]",
    about: "Take streams on a port and show the first message of each",
    returns: "messages (seq, port, data, bytes or error; null if none), timeout",
    flags: &[
        Flag::value("count", "n", "how many, default 1"),
        Flag::value("timeout", "dur", "for all together, default 30s"),
    ],
    positionals: (1, 1),
    run: |cx, args| Box::pin(run(cx, args)),
};

/// Longest message that is shown.
const MAX_MESSAGE: usize = 65_535;
/// A message has ended when nothing follows for this long: streams have no
/// message boundaries, and the sender waits for an answer before it closes.
const QUIET: Duration = Duration::from_millis(20);

async fn run(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let port: u16 = number("port", args.at(0)?)?;
    let count: usize = args.number("count")?.unwrap_or(1);
    let deadline = Instant::now() + args.duration("timeout", Duration::from_secs(30))?;
    let client = cx.client().await?;
    let listener = client.listen(port).await;
    let listener = listener.map_err(|e| Failure::daemon("listen: bind", &e))?;
    let mut messages = Vec::new();
    let mut timed_out = false;
    while messages.len() < count {
        let seq = messages.len();
        match timeout_at(deadline, one(&listener, port, seq)).await {
            Ok(message) => {
                let message = message?;
                cx.out.remark(&text(&message));
                messages.push(message);
            }
            Err(_) => {
                timed_out = true;
                break;
            }
        }
    }
    let received =
        format!("{} received{}", messages.len(), if timed_out { ", timeout" } else { "" });
    let messages = if messages.is_empty() { Value::Null } else { json!(messages) };
    Ok(Answer::new(json!({"messages": messages, "timeout": timed_out}), received))
}

async fn one(listener: &Listener, port: u16, seq: usize) -> Result<Value, Failure> {
    let (mut stream, _) = listener.accept().await.map_err(|e| Failure::daemon("accept", &e))?;
    Ok(match message(&mut stream).await {
        Ok(data) => json!({
            "seq": seq,
            "port": port,
            "data": String::from_utf8_lossy(&data),
            "bytes": data.len(),
        }),
        Err(e) => json!({"seq": seq, "port": port, "error": e.to_string()}),
    })
}

async fn message(stream: &mut Stream) -> std::io::Result<Vec<u8>> {
    let mut data = vec![0; MAX_MESSAGE];
    let mut len = stream.read(&mut data).await?;
    while len > 0 && len < MAX_MESSAGE {
        match timeout(QUIET, stream.read(&mut data[len..])).await {
            Ok(Ok(n)) if n > 0 => len += n,
            // Ended, broken or quiet: what came is the message.
            _ => break,
        }
    }
    data.truncate(len);
    Ok(data)
}

fn text(message: &Value) -> String {
    let part = |key: &str| message[key].as_str().unwrap_or_default();
    match &message["error"] {
        Value::Null => part("data").to_owned(),
        _ => format!("error: {}", part("error")),
    }
}
