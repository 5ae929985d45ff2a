//! Port 1: what a node says of itself, to peers that it trusts.
//!
//! No format is published for this port, only its name; so this is our own,
//! for a person with `pilotctl connect NODE 1` and for small programs. A
//! request is a line, in any case, and its answer one line of JSON:
//!
//! | Request | Answer |
//! |---|---|
//! | `PING` | `{"pong":true}` |
//! | `VERSION` | `{"name":"pilot","version":"..."}` |
//! | `STATUS` | `node_id`, `address`, `hostname`, `registry`, `uptime_secs`, and the numbers of `peers` and `streams` |
//! | `PEERS` | `{"peers":n,"encrypted_peers":n}`, never who they are |
//! | `SERVICES` | `{"services":[{"name":"echo","ports":[7]},...]}` |
//!
//! Anything else is answered with `{"error":"..."}`; the stream stays open. A
//! line of more than 256 bytes ends it. (The control ping, port 0, is a packet
//! and no stream: the daemon answers it itself.)
//!
//! The host asks for trust, a shared network or an open port before a stream
//! comes here; this asks once more for trust, unless `untrusted: true`.
#![forbid(unsafe_code)]

mod answer;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use pilot_plugin::json::{Value, json};
use pilot_plugin::serde::Deserialize;
use pilot_plugin::{Error, Host, JsonSchema, Manifest, Peer, Plugin, Stream};

use answer::Request;

/// Bytes of a request at the most.
const MAX_LINE: usize = 256;
/// Streams served at once; more are reset.
const MAX_STREAMS: usize = 64;
/// A stream without a request for this long ends.
const IDLE: Duration = Duration::from_secs(300);

/// The configuration of the control port.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(crate = "pilot_plugin::serde", rename_all = "kebab-case", deny_unknown_fields, default)]
#[schemars(crate = "pilot_plugin::schemars")]
struct Config {
    /// Answers peers without trust too, where the host lets them in.
    untrusted: bool,
}

struct Control {
    host: Host,
    config: Config,
    streams: Rc<Cell<usize>>,
}

impl Plugin for Control {
    type Config = Config;

    fn manifest() -> Manifest {
        Manifest::new("control", env!("CARGO_PKG_VERSION"))
            .describe("answers status queries of trusted peers")
            .service("control", &[1])
            .needs("node.status")
            .needs("plugins.list")
    }

    fn start(host: Host, config: Config) -> Result<Self, Error> {
        Ok(Self { host, config, streams: Rc::default() })
    }

    async fn serve(&self, mut stream: Stream, peer: Peer) -> Result<(), Error> {
        if !peer.trusted && !self.config.untrusted {
            let refusal = json!({ "error": "only trusted peers are answered here" });
            stream.send(format!("{refusal}\n")).await?;
            return Ok(());
        }
        if self.streams.get() >= MAX_STREAMS {
            return Err(Error::new(format!("{MAX_STREAMS} streams are open already")));
        }
        self.streams.set(self.streams.get() + 1);
        let _counted = Counted(Rc::clone(&self.streams));
        loop {
            let line = match self.host.timeout(IDLE, stream.read_line(MAX_LINE)).await {
                Some(line) => line?,
                None => return Ok(()),
            };
            let Some(line) = line else { return Ok(()) };
            let answer = match answer::parse(&line) {
                Ok(None) => continue,
                Ok(Some(request)) => self.answer(request).await,
                Err(unknown) => json!({ "error": unknown }),
            };
            stream.send(format!("{answer}\n")).await?;
        }
    }
}

impl Control {
    async fn answer(&self, request: Request) -> Value {
        let facts = match request.method() {
            Some(method) => self.host.call(method, json!({})).await,
            None => Ok(Value::Null),
        };
        match facts {
            Ok(facts) => answer::render(request, &facts),
            Err(e) => json!({ "error": e.to_string() }),
        }
    }
}

/// One stream less when it is dropped.
struct Counted(Rc<Cell<usize>>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

pilot_plugin::export_plugin!(Control);
