//! A registry of a few lines, on a real socket: it can be away, restart,
//! forget everything, stay silent and talk nonsense.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use pilot_wire::registry::{FrameBuffer, append_frame};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;

/// How it answers.
#[derive(Clone, Debug, Default)]
pub(crate) enum Mood {
    #[default]
    Fine,
    /// Reads and never answers.
    Silent,
    /// Answers every request with these bytes.
    Nonsense(Vec<u8>),
    /// Closes the connection instead of answering, this many times.
    Hangup(usize),
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) mood: Mood,
    /// Every request, in order.
    pub(crate) log: Vec<Value>,
    /// The number given to whoever registers.
    pub(crate) number: u32,
    /// Numbers that are registered.
    pub(crate) known: HashSet<u32>,
    /// Keys by number, base64.
    pub(crate) keys: BTreeMap<u32, String>,
    /// Endpoints by number.
    pub(crate) endpoints: BTreeMap<u32, String>,
    /// The next poll's answer.
    pub(crate) requests: Vec<Value>,
    pub(crate) responses: Vec<Value>,
    pub(crate) refuse: HashSet<String>,
    pub(crate) connections: usize,
    /// Name of the state in which there are sessions; empty for a published
    /// registry, which knows none.
    pub(crate) epoch: String,
    /// What follows the opening of a session.
    pub(crate) first: Option<Value>,
    /// Networks of whoever is looked up, beside 0.
    pub(crate) networks: Vec<u16>,
    /// Answers to requests beyond the published ones, by type, without it.
    pub(crate) answers: BTreeMap<String, Value>,
    sessions: Vec<UnboundedSender<Vec<u8>>>,
    /// Speaks TLS to whoever connects from now on.
    pub(crate) tls: Option<pilot_tls::TlsAcceptor>,
}

pub(crate) struct Mock {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<State>>,
    task: Option<JoinHandle<()>>,
}

impl Mock {
    /// An address where nobody answers yet.
    pub(crate) async fn reserved() -> Self {
        let mut mock = Self::started().await;
        mock.stop().await;
        mock
    }

    pub(crate) async fn started() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State { number: 7, ..State::default() }));
        let task = Some(tokio::spawn(accept(listener, state.clone())));
        Self { address, state, task }
    }

    /// Closes the port and every connection.
    pub(crate) async fn stop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            let _ = task.await;
        }
    }

    /// Serves the same address again.
    pub(crate) async fn start(&mut self) {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(self.address).unwrap();
        let listener = socket.listen(64).unwrap();
        self.task = Some(tokio::spawn(accept(listener, self.state.clone())));
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Tells every session; returns how many there are.
    pub(crate) fn push(&self, seq: u64, news: Value) -> usize {
        let mut state = self.state();
        let mut frame = Vec::new();
        append_frame(&mut frame, &json!({"type": "push", "seq": seq, "news": news})).unwrap();
        state.sessions.retain(|session| session.send(frame.clone()).is_ok());
        state.sessions.len()
    }

    pub(crate) fn count(&self, kind: &str) -> usize {
        self.state().log.iter().filter(|r| r["type"] == kind).count()
    }

    pub(crate) fn last(&self, kind: &str) -> Option<Value> {
        self.state().log.iter().rev().find(|r| r["type"] == kind).cloned()
    }
}

/// Waits for a condition, at most 20 seconds.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waited = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(20), waited).await.is_ok(), "{what}");
}

async fn accept(listener: TcpListener, state: Arc<Mutex<State>>) {
    // Connections end with this task.
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        state.lock().unwrap().connections += 1;
        let (tls, state) = (state.lock().unwrap().tls.clone(), state.clone());
        connections.spawn(async move {
            match tls {
                None => serve(stream, state).await,
                Some(acceptor) => {
                    // One that does not like the certificate goes away.
                    if let Ok(stream) = acceptor.accept(stream).await {
                        serve(stream, state).await;
                    }
                }
            }
        });
    }
}

async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, state: Arc<Mutex<State>>) {
    let mut input = FrameBuffer::new();
    let (session, mut pushes) = unbounded_channel::<Vec<u8>>();
    loop {
        tokio::select! {
            Some(push) = pushes.recv() => {
                if stream.write_all(&push).await.is_err() || stream.flush().await.is_err() {
                    return;
                }
                continue;
            }
            read = stream.read_buf(input.space(4096)) => if !matches!(read, Ok(n) if n > 0) {
                return;
            }
        }
        while let Some(body) = input.next_body().unwrap() {
            let request: Value = serde_json::from_slice(body).unwrap();
            let mut out = Vec::new();
            {
                let mut state = state.lock().unwrap();
                state.log.push(request.clone());
                match &mut state.mood {
                    Mood::Fine => {
                        append_frame(&mut out, &answer(&mut state, &request)).unwrap();
                        if request["type"] == "session_open" && !state.epoch.is_empty() {
                            state.sessions.push(session.clone());
                            if let Some(news) = &state.first {
                                let push = json!({"type": "push", "seq": 1, "news": news});
                                append_frame(&mut out, &push).unwrap();
                            }
                        }
                    }
                    Mood::Silent => {}
                    Mood::Nonsense(bytes) => out.extend_from_slice(bytes),
                    Mood::Hangup(left) => {
                        *left -= 1;
                        if *left == 0 {
                            state.mood = Mood::Fine;
                        }
                        return;
                    }
                }
            }
            if stream.write_all(&out).await.is_err() || stream.flush().await.is_err() {
                return;
            }
        }
    }
}

fn answer(state: &mut State, request: &Value) -> Value {
    let kind = request["type"].as_str().unwrap();
    let node = u32::try_from(request["node_id"].as_u64().unwrap_or(0)).unwrap();
    let refuse = |code: &str| json!({"type": "error", "error": "request failed", "code": code});
    if state.refuse.contains(kind) {
        return refuse("hostname_taken");
    }
    let mut reply = match kind {
        "register" => {
            let number = state.number;
            state.known.insert(number);
            let address = format!("0:0000.0000.{number:04X}");
            json!({"node_id": number, "address": address, "network_id": 0,
                   "public_key": request["public_key"]})
        }
        "heartbeat" if !state.known.contains(&node) => return refuse("unknown_node"),
        "heartbeat" => json!({"time": 1}),
        "lookup" => match state.keys.get(&node) {
            Some(key) => json!({"node_id": node, "address": "0:0000.0000.0001",
                                "networks": ([&[0], state.networks.as_slice()].concat()),
                                "public_key": key, "public": false, "polo_score": 0}),
            None => return refuse("unknown_node"),
        },
        "resolve" => match state.endpoints.get(&node) {
            Some(endpoint) => json!({"node_id": node, "real_addr": endpoint}),
            None => return refuse("private"),
        },
        "poll_handshakes" => json!({
            "requests": std::mem::take(&mut state.requests),
            "responses": std::mem::take(&mut state.responses),
        }),
        "set_visibility" => json!({"node_id": node, "visibility": "public"}),
        "set_hostname" => json!({"node_id": node, "hostname": request["hostname"]}),
        "set_tags" => json!({"node_id": node, "tags": request["tags"]}),
        "set_task_exec" => json!({"node_id": node, "task_exec": request["enabled"]}),
        "resolve_hostname" => json!({"node_id": 9, "address": "0:0000.0000.0009",
                                     "public": true, "hostname": request["hostname"]}),
        "request_handshake" => json!({"status": "delivered"}),
        "respond_handshake" => {
            json!({"accept": request["accept"], "peer_id": request["peer_id"]})
        }
        "deregister" => {
            state.known.remove(&node);
            json!({})
        }
        "report_trust" | "revoke_trust" => json!({}),
        kind if kind.starts_with("session_") && state.epoch.is_empty() => {
            return json!({"type": "error", "error": "request failed"});
        }
        "session_challenge" => json!({"nonce": "bm9uY2U="}),
        "session_open" => {
            let resumed = request["epoch"] == state.epoch.as_str() && state.first.is_none();
            json!({"node_id": node, "epoch": state.epoch, "seq": 1, "resumed": resumed,
                   "idle_secs": 60})
        }
        "session_watch" => json!({"watched": 1}),
        kind if state.answers.contains_key(kind) => {
            let mut answer = state.answers[kind].clone();
            if answer["type"].is_null() {
                answer["type"] = format!("{kind}_ok").into();
            }
            return answer;
        }
        other => panic!("{other}"),
    };
    reply["type"] = format!("{kind}_ok").into();
    reply
}
