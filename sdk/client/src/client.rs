//! The handle an agent holds.

use std::collections::{HashMap, VecDeque};
use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;

use pilot_wire::ipc::{
    Command, DATAGRAM_HEADER_LEN, Features, Handshake, LENGTH_LEN, MAX_MESSAGE, datagram_header,
    json,
};
use pilot_wire::{NodeId, SocketAddress};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::connect::{self, ConnectError, Options, socket_path};
use crate::datagram::Datagrams;
use crate::error::{Error, ErrorKind};
use crate::info::{HandshakeStatus, Info, PendingRequest, Resolved, TrustedNode};
use crate::link::{Guard, Link};
use crate::listener::{Incoming, Listener};
use crate::lock;
use crate::reader::Reader;
use crate::request::Waiting;
use crate::stream::Stream;
use crate::target::{Host, Target};

/// A connection to the local daemon. Clones share it; it ends when the last
/// clone, stream, listener and subscription is dropped.
#[derive(Clone)]
pub struct Client {
    guard: Arc<Guard>,
}

impl Client {
    /// Connects to the daemon of this user, see [`socket_path`].
    ///
    /// # Errors
    /// When no daemon answers there.
    pub async fn connect() -> Result<Self, ConnectError> {
        Self::connect_to(socket_path(|name| std::env::var_os(name))?).await
    }

    /// Connects to the daemon at a given socket.
    ///
    /// # Errors
    /// When no daemon answers there.
    pub async fn connect_to(path: impl AsRef<Path>) -> Result<Self, ConnectError> {
        Self::connect_with(path, Options::default()).await
    }

    /// Connects to the daemon at a given socket with other than the usual
    /// options.
    ///
    /// # Errors
    /// When no daemon answers there.
    pub async fn connect_with(
        path: impl AsRef<Path>,
        options: Options,
    ) -> Result<Self, ConnectError> {
        let connected = connect::connect(path.as_ref(), options).await?;
        let (read, write) = connected.socket.into_split();
        let link = Arc::new(Link::new(write, connected.grants));
        tokio::spawn(Arc::clone(&link).flush_backlog());
        let (start, started) = tokio::sync::oneshot::channel();
        let reader_link = Arc::clone(&link);
        let reader = tokio::spawn(async move {
            // Never sent only if this function was cancelled in between.
            if let Ok(guard) = started.await {
                let reader = Reader {
                    socket: read,
                    buffer: connected.rest,
                    link: reader_link,
                    guard,
                    conns: HashMap::new(),
                    lanes_due: 0,
                    files: VecDeque::new(),
                };
                reader.run().await;
            }
        });
        let guard = Arc::new(Guard { link, reader: reader.abort_handle() });
        // The task cannot have gone: it waits for this.
        let _ = start.send(Arc::downgrade(&guard));
        Ok(Self { guard })
    }

    fn link(&self) -> &Link {
        &self.guard.link
    }

    /// What the daemon granted; nothing, if it knows only the published
    /// protocol.
    pub fn features(&self) -> Features {
        self.link().grants.features
    }

    /// Listens on a virtual port.
    ///
    /// # Errors
    /// When the port is taken or the daemon has gone.
    pub async fn listen(&self, port: u16) -> Result<Listener, Error> {
        if !self.link().grants.hello {
            // A published daemon cannot unbind: the port may still be ours.
            let mut ports = lock(&self.link().ports);
            if ports.get(&port).is_some_and(Incoming::is_gone) {
                return Ok(Listener::new(port, &mut ports, Arc::clone(&self.guard)));
            }
        }
        self.link().request(&Command::Bind { port }, |reply| Waiting::Bind { port, reply }).await
    }

    /// Opens a stream to `agent-b:1000`, `0:0000.0000.0002:1000` or `2:1000`.
    ///
    /// # Errors
    /// When the target cannot be read or resolved, or the peer does not take
    /// the stream.
    pub async fn dial(&self, target: impl ToString) -> Result<Stream, Error> {
        let to = self.locate(&target.to_string()).await?;
        self.dial_address(to).await
    }

    /// Opens a stream to an address and port.
    ///
    /// # Errors
    /// When the peer does not take the stream.
    pub async fn dial_address(&self, to: SocketAddress) -> Result<Stream, Error> {
        self.link().request(&Command::Dial { to }, |reply| Waiting::Dial { to, reply }).await
    }

    /// Sends one datagram. It may get lost; when an earlier one could not be
    /// sent, this one is not, and the reason is returned.
    ///
    /// # Errors
    /// When the target cannot be read or resolved, the data does not fit a
    /// message, or an earlier datagram was refused.
    pub async fn send_datagram(&self, target: impl ToString, data: &[u8]) -> Result<(), Error> {
        let to = self.locate(&target.to_string()).await?;
        self.send_datagram_to(to, data).await
    }

    /// Sends one datagram to an address and port, as
    /// [`Self::send_datagram`].
    ///
    /// # Errors
    /// When the data does not fit a message, or an earlier datagram was
    /// refused.
    pub async fn send_datagram_to(&self, to: SocketAddress, data: &[u8]) -> Result<(), Error> {
        if let Some(error) = self.link().subscribers.take_error() {
            return Err(error);
        }
        if DATAGRAM_HEADER_LEN - LENGTH_LEN + data.len() > MAX_MESSAGE {
            return Err(Error::new(ErrorKind::InvalidArgument, "the datagram is too long"));
        }
        let header = datagram_header(to, data.len());
        let message = [IoSlice::new(&header), IoSlice::new(data)];
        let total = header.len() + data.len();
        std::future::poll_fn(|cx| self.link().poll_message(cx, &message, total)).await?;
        Ok(())
    }

    /// Why an earlier datagram was not sent, told once; else the next
    /// [`Self::send_datagram`] tells it. The daemon says nothing of datagrams
    /// that it takes.
    pub fn datagram_error(&self) -> Option<Error> {
        self.link().subscribers.take_error()
    }

    /// The datagrams that arrive from now on.
    pub fn datagrams(&self) -> Datagrams {
        Datagrams::subscribe(Arc::clone(&self.guard))
    }

    /// The daemon's state.
    ///
    /// # Errors
    /// When the daemon has gone.
    pub async fn info(&self) -> Result<Info, Error> {
        self.json(&Command::Info, json::INFO).await
    }

    /// The daemon's state as it sent it.
    ///
    /// # Errors
    /// When the daemon has gone.
    pub async fn info_json(&self) -> Result<Value, Error> {
        self.json(&Command::Info, json::INFO).await
    }

    /// Whose a hostname is.
    ///
    /// # Errors
    /// When it is unknown, or belongs to a private node without mutual trust.
    pub async fn resolve(&self, hostname: &str) -> Result<Resolved, Error> {
        self.json(&Command::ResolveHostname(hostname), json::RESOLVE_HOSTNAME).await
    }

    /// Sets the own hostname; an empty one clears it. Gives the registry's
    /// answer.
    ///
    /// # Errors
    /// When the name is taken or malformed, or the registry cannot be reached.
    pub async fn set_hostname(&self, hostname: &str) -> Result<Value, Error> {
        self.json(&Command::SetHostname(hostname), json::SET_HOSTNAME).await
    }

    /// Lets any registered node resolve this one, or only trusted ones. Gives
    /// the registry's answer.
    ///
    /// # Errors
    /// When the registry cannot be reached.
    pub async fn set_visibility(&self, public: bool) -> Result<Value, Error> {
        self.json(&Command::SetVisibility { public }, json::SET_VISIBILITY).await
    }

    /// Leaves the registry. Gives the registry's answer.
    ///
    /// # Errors
    /// When the registry cannot be reached.
    pub async fn deregister(&self) -> Result<Value, Error> {
        self.json(&Command::Deregister, json::DEREGISTER).await
    }

    /// Sets the own tags, at most three; none clears them. Gives the
    /// registry's answer.
    ///
    /// # Errors
    /// When a tag is malformed, or the registry cannot be reached.
    pub async fn set_tags(&self, tags: &[impl AsRef<str>]) -> Result<Value, Error> {
        let tags: Vec<&str> = tags.iter().map(AsRef::as_ref).collect();
        let tags = serde_json::to_vec(&tags)
            .map_err(|e| Error::new(ErrorKind::InvalidArgument, e.to_string()))?;
        self.json(&Command::SetTags(&tags), json::SET_TAGS).await
    }

    /// Sets where the daemon reports events; an empty URL clears it.
    ///
    /// # Errors
    /// When the daemon does not take it.
    pub async fn set_webhook(&self, url: &str) -> Result<Value, Error> {
        self.json(&Command::SetWebhook(url), json::SET_WEBHOOK).await
    }

    /// How all plugins and scripts stand: `plugins`, a list.
    ///
    /// # Errors
    /// When the daemon knows no plugins, or has not started them yet.
    pub async fn plugins(&self) -> Result<Value, Error> {
        self.plugin("").await
    }

    /// How one plugin or script stands; everything there is to say.
    ///
    /// # Errors
    /// When there is none of this name.
    pub async fn plugin(&self, name: &str) -> Result<Value, Error> {
        self.needs_plugins()?;
        self.json(&Command::Plugins(name), json::PLUGINS).await
    }

    /// Has the daemon look at its configuration and the files of plugins and
    /// scripts again. Gives what happened to each.
    ///
    /// # Errors
    /// When the daemon knows no plugins, or has not started them yet.
    pub async fn reload(&self) -> Result<Value, Error> {
        self.needs_plugins()?;
        self.json(&Command::Reload, json::RELOAD).await
    }

    /// Asks the registry as this node; `request` is a JSON object of the form
    /// of `pilot_wire::registry::Extended`. Gives the registry's answer, also
    /// when it refuses: then the object has `error`, and where the registry says
    /// more `code`, `message` and `hint`.
    ///
    /// # Errors
    /// When the daemon or the registry knows no such requests, or cannot be
    /// reached.
    pub async fn registry(&self, request: &Value) -> Result<Value, Error> {
        if !self.features().contains(Features::NETWORKS) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "this daemon knows no networks; update it",
            ));
        }
        let request = request.to_string();
        self.json(&Command::Registry(request.as_bytes()), json::REGISTRY).await
    }

    fn needs_plugins(&self) -> Result<(), Error> {
        if self.features().contains(Features::PLUGINS) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Unsupported, "the running daemon knows no plugins"))
    }

    /// Switches task execution. Gives the registry's answer.
    ///
    /// # Errors
    /// When the registry cannot be reached.
    pub async fn set_task_exec(&self, enabled: bool) -> Result<Value, Error> {
        self.json(&Command::SetTaskExec { enabled }, json::SET_TASK_EXEC).await
    }

    /// Asks a node for trust.
    ///
    /// # Errors
    /// When neither the node nor the registry can be reached.
    pub async fn handshake_request(
        &self,
        node: impl Into<NodeId>,
        justification: &str,
    ) -> Result<HandshakeStatus, Error> {
        self.handshake(Handshake::Request { node: node.into(), justification }).await
    }

    /// Approves a pending request.
    ///
    /// # Errors
    /// When the daemon has gone.
    pub async fn approve(&self, node: impl Into<NodeId>) -> Result<HandshakeStatus, Error> {
        self.handshake(Handshake::Approve { node: node.into() }).await
    }

    /// Rejects a pending request.
    ///
    /// # Errors
    /// When the daemon has gone.
    pub async fn reject(
        &self,
        node: impl Into<NodeId>,
        reason: &str,
    ) -> Result<HandshakeStatus, Error> {
        self.handshake(Handshake::Reject { node: node.into(), reason }).await
    }

    /// Requests that wait for approval.
    ///
    /// # Errors
    /// When the daemon has gone.
    pub async fn pending(&self) -> Result<Vec<PendingRequest>, Error> {
        #[derive(serde::Deserialize)]
        struct Answer {
            #[serde(default)]
            pending: Vec<PendingRequest>,
        }
        Ok(self.handshake::<Answer>(Handshake::Pending).await?.pending)
    }

    /// Trusted nodes.
    ///
    /// # Errors
    /// When the daemon has gone.
    pub async fn trusted(&self) -> Result<Vec<TrustedNode>, Error> {
        #[derive(serde::Deserialize)]
        struct Answer {
            #[serde(default)]
            trusted: Vec<TrustedNode>,
        }
        Ok(self.handshake::<Answer>(Handshake::Trusted).await?.trusted)
    }

    /// Ends trust with a node.
    ///
    /// # Errors
    /// When the node was not trusted.
    pub async fn revoke(&self, node: impl Into<NodeId>) -> Result<HandshakeStatus, Error> {
        self.handshake(Handshake::Revoke { node: node.into() }).await
    }

    /// Closes a connection of any client of this daemon.
    ///
    /// # Errors
    /// When there is no such connection; a published daemon says success.
    pub async fn disconnect(&self, connection: u32) -> Result<(), Error> {
        self.link()
            .request(&Command::Close { connection }, |reply| Waiting::Closed { connection, reply })
            .await
    }

    /// The address and port a target stands for, asking the daemon for
    /// hostnames.
    ///
    /// # Errors
    /// When the target cannot be read or resolved.
    pub async fn locate(&self, target: &str) -> Result<SocketAddress, Error> {
        let target: Target =
            target.parse().map_err(|e| Error::new(ErrorKind::InvalidArgument, format!("{e}")))?;
        let name = match target.host {
            Host::Address(address) => return Ok(address.port(target.port)),
            Host::Name(name) => name,
        };
        let resolved = self.resolve(&name).await?;
        let address: pilot_wire::Address = resolved.address.parse().map_err(|e| {
            Error::protocol(format!("the daemon resolved {name:?} to no address: {e}"))
        })?;
        Ok(address.port(target.port))
    }

    async fn handshake<T: DeserializeOwned>(&self, command: Handshake<'_>) -> Result<T, Error> {
        self.json(&Command::Handshake(command), json::HANDSHAKE).await
    }

    async fn json<T: DeserializeOwned>(&self, command: &Command<'_>, code: u8) -> Result<T, Error> {
        let body = self.link().request(command, |reply| Waiting::Json { code, reply }).await?;
        serde_json::from_slice(&body)
            .map_err(|e| Error::protocol(format!("the daemon's answer cannot be read: {e}")))
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("grants", &self.link().grants).finish()
    }
}
