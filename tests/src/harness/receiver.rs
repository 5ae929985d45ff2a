//! A receiver of webhooks that misbehaves as it is told, and remembers what it
//! took. HTTP by hand: a library would not break off in the middle.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// How a request is answered.
#[derive(Clone, Debug)]
pub enum Reply {
    /// 200, and the events count as taken.
    Take,
    /// The same after a while.
    TakeAfter(Duration),
    /// A status line without the version, and headers, each with its line end.
    Refuse(&'static str, &'static str),
    /// Reads so many bytes of the body and closes.
    CloseInRequest(usize),
    /// Takes the events, and closes in the middle of the status line: the
    /// sender cannot know.
    CloseInAnswer,
}

/// Listens on a port of loopback that it keeps, also while it is down.
pub struct WebhookReceiver {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    task: Option<JoinHandle<()>>,
}

struct State {
    reply: Reply,
    taken: Vec<Value>,
    requests: u64,
}

impl WebhookReceiver {
    /// Takes everything until told otherwise.
    ///
    /// # Errors
    /// When there is no port.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let state = State { reply: Reply::Take, taken: Vec::new(), requests: 0 };
        let state = Arc::new(Mutex::new(state));
        let task = Some(tokio::spawn(serve(listener, Arc::clone(&state))));
        Ok(Self { address, state, task })
    }

    /// Where to post.
    pub fn url(&self) -> String {
        format!("http://{}/events", self.address)
    }

    /// Closes its port and every connection.
    pub async fn down(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            // An error is the abort itself.
            let _ = task.await;
        }
    }

    /// Listens again.
    ///
    /// # Errors
    /// When the port is taken.
    pub async fn up(&mut self) -> Result<()> {
        self.down().await;
        let listener = TcpListener::bind(self.address).await.context("the receiver's port")?;
        self.task = Some(tokio::spawn(serve(listener, Arc::clone(&self.state))));
        Ok(())
    }

    /// How requests are answered from now on.
    pub fn answer(&self, reply: Reply) {
        lock(&self.state).reply = reply;
    }

    /// Requests so far, with what was not taken.
    pub fn requests(&self) -> u64 {
        lock(&self.state).requests
    }

    /// All events that it took, in the order that they came.
    pub fn taken(&self) -> Vec<Value> {
        lock(&self.state).taken.clone()
    }

    /// The number of the last one; 0 for none.
    pub fn last_id(&self) -> u64 {
        lock(&self.state).taken.last().map_or(0, id)
    }

    /// Checks what was taken: numbers grow without a gap but those that an
    /// `events.dropped` tells of, and no number stands for two events. Events
    /// may come again only when `repeats` says so. Gives the numbers of the
    /// first and the last, and how many were told to be dropped.
    ///
    /// # Errors
    /// When something is missing, out of order, or another event.
    pub fn check(&self, repeats: bool) -> Result<(u64, u64, u64)> {
        let taken = self.taken();
        let first = taken.first().context("no event came")?;
        let first = gap_from(first).unwrap_or_else(|| id(first));
        let (mut last, mut dropped) = (first.saturating_sub(1), 0);
        let mut known = std::collections::BTreeMap::new();
        for event in &taken {
            let number = id(event);
            if let Some(earlier) = known.insert(number, event) {
                ensure!(repeats, "event {number} came twice");
                ensure!(earlier == event, "number {number} stands for {earlier} and {event}");
                continue;
            }
            let from = gap_from(event);
            if from.is_some() {
                dropped += event["data"]["count"].as_u64().unwrap_or(0);
            }
            ensure!(
                from.unwrap_or(number) == last + 1,
                "after event {last} came {event}; nothing tells of a gap"
            );
            last = number;
        }
        Ok((first, last, dropped))
    }
}

impl Drop for WebhookReceiver {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// The first number that an `events.dropped` stands for.
fn gap_from(event: &Value) -> Option<u64> {
    event["data"]["first_event_id"].as_u64().filter(|_| event["event"] == "events.dropped")
}

fn id(event: &Value) -> u64 {
    event["event_id"].as_u64().unwrap_or(0)
}

fn lock(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    // What panicked was a test.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(listener: TcpListener, state: Arc<Mutex<State>>) {
    // Ended with this task.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let state = Arc::clone(&state);
        connections.spawn(async move {
            // A sender that goes away ends its connection alone.
            let _ = connection(stream, &state).await;
        });
    }
}

/// Requests of one connection, until one is answered by closing it.
async fn connection(mut stream: TcpStream, state: &Mutex<State>) -> Result<()> {
    let mut buffer = Vec::new();
    loop {
        let (body_at, length) = loop {
            if let Some(head) = head(&buffer)? {
                break head;
            }
            ensure!(stream.read_buf(&mut buffer).await? > 0, "the sender closed");
        };
        let reply = {
            let mut state = lock(state);
            state.requests += 1;
            state.reply.clone()
        };
        let wanted = match reply {
            Reply::CloseInRequest(bytes) => bytes.min(length / 2),
            _ => length,
        };
        while buffer.len() < body_at + wanted {
            ensure!(stream.read_buf(&mut buffer).await? > 0, "the sender closed");
        }
        if let Reply::CloseInRequest(_) = reply {
            return Ok(());
        }
        if let Reply::TakeAfter(pause) = reply {
            tokio::time::sleep(pause).await;
        }
        let body: Vec<u8> = buffer.drain(..body_at + length).skip(body_at).collect();
        if let Reply::Refuse(status, headers) = reply {
            let answer = format!("HTTP/1.1 {status}\r\n{headers}content-length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await?;
            continue;
        }
        let events = match serde_json::from_slice(&body)? {
            Value::Array(events) => events,
            event => vec![event],
        };
        lock(state).taken.extend(events);
        if let Reply::CloseInAnswer = reply {
            stream.write_all(b"HTTP/1.1 2").await?;
            return Ok(());
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await?;
    }
}

/// Where the body begins and how long it is, once the head is whole.
fn head(buffer: &[u8]) -> Result<Option<(usize, usize)>> {
    let Some(end) = buffer.windows(4).position(|w| w == b"\r\n\r\n") else { return Ok(None) };
    let text = std::str::from_utf8(&buffer[..end])?.to_ascii_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length:"));
    let length = length.context("a request without content-length")?.trim().parse()?;
    Ok(Some((end + 4, length)))
}
