//! What the frames of control say, as JSON.

use std::path::PathBuf;
use std::time::Duration;

use pilot_plugin::Peer;
use pilot_wire::SocketAddress;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::instance::{Failure, Incident, Limits, StartError};

/// What both ends are of: the version, and a number that grows with every
/// change to frames and to what they say.
pub(super) const BUILD: &str = concat!(env!("CARGO_PKG_VERSION"), "/2");
/// Memory beside what the limit allows the plugin: the child itself and the
/// stacks of its threads.
pub(super) const OWN_MEMORY: u64 = 64 << 20;

/// What of [`Load`] every build can read.
#[derive(Deserialize)]
pub(super) struct LoadBuild {
    #[serde(default)]
    pub(super) build: String,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Load {
    /// [`BUILD`] of the sender.
    pub(super) build: String,
    pub(super) path: PathBuf,
    pub(super) name: String,
    pub(super) generation: u64,
    pub(super) limits: LimitsTold,
    pub(super) granted: Vec<String>,
}

/// [`Limits`], as far as the child holds them.
#[derive(Serialize, Deserialize)]
pub(super) struct LimitsTold {
    streams: usize,
    queue: usize,
    start: Duration,
    callback: Duration,
    validate: Duration,
    deliver: Duration,
    pub(super) memory: u64,
    events: u32,
}

impl From<&Limits> for LimitsTold {
    fn from(limits: &Limits) -> Self {
        Self {
            streams: limits.streams,
            queue: limits.queue,
            start: limits.start,
            callback: limits.callback,
            validate: limits.validate,
            deliver: limits.deliver,
            memory: limits.memory,
            events: limits.events,
        }
    }
}

impl From<&LimitsTold> for Limits {
    fn from(told: &LimitsTold) -> Self {
        Self {
            streams: told.streams,
            queue: told.queue,
            start: told.start,
            callback: told.callback,
            validate: told.validate,
            deliver: told.deliver,
            memory: told.memory,
            events: told.events,
            ..Self::default()
        }
    }
}

/// Whether the library could be opened, or the instance started.
#[derive(Serialize, Deserialize)]
pub(super) enum Began {
    Yes,
    NotOpened(String),
    Refused(String),
    SelfTest(String),
    Crashed(String),
    Timeout(Duration),
}

impl Began {
    pub(super) fn into_result(self) -> Result<(), StartError> {
        Err(match self {
            Self::Yes => return Ok(()),
            Self::NotOpened(text) | Self::Refused(text) => StartError::Refused(text),
            Self::SelfTest(text) => StartError::SelfTest(text),
            Self::Crashed(text) => StartError::Crashed(text),
            Self::Timeout(limit) => StartError::Timeout(limit),
        })
    }
}

impl From<StartError> for Began {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Refused(text) => Self::Refused(text),
            StartError::SelfTest(text) => Self::SelfTest(text),
            StartError::Crashed(text) => Self::Crashed(text),
            StartError::Timeout(limit) => Self::Timeout(limit),
        }
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct Opened {
    pub(super) peer: Peer,
    pub(super) port: u16,
}

/// To the child with the sender, from it with the receiver.
#[derive(Serialize, Deserialize)]
pub(super) struct DatagramHead {
    pub(super) far: SocketAddress,
    pub(super) port: u16,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Called {
    pub(super) method: String,
    pub(super) request: Value,
}

/// The answer to a question of the child.
#[derive(Serialize, Deserialize)]
pub(super) enum Answered {
    Value(Value),
    /// A stream with this number.
    Stream(u64),
    /// The value is behind the head.
    Found,
    NotFound,
    Keys(Vec<String>),
    Done,
    UnknownMethod(String),
    Failed(String),
    Quota {
        wanted: u64,
        quota: u64,
    },
}

#[derive(Serialize, Deserialize)]
pub(super) enum StoreRequest {
    Get(String),
    Put(String),
    Delete(String),
    Keys(String),
}

#[derive(Serialize, Deserialize)]
pub(super) struct Emitted {
    pub(super) name: String,
    pub(super) data: Map<String, Value>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Line {
    /// As in the ABI.
    pub(super) level: u32,
    pub(super) text: String,
}

#[derive(Serialize, Deserialize)]
pub(super) enum FailureTold {
    Unsupported,
    Failed(String),
    Crashed(String),
    Timeout(Duration),
    Ended,
}

impl From<Failure> for FailureTold {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Unsupported => Self::Unsupported,
            Failure::Failed(text) => Self::Failed(text),
            Failure::Crashed(text) => Self::Crashed(text),
            Failure::Timeout(limit) => Self::Timeout(limit),
            Failure::Ended => Self::Ended,
        }
    }
}

impl From<FailureTold> for Failure {
    fn from(told: FailureTold) -> Self {
        match told {
            FailureTold::Unsupported => Self::Unsupported,
            FailureTold::Failed(text) => Self::Failed(text),
            FailureTold::Crashed(text) => Self::Crashed(text),
            FailureTold::Timeout(limit) => Self::Timeout(limit),
            FailureTold::Ended => Self::Ended,
        }
    }
}

#[derive(Serialize, Deserialize)]
pub(super) enum IncidentTold {
    Panicked { callback: String, text: String },
    Hung { callback: String },
    Died { text: String },
    Failed { text: String },
}

impl From<Incident> for IncidentTold {
    fn from(incident: Incident) -> Self {
        match incident {
            Incident::Panicked { callback, text } => {
                Self::Panicked { callback: callback.to_owned(), text }
            }
            Incident::Hung { callback } => Self::Hung { callback: callback.to_owned() },
            Incident::Died { text } => Self::Died { text },
            Incident::Failed { text } => Self::Failed { text },
        }
    }
}

#[derive(Default, Serialize, Deserialize)]
pub(super) struct StatsTold {
    pub(super) queue: usize,
    pub(super) calls: u64,
    pub(super) errors: u64,
    pub(super) last_error: Option<String>,
}
