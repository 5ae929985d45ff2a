//! One connection to the registry: requests go out as they come, answers come
//! back in that order, and news between them. It reconnects by itself and knows
//! nothing of what is asked or said.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use pilot_tls::{Pin, Stream};
use pilot_wire::ipc::ErrorCode;
use pilot_wire::registry::session::Push;
use pilot_wire::registry::{
    Envelope, ErrorReply, FrameBuffer, FrameError, Reply, Request, SessionOpened,
};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt, WriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};

/// Requests waiting to be sent; beyond it a caller waits, within its limit.
const JOBS: usize = 256;
/// Requests sent and not answered; beyond it the next ones wait to be sent.
const IN_FLIGHT: usize = 256;
/// A request made during a pause waits for its end when that is this near;
/// otherwise it fails at once.
const PATIENCE: Duration = Duration::from_secs(2);
/// News waiting to be handled. Beyond it the connection ends: the session on
/// the next one begins where handling has come to, so nothing is missed.
const NEWS: usize = 4096;
/// Read at once, in bytes.
const READ_SIZE: usize = 8 << 10;

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Time to connect.
    pub connect: Duration,
    /// Time without any answer, after which the connection counts as dead.
    pub answer: Duration,
    /// First pause between attempts to connect; it doubles each time.
    pub first_pause: Duration,
    /// Longest pause between attempts.
    pub longest_pause: Duration,
    /// Time for the answer to a join: the registry asks the network's rules, of
    /// which each has its own time.
    pub join: Duration,
    /// Time for the answer to a heartbeat on a session.
    pub beat: Duration,
    /// Time between heartbeats on a session. With `beat` it stays below the 10
    /// seconds in which a registry that is gone has to be noticed; while a join
    /// waits, it is noticed within `join`.
    pub beat_interval: Duration,
    /// After a session is lost, the next attempt to connect comes at a random
    /// moment within this time, so that all nodes of a registry that restarts
    /// do not come at once.
    pub spread: Duration,
}

impl Limits {
    pub(crate) const DEFAULT: Self = Self {
        connect: Duration::from_secs(5),
        answer: Duration::from_secs(10),
        join: Duration::from_secs(60),
        first_pause: Duration::from_millis(500),
        longest_pause: Duration::from_secs(30),
        beat: Duration::from_millis(4500),
        beat_interval: Duration::from_secs(5),
        spread: Duration::from_secs(3),
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
    /// The registry has no sessions, so it has nothing that needs one.
    #[error("this registry knows no networks")]
    NoNetworks,
    /// There is no session now.
    #[error("not connected to the registry{}", .0.as_ref().map(|e| format!(": {e}")).unwrap_or_default())]
    NoSession(Option<String>),
}

impl RegistryError {
    /// The code for clients that know codes.
    pub(crate) fn code(&self) -> ErrorCode {
        let Self::Refused(reply) = self else {
            return match self {
                Self::NoNetworks => ErrorCode::REFUSED,
                _ => ErrorCode::REGISTRY,
            };
        };
        match reply.code.as_deref() {
            Some("unknown_node" | "unknown_hostname" | "unknown_network" | "no_trust") => {
                ErrorCode::NOT_FOUND
            }
            Some("not_member" | "not_admitted" | "not_owner" | "admin_only") => ErrorCode::REFUSED,
            Some("hostname_taken" | "key_in_use") => ErrorCode::ALREADY_EXISTS,
            Some("rate_limited" | "registry_full" | "inbox_full") => ErrorCode::LIMIT,
            Some("private") => ErrorCode::UNTRUSTED,
            Some("storage") => ErrorCode::REGISTRY,
            Some(_) => ErrorCode::INVALID_ARGUMENT,
            None => ErrorCode::REFUSED,
        }
    }

    /// This network is not there.
    pub(crate) fn unknown_network(name: &str) -> Self {
        Self::Refused(ErrorReply {
            error: "request failed".to_owned(),
            code: Some("unknown_network".to_owned()),
            message: Some(format!("there is no network {name:?}")),
            hint: None,
        })
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
    /// The connection is or was a session.
    pub session: bool,
}

struct Job {
    frame: Vec<u8>,
    expected: &'static str,
    /// Time for the answer, from the last sign of life.
    limit: Duration,
    /// What comes behind it waits as long as it does.
    slow: bool,
    answer: oneshot::Sender<Result<Answered, Failure>>,
}

/// A place in what the registry says, news and answers in their order, over all
/// connections: a greater one was said later.
pub(crate) type Moment = u64;

/// An answer.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) value: Value,
    /// The connection that it came on.
    pub(crate) connection: u64,
    pub(crate) moment: Moment,
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
    news: Arc<Mutex<Option<mpsc::Receiver<Told>>>>,
    /// Slow requests under way.
    slow: Arc<AtomicUsize>,
}

/// A frame of news.
#[derive(Debug)]
pub(crate) struct Told {
    /// The connection that it came on.
    pub(crate) connection: u64,
    pub(crate) moment: Moment,
    pub(crate) push: Push,
}

/// Counts a slow request while it is under way.
struct Slow<'a>(&'a AtomicUsize);

impl<'a> Slow<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Slow<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Registry {
    /// Connects to `address` in the background, for ever, with TLS when a
    /// certificate is pinned. Without an address every request fails.
    pub(crate) fn spawn(address: Option<String>, pin: Option<Pin>, limits: Limits) -> Self {
        let (jobs, receiver) = mpsc::channel(JOBS);
        let (news, told) = mpsc::channel(NEWS);
        let error = match &address {
            Some(_) => None,
            None => Some("is not configured; set registry to its host:port".to_owned()),
        };
        let since = SystemTime::now();
        let link = Link { connected: false, opened: 0, up: false, since, error, session: false };
        let (sender, watcher) = watch::channel(link);
        if let Some(address) = address {
            let connection =
                Connection { address, pin, limits, jobs: receiver, link: sender, news, told: 0 };
            tokio::spawn(connection.run());
        }
        let news = Arc::new(Mutex::new(Some(told)));
        Self { jobs, limits, link: watcher, news, slow: Arc::default() }
    }

    /// Watches the connection.
    pub(crate) fn link(&self) -> watch::Receiver<Link> {
        self.link.clone()
    }

    /// How long things may take.
    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What the registry says by itself; for the first who asks.
    pub(crate) fn take_news(&self) -> Option<mpsc::Receiver<Told>> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Asks, and reads the answer as a `T`.
    pub(crate) async fn call<T: Reply>(&self, request: &Request<'_>) -> Result<T, RegistryError> {
        let value = self.call_value(request, T::KIND).await?;
        read_reply(value)
    }

    /// Asks on the connection there is, and reads the answer as a `T`; `limit`
    /// is the time for it. A connection that is lost meanwhile is an error.
    pub(crate) async fn call_within<T: Reply>(
        &self,
        request: &Request<'_>,
        limit: Duration,
    ) -> Result<T, RegistryError> {
        let frame = framed(|out| request.append_to(out))?;
        read_reply(self.once(frame, T::KIND, limit, false).await?.value)
    }

    /// The same for a request beyond the published ones. It is not repeated:
    /// some of these make something anew each time. A slow one has the time of a
    /// join.
    pub(crate) async fn call_extended(
        &self,
        request: &Envelope,
        expected: &'static str,
        slow: bool,
    ) -> Result<Answered, RegistryError> {
        let frame = framed(|out| request.append_to(out))?;
        let limit = if slow { self.limits.join } else { self.limits.answer };
        self.once(frame, expected, limit, slow).await
    }

    async fn once(
        &self,
        frame: Vec<u8>,
        expected: &'static str,
        limit: Duration,
        slow: bool,
    ) -> Result<Answered, RegistryError> {
        self.submit(frame, expected, limit, slow).await.map_err(|failure| match failure {
            Failure::Lost(reason) => RegistryError::Unreachable(reason),
            Failure::Final(error) => error,
        })
    }

    /// Asks; the answer is of type `expected` and unchanged.
    pub(crate) async fn call_value(
        &self,
        request: &Request<'_>,
        expected: &'static str,
    ) -> Result<Value, RegistryError> {
        let frame = framed(|out| request.append_to(out))?;
        let mut tries = 0;
        loop {
            tries += 1;
            match self.submit(frame.clone(), expected, self.limits.answer, false).await {
                Ok(answered) => return Ok(answered.value),
                Err(Failure::Lost(_)) if tries == 1 => {}
                Err(Failure::Lost(reason)) => return Err(RegistryError::Unreachable(reason)),
                Err(Failure::Final(error)) => return Err(error),
            }
        }
    }

    async fn submit(
        &self,
        frame: Vec<u8>,
        expected: &'static str,
        limit: Duration,
        slow: bool,
    ) -> Result<Answered, Failure> {
        let (answer, result) = oneshot::channel();
        let job = Job { frame, expected, limit, slow, answer };
        let _counted = slow.then(|| Slow::begin(&self.slow));
        match timeout(self.limits.answer, self.jobs.send(job)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(self.unreachable()),
            Err(_) => {
                let reason = "does not keep up with this node's requests".to_owned();
                return Err(Failure::Final(RegistryError::Unreachable(reason)));
            }
        }
        // The connection sees to it that an answer comes or it ends; this is
        // for what waits behind others for ever.
        let mut patience = self.limits.connect + self.limits.answer;
        if self.slow.load(Ordering::Relaxed) > 0 {
            patience += self.limits.join;
        }
        match timeout(patience, result).await {
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

fn framed(
    append: impl FnOnce(&mut Vec<u8>) -> Result<(), FrameError>,
) -> Result<Vec<u8>, RegistryError> {
    let mut frame = Vec::new();
    append(&mut frame).map_err(|e| RegistryError::Malformed(e.to_string()))?;
    Ok(frame)
}

fn read_reply<T: Reply>(value: Value) -> Result<T, RegistryError> {
    serde_json::from_value(value).map_err(|e| RegistryError::Malformed(format!("oddly: {e}")))
}

struct Connection {
    address: String,
    pin: Option<Pin>,
    limits: Limits,
    jobs: mpsc::Receiver<Job>,
    link: watch::Sender<Link>,
    news: mpsc::Sender<Told>,
    /// News so far.
    told: u64,
}

/// A request that waits for its answer.
struct Waiting {
    expected: &'static str,
    answer: oneshot::Sender<Result<Answered, Failure>>,
    since: Instant,
    limit: Duration,
    slow: bool,
}

/// When the connection counts as dead, and the limit that says so: none of the
/// requests that wait may be without an answer, its own or one before it, for
/// longer than its limit. Only behind a slow one they wait for that one's limit.
fn deadline(waiting: &VecDeque<Waiting>, turn: Instant) -> Option<(Instant, Duration)> {
    let mut behind: Option<Instant> = None;
    let mut soonest: Option<(Instant, Duration)> = None;
    for one in waiting {
        let own = one.since.max(turn) + one.limit;
        let at = behind.map_or(own, |slow| slow.max(own));
        if one.slow {
            behind = Some(at);
        }
        if soonest.is_none_or(|(soonest, _)| at < soonest) {
            soonest = Some((at, one.limit));
        }
    }
    soonest
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
            let session = self.down(&reason);
            let wait = if served {
                pause = self.limits.first_pause;
                if !session {
                    // It worked until now: try again at once, then slowly.
                    continue;
                }
                jittered(self.limits.spread)
            } else {
                let wait = jittered(pause);
                pause = (pause * 2).min(self.limits.longest_pause);
                wait
            };
            let until = Instant::now() + wait;
            for job in held.drain(..) {
                fail(job, &reason);
            }
            if !self.wait(until, &mut held, &reason).await {
                return;
            }
        }
    }

    async fn connect(&self) -> Result<Stream, String> {
        let connecting = pilot_tls::connect(&self.address, self.pin.as_ref());
        match timeout(self.limits.connect, connecting).await {
            Ok(Ok(stream)) => Ok(stream),
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

    async fn serve(&mut self, stream: Stream, held: &mut VecDeque<Job>) -> Ended {
        self.link.send_modify(|link| {
            (link.connected, link.session) = (true, false);
            link.opened += 1;
        });
        let (mut reader, mut writer) = tokio::io::split(stream);
        let mut waiting: VecDeque<Waiting> = VecDeque::new();
        let mut input = FrameBuffer::new();
        let mut out: Vec<u8> = Vec::new();
        let mut sent = 0;
        let mut flushed = true;
        // When the last answer came.
        let mut turn = Instant::now();
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
            let (deadline, limit) = deadline(&waiting, turn).unwrap_or((turn, Duration::ZERO));
            let before = waiting.len();
            let result = tokio::select! {
                read = reader.read_buf(input.space(READ_SIZE)) => match read {
                    Ok(0) => Err("it closed the connection".to_owned()),
                    Ok(_) => self.answer_all(&mut input, &mut waiting),
                    Err(e) => Err(e.to_string()),
                },
                wrote = pass_on(&mut writer, &out[sent..]), if sent < out.len() || !flushed => {
                    match wrote {
                        Ok(n) => { flushed = n == 0; sent += n; Ok(()) }
                        Err(e) => Err(e.to_string()),
                    }
                }
                job = self.jobs.recv(), if waiting.len() < IN_FLIGHT && held.is_empty() => match job {
                    Some(job) => { enqueue(job, &mut out, &mut waiting); Ok(()) }
                    None => return Ended::Unused,
                },
                () = sleep_until(deadline), if !waiting.is_empty() => {
                    Err(format!("it did not answer within {limit:?}"))
                }
            };
            if waiting.len() < before {
                turn = Instant::now();
            }
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
        &mut self,
        input: &mut FrameBuffer,
        waiting: &mut VecDeque<Waiting>,
    ) -> Result<(), String> {
        while let Some(body) = input.next_body().map_err(|e| e.to_string())? {
            if is_push(body) {
                self.take_push(body)?;
                continue;
            }
            let Some(first) = waiting.pop_front() else {
                return Err("it sent an answer that nobody asked for".to_owned());
            };
            if first.expected == SessionOpened::KIND {
                self.link.send_modify(|link| link.session = true);
            }
            let (result, broken) = match read_answer(body, first.expected) {
                Ok(result) => (result, None),
                Err(problem) => (Err(RegistryError::Malformed(problem.clone())), Some(problem)),
            };
            // An error means that the caller no longer waits.
            let (connection, moment) = (self.link.borrow().opened, 2 * self.told + 1);
            let answered = |value| Answered { value, connection, moment };
            let _ = first.answer.send(result.map(answered).map_err(Failure::Final));
            if let Some(problem) = broken {
                return Err(format!("it answered {problem}"));
            }
            self.up();
        }
        Ok(())
    }

    /// What cannot be read is left out: it may be of a later version.
    fn take_push(&mut self, body: &[u8]) -> Result<(), String> {
        let push = match serde_json::from_slice::<Push>(body) {
            Ok(push) => push,
            Err(e) => {
                tracing::warn!("the registry sent news that this version does not know: {e}");
                return Ok(());
            }
        };
        self.told += 1;
        let (connection, moment) = (self.link.borrow().opened, 2 * self.told);
        self.news.try_send(Told { connection, moment, push }).map_err(|_| {
            "more news came than this node could handle; it goes on from where it is".to_owned()
        })
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

    /// Whether it was a session that ended.
    fn down(&self, reason: &str) -> bool {
        let mut session = false;
        self.link.send_modify(|link| {
            session = link.session;
            if link.up {
                link.since = SystemTime::now();
            }
            (link.connected, link.up) = (false, false);
            link.error = Some(reason.to_owned());
        });
        session
    }
}

fn enqueue(job: Job, out: &mut Vec<u8>, waiting: &mut VecDeque<Waiting>) {
    out.extend_from_slice(&job.frame);
    let Job { expected, limit, slow, answer, .. } = job;
    waiting.push_back(Waiting { expected, answer, since: Instant::now(), limit, slow });
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

/// Writes some of `bytes`, or when there are none flushes what was written.
async fn pass_on(writer: &mut WriteHalf<Stream>, bytes: &[u8]) -> std::io::Result<usize> {
    if bytes.is_empty() {
        return writer.flush().await.map(|()| 0);
    }
    match writer.write(bytes).await? {
        0 => Err(std::io::ErrorKind::WriteZero.into()),
        n => Ok(n),
    }
}

/// Whether a body is news and no answer, without reading all of it twice.
fn is_push(body: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct Kind<'a> {
        #[serde(rename = "type", borrow, default)]
        kind: std::borrow::Cow<'a, str>,
    }
    serde_json::from_slice::<Kind<'_>>(body).is_ok_and(|k| k.kind == "push")
}

/// Full jitter: anything up to `pause`.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.0..1.0))
}
