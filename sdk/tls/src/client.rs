//! The client's end: plain TCP, or TLS to the one certificate that is pinned.

use std::io;
use std::pin::Pin as Pinned;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, InvalidMessage, SignatureScheme,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::pin::Pin;

/// A connection to a registry. What is written may stay here until it is
/// flushed.
#[derive(Debug)]
pub enum Stream {
    /// Without TLS.
    Plain(TcpStream),
    /// To the pinned certificate.
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

/// The server's certificate is another one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{addr}: the server's certificate has the fingerprint {found}, but {expected} is pinned; \
     if the server's operator changed the certificate, pin the new one, else somebody is in between"
)]
pub struct WrongPin {
    /// Where was connected to.
    pub addr: String,
    /// The fingerprint that is pinned.
    pub expected: Pin,
    /// The one of the certificate that was shown.
    pub found: Pin,
}

/// Connects to `addr` (`host:port`), with TLS when a fingerprint is pinned. As
/// published, the fingerprint alone counts: chain, names and dates do not. That
/// the server holds the certificate's key is checked. There is no time limit
/// here; the caller has one.
///
/// # Errors
/// When nobody is there or no TLS comes about. A certificate other than the
/// pinned one is [`WrongPin`], found by [`io::Error::get_ref`].
pub async fn connect(addr: &str, pin: Option<&Pin>) -> io::Result<Stream> {
    let stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let Some(pin) = pin else { return Ok(Stream::Plain(stream)) };
    let provider = crate::provider();
    let verifier =
        Arc::new(OnlyPinned { pin: *pin, found: OnceLock::new(), provider: Arc::clone(&provider) });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&verifier) as Arc<_>)
        .with_no_client_auth();
    // Every connection shows the certificate.
    config.resumption = Resumption::disabled();
    let connector = TlsConnector::from(Arc::new(config));
    match connector.connect(server_name(addr)?, stream).await {
        Ok(stream) => Ok(Stream::Tls(Box::new(stream))),
        Err(error) => Err(match verifier.found.get() {
            Some(found) if found != pin => {
                let addr = addr.to_owned();
                let wrong = WrongPin { addr, expected: *pin, found: *found };
                io::Error::new(io::ErrorKind::InvalidData, wrong)
            }
            _ => explained(addr, error),
        }),
    }
}

/// What the server is told it is called. It is not checked by anybody here, but
/// must be well-formed.
fn server_name(addr: &str) -> io::Result<ServerName<'static>> {
    let host = addr.rsplit_once(':').map_or(addr, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    // A zone belongs to this machine alone.
    let host = host.split_once('%').map_or(host, |(host, _)| host);
    ServerName::try_from(host.to_owned()).map_err(|e| {
        let problem = format!("{addr}: {host:?} cannot be the name of a TLS server: {e}");
        io::Error::new(io::ErrorKind::InvalidInput, problem)
    })
}

/// Says in other words what usually is behind an error.
fn explained(addr: &str, error: io::Error) -> io::Error {
    let inner = error.get_ref().and_then(|e| e.downcast_ref::<Error>());
    let plain = matches!(
        inner,
        Some(Error::InvalidMessage(
            InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion
        ))
    );
    if plain || error.kind() == io::ErrorKind::UnexpectedEof {
        let problem = format!(
            "{addr}: the server does not seem to speak TLS ({error}); start it with -tls, or leave \
             the fingerprint out"
        );
        return io::Error::new(error.kind(), problem);
    }
    io::Error::new(error.kind(), format!("{addr}: TLS: {error}"))
}

/// Accepts the one certificate and remembers which it saw.
#[derive(Debug)]
struct OnlyPinned {
    pin: Pin,
    found: OnceLock<Pin>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for OnlyPinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let found = *self.found.get_or_init(|| Pin::of(end_entity));
        if found == self.pin {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl Stream {
    /// The connection below.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }

    /// Whether it is TLS.
    pub const fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }
}

/// Passes a call on to what is inside.
macro_rules! inner {
    ($self:ident, $method:ident($($argument:expr),*)) => {
        match $self.get_mut() {
            Self::Plain(stream) => Pinned::new(stream).$method($($argument),*),
            Self::Tls(stream) => Pinned::new(&mut **stream).$method($($argument),*),
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pinned<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        inner!(self, poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pinned<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        inner!(self, poll_write(cx, buf))
    }

    fn poll_flush(self: Pinned<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        inner!(self, poll_flush(cx))
    }

    fn poll_shutdown(self: Pinned<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        inner!(self, poll_shutdown(cx))
    }

    fn poll_write_vectored(
        self: Pinned<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        inner!(self, poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }
}
