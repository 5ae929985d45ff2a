//! What the loop sees of the control plane: questions in, events out.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use pilot_wire::ipc::ErrorCode;
use pilot_wire::{Address, NodeId};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};

/// Questions waiting for the control task. Beyond it a question of the loop is
/// not taken, which the loop answers with nothing; a call waits.
const ASKS: usize = 1024;
/// How long a command waits for handshakes to be fetched.
const POLL_LIMIT: Duration = Duration::from_secs(2);

/// What the control plane tells the loop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlEvent {
    /// This node's number, from the registry or remembered.
    Registered {
        /// The number.
        node: NodeId,
        /// Its address.
        address: Address,
    },
    /// Where a peer is, or nothing.
    Endpoint {
        /// The peer.
        node: NodeId,
        /// Its UDP endpoint.
        endpoint: Option<SocketAddr>,
    },
    /// A peer's identity key, or nothing.
    IdentityKey {
        /// The peer.
        node: NodeId,
        /// Its Ed25519 key.
        key: Option<[u8; 32]>,
    },
    /// Where the beacon is.
    Beacon(Option<SocketAddr>),
    /// Ask the beacon now under which endpoint this node is seen.
    Discover,
    /// The registry answers.
    RegistryUp,
    /// The registry cannot be reached.
    RegistryDown {
        /// Why, for people.
        reason: String,
    },
}

/// A command that the registry answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// Who has this hostname?
    ResolveHostname(String),
    /// Take this hostname; empty gives it up.
    SetHostname(String),
    /// Be public or private.
    SetVisibility(bool),
    /// Leave the registry until the daemon starts again.
    Deregister,
    /// Replace all tags.
    SetTags(Vec<String>),
    /// Execute tasks, or not.
    SetTaskExec(bool),
    /// What is known of a node?
    Lookup(NodeId),
    /// A node's polo score.
    PoloScore(NodeId),
    /// Change a node's polo score.
    UpdatePoloScore {
        /// Whose.
        node: NodeId,
        /// By how much.
        delta: i64,
    },
}

impl Call {
    /// The command's name, as error texts begin with it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::ResolveHostname(_) => "resolve_hostname",
            Self::SetHostname(_) => "set_hostname",
            Self::SetVisibility(_) => "set_visibility",
            Self::Deregister => "deregister",
            Self::SetTags(_) => "set_tags",
            Self::SetTaskExec(_) => "set_task_exec",
            Self::Lookup(_) => "lookup",
            Self::PoloScore(_) => "get_polo_score",
            Self::UpdatePoloScore { .. } => "update_polo_score",
        }
    }
}

/// Why a command failed, as the driver is told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CallError {
    /// For clients that said hello.
    pub code: ErrorCode,
    /// `<command>: <reason>`.
    pub message: String,
}

impl CallError {
    /// An error of `command`.
    pub fn new(code: ErrorCode, command: &str, reason: impl fmt::Display) -> Self {
        Self { code, message: format!("{command}: {reason}") }
    }

    pub(crate) fn shutting_down(command: &str) -> Self {
        Self::new(ErrorCode::SHUTDOWN, command, "the daemon is shutting down")
    }
}

/// How the node stands with its registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlStatus {
    /// The registry's address as configured; `None` when there is none.
    pub registry: Option<String>,
    /// Whether the registry answered lately.
    pub up: bool,
    /// Since when it is up or down.
    pub since: SystemTime,
    /// Why it is down, or why it last was.
    pub last_error: Option<String>,
    /// Whether this run has registered.
    pub registered: bool,
    /// This node's number, from the registry or remembered.
    pub node: Option<NodeId>,
    /// Its address.
    pub address: Option<Address>,
    /// Its hostname; empty when it has none.
    pub hostname: String,
    /// Why a configured hostname was not taken.
    pub hostname_error: Option<String>,
    /// Free text naming the owner.
    pub owner: String,
    /// Whether anybody may resolve this node.
    pub public: bool,
    /// The endpoint this node is registered under.
    pub endpoint: Option<SocketAddr>,
    /// `open`, `unsupported` by the registry, or `none` now.
    pub session: &'static str,
    /// What an administrator did to this node: it does not register any more.
    pub revoked: Option<String>,
    /// What is amiss with the registry though it answers.
    pub warning: Option<String>,
}

impl ControlStatus {
    /// `off` without a registry, `up`, or `unreachable`.
    pub const fn state(&self) -> &'static str {
        match (&self.registry, self.up) {
            (None, _) => "off",
            (Some(_), true) => "up",
            (Some(_), false) => "unreachable",
        }
    }
}

impl Default for ControlStatus {
    fn default() -> Self {
        Self {
            registry: None,
            up: false,
            since: SystemTime::now(),
            last_error: None,
            registered: false,
            node: None,
            address: None,
            hostname: String::new(),
            hostname_error: None,
            owner: String::new(),
            public: false,
            endpoint: None,
            session: "none",
            revoked: None,
            warning: None,
        }
    }
}

/// What the control task is asked.
#[derive(Debug)]
pub(super) enum Ask {
    Endpoint(NodeId),
    Key(NodeId),
    /// A key for the trust task, which waits for it.
    KeyFor(NodeId, oneshot::Sender<Option<[u8; 32]>>),
    Observed(SocketAddr),
    Peer(NodeId, SocketAddr),
    Call(Call, oneshot::Sender<Result<Value, CallError>>),
    /// Fetch waiting handshakes now; answered when they were handed to trust.
    Poll(oneshot::Sender<()>),
    /// An answer to a handshake is expected: fetch them more often.
    Expect,
}

/// Questions for the control task. Cheap to clone; never blocks the loop.
#[derive(Clone, Debug)]
pub struct ControlHandle {
    asks: mpsc::Sender<Ask>,
    status: watch::Receiver<ControlStatus>,
}

/// The control task's end of a [`ControlHandle`].
#[derive(Debug)]
pub struct ControlInbox {
    pub(super) asks: mpsc::Receiver<Ask>,
    pub(super) status: watch::Sender<ControlStatus>,
}

/// A handle and the end that [`super::spawn`] takes.
pub fn channel() -> (ControlHandle, ControlInbox) {
    let (asks, receiver) = mpsc::channel(ASKS);
    let (status, watcher) = watch::channel(ControlStatus::default());
    (ControlHandle { asks, status: watcher }, ControlInbox { asks: receiver, status })
}

impl ControlHandle {
    /// Asks where a peer is; answered by [`ControlEvent::Endpoint`], if this
    /// gives true.
    #[must_use]
    pub fn resolve_endpoint(&self, node: NodeId) -> bool {
        self.ask(Ask::Endpoint(node))
    }

    /// Asks for a peer's identity key; answered by
    /// [`ControlEvent::IdentityKey`], if this gives true.
    #[must_use]
    pub fn lookup_key(&self, node: NodeId) -> bool {
        self.ask(Ask::Key(node))
    }

    /// Where the beacon sees this node.
    pub fn observed(&self, endpoint: SocketAddr) {
        self.ask(Ask::Observed(endpoint));
    }

    /// A peer proved itself from this endpoint, which is remembered for times
    /// without a registry.
    pub fn note_peer(&self, node: NodeId, endpoint: SocketAddr) {
        self.ask(Ask::Peer(node, endpoint));
    }

    /// Has the registry execute a command. The answer is the registry's
    /// object, unchanged.
    ///
    /// # Errors
    /// When the registry refuses or cannot be reached.
    pub async fn call(&self, call: Call) -> Result<Value, CallError> {
        let name = call.name();
        let (answer, result) = oneshot::channel();
        // An error means that the task is gone; then there is no answer either.
        let _ = self.asks.send(Ask::Call(call, answer)).await;
        result.await.unwrap_or_else(|_| Err(CallError::shutting_down(name)))
    }

    /// How the node stands with its registry.
    pub fn status(&self) -> ControlStatus {
        self.status.borrow().clone()
    }

    /// This node's address; none while it is not registered.
    pub fn address(&self) -> Option<Address> {
        self.status.borrow().address
    }

    /// Resolves when `ready` holds for the status, or the task has ended.
    pub async fn wait_for(&self, ready: impl FnMut(&ControlStatus) -> bool) {
        // An error means that the task has ended; nothing more will change.
        let _ = self.status.clone().wait_for(ready).await.map(drop);
    }

    /// A peer's identity key, pinned, remembered or from the registry.
    pub(crate) async fn key_of(&self, node: NodeId) -> Option<[u8; 32]> {
        let (answer, result) = oneshot::channel();
        let _ = self.asks.send(Ask::KeyFor(node, answer)).await;
        result.await.ok().flatten()
    }

    /// Fetches waiting handshakes now, as far as that takes no longer than 2
    /// seconds.
    pub(crate) async fn poll_handshakes(&self) {
        let (answer, result) = oneshot::channel();
        let _ = self.asks.send(Ask::Poll(answer)).await;
        // Nothing fetched is no error here: what is known will do.
        let _ = tokio::time::timeout(POLL_LIMIT, result).await;
    }

    /// An answer to a handshake is expected.
    pub(crate) fn expect_handshakes(&self) {
        self.ask(Ask::Expect);
    }

    /// Whether there was room for it.
    fn ask(&self, ask: Ask) -> bool {
        let taken = self.asks.try_send(ask).is_ok();
        if !taken {
            tracing::debug!("control plane is busy or gone, a question was dropped");
        }
        taken
    }
}
