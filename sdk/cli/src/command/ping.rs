//! `ping`: the time to open a stream to a peer's echo port and hear from it.

use std::time::Duration;

use pilot_sdk::{Address, Client};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout_at};

use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::Answer;
use crate::peer;
use crate::spec::{Flag, Spec};

pub(crate) const SPEC: Spec = Spec {
    name: "ping",
    usage: "ping <address|hostname> [--count <n>] [--timeout <dur>]",
    about: "Measure the time to open a stream to a peer and get an echo",
    returns: "target, results (seq, rtt_ms, bytes or error), timeout",
    flags: &[
        Flag::value("count", "n", "how many, default 4"),
        Flag::value("timeout", "dur", "for all together, default 30s"),
    ],
    positionals: (1, 1),
    run: |cx, args| Box::pin(run(cx, args)),
};

/// The echo port.
const PORT: u16 = 7;
/// Between two tries.
const INTERVAL: Duration = Duration::from_secs(1);

async fn run(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let count: u32 = args.number("count")?.unwrap_or(4);
    let patience = args.duration("timeout", Duration::from_secs(30))?;
    let deadline = Instant::now() + patience;
    let client = cx.client().await?;
    let address = peer::resolve(cx, &client, args.at(0)?).await?;
    let mut results = Vec::new();
    let mut answered = 0;
    let mut last_error = String::new();
    let mut timed_out = false;
    for seq in 0..count {
        if seq > 0 && timeout_at(deadline, sleep(INTERVAL)).await.is_err() {
            timed_out = true;
            break;
        }
        match timeout_at(deadline, once(&client, address, seq)).await {
            Ok(Ok((rtt_ms, bytes))) => {
                answered += 1;
                cx.out.remark(&format!(
                    "{bytes} bytes from {address}: seq={seq} time={rtt_ms:.3} ms"
                ));
                results.push(json!({"seq": seq, "rtt_ms": rtt_ms, "bytes": bytes}));
            }
            Ok(Err(error)) => {
                cx.out.remark(&format!("{address}: seq={seq} {error}"));
                results.push(json!({"seq": seq, "error": error}));
                last_error = error;
            }
            Err(_) => {
                timed_out = true;
                last_error = format!("no answer within {} s", patience.as_secs_f64());
                break;
            }
        }
    }
    let text = summary(&results, count);
    let data = json!({"target": address, "results": results, "timeout": timed_out});
    if answered == 0 && count > 0 {
        let message = format!("no echo from {address}");
        let failure =
            if timed_out { Failure::timeout(message) } else { Failure::connection(message) };
        let hint = "check that the peer runs and that both trust each other: pilotctl trust";
        return Err(failure.reason(last_error).hint(hint).data(data));
    }
    Ok(Answer::new(data, text))
}

/// One try: milliseconds, dialling included, and bytes echoed.
async fn once(client: &Client, address: Address, seq: u32) -> Result<(f64, usize), String> {
    let payload = format!("ping-{seq}");
    let start = Instant::now();
    let mut stream = client.dial_address(address.port(PORT)).await.map_err(|e| e.to_string())?;
    let talk = async {
        stream.write_all(payload.as_bytes()).await?;
        let mut echo = vec![0; payload.len()];
        stream.read_exact(&mut echo).await?;
        Ok::<_, std::io::Error>(echo)
    };
    let echo = talk.await.map_err(|e| e.to_string())?;
    if echo != payload.as_bytes() {
        return Err("the echo differs from what was sent".to_owned());
    }
    Ok((start.elapsed().as_secs_f64() * 1e3, echo.len()))
}

fn summary(results: &[Value], count: u32) -> String {
    let times: Vec<f64> = results.iter().filter_map(|r| r["rtt_ms"].as_f64()).collect();
    let mut text = format!("{} of {count} answered", times.len());
    if !times.is_empty() {
        let min = times.iter().copied().fold(f64::INFINITY, f64::min);
        let max = times.iter().copied().fold(0.0, f64::max);
        let mean = times.iter().sum::<f64>() / times.len() as f64;
        text.push_str(&format!("; min {min:.3}, mean {mean:.3}, max {max:.3} ms"));
    }
    text
}
