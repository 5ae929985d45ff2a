//! Port 443: the secure channel (protocol page "Services", section 4), as the
//! server.
//!
//! Frames are exactly as published. What a published peer never notices:
//!
//! - A frame must carry the client's prefix and the next counter (`strict`).
//!   Published receivers take any nonce, but every published sender counts
//!   from 1 without a gap, so this refuses only frames that were replayed,
//!   moved, left out or sent back.
//! - A key that leads to an all-zero secret is refused (RFC 7748, section 6.1).
//! - With a client of ours the channel is bound to the identities that the
//!   tunnel has proven ([`pilot_plugin::wire::service::secure`] describes how).
//!   `require-bound: true` refuses clients that do not bind it.
//!
//! What is behind the channel is `forward`: `to: echo` sends everything back,
//! a frame for a frame; `to: tcp:127.0.0.1:8443` and `to: unix:/run/app.sock`
//! connect every channel to a local server, which sees the plain bytes.
//!
//! ```yaml
//! forward:
//!   to: tcp:127.0.0.1:8443
//! ```
#![forbid(unsafe_code)]

#[path = "../../stdio/src/bridge.rs"]
mod bridge;
mod channel;
mod target;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use pilot_plugin::json::json;
use pilot_plugin::serde::Deserialize;
use pilot_plugin::wire::NodeId;
use pilot_plugin::wire::service::secure::{HANDSHAKE_SECS, KEY_LEN, MAX_FRAME, PORT};
use pilot_plugin::{
    Buffer, Error, Host, JsonSchema, Level, Manifest, Peer, Plugin, Reader, Stream, Writer,
};
use rand::TryRng as _;

use channel::{Accepted, Ends, Opener, Rules, Sealer};
use target::{Local, Target};

/// One node may have this part of `max-streams`; more of it are reset.
const SHARE: usize = 4;
/// A frame that has begun and of which nothing comes for so long ends its
/// channel.
const STALL: Duration = Duration::from_secs(60);

/// The configuration of the secure channel.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(crate = "pilot_plugin::serde", rename_all = "kebab-case", deny_unknown_fields, default)]
#[schemars(crate = "pilot_plugin::schemars")]
struct Config {
    /// What is behind the channel.
    forward: Forward,
    /// Refuse frames that are replayed, moved, left out or sent back.
    strict: bool,
    /// Refuse clients that do not bind the channel to the tunnel's identities;
    /// published clients cannot.
    require_bound: bool,
    /// Longest frame taken, in bytes; published clients send up to 16777216.
    max_frame_bytes: usize,
    /// Channels at once; more are reset. Each may hold a frame, and two
    /// threads when it is forwarded.
    max_streams: usize,
}

/// Where plaintext goes.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(crate = "pilot_plugin::serde", rename_all = "kebab-case", deny_unknown_fields)]
#[schemars(crate = "pilot_plugin::schemars")]
struct Forward {
    /// `echo`, `tcp:HOST:PORT` or `unix:/PATH`.
    to: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            forward: Forward { to: "echo".to_owned() },
            strict: true,
            require_bound: false,
            max_frame_bytes: MAX_FRAME,
            max_streams: 64,
        }
    }
}

struct Secure {
    host: Host,
    target: Target,
    rules: Rules,
    max_streams: usize,
    streams: Rc<Cell<usize>>,
    /// Channels by node.
    nodes: Rc<RefCell<HashMap<NodeId, usize>>>,
    /// This node, once the host has said so.
    node: RefCell<Option<NodeId>>,
}

impl Plugin for Secure {
    type Config = Config;

    fn manifest() -> Manifest {
        Manifest::new("secure", env!("CARGO_PKG_VERSION"))
            .describe("an encrypted channel to a local server")
            .service("secure", &[PORT])
            .needs("node.status")
    }

    fn start(host: Host, config: Config) -> Result<Self, Error> {
        let rules = Rules {
            strict: config.strict,
            require_bound: config.require_bound,
            max_frame: config.max_frame_bytes,
        };
        let target = Target::parse(&config.forward.to).map_err(Error::new)?;
        let max_streams = config.max_streams;
        let (streams, node) = (Rc::default(), RefCell::default());
        let nodes = Rc::default();
        Ok(Self { host, target, rules, max_streams, streams, nodes, node })
    }

    async fn serve(&self, mut stream: Stream, peer: Peer) -> Result<(), Error> {
        if self.streams.get() >= self.max_streams {
            return Err(Error::new(format!("{} channels are open already", self.max_streams)));
        }
        let (node, most) = (peer.node(), (self.max_streams / SHARE).max(1));
        if self.nodes.borrow().get(&node).is_some_and(|n| *n >= most) {
            let text = format!("{most} channels of node {node} are open already");
            return Err(Error::new(text));
        }
        self.streams.set(self.streams.get() + 1);
        *self.nodes.borrow_mut().entry(node).or_default() += 1;
        let _counted = Counted(Rc::clone(&self.streams), Rc::clone(&self.nodes), node);
        let limit = Duration::from_secs(HANDSHAKE_SECS);
        let handshake = self.host.timeout(limit, self.handshake(&mut stream, &peer)).await;
        let (opener, sealer) = handshake
            .ok_or_else(|| Error::new(format!("no key within the {HANDSHAKE_SECS} s for it")))??;
        let (reader, writer) = stream.into_split();
        match self.target.clone() {
            Target::Echo => echo(&self.host, opener, sealer, reader, writer).await,
            target => {
                let connected = self.host.blocking(move || Local::connect(&target)).await?;
                let local = connected.map_err(Error::new)?;
                forward(&self.host, local, opener, sealer, reader, writer).await
            }
        }
    }
}

impl Secure {
    async fn handshake(&self, stream: &mut Stream, peer: &Peer) -> Result<(Opener, Sealer), Error> {
        let mut client_key = [0; KEY_LEN];
        stream.read_exact(&mut client_key).await?;
        let ends = self.own_node().await.map(|server| Ends { client: peer.node(), server });
        let mut secret = [0; KEY_LEN];
        rand::rngs::SysRng.try_fill_bytes(&mut secret)?;
        let Accepted { hello, opener, sealer } =
            channel::accept(client_key, secret, ends, self.rules)?;
        stream.send(hello).await?;
        Ok((opener, sealer))
    }

    async fn own_node(&self) -> Option<NodeId> {
        let known = *self.node.borrow();
        if known.is_some() {
            return known;
        }
        match self.host.call("node.status", json!({})).await {
            Ok(status) => {
                let number = status["node_id"].as_u64().and_then(|n| u32::try_from(n).ok());
                let node = number.filter(|n| *n != 0).map(NodeId);
                *self.node.borrow_mut() = node;
                node
            }
            Err(e) => {
                self.host.log(Level::Warn, format!("channels are not bound: {e}"));
                None
            }
        }
    }
}

/// One channel less when it is dropped.
struct Counted(Rc<Cell<usize>>, Rc<RefCell<HashMap<NodeId, usize>>>, NodeId);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
        let mut nodes = self.1.borrow_mut();
        if let Some(count) = nodes.get_mut(&self.2) {
            *count -= 1;
            if *count == 0 {
                nodes.remove(&self.2);
            }
        }
    }
}

async fn echo(
    host: &Host,
    mut opener: Opener,
    mut sealer: Sealer,
    mut reader: Reader,
    mut writer: Writer,
) -> Result<(), Error> {
    while let Some(data) = next(host, &opener, &mut reader).await? {
        opener.push(&data);
        while let Some(plaintext) = opener.open()? {
            writer.send(sealer.seal(&plaintext)?).await?;
        }
    }
    whole(&opener)
}

async fn forward(
    host: &Host,
    local: Local,
    mut opener: Opener,
    mut sealer: Sealer,
    mut reader: Reader,
    mut writer: Writer,
) -> Result<(), Error> {
    let Local { mut source, mut sink, shut: _shut } = local;
    let up = async {
        while let Some(data) = next(host, &opener, &mut reader).await? {
            opener.push(&data);
            while let Some(plaintext) = opener.open()? {
                sink.send(plaintext).await?;
            }
        }
        whole(&opener)?;
        sink.finish();
        Ok(())
    };
    let down = async {
        while let Some(data) = source.recv().await? {
            writer.send(sealer.seal(&data)?).await?;
        }
        Ok(())
    };
    bridge::both::<Error>(up, down).await
}

/// The next bytes of the stream; with a limit within a frame.
async fn next(host: &Host, opener: &Opener, reader: &mut Reader) -> Result<Option<Buffer>, Error> {
    if !opener.is_inside_frame() {
        return Ok(reader.recv().await?);
    }
    match host.timeout(STALL, reader.recv()).await {
        Some(data) => Ok(data?),
        None => Err(Error::new("a frame did not come to its end in time")),
    }
}

fn whole(opener: &Opener) -> Result<(), Error> {
    match opener.is_inside_frame() {
        true => Err(Error::new("the stream ended within a frame")),
        false => Ok(()),
    }
}

pilot_plugin::export_plugin!(Secure);
