//! One client: requests in, answers out, strictly in order. Requests that
//! arrived together and only write are made durable together.
//!
//! Bounds: one unfinished frame and one read of input, [`MAX_PENDING`]
//! commands, answers up to [`FLUSH_AT`] before they are sent; a client that
//! does not read is cut off after [`WRITE_LIMIT`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pilot_wire::registry::{Envelope, ErrorReply, Extended, Fields, FrameBuffer, append_frame};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use crate::metrics::Meter;
use crate::service::{Admitted, Asker, Service};
use crate::state::{Command, Refusal};
use crate::writer::{Outcome, Writer};

const READ_ROOM: usize = 16 * 1024;
const MAX_PENDING: usize = 1024;
const FLUSH_AT: usize = 256 * 1024;
const WRITE_LIMIT: Duration = Duration::from_secs(30);

/// Serves one connection until it ends, breaks the framing, idles or the
/// registry stops.
pub(crate) async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send>(
    mut stream: S,
    source: SocketAddr,
    service: Arc<Service>,
    writer: Writer,
    idle: Duration,
    mut stop: watch::Receiver<bool>,
) {
    let source = SocketAddr::new(source.ip().to_canonical(), source.port());
    let asker = Asker { source, session: None };
    let meter = Meter::new(Arc::clone(service.metrics()));
    let mut session =
        Session { asker, service, writer, meter, pending: Vec::new(), out: Vec::new(), served: 0 };
    let mut input = FrameBuffer::new();
    let mut deadline = Instant::now() + idle;
    loop {
        let served = session.served;
        let next = session.take(&mut input).await;
        if !session.out.is_empty() {
            // What is written to TLS may stay in it until it is flushed.
            let send = async {
                stream.write_all(&session.out).await?;
                stream.flush().await
            };
            match timeout(WRITE_LIMIT, send).await {
                Ok(Ok(())) => session.out.clear(),
                Ok(Err(_)) | Err(_) => return,
            }
        }
        if session.served > served {
            deadline = Instant::now() + idle;
        }
        match next {
            Next::Close => {
                // Lets the last answer arrive before the connection is gone.
                let _ = timeout(WRITE_LIMIT, stream.shutdown()).await;
                return;
            }
            Next::More => continue,
            Next::Read => {}
        }
        tokio::select! {
            read = timeout_at(deadline, stream.read_buf(input.space(READ_ROOM))) => match read {
                Ok(Ok(1..)) => {}
                Ok(Ok(0) | Err(_)) => return,
                Err(_) => return tracing::debug!(%source, "idle connection closed"),
            },
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

/// What to do after a round.
enum Next {
    /// Send, then read more input.
    Read,
    /// Send, then go on with input that is there.
    More,
    /// Send, then close.
    Close,
}

struct Session {
    asker: Asker,
    service: Arc<Service>,
    writer: Writer,
    meter: Meter,
    /// Admitted but not yet durable, in order of their requests.
    pending: Vec<Command>,
    out: Vec<u8>,
    served: u64,
}

impl Session {
    /// Takes whole requests from `input` and appends their answers.
    async fn take(&mut self, input: &mut FrameBuffer) -> Next {
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
            match fields {
                Ok(fields) if fields.kind == "subscribe_replication" => {
                    self.flush().await;
                    let error = "replication not configured".to_owned();
                    self.append(&ErrorReply { error, ..ErrorReply::default() });
                    break Next::Close;
                }
                Ok(fields) => self.answer(body, &fields).await,
                Err(e) => {
                    tracing::debug!(source = %self.asker.source, "connection closed: {e}");
                    break Next::Close;
                }
            }
        };
        self.flush().await;
        next
    }

    async fn answer(&mut self, body: &[u8], fields: &Fields<'_>) {
        self.meter.begin(&fields.kind);
        if self.must_flush(&fields.kind) {
            self.flush().await;
        }
        let (service, asker, now) = (Arc::clone(&self.service), self.asker, unix_now());
        let admitted = match fields.kind.as_ref() {
            "list_networks" | "list_nodes" | "create_network" | "join_network"
            | "leave_network" => service.published_network(fields, &asker, now).await,
            kind if Extended::knows(kind) => match Envelope::parse(body) {
                Ok(envelope) => service.extended(envelope, &asker, now).await,
                Err(e) => Err(Refusal::Invalid { key: kind.to_owned(), problem: e.to_string() }),
            },
            _ => service.admit(fields, &asker, now),
        };
        match admitted {
            Ok(Admitted::Write(command)) => self.pending.push(command),
            Ok(Admitted::WriteThen(command, then)) => {
                self.flush().await;
                let mut then = Some(then);
                for outcome in self.writer.submit(vec![command]).await {
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
                self.log_refusal(&fields.kind, &refusal);
                self.append(&refusal.reply());
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
        for outcome in self.writer.submit(std::mem::take(&mut self.pending)).await {
            self.append_outcome(&outcome);
        }
    }

    fn append_outcome(&mut self, outcome: &Outcome) {
        match outcome {
            Ok(reply) => self.append(reply),
            Err(refusal) => {
                self.log_refusal("", refusal);
                self.append(&refusal.reply());
            }
        }
    }

    fn log_refusal(&mut self, kind: &str, refusal: &Refusal) {
        self.meter.fail();
        let (source, code) = (self.asker.source, refusal.code());
        tracing::debug!(%source, kind, code, "request refused: {refusal}");
        if refusal.is_notable() {
            self.service.events().refused(code, source, refusal);
        }
    }

    fn append<T: serde::Serialize>(&mut self, reply: &T) {
        self.meter.end();
        if let Err(e) = append_frame(&mut self.out, reply) {
            // No reply is near the limit: lists are short, texts are cut.
            tracing::error!("reply not sent: {e}");
        }
    }
}

/// Seconds since 1970; 0 before that.
pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
