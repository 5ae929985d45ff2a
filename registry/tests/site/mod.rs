//! A registry in this process with its administration, and the least of an
//! HTTP client.
#![allow(dead_code, reason = "each test file uses its part")]

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use pilot_registry::{Config, Registry, RunError, reload::Reload};
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Longest wait for anything in these tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const TOKEN: &str = "correct-horse-battery";

/// With an administration, no limit of registrations, and [`TOKEN`].
pub(crate) fn config() -> Config {
    Config {
        register_rate: 0,
        http: Some("127.0.0.1:0".to_owned()),
        admin_token: Some(TOKEN.to_owned()),
        ..Config::at("127.0.0.1:0")
    }
}

pub(crate) struct Site {
    pub(crate) addr: SocketAddr,
    pub(crate) http: SocketAddr,
    pub(crate) fingerprint: Option<pilot_tls::Pin>,
    pub(crate) reload: Option<Arc<Reload>>,
    pub(crate) runtime: Runtime,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), RunError>>,
}

impl Site {
    pub(crate) fn start(config: Config) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let registry = runtime.block_on(Registry::start(config)).unwrap();
        let (addr, http) = (registry.local_addr(), registry.admin_addr().unwrap());
        let fingerprint = registry.fingerprint();
        let reload = Some(Arc::clone(registry.reload()));
        let (stop, stopped) = oneshot::channel::<()>();
        let task = runtime.spawn(registry.run(async {
            let _ = stopped.await;
        }));
        Self { addr, http, fingerprint, reload, runtime, stop, task }
    }

    /// Begins to end it; [`Site::ended`] waits.
    pub(crate) fn stop(self) -> Ending {
        drop(self.stop);
        Ending { runtime: self.runtime, task: self.task }
    }

    pub(crate) fn end(self) {
        self.stop().ended();
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        get(self.http, path, &[])
    }

    pub(crate) fn admin(&self, path: &str) -> Reply {
        get(self.http, path, &[("Authorization", &format!("Bearer {TOKEN}"))])
    }

    /// A request as administrator.
    pub(crate) fn request(&self, request: &Value) -> Reply {
        let headers =
            [("Authorization", &*format!("Bearer {TOKEN}")), ("Content-Type", "application/json")];
        send(self.http, "POST", "/api/v1/request", &headers, request.to_string().as_bytes())
    }
}

pub(crate) struct Ending {
    runtime: Runtime,
    task: JoinHandle<Result<(), RunError>>,
}

impl Ending {
    pub(crate) fn ended(self) {
        let ended = async { tokio::time::timeout(PATIENCE, self.task).await };
        self.runtime.block_on(ended).expect("the registry ends").unwrap().unwrap();
    }
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.into_iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    pub(crate) fn read(mut stream: impl std::io::Read) -> Self {
        let mut all = Vec::new();
        if let Err(e) = stream.read_to_end(&mut all) {
            assert!(!all.is_empty(), "no answer: {e}");
        }
        let end = all.windows(4).position(|w| w == b"\r\n\r\n").expect("a head");
        let head = String::from_utf8(all[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { status, head, body: all[end + 4..].to_vec() }
    }
}

pub(crate) fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

pub(crate) fn head(method: &str, path: &str, headers: &[(&str, &str)], len: usize) -> String {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: registry\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head + &format!("Content-Length: {len}\r\n")
}

pub(crate) fn send(
    addr: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Reply {
    let mut stream = connect(addr);
    let head = head(method, path, headers, body.len()) + "Connection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    // The server may answer and close before it has the whole of it.
    let _ = stream.write_all(body);
    Reply::read(stream)
}

pub(crate) fn get(addr: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Reply {
    send(addr, "GET", path, headers, b"")
}
