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
            stream.reset("this plugin has no port service");
            Err(Error::new("serve is not implemented"))
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
        async { Err(Error::new("datagram is not implemented")) }
    }

    /// Decides whether a node may join a network.
    fn validate(&self, request: JoinRequest) -> impl Future<Output = Result<Verdict, Error>> {
        let _ = request;
        async { Err(Error::new("validate is not implemented")) }
    }

    /// Delivers events. An error counts as [`Delivery::retry`].
    fn deliver(&self, batch: Batch) -> impl Future<Output = Result<Delivery, Error>> {
        let _ = batch;
        async { Err(Error::new("deliver is not implemented")) }
    }

    /// No new streams will come to this generation.
    fn drain(&self) {}
}

/// No configuration: `config` may be left out or empty.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NoConfig {}
