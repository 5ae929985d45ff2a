//! The registry as commands ask it: through the daemon, as its node, or
//! directly. Nothing here knows what is asked.

use std::time::Duration;

use pilot_sdk::{Client, ErrorKind};
use pilot_tls::{Pin, Stream};
use pilot_wire::registry::{
    Envelope, ErrorReply, Extended, FrameBuffer, FrameError, Reply, ReplyError, Request,
    parse_reply,
};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::home;
use crate::spec::Flag;

/// Makes an administrator.
pub(crate) const ADMIN_TOKEN: Flag = Flag::value(
    "admin-token",
    "token",
    "ask the registry itself, as an administrator; every user of this machine can see it in the \
     list of processes: rather set PILOT_ADMIN_TOKEN",
);
/// Says which registry it is.
pub(crate) const FINGERPRINT: Flag = Flag::value(
    "fingerprint",
    "sha256",
    "the registry's TLS certificate, for an administrator; default the configuration's \
     registry-fingerprint, without either plain TCP",
);

/// How long the registry may take, connecting included.
const PATIENCE: Duration = Duration::from_secs(10);

/// The administrator's token: flag, else `PILOT_ADMIN_TOKEN`.
pub(crate) fn admin_token(args: &Args) -> Option<String> {
    let given = args.value(ADMIN_TOKEN.name).map(str::to_owned);
    given.or_else(|| std::env::var("PILOT_ADMIN_TOKEN").ok()).filter(|token| !token.is_empty())
}

/// The pinned certificate: flag, else configuration.
pub(crate) fn fingerprint(cx: &Cx, args: &Args) -> Result<Option<Pin>, Failure> {
    let flag = args.value(FINGERPRINT.name).map(str::to_owned);
    let (text, place) = match flag {
        Some(text) => (Some(text), "--fingerprint"),
        None => {
            let key = "registry-fingerprint";
            (home::text(&cx.home.config()?, key), "the configuration's registry-fingerprint")
        }
    };
    let pin = text.map(|text| text.parse::<Pin>()).transpose();
    pin.map_err(|e| Failure::invalid(format!("{place}: {e}")))
}

/// Who asks.
pub(crate) enum Asker {
    /// The daemon's node; the daemon adds what proves it.
    Node(Client),
    /// An administrator, on a connection of its own.
    Admin {
        /// To the registry.
        link: Link,
        /// What makes an administrator.
        token: String,
    },
}

impl Asker {
    /// An administrator if there is a token, else the daemon's node.
    pub(crate) async fn open(cx: &Cx, args: &Args) -> Result<Self, Failure> {
        match admin_token(args) {
            Some(_) => Self::admin(cx, args).await,
            None => Self::node(cx).await,
        }
    }

    /// The daemon's node, for what an administrator cannot do in its place.
    pub(crate) async fn node(cx: &Cx) -> Result<Self, Failure> {
        Ok(Self::Node(cx.client().await?))
    }

    /// An administrator.
    pub(crate) async fn admin(cx: &Cx, args: &Args) -> Result<Self, Failure> {
        let token = admin_token(args).ok_or_else(|| {
            Failure::invalid("this is for administrators of the registry")
                .hint("put the registry's admin-token into PILOT_ADMIN_TOKEN")
        })?;
        let link = Link::open(&cx.registry()?, fingerprint(cx, args)?.as_ref()).await?;
        Ok(Self::Admin { link, token })
    }

    /// Asks, and gives the answer as it came and as what it is. `what` is what a
    /// person was told to type, for messages.
    pub(crate) async fn ask<T: Reply>(
        &mut self,
        what: &str,
        request: Extended,
    ) -> Result<(Value, T), Failure> {
        let body = match self {
            Self::Node(client) => {
                let request = serde_json::to_value(&request)
                    .map_err(|e| Failure::internal(format!("{what}: {e}")))?;
                ask_daemon(client, what, &request).await?.to_string().into_bytes()
            }
            Self::Admin { link, token } => {
                let mut envelope = Envelope::new(request);
                envelope.admin_token.clone_from(token);
                let mut frame = Vec::new();
                envelope.append_to(&mut frame).map_err(|e| too_long(what, e))?;
                link.exchange(&frame).await?
            }
        };
        let reply = parse_reply(&body).map_err(|e| misread(what, e))?;
        let value = serde_json::from_slice(&body).map_err(|e| misread(what, e.into()))?;
        Ok((value, reply))
    }
}

/// Asks through the daemon; a refusal is an answer.
pub(crate) async fn ask_daemon(
    client: &Client,
    what: &str,
    request: &Value,
) -> Result<Value, Failure> {
    client.registry(request).await.map_err(|e| {
        // What the registry says of names is not about trust between nodes.
        let mut failure = Failure::daemon(what, &e);
        if !matches!(e.kind(), ErrorKind::Disconnected | ErrorKind::Registry | ErrorKind::Shutdown)
        {
            failure.hint = None;
        }
        failure
    })
}

fn too_long(what: &str, error: FrameError) -> Failure {
    Failure::invalid(format!("{what}: {error}"))
}

fn misread(what: &str, error: ReplyError) -> Failure {
    match error {
        ReplyError::Refused(reply) => Failure::refused(what, &reply),
        error => Failure::connection(format!("{what}: {error}")),
    }
}

/// A connection to the registry itself.
pub(crate) struct Link {
    address: String,
    stream: Stream,
    frames: FrameBuffer,
}

impl Link {
    /// Connects, with TLS if a certificate's fingerprint is given.
    pub(crate) async fn open(address: &str, pin: Option<&Pin>) -> Result<Self, Failure> {
        let stream = within(address, connect(address, pin)).await?;
        Ok(Self { address: address.to_owned(), stream, frames: FrameBuffer::new() })
    }

    /// Asks one of the published requests and gives the answer as it came.
    pub(crate) async fn ask(&mut self, request: &Request<'_>) -> Result<Value, Failure> {
        let mut frame = Vec::new();
        request.append_to(&mut frame).map_err(|e| Failure::internal(e.to_string()))?;
        let body = self.exchange(&frame).await?;
        serde_json::from_slice(&body).map_err(|e| garbled(&self.address, &e.to_string()))
    }

    /// Sends one frame and takes the body of one.
    async fn exchange(&mut self, frame: &[u8]) -> Result<Vec<u8>, Failure> {
        let Self { address, stream, frames } = self;
        let talk = async {
            let failed = |e: std::io::Error| unreachable(address).reason(e);
            stream.write_all(frame).await.map_err(failed)?;
            stream.flush().await.map_err(failed)?;
            loop {
                let body = frames.next_body().map_err(|e| garbled(address, &e.to_string()))?;
                if let Some(body) = body {
                    return Ok(body.to_vec());
                }
                if stream.read_buf(frames.space(4096)).await.map_err(failed)? == 0 {
                    return Err(garbled(address, "it closed the connection"));
                }
            }
        };
        within(address, talk).await
    }
}

/// A connection to the registry; the only place that makes one.
pub(crate) async fn connect(address: &str, pin: Option<&Pin>) -> Result<Stream, Failure> {
    pilot_tls::connect(address, pin).await.map_err(|e| unreachable(address).reason(e))
}

async fn within<T>(
    address: &str,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    timeout(PATIENCE, work).await.unwrap_or_else(|_| {
        Err(unreachable(address).reason(format!("no answer within {} s", PATIENCE.as_secs())))
    })
}

/// A refusal in an answer that was taken as it came.
pub(crate) fn refusal(answer: &Value) -> Option<ErrorReply> {
    answer.get("error").and_then(Value::as_str)?;
    serde_json::from_value(answer.clone()).ok()
}

fn garbled(address: &str, reason: &str) -> Failure {
    Failure::connection(format!("what listens on {address} is not a registry")).reason(reason)
}

pub(crate) fn unreachable(address: &str) -> Failure {
    Failure::connection(format!("cannot reach registry at {address}"))
        .hint(format!("check that the registry is running at {address}, or set PILOT_REGISTRY"))
}
