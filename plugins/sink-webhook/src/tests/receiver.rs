//! A receiver of webhooks that can misbehave.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use pilot_plugin::json::{self, Value};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// A request as it came.
#[derive(Clone, Debug, Default)]
pub(super) struct Received {
    /// First line.
    pub(super) line: String,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Received {
    /// The header's value; empty when it is not there.
    pub(super) fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(header, _)| header.eq_ignore_ascii_case(name));
        found.map_or("", |(_, value)| value)
    }

    /// Numbers of the events in the body: one object, an array, or lines.
    pub(super) fn numbers(&self) -> Vec<u64> {
        let values: Vec<Value> = match json::from_slice(&self.body) {
            Ok(Value::Array(events)) => events,
            Ok(event) => vec![event],
            Err(_) => {
                let text = std::str::from_utf8(&self.body).unwrap();
                text.lines().map(|line| json::from_str(line).unwrap()).collect()
            }
        };
        values.iter().map(|event| event["event_id"].as_u64().unwrap()).collect()
    }
}

/// What it does with a request.
pub(super) enum Reply {
    /// These bytes, whole.
    Bytes(String),
    /// These bytes, then the connection is closed.
    Last(String),
    /// Nothing; it waits for the other side to close.
    Silence,
}

/// An answer with a status, more header lines and a body.
pub(super) fn status(status: &str, headers: &[&str], body: &str) -> Reply {
    let more: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    Reply::Bytes(format!("HTTP/1.1 {status}\r\n{more}content-length: {}\r\n\r\n{body}", body.len()))
}

pub(super) fn ok() -> Reply {
    status("200 OK", &[], "ok")
}

type Script = dyn FnMut(&Received) -> Reply + Send;

/// It answers until it is dropped.
pub(super) struct Receiver {
    pub(super) address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

struct State {
    script: Mutex<Box<Script>>,
    received: Mutex<Vec<Received>>,
    connections: AtomicUsize,
    tls: Option<TlsAcceptor>,
}

impl Receiver {
    /// Answers as `script` says.
    pub(super) async fn new(script: impl FnMut(&Received) -> Reply + Send + 'static) -> Self {
        Self::start("127.0.0.1:0", None, script).await
    }

    pub(super) async fn start(
        address: &str,
        tls: Option<TlsAcceptor>,
        script: impl FnMut(&Received) -> Reply + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            script: Mutex::new(Box::new(script)),
            received: Mutex::default(),
            connections: AtomicUsize::new(0),
            tls,
        });
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            // Aborted with this task.
            let mut serving = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                shared.connections.fetch_add(1, Ordering::SeqCst);
                let state = Arc::clone(&shared);
                serving.spawn(async move {
                    let _ = match &state.tls {
                        None => state.serve(stream).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => state.serve(stream).await,
                            Err(why) => Err(why),
                        },
                    };
                });
            }
        });
        Self { address, state, task }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    pub(super) fn received(&self) -> Vec<Received> {
        self.state.received.lock().unwrap().clone()
    }

    /// Numbers of all events that came, in order.
    pub(super) fn numbers(&self) -> Vec<u64> {
        self.received().iter().flat_map(Received::numbers).collect()
    }

    pub(super) fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// Goes down; its connections are closed.
    pub(super) async fn close(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl State {
    async fn serve(&self, stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
        let mut stream = BufReader::new(stream);
        while let Some(request) = read(&mut stream).await? {
            let reply = (self.script.lock().unwrap())(&request);
            self.received.lock().unwrap().push(request);
            match reply {
                Reply::Bytes(bytes) => stream.write_all(bytes.as_bytes()).await?,
                Reply::Last(bytes) => {
                    stream.write_all(bytes.as_bytes()).await?;
                    return stream.shutdown().await;
                }
                Reply::Silence => {
                    stream.read_u8().await?;
                }
            }
            stream.flush().await?;
        }
        Ok(())
    }
}

async fn read(
    stream: &mut BufReader<impl AsyncRead + AsyncWrite + Unpin>,
) -> io::Result<Option<Received>> {
    let mut request = Received::default();
    if stream.read_line(&mut request.line).await? == 0 {
        return Ok(None);
    }
    request.line.truncate(request.line.trim_end().len());
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        request.headers.push((name.to_owned(), value.to_owned()));
    }
    let length = request.header("content-length").parse().unwrap_or(0);
    request.body = vec![0; length];
    stream.read_exact(&mut request.body).await?;
    Ok(Some(request))
}
