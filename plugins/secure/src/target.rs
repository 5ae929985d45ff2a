//! Where plaintext goes: back, or to a local server.

use std::io;
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, connect, socket};

use crate::bridge::{Sink, Source};

/// How long a local server may take to accept.
const CONNECT: Duration = Duration::from_secs(5);
/// A local server whose queue is full is tried again after this long.
const CONNECT_AGAIN: Duration = Duration::from_millis(20);

/// What is behind the channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Echo,
    /// `HOST:PORT`.
    Tcp(String),
    Unix(PathBuf),
}

impl Target {
    /// Reads key `forward.to`.
    ///
    /// # Errors
    /// A text for the operator.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text == "echo" {
            return Ok(Self::Echo);
        }
        if let Some(to) = text.strip_prefix("tcp:") {
            let port = to.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
            return match port {
                Some(1..) => Ok(Self::Tcp(to.to_owned())),
                _ => Err(format!("`forward.to`: {text:?} has no port; write tcp:HOST:PORT")),
            };
        }
        match text.strip_prefix("unix:").map(PathBuf::from) {
            Some(path) if path.is_absolute() => Ok(Self::Unix(path)),
            Some(_) => Err(format!("`forward.to`: {text:?} must name an absolute path")),
            None => {
                Err(format!("`forward.to`: {text:?} is none of echo, tcp:HOST:PORT and unix:/PATH"))
            }
        }
    }
}

/// A connection to a local server.
pub(crate) struct Local {
    pub(crate) source: Source,
    pub(crate) sink: Sink,
    /// Ends both threads when it is dropped.
    pub(crate) shut: Shut,
}

impl Local {
    /// Connects; blocks.
    ///
    /// # Errors
    /// A text for the operator that names the server.
    pub(crate) fn connect(target: &Target) -> Result<Self, String> {
        match target {
            Target::Echo => Err("`forward.to`: echo connects to nothing".to_owned()),
            Target::Tcp(to) => tcp(to).map_err(|e| format!("forward to tcp:{to}: {e}")),
            Target::Unix(path) => {
                unix(path).map_err(|e| format!("forward to unix:{}: {e}", path.display()))
            }
        }
    }
}

fn tcp(to: &str) -> io::Result<Local> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in to.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                let source = Source::new(stream.try_clone()?)?;
                let shut = Shut::Tcp(stream.try_clone()?);
                // That the server is gone is found by the other direction.
                let close = |stream: TcpStream| drop(stream.shutdown(Shutdown::Write));
                return Ok(Local { source, sink: Sink::new(stream, close)?, shut });
            }
            Err(e) => last = e,
        }
    }
    Err(last)
}

fn unix(path: &std::path::Path) -> io::Result<Local> {
    let stream = connect_unix(path)?;
    let source = Source::new(stream.try_clone()?)?;
    let shut = Shut::Unix(stream.try_clone()?);
    let close = |stream: UnixStream| drop(stream.shutdown(Shutdown::Write));
    Ok(Local { source, sink: Sink::new(stream, close)?, shut })
}

/// Connects within [`CONNECT`]: a server that accepts nothing lets whoever
/// connects wait for ever.
fn connect_unix(path: &std::path::Path) -> io::Result<UnixStream> {
    let until = Instant::now() + CONNECT;
    let address = SocketAddrUnix::new(path)?;
    let socket = socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
    fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(true)?;
    loop {
        match connect(&stream, &address) {
            Ok(()) => break,
            Err(Errno::INTR) => {}
            // Those it has not accepted yet fill its queue.
            Err(Errno::AGAIN) if Instant::now() < until => thread::sleep(CONNECT_AGAIN),
            Err(Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
            Err(why) => return Err(why.into()),
        }
    }
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Closes the connection under the threads that wait on it.
pub(crate) enum Shut {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Drop for Shut {
    fn drop(&mut self) {
        // It may be closed already.
        drop(match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
        });
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn targets_are_read() {
        assert_eq!(Target::parse("echo"), Ok(Target::Echo));
        assert_eq!(Target::parse("tcp:[::1]:80"), Ok(Target::Tcp("[::1]:80".into())));
        assert_eq!(Target::parse("unix:/a"), Ok(Target::Unix("/a".into())));
        for (wrong, says) in [
            ("tcp:host", "no port"),
            ("tcp:h:0", "no port"),
            ("unix:a", "absolute"),
            ("x", "none of"),
        ] {
            let why = Target::parse(wrong).unwrap_err();
            assert!(why.contains("forward.to") && why.contains(says), "{why}");
        }
    }

    #[test]
    fn a_dropped_connection_is_closed_for_the_server() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = Target::Tcp(listener.local_addr().unwrap().to_string());
        let local = Local::connect(&to).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        drop(local);
        assert_eq!(server.read(&mut [0; 8]).unwrap_or(0), 0);
    }

    #[test]
    fn a_local_socket_is_connected_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let local = Local::connect(&Target::Unix(path)).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        drop(local);
        assert_eq!(server.read(&mut [0; 8]).unwrap_or(0), 0);
    }

    #[test]
    fn a_missing_server_is_named() {
        let why = Local::connect(&Target::Unix("/nonexistent/s.sock".into())).err().unwrap();
        assert!(why.contains("/nonexistent/s.sock"), "{why}");
    }
}
