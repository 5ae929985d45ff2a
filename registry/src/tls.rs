//! TLS of the registry's ports: which certificate, and the first steps of a
//! connection until it is TLS. Certificates can be read again while running.
//!
//! Bounds: [`HANDSHAKES`] at a time, further ones wait; each has
//! [`HANDSHAKE_LIMIT`] from its accept on, and is closed after it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use pilot_tls::{Pin, ServerIdentity, ServerStream, TlsAcceptor, TlsError};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::config::Config;

/// A connection that is not TLS by then is closed.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// Most handshakes of one port at a time.
const HANDSHAKES: usize = 512;
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
    said: Mutex<Said>,
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
            // Whoever has sent nothing holds up nobody. It is never closed.
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
