//! What goes wrong after the connection to the daemon stands.

use std::fmt;
use std::io;

use pilot_wire::ipc::ErrorCode;

/// A failed operation: what kind, what happened, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
    /// A stream broke for this reason, whatever the kind.
    broke_stream: bool,
}

/// Whose fault an [`Error`] is, and how a program may react.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller asked for something that makes no sense.
    InvalidArgument,
    /// No such node, hostname, connection or port.
    NotFound,
    /// The peer answered, and refused.
    Refused,
    /// Nobody answered in time.
    Timeout,
    /// The port or name is taken.
    AlreadyExists,
    /// The daemon cannot reach its registry.
    Registry,
    /// There is no trust with the peer, or it has ended.
    Untrusted,
    /// A configured limit is reached.
    Limit,
    /// The stream or listener has ended.
    Closed,
    /// The stream broke.
    Reset,
    /// The daemon is shutting down.
    Shutdown,
    /// The daemon has gone.
    Disconnected,
    /// The daemon sent something that is not the protocol.
    Protocol,
    /// The daemon knows only the published protocol, which lacks this.
    Unsupported,
    /// The daemon gave no reason a program can tell apart.
    Other,
}

impl ErrorKind {
    /// A stable name in snake case.
    pub const fn code(self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalid_argument",
            Self::NotFound => "not_found",
            Self::Refused => "refused",
            Self::Timeout => "timeout",
            Self::AlreadyExists => "already_exists",
            Self::Registry => "registry_unreachable",
            Self::Untrusted => "untrusted",
            Self::Limit => "limit_reached",
            Self::Closed => "closed",
            Self::Reset => "reset",
            Self::Shutdown => "shutting_down",
            Self::Disconnected => "disconnected",
            Self::Protocol => "protocol_error",
            Self::Unsupported => "unsupported",
            Self::Other => "connection_failed",
        }
    }

    /// The kind a daemon's answer stands for. A published daemon always sends
    /// code 1; its texts tell the common cases apart.
    fn of_answer(code: ErrorCode, text: &str) -> Self {
        match code {
            ErrorCode::INVALID_ARGUMENT => Self::InvalidArgument,
            ErrorCode::NOT_FOUND => Self::NotFound,
            ErrorCode::REFUSED => Self::Refused,
            ErrorCode::TIMEOUT => Self::Timeout,
            ErrorCode::ALREADY_EXISTS => Self::AlreadyExists,
            ErrorCode::REGISTRY => Self::Registry,
            ErrorCode::UNTRUSTED => Self::Untrusted,
            ErrorCode::LIMIT => Self::Limit,
            ErrorCode::CLOSED => Self::Closed,
            ErrorCode::SHUTDOWN => Self::Shutdown,
            _ if text == "connection refused" => Self::Refused,
            _ if text == "dial timeout" => Self::Timeout,
            _ if text.ends_with("already bound") => Self::AlreadyExists,
            _ if text.contains("missing ") || text.contains("unknown ") => Self::InvalidArgument,
            _ if text.starts_with("resolve") => Self::NotFound,
            _ => Self::Other,
        }
    }

    const fn hint(self) -> Option<&'static str> {
        match self {
            Self::NotFound => {
                Some("check the name, and that there is mutual trust: pilotctl trust")
            }
            Self::Refused => Some("check that the peer listens on that port"),
            Self::Timeout => Some("check that the peer runs and can be reached: pilotctl ping"),
            Self::AlreadyExists => Some("choose another, or end who uses it: pilotctl info"),
            Self::Registry => Some("check the registry; the daemon goes on trying to reach it"),
            Self::Untrusted => Some("establish trust first: pilotctl handshake"),
            Self::Limit => {
                Some("close what is not needed, or raise the limit in the daemon's configuration")
            }
            Self::Shutdown | Self::Disconnected => {
                Some("start the daemon with: pilotctl daemon start")
            }
            Self::Unsupported => Some("use a daemon that answers hello"),
            _ => None,
        }
    }
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            hint: kind.hint().map(str::to_owned),
            broke_stream: false,
        }
    }

    pub(crate) fn answer(code: ErrorCode, text: &str) -> Self {
        Self::new(ErrorKind::of_answer(code, text), text)
    }

    pub(crate) fn protocol(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Protocol, message)
    }

    /// This error as that of a stream that broke.
    pub(crate) fn reset(mut self) -> Self {
        if matches!(self.kind, ErrorKind::Other | ErrorKind::NotFound | ErrorKind::Closed) {
            self.kind = ErrorKind::Reset;
        }
        self.broke_stream = true;
        self
    }

    /// What kind of failure this is.
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The kind as a stable name in snake case.
    pub const fn code(&self) -> &'static str {
        self.kind.code()
    }

    /// What happened; the daemon's own words where it gave any.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What to do about it, where there is something to do.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match error.kind {
            _ if error.broke_stream => io::ErrorKind::ConnectionReset,
            ErrorKind::InvalidArgument => io::ErrorKind::InvalidInput,
            ErrorKind::NotFound => io::ErrorKind::NotFound,
            ErrorKind::Refused => io::ErrorKind::ConnectionRefused,
            ErrorKind::Timeout => io::ErrorKind::TimedOut,
            ErrorKind::AlreadyExists => io::ErrorKind::AddrInUse,
            ErrorKind::Closed => io::ErrorKind::BrokenPipe,
            ErrorKind::Reset => io::ErrorKind::ConnectionReset,
            ErrorKind::Untrusted => io::ErrorKind::PermissionDenied,
            ErrorKind::Shutdown | ErrorKind::Disconnected => io::ErrorKind::ConnectionAborted,
            ErrorKind::Protocol => io::ErrorKind::InvalidData,
            ErrorKind::Unsupported => io::ErrorKind::Unsupported,
            ErrorKind::Registry | ErrorKind::Limit | ErrorKind::Other => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}
