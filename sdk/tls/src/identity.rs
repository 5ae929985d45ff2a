//! The server's end: which certificate it shows, and to whom it talks.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use crate::pin::Pin;
use crate::self_signed;

/// Why TLS cannot be served. Each names the file.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{}: {problem}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// Certificate and key do not serve.
    #[error("{} with the key {}: {source}", cert.display(), key.display())]
    Unusable {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// A certificate cannot be made.
    #[error("cannot make a self-signed certificate: {0}")]
    Generate(#[from] rcgen::Error),
    /// The certificates of a CA do not serve to check others by.
    #[error("{}: {source}", path.display())]
    ClientCa {
        /// Their file.
        path: PathBuf,
        /// Why.
        source: VerifierBuilderError,
    },
}

/// A certificate chain with its key.
pub struct ServerIdentity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    fingerprint: Pin,
    /// Where it comes from, for messages.
    files: (PathBuf, PathBuf),
}

impl fmt::Debug for ServerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerIdentity")
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

impl ServerIdentity {
    /// Reads a chain, leaf first, and its key.
    ///
    /// # Errors
    /// When a file is unreadable or has none, or the two do not belong together.
    pub fn from_pem(cert: &Path, key: &Path) -> Result<Self, TlsError> {
        let chain = certificates(cert)?;
        let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| match e {
            pem::Error::NoItemsFound => content(key, "has no private key in PEM"),
            e => pem_error(key, e),
        })?;
        Self::new(chain, secret, (cert.to_owned(), key.to_owned()))
    }

    /// The self-signed certificate that is kept in `folder` as `tls-cert.pem`
    /// and `tls-key.pem`; made when there is none. It is the same after a
    /// restart, until shortly before it expires, which the log announces a year
    /// ahead.
    ///
    /// # Errors
    /// When the files cannot be read or written, or one of them is missing.
    pub fn self_signed_in(folder: &Path) -> Result<Self, TlsError> {
        let (cert, key) = self_signed::kept_in(folder)?;
        Self::from_pem(&cert, &key)
    }

    /// A self-signed certificate that nobody keeps: another one after a restart.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn ephemeral() -> Result<Self, TlsError> {
        let (cert, key) = self_signed::ephemeral()?;
        let nowhere = PathBuf::from("(self-signed)");
        Self::new(vec![cert], key, (nowhere.clone(), nowhere))
    }

    fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        files: (PathBuf, PathBuf),
    ) -> Result<Self, TlsError> {
        let fingerprint = Pin::of(&chain[0]);
        let identity = Self { chain, key, fingerprint, files };
        // Says now what is wrong with the two, not when somebody connects.
        identity.acceptor(None)?;
        Ok(identity)
    }

    /// What clients pin.
    pub const fn fingerprint(&self) -> Pin {
        self.fingerprint
    }

    /// Accepts connections under this certificate. With the certificates of
    /// `client_ca` (PEM), a client may show one that they have signed; one that
    /// shows another is refused, one that shows none is not.
    ///
    /// # Errors
    /// When the CA's file is unreadable or has no certificate.
    pub fn acceptor(&self, client_ca: Option<&Path>) -> Result<TlsAcceptor, TlsError> {
        let unusable = |source| TlsError::Unusable {
            cert: self.files.0.clone(),
            key: self.files.1.clone(),
            source,
        };
        let provider = crate::provider();
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(unusable)?;
        let builder = match client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for root in certificates(path)? {
                    roots.add(root).map_err(|e| content(path, e))?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                        .allow_unauthenticated()
                        .build()
                        .map_err(|source| TlsError::ClientCa { path: path.to_owned(), source })?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config =
            builder.with_single_cert(self.chain.clone(), self.key.clone_key()).map_err(unusable)?;
        // Connections last long; a resumed one would outlive a changed
        // certificate or CA.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

/// The common name of a certificate; none when it has none, or more than one.
pub fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let mut names = parsed.subject().iter_common_name();
    let name = names.next()?.as_str().ok()?.trim();
    (names.next().is_none() && !name.is_empty()).then(|| name.to_owned())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| pem_error(path, e))?;
    if certificates.is_empty() {
        return Err(content(path, "has no certificate in PEM"));
    }
    Ok(certificates)
}

pub(crate) fn pem_error(path: &Path, error: pem::Error) -> TlsError {
    match error {
        pem::Error::Io(source) => TlsError::File { path: path.to_owned(), source },
        e => content(path, format_args!("is not sound PEM: {e}")),
    }
}

pub(crate) fn content(path: &Path, problem: impl fmt::Display) -> TlsError {
    TlsError::Content { path: path.to_owned(), problem: problem.to_string() }
}
