//! TLS of the registry's ports: which certificate, and the first steps of a
//! connection until it is TLS. Certificates can be read again while running.
//!
//! Bounds: [`HANDSHAKES`] at a time, [`OF_SOURCE`] of one source, further ones
//! wait; each has [`HANDSHAKE_LIMIT`] from its accept on, and is closed after it.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use pilot_tls::{Pin, ServerIdentity, ServerStream, TlsAcceptor, TlsError};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::config::Config;
use crate::limits::counted;

/// A connection that is not TLS by then is closed.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// Most handshakes of one port at a time.
const HANDSHAKES: usize = 512;
/// Of these, of one source that is not this machine. Who has sent a byte and is
/// slow with the rest holds up none but its neighbours.
const OF_SOURCE: usize = HANDSHAKES / 4;
/// What cannot be logged for each connection is logged so often.
const LOG_EVERY: Duration = Duration::from_secs(10);
/// First byte of every TLS connection.
const HANDSHAKE_RECORD: u8 = 0x16;

/// The certificate that is shown now.
#[derive(Debug)]
pub(crate) struct Identity {
    source: Source,
    current: ArcSwap<ServerIdentity>,
}

#[derive(Debug)]
enum Source {
    Files(PathBuf, PathBuf),
    Folder(PathBuf),
    Nowhere,
}

impl Source {
    fn read(&self) -> Result<ServerIdentity, TlsError> {
        match self {
            Self::Files(cert, key) => ServerIdentity::from_pem(cert, key),
            Self::Folder(folder) => ServerIdentity::self_signed_in(folder),
            Self::Nowhere => ServerIdentity::ephemeral(),
        }
    }
}

impl Identity {
    /// The one that `config` asks for, if it does.
    ///
    /// # Errors
    /// When its files cannot be used.
    pub(crate) fn open(config: &Config) -> Result<Option<Self>, TlsError> {
        let Some(files) = &config.tls else { return Ok(None) };
        let source = match (&files.pem, &config.store) {
            (Some((cert, key)), _) => Source::Files(cert.clone(), key.clone()),
            (None, Some(store)) => {
                let folder = store.parent().filter(|f| !f.as_os_str().is_empty());
                Source::Folder(folder.unwrap_or(Path::new(".")).to_owned())
            }
            (None, None) => {
                tracing::warn!(
                    "no -store is set: the certificate is another one after each start, and \
                     clients must then pin its fingerprint anew"
                );
                Source::Nowhere
            }
        };
        let current = ArcSwap::from_pointee(source.read()?);
        Ok(Some(Self { source, current }))
    }

    /// What clients pin now.
    pub(crate) fn fingerprint(&self) -> Pin {
        self.current.load().fingerprint()
    }

    /// Reads the files again; what cannot be used changes nothing. The
    /// connections there are stay.
    ///
    /// # Errors
    /// When the files cannot be used.
    pub(crate) fn reload(&self) -> Result<(), TlsError> {
        if matches!(self.source, Source::Nowhere) {
            return Ok(());
        }
        let new = self.source.read()?;
        let (old, now) = (self.fingerprint(), new.fingerprint());
        self.current.store(Arc::new(new));
        if old != now {
            tracing::warn!(
                "the TLS certificate has changed: clients that pin {old} must pin {now}"
            );
        }
        Ok(())
    }
}

/// One port's way from accepted connections to TLS.
#[derive(Debug)]
pub(crate) struct Door {
    identity: Arc<Identity>,
    client_ca: Option<PathBuf>,
    acceptor: ArcSwap<Accepting>,
    handshakes: Semaphore,
    lines: Lines,
    said: Mutex<Said>,
}

/// Sources that have connections on their way to TLS.
#[derive(Debug, Default)]
struct Lines(Mutex<HashMap<IpAddr, Arc<Semaphore>>>);

/// A place in the line of a source, as long as it is not dropped.
struct Line<'a> {
    lines: &'a Lines,
    source: IpAddr,
    turns: Arc<Semaphore>,
}

impl Lines {
    /// None for this machine, which does not wait.
    fn enter(&self, source: IpAddr) -> Option<Line<'_>> {
        let source = counted(source)?;
        let mut lines = self.lines();
        let turns = lines.entry(source).or_insert_with(|| Arc::new(Semaphore::new(OF_SOURCE)));
        Some(Line { lines: self, source, turns: Arc::clone(turns) })
    }

    /// Whole entries are put in and taken out, so poisoning is ignored.
    fn lines(&self) -> MutexGuard<'_, HashMap<IpAddr, Arc<Semaphore>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        let mut lines = self.lines.lines();
        // The table's, and this one: nobody else stands in it.
        if Arc::strong_count(&self.turns) <= 2 {
            lines.remove(&self.source);
        }
    }
}

struct Accepting(TlsAcceptor);

impl std::fmt::Debug for Accepting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Accepting")
    }
}

/// What was logged of failures.
#[derive(Debug, Default)]
struct Said {
    at: Option<Instant>,
    unsaid: u64,
}

/// Why a connection is not TLS.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// It begins with something else.
    #[error(
        "the client does not speak TLS, which this port demands; give it the fingerprint of the \
         registry's certificate"
    )]
    Plain,
    /// It was not done in time.
    #[error("no TLS handshake within {} s", HANDSHAKE_LIMIT.as_secs())]
    Slow,
    /// It failed.
    #[error("TLS handshake: {0}")]
    Failed(#[from] std::io::Error),
}

impl Door {
    /// Under `identity`; who shows a certificate must have it of `client_ca`.
    ///
    /// # Errors
    /// When the CA's file cannot be used.
    pub(crate) fn new(identity: Arc<Identity>, client_ca: Option<&Path>) -> Result<Self, TlsError> {
        let acceptor = identity.current.load().acceptor(client_ca)?;
        Ok(Self {
            identity,
            client_ca: client_ca.map(Path::to_owned),
            acceptor: ArcSwap::from_pointee(Accepting(acceptor)),
            handshakes: Semaphore::new(HANDSHAKES),
            lines: Lines::default(),
            said: Mutex::default(),
        })
    }

    /// Takes the certificate as it is now, and reads the CA's file again.
    ///
    /// # Errors
    /// When the CA's file cannot be used; nothing is changed then.
    pub(crate) fn reload(&self) -> Result<(), TlsError> {
        let acceptor = self.identity.current.load().acceptor(self.client_ca.as_deref())?;
        self.acceptor.store(Arc::new(Accepting(acceptor)));
        Ok(())
    }

    /// Makes a connection TLS.
    ///
    /// # Errors
    /// Says why it does not become TLS.
    pub(crate) async fn open(&self, stream: TcpStream) -> Result<ServerStream<TcpStream>, Refused> {
        let handshake = async {
            let mut first = [0];
            if stream.peek(&mut first).await? == 1 && first[0] != HANDSHAKE_RECORD {
                return Err(Refused::Plain);
            }
            // Whoever has sent nothing holds up nobody. None is ever closed.
            let line = self.lines.enter(stream.peer_addr()?.ip());
            let _of_source = match &line {
                Some(line) => Some(line.turns.acquire().await),
                None => None,
            };
            let _turn = self.handshakes.acquire().await;
            let acceptor = self.acceptor.load().0.clone();
            Ok(acceptor.accept(stream).await?)
        };
        timeout(HANDSHAKE_LIMIT, handshake).await.unwrap_or(Err(Refused::Slow))
    }

    /// Logs a failure, or counts it until the next one that is logged.
    pub(crate) fn log(&self, source: SocketAddr, refused: &Refused) {
        if matches!(refused, Refused::Failed(e) if e.kind() == std::io::ErrorKind::UnexpectedEof) {
            // Somebody looks whether the port is open.
            return tracing::debug!(%source, "connection closed: {refused}");
        }
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.at.is_some_and(|at| at.elapsed() < LOG_EVERY) {
            said.unsaid += 1;
            return tracing::debug!(%source, "connection closed: {refused}");
        }
        let more = match std::mem::take(&mut said.unsaid) {
            0 => String::new(),
            n => format!(" (and {n} more connections since this was last logged)"),
        };
        said.at = Some(Instant::now());
        tracing::warn!(%source, "connection closed: {refused}{more}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_has_a_quarter_of_the_handshakes() {
        let lines = Lines::default();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let slow: Vec<_> = (0..HANDSHAKES as u32)
            .map(|n| lines.enter(ip(&format!("2001:db8::{n:x}"))).unwrap())
            .collect();
        let turns: Vec<_> = slow.iter().map_while(|line| line.turns.try_acquire().ok()).collect();
        assert_eq!((turns.len(), lines.lines().len()), (OF_SOURCE, 1));
        let other = lines.enter(ip("192.0.2.1")).unwrap();
        assert!(other.turns.try_acquire().is_ok());
        assert!(lines.enter(ip("127.0.0.1")).is_none() && lines.enter(ip("::1")).is_none());
        drop(turns);
        let first = slow.into_iter().next().unwrap();
        assert_eq!(first.turns.available_permits(), OF_SOURCE);
        drop((first, other));
        assert!(lines.lines().is_empty());
    }
}
