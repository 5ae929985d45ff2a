//! What an author implements.

use std::future::Future;

use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::error::Error;
use super::host::Host;
use super::stream::Stream;
use crate::{Batch, Delivery, JoinRequest, Manifest, Peer, Verdict};

/// A plugin: one type, of which the host makes an instance per generation.
/// What the manifest does not name is never called.
pub trait Plugin: Sized + 'static {
    /// Its configuration. The JSON Schema that is derived from it is checked
    /// by the host before [`Plugin::start`]; use
    /// `#[serde(deny_unknown_fields)]`. [`NoConfig`] for none.
    type Config: DeserializeOwned + JsonSchema;

    /// What it is and provides. The schema is filled in.
    fn manifest() -> Manifest;

    /// Makes an instance.
    ///
    /// # Errors
    /// The text is shown to the operator; an earlier generation goes on.
    fn start(host: Host, config: Self::Config) -> Result<Self, Error>;

    /// Whether it is fit to take over from an earlier generation.
    ///
    /// # Errors
    /// Likewise.
    fn self_test(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Serves one stream. When it is over the stream closes after what was
    /// written; with an error the stream is reset, so that the peer does not
    /// take half an answer for a whole one.
    fn serve(&self, stream: Stream, peer: Peer) -> impl Future<Output = Result<(), Error>> {
        let _ = peer;
        async move {
            stream.reset("the manifest names a port service, but there is none");
            Err(missing("a port service", "serve"))
        }
    }

    /// Takes a datagram that came to `port`.
    fn datagram(
        &self,
        from: Peer,
        port: u16,
        data: Vec<u8>,
    ) -> impl Future<Output = Result<(), Error>> {
        let _ = (from, port, data);
        async { Err(missing("a service that takes datagrams", "datagram")) }
    }

    /// Decides whether a node may join a network.
    fn validate(&self, request: JoinRequest) -> impl Future<Output = Result<Verdict, Error>> {
        let _ = request;
        async { Err(missing("a join rule", "validate")) }
    }

    /// Delivers events. An error counts as [`Delivery::retry`].
    fn deliver(&self, batch: Batch) -> impl Future<Output = Result<Delivery, Error>> {
        let _ = batch;
        async { Err(missing("an event sink", "deliver")) }
    }

    /// No new streams will come to this generation.
    fn drain(&self) {}
}

/// What a manifest promises and its plugin lacks.
fn missing(what: &str, method: &str) -> Error {
    Error::new(format!(
        "the manifest names {what}, but the plugin does not implement Plugin::{method}; write it, \
         or take it out of the manifest"
    ))
}

/// No configuration: `config` may be left out or empty.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NoConfig {}
