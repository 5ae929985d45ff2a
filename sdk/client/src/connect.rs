//! Finding the daemon's socket, connecting to it and agreeing on features.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::BytesMut;
use pilot_wire::ipc::{self, Command, Event, EventError, Features};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// How long a daemon may take to answer hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// How a [`crate::Client`] connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// Bytes a stream may hold unread, per stream; what the peer sends beyond
    /// waits in the daemon. Default 1 MiB, at least 4096.
    pub receive_credit: u32,
    /// What is asked of the daemon. [`Features::default`] asks for nothing
    /// and behaves like a driver of the published protocol.
    pub features: Features,
}

impl Default for Options {
    fn default() -> Self {
        Self { receive_credit: 1 << 20, features: Features::ALL }
    }
}

impl Options {
    /// These options with another receive credit.
    #[must_use]
    pub fn with_receive_credit(mut self, bytes: u32) -> Self {
        self.receive_credit = bytes.max(4096);
        self
    }

    /// These options asking for other features.
    #[must_use]
    pub const fn with_features(mut self, features: Features) -> Self {
        self.features = features;
        self
    }
}

/// Why there is no connection to the daemon.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Nobody listens on the socket.
    #[error("daemon is not running (no answer on {})", path.display())]
    NotRunning {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The socket belongs to another user.
    #[error("permission denied on the daemon's socket {}", path.display())]
    Permission {
        /// The socket.
        path: PathBuf,
    },
    /// The system refused for another reason.
    #[error("cannot connect to the daemon's socket {}: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Something listens and does not answer.
    #[error("no answer from the daemon on {} within {} s", path.display(), HELLO_TIMEOUT.as_secs())]
    Timeout {
        /// The socket.
        path: PathBuf,
    },
    /// Something listens and does not speak the protocol.
    #[error("what listens on {} does not speak the daemon's protocol: {reason}", path.display())]
    Protocol {
        /// The socket.
        path: PathBuf,
        /// What it did.
        reason: String,
    },
    /// The configuration that names the socket cannot be read.
    #[error("cannot read {}: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl ConnectError {
    /// A stable name in snake case.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotRunning { .. } => "not_running",
            Self::Timeout { .. } => "timeout",
            Self::Config { .. } => "invalid_argument",
            Self::Permission { .. } | Self::Io { .. } | Self::Protocol { .. } => {
                "connection_failed"
            }
        }
    }

    /// What to do about it.
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::NotRunning { .. } => "start the daemon with: pilotctl daemon start",
            Self::Permission { .. } => "run as the user that started the daemon",
            Self::Io { .. } => "check the path, or set PILOT_SOCKET",
            Self::Timeout { .. } => "check the daemon: pilotctl daemon status",
            Self::Protocol { .. } => "check that PILOT_SOCKET names the socket of a pilot-daemon",
            Self::Config { .. } => "correct the file, or set PILOT_SOCKET",
        }
    }
}

/// Where the daemon's socket is: `PILOT_SOCKET`, else the key `socket` in
/// `config.json` in the Pilot home (`PILOT_HOME`, else `~/.pilot`), else
/// [`ipc::DEFAULT_SOCKET`]. `env` looks a variable up.
///
/// # Errors
/// When `config.json` exists and cannot be read.
pub fn socket_path(env: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf, ConnectError> {
    if let Some(path) = env("PILOT_SOCKET").filter(|p| !p.is_empty()) {
        return Ok(path.into());
    }
    let home = env("PILOT_HOME")
        .filter(|p| !p.is_empty())
        .map(PathBuf::from)
        .or_else(|| env("HOME").map(|home| Path::new(&home).join(".pilot")));
    let configured = match home {
        Some(home) => configured_socket(&home.join("config.json"))?,
        None => None,
    };
    Ok(configured.unwrap_or_else(|| ipc::DEFAULT_SOCKET.into()))
}

fn configured_socket(path: &Path) -> Result<Option<PathBuf>, ConnectError> {
    #[derive(serde::Deserialize)]
    struct Config {
        socket: Option<PathBuf>,
    }
    let failed = |reason: String| ConnectError::Config { path: path.to_owned(), reason };
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e.to_string())),
    };
    let config: Config = serde_json::from_slice(&text).map_err(|e| failed(e.to_string()))?;
    Ok(config.socket.filter(|s| !s.as_os_str().is_empty()))
}

/// What the daemon grants.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grants {
    /// Whether the daemon answered hello at all.
    pub(crate) hello: bool,
    pub(crate) features: Features,
    /// Bytes each new stream may send before the daemon gives more.
    pub(crate) send_credit: u64,
    /// Bytes each stream may hold unread.
    pub(crate) receive_credit: usize,
}

impl Grants {
    pub(crate) const fn has(&self, feature: Features) -> bool {
        self.features.contains(feature)
    }
}

/// A connected socket, what was agreed, and bytes read beyond the answer.
pub(crate) struct Connected {
    pub(crate) socket: UnixStream,
    pub(crate) grants: Grants,
    pub(crate) rest: BytesMut,
}

pub(crate) async fn connect(path: &Path, options: Options) -> Result<Connected, ConnectError> {
    let socket = UnixStream::connect(path).await.map_err(|e| connect_error(path, e))?;
    let greeting = hello(socket, path, options);
    tokio::time::timeout(HELLO_TIMEOUT, greeting)
        .await
        .unwrap_or_else(|_| Err(ConnectError::Timeout { path: path.to_owned() }))
}

fn connect_error(path: &Path, source: io::Error) -> ConnectError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            ConnectError::NotRunning { path, source }
        }
        io::ErrorKind::PermissionDenied => ConnectError::Permission { path },
        _ => ConnectError::Io { path, source },
    }
}

async fn hello(
    mut socket: UnixStream,
    path: &Path,
    options: Options,
) -> Result<Connected, ConnectError> {
    let failed = |source| ConnectError::Io { path: path.to_owned(), source };
    let garbled = |reason: String| ConnectError::Protocol { path: path.to_owned(), reason };
    let receive_credit = options.receive_credit.max(4096);
    let mut grants = Grants {
        hello: false,
        features: Features::default(),
        send_credit: u64::MAX,
        receive_credit: receive_credit as usize,
    };
    let mut rest = BytesMut::with_capacity(crate::reader::READ_BUFFER);
    if options.features == Features::default() {
        return Ok(Connected { socket, grants, rest });
    }
    let mut message = Vec::with_capacity(16);
    let hello =
        Command::Hello { version: ipc::HELLO_VERSION, features: options.features, receive_credit };
    hello.encode(&mut message);
    socket.write_all(&message).await.map_err(failed)?;
    loop {
        let split = ipc::split_message(&rest).map_err(|len| garbled(too_long(len)))?;
        let Some((body, used)) = split else {
            rest.reserve(4096);
            if socket.read_buf(&mut rest).await.map_err(failed)? == 0 {
                return Err(garbled("it closed the connection".to_owned()));
            }
            continue;
        };
        let answered = match Event::parse(body) {
            Ok(Event::HelloOk { features, send_credit, .. }) => {
                grants.hello = true;
                grants.features = features.and(options.features);
                if grants.has(Features::CREDIT) {
                    grants.send_credit = u64::from(send_credit);
                }
                true
            }
            // A daemon of the published protocol: "unknown command: 0x40".
            Ok(Event::Error { .. }) => true,
            // Datagrams go to every client of such a daemon, at any time.
            Ok(Event::ReceiveDatagram { .. }) | Err(EventError::Empty) => false,
            Ok(_) => return Err(garbled("its first message is not an answer to hello".to_owned())),
            Err(e) => return Err(garbled(e.to_string())),
        };
        let _ = rest.split_to(used);
        if answered {
            return Ok(Connected { socket, grants, rest });
        }
    }
}

pub(crate) fn too_long(len: usize) -> String {
    format!("a message of {len} bytes exceeds the limit of {} bytes", ipc::MAX_MESSAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_beats_file_beats_default() {
        let dir = std::env::temp_dir().join(format!("pilot-sdk-path-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("temporary directory");
        let env = |socket: Option<&'static str>| {
            let dir = dir.clone();
            move |name: &str| match name {
                "PILOT_SOCKET" => socket.map(OsString::from),
                "PILOT_HOME" => Some(dir.clone().into_os_string()),
                _ => None,
            }
        };
        let path = |socket| socket_path(env(socket)).expect("readable");
        assert_eq!(path(None), Path::new(ipc::DEFAULT_SOCKET));
        std::fs::write(dir.join("config.json"), r#"{"socket":"/x/y.sock","foo":1}"#)
            .expect("write");
        assert_eq!(path(None), Path::new("/x/y.sock"));
        assert_eq!(path(Some("/z.sock")), Path::new("/z.sock"));
        std::fs::write(dir.join("config.json"), "{").expect("write");
        let error = socket_path(env(None)).expect_err("broken file");
        assert!(error.to_string().contains("config.json"), "{error}");
        std::fs::remove_dir_all(&dir).expect("cleanup");
    }
}
