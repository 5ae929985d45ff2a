//! A blocking client that knows frames and keys, and ways to run a registry:
//! in this process, or as the real binary.
#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod networks;
pub(crate) mod plugins;
pub(crate) mod session;
pub(crate) mod view;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ed25519_dalek::{Signer as _, SigningKey};
use pilot_registry::{Config, Registry};
use pilot_wire::registry::{FrameBuffer, PublicKey, Signature, append_frame};
use serde_json::{Value, json};

/// Longest wait for anything in these tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    input: FrameBuffer,
}

impl Client {
    pub(crate) fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, input: FrameBuffer::new() }
    }

    pub(crate) fn send_raw(&mut self, body: &[u8]) {
        let mut frame = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
        frame.extend_from_slice(body);
        self.stream.write_all(&frame).unwrap();
    }

    /// The next answer, or `None` when the connection is closed.
    pub(crate) fn receive(&mut self) -> Option<Value> {
        loop {
            if let Some(body) = self.input.next_body().unwrap() {
                return Some(serde_json::from_slice(body).unwrap());
            }
            let mut chunk = [0; 16 * 1024];
            match self.stream.read(&mut chunk) {
                Ok(0) => return None,
                Ok(n) => self.input.push(&chunk[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(e) => panic!("no answer: {e}"),
            }
        }
    }

    pub(crate) fn ask(&mut self, request: Value) -> Value {
        self.send_raw(request.to_string().as_bytes());
        self.receive().expect("connection closed")
    }

    /// All requests in one write, then all answers.
    pub(crate) fn ask_all(&mut self, requests: &[Value]) -> Vec<Value> {
        let mut out = Vec::new();
        for request in requests {
            append_frame(&mut out, request).unwrap();
        }
        self.stream.write_all(&out).unwrap();
        requests.iter().map(|_| self.receive().expect("connection closed")).collect()
    }

    /// Registers and returns the node ID.
    pub(crate) fn register(&mut self, key: &Identity) -> u64 {
        let reply = self.ask(key.register());
        assert_eq!(reply["type"], "register_ok", "{reply}");
        reply["node_id"].as_u64().unwrap()
    }
}

pub(crate) struct Identity(pub(crate) SigningKey);

impl Identity {
    pub(crate) fn new(seed: u32) -> Self {
        let mut bytes = [0x5E; 32];
        bytes[..4].copy_from_slice(&seed.to_be_bytes());
        Self(SigningKey::from_bytes(&bytes))
    }

    pub(crate) fn public(&self) -> String {
        PublicKey(self.0.verifying_key().to_bytes()).to_string()
    }

    pub(crate) fn sign(&self, text: &str) -> String {
        Signature(self.0.sign(text.as_bytes()).to_bytes()).to_string()
    }

    pub(crate) fn register(&self) -> Value {
        json!({"type": "register", "listen_addr": ":4000", "public_key": self.public()})
    }

    /// A request about node `id` alone, signed.
    pub(crate) fn signed(&self, kind: &str, id: u64, mut rest: Value) -> Value {
        rest["type"] = kind.into();
        rest["node_id"] = id.into();
        rest["signature"] = self.sign(&format!("{kind}:{id}")).into();
        rest
    }

    /// A request of node `id` about `peer`, signed.
    pub(crate) fn about(
        &self,
        kind: &str,
        prefix: &str,
        id: u64,
        peer: u64,
        mut rest: Value,
    ) -> Value {
        rest["type"] = kind.into();
        rest["node_id"] = id.into();
        rest["peer_id"] = peer.into();
        rest["signature"] = self.sign(&format!("{prefix}:{id}:{peer}")).into();
        rest
    }

    pub(crate) fn resolve(&self, requester: u64, target: u64) -> Value {
        let signature = self.sign(&format!("resolve:{requester}:{target}"));
        json!({"type": "resolve", "node_id": target, "requester_id": requester,
               "signature": signature})
    }
}

/// A configuration for tests: any port, any number of registrations.
pub(crate) fn config() -> Config {
    Config { register_rate: 0, ..Config::at("127.0.0.1:0") }
}

/// Runs `test` against a registry in this process, then ends it orderly.
pub(crate) fn with_registry(config: Config, test: impl FnOnce(SocketAddr)) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let registry = runtime.block_on(Registry::start(config)).unwrap();
    let addr = registry.local_addr();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let task = runtime.spawn(registry.run(async {
        let _ = stopped.await;
    }));
    test(addr);
    drop(stop);
    runtime.block_on(task).unwrap().unwrap();
}

/// What a binary prints when it serves.
pub(crate) fn ready_line(child: &mut Child) -> Value {
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line:?}: {e}"))
}

/// A real binary that is ready; killed when dropped.
pub(crate) struct Program {
    pub(crate) child: Child,
    pub(crate) ready: Value,
}

impl Program {
    pub(crate) fn start(binary: &str, args: &[&str]) -> Self {
        let mut child = Command::new(binary)
            .args(args)
            .args(["-log-level", "warn"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let ready = ready_line(&mut child);
        Self { child, ready }
    }

    pub(crate) fn addr(&self, key: &str) -> SocketAddr {
        self.ready[key].as_str().unwrap().parse().unwrap()
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; returns whether it ended with status 0.
    pub(crate) fn terminate(mut self) -> bool {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        self.child.wait().unwrap().success()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Ended already in the good case.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Tries until it succeeds or patience ends.
pub(crate) fn eventually(what: &str, mut attempt: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !attempt() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
