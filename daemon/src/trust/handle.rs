//! What the loop and the control plane see of trust.

use std::rc::Rc;

use pilot_wire::NodeId;
use pilot_wire::service::handshake::Message;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::service::TrustService;
use crate::control::{CallError, ControlHandle};
use crate::service::Service;

/// Commands and messages waiting for the trust task; beyond it the sender
/// waits, a stream of port 444 for no longer than its 10 seconds.
const COMMANDS: usize = 256;

pub(super) type Answer = oneshot::Sender<Result<Value, CallError>>;

/// What the trust task is asked.
#[derive(Debug)]
pub(crate) enum Command {
    Request {
        node: NodeId,
        justification: String,
        answer: Answer,
    },
    Approve {
        node: NodeId,
        answer: Answer,
    },
    Reject {
        node: NodeId,
        reason: String,
        answer: Answer,
    },
    Revoke {
        node: NodeId,
        answer: Answer,
    },
    Pending {
        answer: Answer,
    },
    Trusted {
        answer: Answer,
    },
    /// A message that came over a stream from `from`, whose tunnel has proven
    /// that it is that node; `key` is that node's registered key.
    Received {
        from: NodeId,
        message: Message,
        key: Option<[u8; 32]>,
    },
    /// A request that waited at the registry.
    RelayedRequest {
        from: NodeId,
        justification: String,
        key: Option<[u8; 32]>,
    },
    /// An answer that waited at the registry.
    RelayedAnswer {
        from: NodeId,
        accept: bool,
        key: Option<[u8; 32]>,
    },
    /// The registry's key of a peer that was trusted without a known key.
    KeyLearned {
        node: NodeId,
        key: [u8; 32],
    },
    /// The registry says that a peer has ended trust; trust that is not so many
    /// seconds old stands.
    RevokedByPeer {
        node: NodeId,
        young: u64,
    },
    /// The registry knows that trust with a peer ended.
    RevocationKnown {
        node: NodeId,
    },
    /// The node is registered (again): the registry is told what it must know,
    /// `all` of it or what it has not taken yet.
    Joined {
        all: bool,
    },
    /// A request of ours could not be brought anywhere.
    RequestFailed {
        node: NodeId,
    },
}

/// Commands for the trust task. Cheap to clone.
#[derive(Clone, Debug)]
pub struct TrustHandle {
    commands: mpsc::Sender<Command>,
    control: ControlHandle,
}

/// The trust task's end of a [`TrustHandle`].
#[derive(Debug)]
pub struct TrustInbox {
    pub(crate) commands: mpsc::Receiver<Command>,
}

/// A handle and the end that `spawn` takes.
pub fn channel(control: ControlHandle) -> (TrustHandle, TrustInbox) {
    let (commands, receiver) = mpsc::channel(COMMANDS);
    (TrustHandle { commands, control }, TrustInbox { commands: receiver })
}

impl TrustHandle {
    /// Asks a peer for trust. Waits until the request is on its way.
    ///
    /// # Errors
    /// When it can be brought neither to the peer nor to the registry.
    pub async fn request(&self, node: NodeId, justification: String) -> Result<Value, CallError> {
        self.ask("handshake request", |answer| Command::Request { node, justification, answer })
            .await
    }

    /// Trusts a peer that asked; nothing happens when it did not ask.
    ///
    /// # Errors
    /// When it cannot be remembered.
    pub async fn approve(&self, node: NodeId) -> Result<Value, CallError> {
        // What the peer asked may still wait at the registry.
        self.control.poll_handshakes().await;
        self.ask("handshake approve", |answer| Command::Approve { node, answer }).await
    }

    /// Refuses a peer that asked; nothing happens when it did not ask.
    ///
    /// # Errors
    /// When it cannot be remembered.
    pub async fn reject(&self, node: NodeId, reason: String) -> Result<Value, CallError> {
        self.control.poll_handshakes().await;
        self.ask("handshake reject", |answer| Command::Reject { node, reason, answer }).await
    }

    /// Who asked and waits for an answer.
    ///
    /// # Errors
    /// When the daemon is ending.
    pub async fn pending(&self) -> Result<Value, CallError> {
        self.control.poll_handshakes().await;
        self.ask("handshake pending", |answer| Command::Pending { answer }).await
    }

    /// Who is trusted.
    ///
    /// # Errors
    /// When the daemon is ending.
    pub async fn trusted(&self) -> Result<Value, CallError> {
        self.ask("handshake trusted", |answer| Command::Trusted { answer }).await
    }

    /// Ends trust with a peer, at once on this side.
    ///
    /// # Errors
    /// When the peer was not trusted, or it cannot be remembered.
    pub async fn revoke(&self, node: NodeId) -> Result<Value, CallError> {
        self.ask("handshake revoke", |answer| Command::Revoke { node, answer }).await
    }

    /// The service on port 444.
    pub fn service(&self) -> Rc<dyn Service> {
        Rc::new(TrustService::new(self.clone(), self.control.clone()))
    }

    pub(crate) async fn send(&self, command: Command) {
        // An error means that the task is gone: nobody is left to act on it.
        let _ = self.commands.send(command).await;
    }

    async fn ask(
        &self,
        name: &str,
        command: impl FnOnce(Answer) -> Command,
    ) -> Result<Value, CallError> {
        let (answer, result) = oneshot::channel();
        self.send(command(answer)).await;
        result.await.unwrap_or_else(|_| Err(CallError::shutting_down(name)))
    }
}
