//! One client: requests in, answers out, strictly in order. Requests that
//! arrived together and only write are made durable together. On a session news
//! come between answers, also while an answer takes long.
//!
//! Bounds: one unfinished frame and one read of input, which must be complete
//! [`FRAME_LIMIT`] after its first byte; [`MAX_PENDING`] commands; answers up to
//! [`FLUSH_AT`] before they are sent. A client that does not read is cut off
//! after [`WRITE_LIMIT`]. A connection that waits for its client holds no
//! buffers.

mod input;
mod session;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pilot_wire::NodeId;
use pilot_wire::registry::{ErrorReply, Extended, Fields, FrameBuffer, append_frame};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep_until, timeout};

use crate::denials::{Denials, Refused};
use crate::limits::Place;
use crate::metrics::Meter;
use crate::push::{Filled, Hub, Live};
use crate::service::{Admitted, Asker, Service};
use crate::state::{Command, Refusal};
use crate::writer::{Outcome, Writer};

const MAX_PENDING: usize = 1024;
const FLUSH_AT: usize = 256 * 1024;
const WRITE_LIMIT: Duration = Duration::from_secs(30);
/// A frame must be complete so long after its first byte, however its bytes
/// trickle in.
const FRAME_LIMIT: Duration = Duration::from_secs(30);
/// A session without a request for so long is closed, as its client may be gone
/// without a word; a node beats every 5 s on it.
const SESSION_IDLE: Duration = Duration::from_secs(15);
/// Longest text of a refused request that is told of, in bytes.
const MAX_TOLD: usize = 64;

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Shared {
    service: Arc<Service>,
    writer: Writer,
    hub: Hub,
    denials: Denials,
    idle: Duration,
    /// Openings of sessions that are checked at a time: one thread fewer than
    /// there are, so that a storm of them leaves room for everybody else.
    openings: Semaphore,
}

impl Shared {
    /// Connections without a complete request for `idle` are closed.
    pub(crate) fn new(
        service: Arc<Service>,
        writer: Writer,
        hub: Hub,
        denials: Denials,
        idle: Duration,
    ) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let openings = Semaphore::new((threads - 1).max(1));
        Self { service, writer, hub, denials, idle, openings }
    }
}

/// Serves one connection until it ends, breaks the framing, idles, its session
/// ends or the registry stops.
pub(crate) async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send>(
    stream: S,
    source: SocketAddr,
    place: Place,
    shared: Arc<Shared>,
    mut stop: watch::Receiver<bool>,
) {
    let source = SocketAddr::new(source.ip().to_canonical(), source.port());
    let meter = Meter::new(Arc::clone(shared.service.metrics()));
    let mut connection = Connection {
        stream,
        meter,
        asker: Asker { source, session: None },
        shared,
        pending: Vec::new(),
        out: Vec::new(),
        served: 0,
        nonce: None,
        live: None,
    };
    // Why it ended has been said where it is known.
    let _ = connection.run(&mut stop).await;
    drop((connection, place));
}

/// The connection cannot go on, or is not to.
struct Closed;

/// What to do after a round.
enum Next {
    /// Send, then read more input.
    Read,
    /// Send, then go on with input that is there.
    More,
    /// Send, then close.
    Close,
}

struct Connection<S> {
    stream: S,
    asker: Asker,
    shared: Arc<Shared>,
    meter: Meter,
    /// Admitted but not yet durable, in order of their requests.
    pending: Vec<Command>,
    out: Vec<u8>,
    served: u64,
    /// To be signed by who opens a session; good once.
    nonce: Option<String>,
    /// The session, if this is one.
    live: Option<Live>,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Connection<S> {
    async fn run(&mut self, stop: &mut watch::Receiver<bool>) -> Result<(), Closed> {
        let mut input = FrameBuffer::new();
        let mut heard = Instant::now();
        // When the frame began of which a part is there.
        let mut begun: Option<Instant> = None;
        loop {
            let served = self.served;
            let next = self.take(&mut input).await?;
            self.send().await?;
            if self.served > served {
                heard = Instant::now();
                begun = None;
            }
            match next {
                Next::Close => return self.close().await,
                Next::More => continue,
                Next::Read => {}
            }
            self.tell().await?;
            let mut deadline = heard + self.idle();
            if input.is_partial() {
                deadline = deadline.min(*begun.get_or_insert_with(Instant::now) + FRAME_LIMIT);
            }
            let Self { stream, out, live, .. } = self;
            tokio::select! {
                read = input::read(stream, &mut input, out) => match read {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => return Err(Closed),
                },
                () = changed(live.as_ref()) => {}
                () = sleep_until(deadline) => {
                    tracing::debug!(source = %self.asker.source, "idle connection closed");
                    return Err(Closed);
                }
                () = stopped(stop) => return self.stop().await,
            }
        }
    }

    fn idle(&self) -> Duration {
        let idle = self.shared.idle;
        if self.live.is_some() { idle.min(SESSION_IDLE) } else { idle }
    }

    /// Takes whole requests from `input` and appends their answers.
    async fn take(&mut self, input: &mut FrameBuffer) -> Result<Next, Closed> {
        let next = loop {
            if self.out.len() >= FLUSH_AT {
                break Next::More;
            }
            let (body, fields) = match input.next_body() {
                Ok(Some(body)) => (body, Fields::parse(body)),
                Ok(None) => break Next::Read,
                Err(e) => {
                    tracing::debug!(source = %self.asker.source, "connection closed: {e}");
                    break Next::Close;
                }
            };
            self.served += 1;
            let fields = match fields {
                Ok(fields) => fields,
                Err(e) => {
                    tracing::debug!(source = %self.asker.source, "connection closed: {e}");
                    break Next::Close;
                }
            };
            self.meter.begin(&fields.kind);
            match fields.kind.as_ref() {
                "subscribe_replication" => {
                    self.flush().await;
                    let error = "replication not configured".to_owned();
                    self.append(&ErrorReply { error, ..ErrorReply::default() });
                    break Next::Close;
                }
                // Boxed, as a connection that only waits has no room for them.
                "create_network" | "join_network" | "leave_network" | "list_nodes"
                | "list_networks" => Box::pin(self.published_network(&fields)).await?,
                kind if Extended::knows(kind) => Box::pin(self.extended(body, &fields)).await?,
                _ => self.answer(&fields).await,
            }
        };
        self.flush().await;
        Ok(next)
    }

    async fn answer(&mut self, fields: &Fields<'_>) {
        if self.must_flush(&fields.kind) {
            self.flush().await;
        }
        let admitted = self.shared.service.admit(fields, &self.asker, unix_now());
        self.finish(admitted, || refused(fields)).await;
    }

    async fn published_network(&mut self, fields: &Fields<'_>) -> Result<(), Closed> {
        self.flush().await;
        let (shared, asker) = (Arc::clone(&self.shared), self.asker);
        let work = shared.service.published_network(fields, &asker, unix_now());
        let admitted = self.meanwhile(work).await?;
        self.finish(admitted, || refused(fields)).await;
        Ok(())
    }

    /// Does what a request came to.
    async fn finish(
        &mut self,
        admitted: Result<Admitted, Refusal>,
        request: impl FnOnce() -> Refused,
    ) {
        match admitted {
            Ok(Admitted::Write(command)) => self.pending.push(command),
            Ok(Admitted::WriteThen(command, then)) => {
                self.flush().await;
                let mut then = Some(then);
                for outcome in self.shared.writer.submit(vec![command]).await {
                    let made = then.take();
                    self.append_outcome(&outcome.map(|led_to| match made {
                        Some(then) => then.answer(led_to),
                        None => led_to,
                    }));
                }
            }
            Ok(Admitted::Reply(reply)) => {
                self.flush().await;
                self.append(&reply);
            }
            Err(refusal) => {
                self.flush().await;
                self.refuse(&refusal, request);
            }
        }
    }

    /// Whether pending commands must take effect before this request is
    /// judged. Registering does not depend on what came before.
    fn must_flush(&self, kind: &str) -> bool {
        if self.pending.is_empty() {
            return false;
        }
        self.pending.len() >= MAX_PENDING
            || !Service::is_write(kind)
            || (kind != "register" && self.pending.iter().any(|c| c.op.changes_admission()))
    }

    /// Makes pending commands durable and appends their answers.
    async fn flush(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        for outcome in self.shared.writer.submit(std::mem::take(&mut self.pending)).await {
            self.append_outcome(&outcome);
        }
    }

    fn append_outcome(&mut self, outcome: &Outcome) {
        match outcome {
            Ok(reply) => self.append(reply),
            Err(refusal) => {
                self.meter.fail();
                let (source, code) = (self.asker.source, refusal.code());
                tracing::debug!(%source, code, "request refused: {refusal}");
                self.shared.denials.applied(source, refusal);
                self.append(&refusal.reply());
            }
        }
    }

    fn refuse(&mut self, refusal: &Refusal, request: impl FnOnce() -> Refused) {
        self.meter.fail();
        let (source, code) = (self.asker.source, refusal.code());
        tracing::debug!(%source, code, "request refused: {refusal}");
        let by = self.asker.session;
        self.shared.denials.deny(source, refusal, || Refused { by, ..request() });
        self.append(&refusal.reply());
    }

    fn append<T: serde::Serialize>(&mut self, reply: &T) {
        if let Err(e) = append_frame(&mut self.out, reply) {
            // Lists end by size, so this is an error of the registry. Whoever
            // asked must not take the next answer for this one.
            tracing::error!(source = %self.asker.source, "an answer could not be sent: {e}");
            self.meter.fail();
            if let Err(e) = append_frame(&mut self.out, &Refusal::AnswerTooLong.reply()) {
                tracing::error!("nor that it was refused: {e}");
            }
        }
        self.meter.end();
    }

    /// Sends what is there to be sent.
    async fn send(&mut self) -> Result<(), Closed> {
        if self.out.is_empty() {
            return Ok(());
        }
        let over = async {
            match &self.live {
                Some(live) => live.over().await,
                None => std::future::pending().await,
            }
        };
        // What is written to TLS may stay in it until it is flushed.
        let all = async {
            self.stream.write_all(&self.out).await?;
            self.stream.flush().await
        };
        let sent = tokio::select! {
            biased;
            sent = timeout(WRITE_LIMIT, all) => sent,
            // Its reason cannot be told behind what the client does not read.
            () = over => return Err(Closed),
        };
        match sent {
            Ok(Ok(())) => self.out.clear(),
            Ok(Err(_)) | Err(_) => return Err(Closed),
        }
        Ok(())
    }

    /// Lets the last answer arrive before the connection is gone.
    async fn close(&mut self) -> Result<(), Closed> {
        let _ = timeout(WRITE_LIMIT, self.stream.shutdown()).await;
        Err(Closed)
    }

    /// Says on a session that the registry ends.
    async fn stop(&mut self) -> Result<(), Closed> {
        let Some(live) = self.live.take() else { return Err(Closed) };
        live.stop(&mut self.out);
        self.send().await?;
        self.close().await
    }

    /// Tells the news there are. In the end there was none since the last look,
    /// so that waiting for [`changed`] misses nothing.
    async fn tell(&mut self) -> Result<(), Closed> {
        while let Some(live) = &mut self.live {
            let filled = live.fill(self.shared.service.shared_state(), &mut self.out, FLUSH_AT);
            if self.out.is_empty() {
                break;
            }
            self.shared.service.metrics().connections.pushes.fetch_add(1, Relaxed);
            if filled == Filled::Ended {
                // The reason is in `out`, and nothing may cut it short.
                self.live = None;
                self.send().await?;
                return self.close().await;
            }
            self.send().await?;
        }
        Ok(())
    }

    /// Waits for `work`, which may take seconds, and tells news meanwhile.
    async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Closed> {
        tokio::pin!(work);
        tokio::select! {
            biased;
            done = &mut work => return Ok(done),
            () = std::future::ready(()) => {}
        }
        self.send().await?;
        loop {
            self.tell().await?;
            tokio::select! {
                done = &mut work => return Ok(done),
                () = changed(self.live.as_ref()) => {}
            }
        }
    }
}

/// Waits until there may be news; for ever when this is no session.
async fn changed(live: Option<&Live>) {
    match live {
        Some(live) => live.changed().await,
        None => std::future::pending().await,
    }
}

/// Waits until the registry stops.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// A refused request, for those who are told of it.
fn refused(fields: &Fields<'_>) -> Refused {
    let node = |id: u32| (id != 0).then_some(NodeId(id));
    let claimed = [fields.node_id, fields.requester_id, fields.from_node_id];
    let claimed = match fields.kind.as_ref() {
        "resolve" | "punch" => node(fields.requester_id),
        "request_handshake" => node(fields.from_node_id),
        _ => claimed.into_iter().find_map(node),
    };
    let about = match fields.kind.as_ref() {
        "resolve" => node(fields.node_id),
        "request_handshake" => node(fields.to_node_id),
        _ => node(fields.peer_id).or(claimed),
    };
    let mut object = about.map_or_else(String::new, |node| format!("node {node}"));
    if fields.network_id != 0 {
        let network = format!("network {}", fields.network_id);
        object = if object.is_empty() { network } else { format!("{object} in {network}") };
    }
    let (operation, request_id) = (told(&fields.kind), told(&fields.request_id));
    Refused { operation, claimed, by: None, object, request_id }
}

/// At most [`MAX_TOLD`] bytes.
fn told(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_TOLD)].to_owned()
}

/// Seconds since 1970; 0 before that.
pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
