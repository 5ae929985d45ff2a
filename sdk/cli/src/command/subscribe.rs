//! `subscribe`: shows the events of a topic on a peer's event stream.

use std::time::Duration;

use pilot_sdk::{Address, Client, Stream};
use pilot_wire::service::event_stream::{Decoder, Dropped, Event, Options, PORT, is_pattern};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::Answer;
use crate::peer;
use crate::spec::{Flag, Spec};

pub(crate) const SPEC: Spec = Spec {
    name: "subscribe",
    usage: "subscribe <address|hostname> <topic> [--count <n>] [--timeout <dur>] [--exact]",
    about: "Show the events of a topic, or of a pattern like sensors.* or sensors.>, at a peer",
    returns: "events (topic, data, bytes; null if none), timeout; error if the stream broke off; dropped if the peer left events out; without --count one object per line",
    flags: &[
        Flag::value("count", "n", "end after so many; without it show each at once"),
        Flag::value("timeout", "dur", "end after this time; default never"),
        Flag::switch("exact", "* and > in the topic are ordinary characters"),
    ],
    positionals: (2, 2),
    run: |cx, args| Box::pin(run(cx, args)),
};

/// Bytes read at once.
const BUFFER: usize = 64 * 1024;

async fn run(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let topic = args.at(1)?;
    let count: Option<usize> = args.number("count")?;
    let patience = args.value("timeout").map(|_| args.duration("timeout", Duration::ZERO));
    let deadline = patience.transpose()?.map(|p| Instant::now() + p);
    let patterns = !args.is_set("exact") && topic != "*" && is_pattern(topic.as_bytes());
    let client = cx.client().await?;
    let address = peer::resolve(cx, &client, args.at(0)?).await?;
    let options = Options { patterns, dropped: true, publish_only: false };
    let mut feed = Feed::open(&client, address, topic, options).await?;
    let (mut events, mut dropped) = (Vec::new(), 0);
    let mut end = End::Enough;
    while count.is_none_or(|count| events.len() < count) {
        let next = match deadline {
            Some(deadline) => match timeout_at(deadline, feed.next()).await {
                Ok(next) => next,
                Err(_) => {
                    end = End::TimedOut;
                    break;
                }
            },
            None => feed.next().await,
        };
        let (data, line) = match next {
            Ok(Item::Event(event)) => shown(&event),
            Ok(Item::Dropped(n)) => {
                dropped += n;
                let text = format!("{n} events were left out: this side was too slow");
                if count.is_some() {
                    cx.out.remark(&text);
                    continue;
                }
                (json!({ "dropped": n }), text)
            }
            Err(reason) => {
                end = End::Broken(reason);
                break;
            }
        };
        if count.is_some() {
            cx.out.remark(&line);
            events.push(data);
        } else if cx.out.line(&data, &line).is_err() {
            // Whoever read this has gone.
            return Ok(Answer::done());
        }
    }
    if patterns && !feed.confirmed {
        cx.out.remark(&format!(
            "{address} did not say that it knows patterns: as published, only the topic \
             {topic:?} itself is subscribed to"
        ));
    }
    match (count, end) {
        (None, End::Broken(reason)) => {
            Err(Failure::connection(format!("the subscription to {topic:?} at {address} ended"))
                .reason(reason)
                .hint(format!("check that {address} is reachable: pilotctl ping {address}")))
        }
        (None, _) => Ok(Answer::done()),
        (Some(_), end) => Ok(summary(events, dropped, end)),
    }
}

enum End {
    Enough,
    TimedOut,
    Broken(String),
}

fn summary(events: Vec<Value>, dropped: u64, end: End) -> Answer {
    let mut text = format!("{} received", events.len());
    let events = if events.is_empty() { Value::Null } else { json!(events) };
    let mut data = json!({"events": events, "timeout": matches!(end, End::TimedOut)});
    match end {
        End::Enough => {}
        End::TimedOut => text.push_str(", timeout"),
        End::Broken(reason) => {
            text.push_str(&format!(", then the stream broke off: {reason}"));
            data["error"] = json!(reason);
        }
    }
    if dropped > 0 {
        text.push_str(&format!(", {dropped} left out"));
        data["dropped"] = json!(dropped);
    }
    Answer::new(data, text)
}

fn shown(event: &Event) -> (Value, String) {
    let (topic, text) = (event.topic_text(), String::from_utf8_lossy(&event.payload));
    let data = json!({"topic": topic, "data": text, "bytes": event.payload.len()});
    (data, format!("{topic}: {text}"))
}

/// A subscription at a peer.
struct Feed {
    stream: Stream,
    decoder: Decoder,
    buffer: Vec<u8>,
    /// The peer has said that it knows our options; before that nothing it
    /// sends is a notice.
    confirmed: bool,
    first: bool,
}

enum Item {
    Event(Event),
    Dropped(u64),
}

impl Feed {
    async fn open(
        client: &Client,
        address: Address,
        topic: &str,
        options: Options,
    ) -> Result<Self, Failure> {
        let subscribe = subscription(topic, options)?;
        let mut stream = peer::dial(client, address, PORT).await?;
        let sent = stream.write_all(&subscribe).await;
        sent.map_err(|e| peer::broken(address, "subscribing at", &e))?;
        Ok(Self {
            stream,
            decoder: Decoder::default(),
            buffer: vec![0; BUFFER],
            confirmed: false,
            first: true,
        })
    }

    /// What comes next, or why nothing comes any more. May be dropped while it
    /// waits without losing anything.
    async fn next(&mut self) -> Result<Item, String> {
        loop {
            while let Some(event) = self.decoder.next_event().map_err(|e| e.to_string())? {
                let first = std::mem::take(&mut self.first);
                if first && Options::from_event(&event).is_some() {
                    self.confirmed = true;
                    continue;
                }
                return Ok(match Dropped::from_event(&event).filter(|_| self.confirmed) {
                    Some(dropped) => Item::Dropped(dropped.count),
                    None => Item::Event(event),
                });
            }
            match self.stream.read(&mut self.buffer).await {
                Ok(0) if self.decoder.is_inside() => {
                    return Err("the peer ended in the middle of an event".to_owned());
                }
                Ok(0) => return Err("the peer ended".to_owned()),
                Ok(n) => self.decoder.push(&self.buffer[..n]),
                Err(e) => return Err(e.to_string()),
            }
        }
    }
}

/// The bytes that subscribe to a topic.
pub(super) fn subscription(topic: &str, options: Options) -> Result<Vec<u8>, Failure> {
    encode(&Event::new(topic, options.to_payload()))
}

pub(super) fn encode(event: &Event) -> Result<Vec<u8>, Failure> {
    event.encode().map_err(|e| Failure::invalid(e.to_string()).hint("send less at a time"))
}
