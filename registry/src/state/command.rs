//! What changes the state. A command holds everything the change depends on,
//! time and source address too, so that the log can be replayed.

use std::net::SocketAddr;

use pilot_wire::NodeId;
use pilot_wire::registry::PublicKey;
use serde::{Deserialize, Serialize};

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// When it was asked for, Unix seconds.
    pub at: u64,
    /// What was asked for.
    pub op: Op,
}

/// A node and the key under which its signature was found good. The command
/// has no effect if the node has another key when it is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signer {
    /// Who acts.
    pub node: NodeId,
    /// The key that signed.
    pub key: PublicKey,
}

/// A registration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Register {
    /// The registering key.
    pub key: PublicKey,
    /// Source IP and stated port.
    pub endpoint: SocketAddr,
    /// Text naming the owner, or empty.
    pub owner: String,
    /// Wanted hostname, or empty.
    pub hostname: String,
    /// Whether possession of the key was proven.
    pub proven: bool,
    /// Whether a known owner text takes over that owner's node.
    pub takeover: bool,
}

/// The changes there are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "fields are those of the requests of the same name")]
pub enum Op {
    /// A node registers, again or for the first time.
    Register(Register),
    /// A node leaves.
    Deregister { by: Signer },
    /// A node becomes public or private.
    SetVisibility { by: Signer, public: bool },
    /// A node takes or clears a name.
    SetHostname { by: Signer, hostname: String },
    /// A node replaces its tags, already checked.
    SetTags { by: Signer, tags: Vec<String> },
    /// A node offers to execute tasks, or no longer.
    SetTaskExec { by: Signer, enabled: bool },
    /// A node states trust.
    ReportTrust { by: Signer, peer: NodeId },
    /// A node ends trust, for both.
    RevokeTrust { by: Signer, peer: NodeId },
    /// A node asks another for trust; this is its own statement of trust,
    /// unless it has refused or ended trust with that node before.
    RequestHandshake { by: Signer, to: NodeId, justification: String },
    /// A node answers.
    RespondHandshake { by: Signer, peer: NodeId, accept: bool },
    /// A node takes what waits for it.
    TakeHandshakes { by: Signer },
    /// A node changes its key.
    RotateKey { by: Signer, new_key: PublicKey },
    /// Anybody changes a score (unsigned in the published protocol).
    UpdatePoloScore { node: NodeId, delta: i64 },
    /// Anybody sets a score (unsigned in the published protocol).
    SetPoloScore { node: NodeId, polo_score: i64 },
    /// Silent nodes are removed unless they registered again since.
    Reap { silent: Vec<(NodeId, u64)> },
}

impl Op {
    /// Whether later requests are admitted differently once this is applied:
    /// it changes which nodes exist or what their keys are.
    pub const fn changes_admission(&self) -> bool {
        matches!(
            self,
            Self::Register(_)
                | Self::Deregister { .. }
                | Self::RotateKey { .. }
                | Self::Reap { .. }
        )
    }
}
