//! One connection to the registry: requests go out as they come, answers come
//! back in that order. It reconnects by itself and knows nothing of what is
//! asked.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use pilot_wire::ipc::ErrorCode;
use pilot_wire::registry::{ErrorReply, FrameBuffer, Reply, Request};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};

/// Requests waiting to be sent; beyond it a caller waits, within its limit.
const JOBS: usize = 256;
/// Requests sent and not answered; beyond it the next ones wait to be sent.
const IN_FLIGHT: usize = 256;
/// A request made during a pause waits for its end when that is this near;
/// otherwise it fails at once.
const PATIENCE: Duration = Duration::from_secs(2);
/// Read at once, in bytes.
const READ_SIZE: usize = 8 << 10;

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Time to connect.
    pub connect: Duration,
    /// Time for an answer, after which the connection counts as dead.
    pub answer: Duration,
    /// First pause between attempts to connect; it doubles each time.
    pub first_pause: Duration,
    /// Longest pause between attempts.
    pub longest_pause: Duration,
}

impl Limits {
    pub(crate) const DEFAULT: Self = Self {
        connect: Duration::from_secs(5),
        answer: Duration::from_secs(10),
        first_pause: Duration::from_millis(500),
        longest_pause: Duration::from_secs(30),
    };
}

/// Why a request has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum RegistryError {
    /// Nothing can be sent, or no answer came.
    #[error("registry {0}")]
    Unreachable(String),
    /// The registry refused.
    #[error("registry: {}", .0.text())]
    Refused(ErrorReply),
    /// The answer makes no sense.
    #[error("registry answered {0}")]
    Malformed(String),
    /// This node has no number yet.
    #[error("this node is not registered yet")]
    Unregistered,
}

impl RegistryError {
    /// The code for clients that know codes.
    pub(crate) fn code(&self) -> ErrorCode {
        let Self::Refused(reply) = self else { return ErrorCode::REGISTRY };
        match reply.code.as_deref() {
            Some("unknown_node" | "unknown_hostname" | "unknown_network" | "no_trust") => {
                ErrorCode::NOT_FOUND
            }
            Some("hostname_taken" | "key_in_use") => ErrorCode::ALREADY_EXISTS,
            Some("rate_limited" | "registry_full" | "inbox_full") => ErrorCode::LIMIT,
            Some("private") => ErrorCode::UNTRUSTED,
            Some("storage") => ErrorCode::REGISTRY,
            Some(_) => ErrorCode::INVALID_ARGUMENT,
            None => ErrorCode::REFUSED,
        }
    }

    /// Whether the registry itself said no.
    pub(crate) const fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(_))
    }

    /// Whether the registry said no with this code.
    pub(crate) fn has_code(&self, code: &str) -> bool {
        matches!(self, Self::Refused(reply) if reply.code.as_deref() == Some(code))
    }
}

/// How the connection stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    /// A TCP connection is open, which proves little.
    pub connected: bool,
    /// Connections opened so far.
    pub opened: u64,
    /// The registry answered on it.
    pub up: bool,
    /// Since when it is up or down.
    pub since: SystemTime,
    /// Why it is down, or last was.
    pub error: Option<String>,
}

struct Job {
    frame: Vec<u8>,
    expected: &'static str,
    answer: oneshot::Sender<Result<Value, Failure>>,
}

/// Why the connection gave no answer.
#[derive(Debug)]
enum Failure {
    /// It was sent, and the connection ended: worth one more try.
    Lost(String),
    Final(RegistryError),
}

/// Requests for the registry. Cheap to clone; the connection ends with the
/// last clone.
#[derive(Clone, Debug)]
pub(crate) struct Registry {
    jobs: mpsc::Sender<Job>,
    limits: Limits,
    link: watch::Receiver<Link>,
}

impl Registry {
    /// Connects to `address` in the background, for ever. Without an address
    /// every request fails.
    pub(crate) fn spawn(address: Option<String>, limits: Limits) -> Self {
        let (jobs, receiver) = mpsc::channel(JOBS);
        let error = match &address {
            Some(_) => None,
            None => Some("is not configured; set registry to its host:port".to_owned()),
        };
        let link = Link { connected: false, opened: 0, up: false, since: SystemTime::now(), error };
        let (sender, watcher) = watch::channel(link);
        if let Some(address) = address {
            let connection = Connection { address, limits, jobs: receiver, link: sender };
            tokio::spawn(connection.run());
        }
        Self { jobs, limits, link: watcher }
    }

    /// Watches the connection.
    pub(crate) fn link(&self) -> watch::Receiver<Link> {
        self.link.clone()
    }

    /// Asks, and reads the answer as a `T`.
    pub(crate) async fn call<T: Reply>(&self, request: &Request<'_>) -> Result<T, RegistryError> {
        let value = self.call_value(request, T::KIND).await?;
        serde_json::from_value(value).map_err(|e| RegistryError::Malformed(format!("oddly: {e}")))
    }

    /// Asks; the answer is of type `expected` and unchanged.
    pub(crate) async fn call_value(
        &self,
        request: &Request<'_>,
        expected: &'static str,
    ) -> Result<Value, RegistryError> {
        let mut frame = Vec::new();
        request.append_to(&mut frame).map_err(|e| RegistryError::Malformed(e.to_string()))?;
        let mut tries = 0;
        loop {
            tries += 1;
            match self.submit(frame.clone(), expected).await {
                Ok(value) => return Ok(value),
                Err(Failure::Lost(_)) if tries == 1 => {}
                Err(Failure::Lost(reason)) => return Err(RegistryError::Unreachable(reason)),
                Err(Failure::Final(error)) => return Err(error),
            }
        }
    }

    async fn submit(&self, frame: Vec<u8>, expected: &'static str) -> Result<Value, Failure> {
        let (answer, result) = oneshot::channel();
        let job = Job { frame, expected, answer };
        match timeout(self.limits.answer, self.jobs.send(job)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(self.unreachable()),
            Err(_) => {
                let reason = "does not keep up with this node's requests".to_owned();
                return Err(Failure::Final(RegistryError::Unreachable(reason)));
            }
        }
        match timeout(self.limits.connect + self.limits.answer, result).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) | Err(_) => Err(self.unreachable()),
        }
    }

    fn unreachable(&self) -> Failure {
        let reason = self.link.borrow().error.clone();
        let reason = reason.unwrap_or_else(|| "did not answer".to_owned());
        Failure::Final(RegistryError::Unreachable(reason))
    }
}

struct Connection {
    address: String,
    limits: Limits,
    jobs: mpsc::Receiver<Job>,
    link: watch::Sender<Link>,
}

/// A request that waits for its answer.
struct Waiting {
    expected: &'static str,
    answer: oneshot::Sender<Result<Value, Failure>>,
    since: Instant,
}

enum Ended {
    /// Nobody asks any more.
    Unused,
    Lost(String),
}

impl Connection {
    async fn run(mut self) {
        let mut pause = self.limits.first_pause;
        // What came during a pause; at most `JOBS`, then it fails at once.
        let mut held = VecDeque::new();
        loop {
            let (reason, served) = match self.connect().await {
                Ok(stream) => match self.serve(stream, &mut held).await {
                    Ended::Unused => return,
                    Ended::Lost(reason) => (reason, self.link.borrow().up),
                },
                Err(reason) => (reason, false),
            };
            let reason = format!("{} cannot be used: {reason}", self.address);
            self.down(&reason);
            if served {
                // It worked until now: try again at once, then slowly.
                pause = self.limits.first_pause;
                continue;
            }
            let until = Instant::now() + jittered(pause);
            pause = (pause * 2).min(self.limits.longest_pause);
            for job in held.drain(..) {
                fail(job, &reason);
            }
            if !self.wait(until, &mut held, &reason).await {
                return;
            }
        }
    }

    async fn connect(&self) -> Result<TcpStream, String> {
        match timeout(self.limits.connect, TcpStream::connect(&self.address)).await {
            Ok(Ok(stream)) => {
                // Small requests that wait for small answers.
                let _ = stream.set_nodelay(true);
                Ok(stream)
            }
            Ok(Err(e)) => Err(e.to_string()),
            Err(_) => Err(format!("no connection within {:?}", self.limits.connect)),
        }
    }

    async fn wait(&mut self, until: Instant, held: &mut VecDeque<Job>, reason: &str) -> bool {
        loop {
            tokio::select! {
                () = sleep_until(until) => return true,
                job = self.jobs.recv() => {
                    let Some(job) = job else { return false };
                    if until <= Instant::now() + PATIENCE && held.len() < JOBS {
                        held.push_back(job);
                    } else {
                        fail(job, reason);
                    }
                }
            }
        }
    }

    async fn serve(&mut self, stream: TcpStream, held: &mut VecDeque<Job>) -> Ended {
        self.link.send_modify(|link| (link.connected, link.opened) = (true, link.opened + 1));
        let (mut reader, mut writer) = stream.into_split();
        let mut waiting: VecDeque<Waiting> = VecDeque::new();
        let mut input = FrameBuffer::new();
        let mut out: Vec<u8> = Vec::new();
        let mut sent = 0;
        let reason = loop {
            while waiting.len() < IN_FLIGHT
                && let Some(job) = held.pop_front()
            {
                enqueue(job, &mut out, &mut waiting);
            }
            if sent == out.len() {
                out.clear();
                sent = 0;
            }
            let limit = self.limits.answer;
            let deadline = waiting.front().map_or_else(Instant::now, |w| w.since + limit);
            let result = tokio::select! {
                read = reader.read_buf(input.space(READ_SIZE)) => match read {
                    Ok(0) => Err("it closed the connection".to_owned()),
                    Ok(_) => self.answer_all(&mut input, &mut waiting),
                    Err(e) => Err(e.to_string()),
                },
                wrote = writer.write(&out[sent..]), if sent < out.len() => match wrote {
                    Ok(n) => { sent += n; Ok(()) }
                    Err(e) => Err(e.to_string()),
                },
                job = self.jobs.recv(), if waiting.len() < IN_FLIGHT && held.is_empty() => match job {
                    Some(job) => { enqueue(job, &mut out, &mut waiting); Ok(()) }
                    None => return Ended::Unused,
                },
                () = sleep_until(deadline), if !waiting.is_empty() => {
                    Err(format!("it did not answer within {:?}", self.limits.answer))
                }
            };
            if let Err(reason) = result {
                break reason;
            }
        };
        let text = format!("{} cannot be used: {reason}", self.address);
        for waiting in waiting {
            // An error means that the caller no longer waits.
            let _ = waiting.answer.send(Err(Failure::Lost(text.clone())));
        }
        Ended::Lost(reason)
    }

    fn answer_all(
        &self,
        input: &mut FrameBuffer,
        waiting: &mut VecDeque<Waiting>,
    ) -> Result<(), String> {
        while let Some(body) = input.next_body().map_err(|e| e.to_string())? {
            let Some(first) = waiting.pop_front() else {
                return Err("it sent an answer that nobody asked for".to_owned());
            };
            let (result, broken) = match read_answer(body, first.expected) {
                Ok(result) => (result, None),
                Err(problem) => (Err(RegistryError::Malformed(problem.clone())), Some(problem)),
            };
            // An error means that the caller no longer waits.
            let _ = first.answer.send(result.map_err(Failure::Final));
            if let Some(problem) = broken {
                return Err(format!("it answered {problem}"));
            }
            self.up();
        }
        Ok(())
    }

    fn up(&self) {
        self.link.send_if_modified(|link| {
            let change = !link.up;
            if change {
                (link.up, link.since) = (true, SystemTime::now());
            }
            change
        });
    }

    fn down(&self, reason: &str) {
        self.link.send_modify(|link| {
            if link.up {
                link.since = SystemTime::now();
            }
            (link.connected, link.up) = (false, false);
            link.error = Some(reason.to_owned());
        });
    }
}

fn enqueue(job: Job, out: &mut Vec<u8>, waiting: &mut VecDeque<Waiting>) {
    out.extend_from_slice(&job.frame);
    let (expected, answer) = (job.expected, job.answer);
    waiting.push_back(Waiting { expected, answer, since: Instant::now() });
}

fn fail(job: Job, reason: &str) {
    let error = RegistryError::Unreachable(reason.to_owned());
    // An error means that the caller no longer waits.
    let _ = job.answer.send(Err(Failure::Final(error)));
}

/// The answer or refusal in a body; the outer error says that the order of
/// answers can no longer be relied on.
fn read_answer(body: &[u8], expected: &str) -> Result<Result<Value, RegistryError>, String> {
    let value: Value = serde_json::from_slice(body).map_err(|e| format!("no JSON: {e}"))?;
    let Value::Object(fields) = &value else {
        return Err("something that is no object".to_owned());
    };
    if matches!(fields.get("error"), Some(Value::String(_))) {
        let reply = serde_json::from_slice(body).unwrap_or_else(|_| ErrorReply {
            error: "request failed".to_owned(),
            ..ErrorReply::default()
        });
        return Ok(Err(RegistryError::Refused(reply)));
    }
    match fields.get("type").and_then(Value::as_str) {
        Some(kind) if kind == expected => Ok(Ok(value)),
        other => Err(format!("with {:?} instead of {expected:?}", other.unwrap_or("no type"))),
    }
}

fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.5..1.0))
}
