//! Binding the driver socket: never open to others, never taken from a daemon
//! that lives, and removed at the end only if it is still ours.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::task::{Context, Poll};

use rustix::fs::{FlockOperation, OFlags, flock};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{UnixListener, UnixStream};

/// Longest path that fits a socket address, the final zero excluded.
const MAX_PATH: usize = 107;
/// Clients waiting to be accepted; beyond it a connect waits.
const BACKLOG: i32 = 128;
/// Attempts to lock while other daemons start and end at the same moment.
const LOCK_ATTEMPTS: usize = 16;

/// Why the socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The path does not fit a socket address.
    #[error("socket: {} is {length} bytes long, a socket path may have at most {limit}; choose a shorter one", path.display())]
    TooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        length: usize,
        /// The most it may have.
        limit: usize,
    },
    /// Another daemon serves it.
    #[error("socket: {} is in use by a running daemon; stop that one or choose another path", .0.display())]
    InUse(PathBuf),
    /// Something else has that name.
    #[error("socket: {} exists and is not a socket; move it away or choose another path", .0.display())]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("socket: cannot {action} {}: {source}; choose a path in a folder that exists and that you can write to", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The bound socket. Dropping it removes the file if it is still this one.
pub struct IpcListener {
    listener: UnixListener,
    path: PathBuf,
    identity: (u64, u64),
    lock: Lock,
}

/// A locked file beside the socket: two daemons that start at once cannot both
/// take over a stale socket.
struct Lock {
    path: PathBuf,
    _file: File,
}

impl IpcListener {
    /// Binds `path` with mode 0600. The socket of a dead daemon is replaced.
    ///
    /// # Errors
    /// When a daemon serves it, something else is there, the path is too long,
    /// or the system refuses.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let temporary = beside(path, &format!(".{}", std::process::id()));
        // The longer of the two names has to fit.
        let spare = temporary.as_os_str().len() - path.as_os_str().len();
        let (length, limit) = (path.as_os_str().len(), MAX_PATH - spare);
        if length > limit {
            return Err(SocketError::TooLong { path: path.to_owned(), length, limit });
        }
        let lock = lock(path)?;
        check_free(path)?;
        let io_error =
            |action| move |source| SocketError::Io { action, path: path.to_owned(), source };
        // Nobody can connect before `listen`, so the mode is set in time; and
        // nobody finds the socket under its name before it is ready.
        let _ = fs::remove_file(&temporary);
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(io_error("open"))?;
        socket
            .bind(&SockAddr::unix(&temporary).map_err(io_error("bind"))?)
            .map_err(io_error("bind"))?;
        let ready = fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))
            .and_then(|()| socket.listen(BACKLOG))
            .and_then(|()| socket.set_nonblocking(true))
            .and_then(|()| fs::rename(&temporary, path))
            .and_then(|()| fs::symlink_metadata(path));
        let metadata = ready.map_err(|source| {
            let _ = fs::remove_file(&temporary);
            io_error("prepare")(source)
        })?;
        let listener = UnixListener::from_std(socket.into()).map_err(io_error("serve"))?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            identity: (metadata.dev(), metadata.ino()),
            lock,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next client.
    pub(crate) fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<UnixStream>> {
        self.listener.poll_accept(cx).map_ok(|(stream, _)| stream)
    }
}

impl Drop for IpcListener {
    fn drop(&mut self) {
        let still_ours =
            fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.identity);
        if still_ours {
            // Nothing is left to do about a failure.
            let _ = fs::remove_file(&self.path);
        }
        // While the lock is still held, so that nobody else's is removed.
        let _ = fs::remove_file(&self.lock.path);
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn lock(socket: &Path) -> Result<Lock, SocketError> {
    let path = beside(socket, ".lock");
    let io_error = |source| SocketError::Io { action: "lock", path: path.clone(), source };
    for _ in 0..LOCK_ATTEMPTS {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits() as i32)
            .open(&path)
            .map_err(io_error)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(SocketError::InUse(socket.to_owned()));
            }
            Err(e) => return Err(io_error(e.into())),
        }
        // A daemon that just ended may have removed the file that we locked.
        let ours = file.metadata().map_err(io_error)?;
        if fs::symlink_metadata(&path).is_ok_and(|m| (m.dev(), m.ino()) == (ours.dev(), ours.ino()))
        {
            return Ok(Lock { path, _file: file });
        }
    }
    Err(SocketError::InUse(socket.to_owned()))
}

fn check_free(path: &Path) -> Result<(), SocketError> {
    let io_error = |action| move |source| SocketError::Io { action, path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(io_error("look at")(e)),
        Ok(m) if !m.file_type().is_socket() => {
            return Err(SocketError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match StdStream::connect(path) {
        Ok(_) => Err(SocketError::InUse(path.to_owned())),
        Err(e)
            if matches!(e.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) =>
        {
            Ok(())
        }
        Err(e) => Err(io_error("ask whether a daemon serves")(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_is_private_and_goes_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.sock");
        let listener = IpcListener::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        StdStream::connect(&path).unwrap();
        drop(listener);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_live_daemon_keeps_its_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.sock");
        let first = IpcListener::bind(&path).unwrap();
        let error = IpcListener::bind(&path).err().unwrap();
        assert!(matches!(error, SocketError::InUse(_)));
        assert!(error.to_string().contains("p.sock"));
        StdStream::connect(&path).unwrap();
        drop(first);
        IpcListener::bind(&path).unwrap();
    }

    #[tokio::test]
    async fn a_live_listener_without_our_lock_is_respected() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.sock");
        let _other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(matches!(IpcListener::bind(&path).err().unwrap(), SocketError::InUse(_)));
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_other_files_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(IpcListener::bind(&path).unwrap());

        fs::write(&path, "precious").unwrap();
        assert!(matches!(IpcListener::bind(&path).err().unwrap(), SocketError::NotASocket(_)));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn a_socket_that_is_no_longer_ours_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.sock");
        let listener = IpcListener::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        drop(listener);
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_long_path_is_refused_by_name() {
        let path = PathBuf::from(format!("/tmp/{}", "x".repeat(120)));
        let error = IpcListener::bind(&path).err().unwrap();
        assert!(matches!(error, SocketError::TooLong { .. }));
        assert!(error.to_string().contains("at most"));
    }
}
