//! Requests beyond the published ones: those of sessions here, the others are
//! the service's.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pilot_wire::NodeId;
use pilot_wire::registry::session::MAX_WATCHED;
use pilot_wire::registry::{
    Envelope, Extended, Fields, SessionChallenged, SessionOpened, SessionWatched, Signature,
};
use rand::RngExt as _;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Closed, Connection, refused, unix_now};
use crate::denials::{self, Refused};
use crate::push::{Since, TooManyPeers};
use crate::state::{Refusal, Signer};

/// Bytes of a nonce.
const NONCE_LEN: usize = 32;

/// What `session_open` says.
struct Opening {
    node: NodeId,
    signature: Signature,
    epoch: String,
    since: u64,
    peers: Vec<NodeId>,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Connection<S> {
    /// Judges a request that is read strictly. What came before takes effect
    /// first.
    pub(super) async fn extended(
        &mut self,
        body: &[u8],
        fields: &Fields<'_>,
    ) -> Result<(), Closed> {
        self.flush().await;
        let envelope = match Envelope::parse(body) {
            Ok(envelope) => envelope,
            Err(e) => {
                let session = self.asker.session;
                self.refuse(&unreadable(&fields.kind, &e), || extended(body, fields, session));
                return Ok(());
            }
        };
        let done = match envelope.request {
            Extended::SessionChallenge {} => {
                let nonce = STANDARD.encode(rand::rng().random::<[u8; NONCE_LEN]>());
                self.append(&SessionChallenged { nonce: nonce.clone() });
                self.nonce = Some(nonce);
                Ok(())
            }
            Extended::SessionOpen { node_id: node, signature, epoch, since, peers } => {
                let opening = Opening { node, signature, epoch, since, peers };
                let shared = Arc::clone(&self.shared);
                // Waits only behind other openings.
                let turn = self.meanwhile(shared.openings.acquire()).await?;
                let opened = self.open(opening);
                drop(turn);
                opened
            }
            Extended::SessionWatch { add, remove } => self.watch(&add, &remove),
            request => {
                let envelope = Envelope { request, ..envelope };
                let (shared, asker) = (Arc::clone(&self.shared), self.asker);
                let work = shared.service.extended(envelope, &asker, unix_now());
                let admitted = self.meanwhile(work).await?;
                self.finish(admitted, || extended(body, fields, asker.session)).await;
                return Ok(());
            }
        };
        if let Err(refusal) = done {
            self.refuse(&refusal, || refused(fields));
        }
        Ok(())
    }

    fn open(&mut self, opening: Opening) -> Result<(), Refusal> {
        // Gone whatever comes of it.
        let nonce = self.nonce.take().ok_or(Refusal::NoChallenge)?;
        let Opening { node, signature, epoch, since, peers } = opening;
        let service = &self.shared.service;
        let signer = service.session_signer(node, &nonce, signature)?;
        service.state().node(node)?.touch(unix_now());
        // Before, so that a session in place of one on this connection does not
        // end it.
        self.live = None;
        self.asker.session = None;
        let since = Since { epoch: &epoch, seq: since };
        let opened = self
            .shared
            .hub
            .open(service.shared_state(), signer, since, peers)
            .map_err(|e| too_many("peers", e))?;
        self.asker.session = Some(signer);
        self.live = Some(opened.live);
        let idle_secs = self.idle().as_secs().max(1);
        self.append(&SessionOpened {
            node_id: node,
            epoch: opened.epoch,
            seq: opened.seq,
            resumed: opened.resumed,
            idle_secs,
        });
        Ok(())
    }

    fn watch(&mut self, add: &[NodeId], remove: &[NodeId]) -> Result<(), Refusal> {
        let live = self.live.as_ref().ok_or(Refusal::SessionRequired("session_watch"))?;
        let key = if remove.len() > MAX_WATCHED { "remove" } else { "add" };
        let watched = self.shared.hub.watch(live, add, remove).map_err(|e| too_many(key, e))?;
        let watched = u32::try_from(watched).unwrap_or(u32::MAX);
        self.append(&SessionWatched { watched });
        Ok(())
    }
}

/// A refused request that is read strictly: whoever has the session acts.
fn extended(body: &[u8], fields: &Fields<'_>, session: Option<Signer>) -> Refused {
    Refused {
        claimed: session.map(|signer| signer.node),
        object: denials::object(body),
        ..refused(fields)
    }
}

fn too_many(key: &str, error: TooManyPeers) -> Refusal {
    Refusal::Invalid { key: key.to_owned(), problem: error.to_string() }
}

/// Names the key that the reader complains of, which it puts between backticks
/// first; else the request as a whole is meant.
fn unreadable(kind: &str, error: &serde_json::Error) -> Refusal {
    let problem = error.to_string();
    let key = problem.split('`').nth(1).unwrap_or(kind).to_owned();
    Refusal::Invalid { key, problem }
}
