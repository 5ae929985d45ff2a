//! `connect`: sends a message, or standard input line by line, and shows the
//! answers.

use std::io::{IsTerminal, Read};
use std::time::Duration;

use pilot_sdk::{Address, Client, Stream};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::args::{Args, number};
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::{Answer, printable};
use crate::peer;
use crate::spec::{Flag, Spec};

pub(crate) const SPEC: Spec = Spec {
    name: "connect",
    usage: "connect <address|hostname> [port] [--message <msg>] [--timeout <dur>]",
    about: "Send a message, or standard input, to a peer's port and show the answer",
    returns: "target, port, sent, response",
    flags: &[
        Flag::value("message", "msg", "what to send; standard input without it"),
        Flag::value("timeout", "dur", "how long to wait for the answer, default 30s"),
    ],
    positionals: (1, 2),
    run: |cx, args| Box::pin(run(cx, args)),
};

const DEFAULT_PORT: u16 = 1000;
/// Longest answer that is shown.
const MAX_ANSWER: usize = 65_535;
/// Most of standard input that is sent.
const MAX_INPUT: u64 = 16 << 20;

async fn run(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let port = args.get(1).map_or(Ok(DEFAULT_PORT), |p| number("port", p))?;
    let patience = args.duration("timeout", Duration::from_secs(30))?;
    let input = match args.value("message") {
        Some(message) => message.to_owned(),
        None if std::io::stdin().is_terminal() => {
            return Err(Failure::invalid("interactive connections are not supported")
                .hint("use --message to send a single message, or pipe data via stdin"));
        }
        None => String::new(),
    };
    let client = cx.client().await?;
    let address = peer::resolve(cx, &client, args.at(0)?).await?;
    let hint = "increase with --timeout, or check if the target is listening on that port";
    let sent = if args.value("message").is_some() { input } else { read_input().await? };
    let response = exchange(&client, address, port, sent.as_bytes(), patience, hint).await?;
    let data = json!({"target": address, "port": port, "sent": sent, "response": response});
    Ok(Answer::new(data, printable(&response)))
}

/// All of standard input without its last newline.
pub(super) async fn read_input() -> Result<String, Failure> {
    // On a thread of its own: standard input cannot be awaited.
    let read = tokio::task::spawn_blocking(|| {
        let mut bytes = Vec::new();
        std::io::stdin().lock().take(MAX_INPUT + 1).read_to_end(&mut bytes).map(|_| bytes)
    });
    let failed = |e: std::io::Error| Failure::internal("cannot read standard input").reason(e);
    let mut bytes = read.await.map_err(|e| failed(e.into()))?.map_err(failed)?;
    if bytes.len() as u64 > MAX_INPUT {
        return Err(Failure::invalid(format!("standard input exceeds {} MiB", MAX_INPUT >> 20))
            .hint("send it as a file: pilotctl send-file"));
    }
    if bytes.ends_with(b"\n") {
        bytes.pop();
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// One message there, and what comes back: what is there at the first read
/// after everything is written, at most [`MAX_ANSWER`] bytes; nothing if the
/// peer closes. The answer to a long message is read while it is written.
pub(super) async fn exchange(
    client: &Client,
    address: Address,
    port: u16,
    message: &[u8],
    patience: Duration,
    hint: &str,
) -> Result<String, Failure> {
    let mut stream = peer::dial(client, address, port).await?;
    let answer = match timeout(patience, talk(&mut stream, message)).await {
        Ok(answer) => answer.map_err(|e| peer::broken(address, "talking to", &e))?,
        Err(_) => {
            return Err(Failure::timeout(format!(
                "no response from {address} port {port} within {} s",
                patience.as_secs_f64()
            ))
            .hint(hint));
        }
    };
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

async fn talk(stream: &mut Stream, message: &[u8]) -> std::io::Result<Vec<u8>> {
    let (mut from, mut to) = tokio::io::split(stream);
    let writing = async {
        to.write_all(message).await?;
        to.flush().await
    };
    tokio::pin!(writing);
    let mut written = None;
    let mut answer = Vec::new();
    let mut buffer = vec![0; MAX_ANSWER];
    loop {
        tokio::select! {
            result = &mut writing, if written.is_none() => {
                written = Some(result);
                if !answer.is_empty() {
                    break;
                }
            }
            n = from.read(&mut buffer) => {
                let n = n?;
                let room = MAX_ANSWER - answer.len();
                answer.extend_from_slice(&buffer[..n.min(room)]);
                if n == 0 || written.is_some() {
                    break;
                }
            }
        }
    }
    match written {
        // A peer may answer and close before it has read everything.
        Some(Err(e)) if answer.is_empty() => Err(e),
        _ => Ok(answer),
    }
}
