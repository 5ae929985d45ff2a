//! Both ends over loopback: who is let in, who is not, and what they are told.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pilot_tls::{Pin, ServerIdentity, Stream, TlsAcceptor, WrongPin, common_name, connect};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

/// Answers one message of each connection with the client's name and the
/// message, and ends it.
async fn server(acceptor: TlsAcceptor) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let certificates = stream.get_ref().1.peer_certificates();
                let name = certificates.and_then(|c| common_name(c.first()?)).unwrap_or_default();
                let mut message = [0; 4];
                stream.read_exact(&mut message).await.unwrap();
                stream.write_all(name.as_bytes()).await.unwrap();
                stream.write_all(&message).await.unwrap();
                stream.shutdown().await.unwrap();
            });
        }
    });
    addr
}

async fn exchange(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> std::io::Result<String> {
    stream.write_all(b"ping").await?;
    stream.flush().await?;
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap()?;
    Ok(answer)
}

#[tokio::test]
async fn the_pinned_certificate_is_spoken_to_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let identity = ServerIdentity::self_signed_in(dir.path()).unwrap();
    let pin = identity.fingerprint();
    let addr = server(identity.acceptor(None).unwrap()).await;
    for host in [addr.to_string(), format!("localhost:{}", addr.port())] {
        let mut stream = connect(&host, Some(&pin)).await.unwrap();
        assert!(stream.is_tls() && stream.tcp().nodelay().unwrap());
        assert_eq!(exchange(&mut stream).await.unwrap(), "ping");
    }
    let again = ServerIdentity::self_signed_in(dir.path()).unwrap();
    assert_eq!(again.fingerprint(), pin);

    let other: Pin = "ab".repeat(32).parse().unwrap();
    let error = connect(&addr.to_string(), Some(&other)).await.unwrap_err();
    let wrong = error.get_ref().unwrap().downcast_ref::<WrongPin>().unwrap();
    assert_eq!((wrong.expected, wrong.found), (other, pin));
    let text = error.to_string();
    assert!(text.contains(&other.to_string()) && text.contains(&pin.to_string()), "{text}");
}

/// Shows a certificate whose key it does not have.
#[derive(Debug)]
struct Stolen(Arc<rustls::sign::CertifiedKey>);

impl rustls::server::ResolvesServerCert for Stolen {
    fn resolve(
        &self,
        _: rustls::server::ClientHello<'_>,
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

#[tokio::test]
async fn a_copied_certificate_without_its_key_is_refused() {
    let certificate = || {
        let key = KeyPair::generate().unwrap();
        let cert = CertificateParams::default().self_signed(&key).unwrap();
        (cert.der().clone(), key)
    };
    let ((shown, _), (_, other)) = (certificate(), certificate());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let other = PrivatePkcs8KeyDer::from(other.serialize_der());
    let key = provider.key_provider.load_private_key(other.into()).unwrap();
    let stolen = rustls::sign::CertifiedKey::new(vec![shown.clone()], key);
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let config = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Stolen(Arc::new(stolen.clone()))));
        let addr = server(Arc::new(config).into()).await;
        let error = connect(&addr.to_string(), Some(&Pin::of(&shown))).await.unwrap_err();
        assert!(error.to_string().contains("BadSignature"), "{version:?}: {error}");
    }
}

#[tokio::test]
async fn plain_connections_are_plain_and_say_so_where_tls_is_expected() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let served = tokio::spawn(async move {
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut message = [0; 4];
            stream.read_exact(&mut message).await.unwrap();
            stream.write_all(b"pong pong pong").await.unwrap();
            stream.shutdown().await.unwrap();
            // What is left unread would turn the end into a reset.
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    });
    let mut stream = connect(&addr, None).await.unwrap();
    assert!(matches!(stream, Stream::Plain(_)));
    assert_eq!(exchange(&mut stream).await.unwrap(), "pong pong pong");
    drop(stream);
    let pin: Pin = "ab".repeat(32).parse().unwrap();
    let error = connect(&addr, Some(&pin)).await.unwrap_err();
    assert!(error.to_string().contains("does not seem to speak TLS"), "{error}");
    served.await.unwrap();
}

/// A CA in `path`, and certificates of it.
fn ca(path: &Path) -> Issuer<'static, KeyPair> {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    std::fs::write(path, params.self_signed(&key).unwrap().pem()).unwrap();
    Issuer::new(params, key)
}

fn client(ca: &Issuer<'_, KeyPair>, name: &str) -> (CertificateDer<'static>, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    (params.signed_by(&key, ca).unwrap().der().clone(), key)
}

#[derive(Debug)]
struct Anybody;

impl rustls::client::danger::ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        provider.signature_verification_algorithms.supported_schemes()
    }
}

#[tokio::test]
async fn client_certificates_of_the_ca_have_names_and_others_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ca.pem");
    let (ours, others) = (ca(&path), ca(&dir.path().join("other.pem")));
    let identity = ServerIdentity::ephemeral().unwrap();
    let addr = server(identity.acceptor(Some(&path)).unwrap()).await;

    let ask = async |(cert, key): (CertificateDer<'static>, KeyPair)| {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody))
            .with_client_auth_cert(vec![cert], key.into())
            .unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = TcpStream::connect(addr).await?;
        let name = ServerName::try_from("localhost").unwrap();
        exchange(&mut connector.connect(name, stream).await?).await
    };
    assert_eq!(ask(client(&ours, "Ada")).await.unwrap(), "Adaping");
    assert!(ask(client(&others, "Eve")).await.is_err());
    let mut nameless = connect(&addr.to_string(), Some(&identity.fingerprint())).await.unwrap();
    assert_eq!(exchange(&mut nameless).await.unwrap(), "ping");

    std::fs::write(&path, "").unwrap();
    let refused = identity.acceptor(Some(&path)).err().unwrap().to_string();
    assert!(refused.contains("ca.pem") && refused.contains("no certificate"), "{refused}");
}
