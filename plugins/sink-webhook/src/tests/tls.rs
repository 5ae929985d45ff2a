//! Delivery over TLS: a private authority, client certificates, and what is
//! wrong with them.

use std::path::PathBuf;
use std::sync::Arc;

use pilot_plugin::Delivery;
use pilot_plugin::json::{Value, json};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tempfile::TempDir;
use tokio_rustls::TlsAcceptor;

use super::delivery::{deliver, retry, worker};
use super::events;
use super::receiver::{Receiver, ok};

/// A private authority, with its files in a folder.
pub(super) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

impl Authority {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, folder }
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn issue(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// Writes `client.pem` and `client.key`.
    fn write_client(&self) {
        let (certificate, key) = self.issue("client.example");
        std::fs::write(self.file("client.pem"), certificate.pem()).unwrap();
        std::fs::write(self.file("client.key"), key.serialize_pem()).unwrap();
    }

    /// A receiver's side, for a certificate with `name`; with `clients` it asks
    /// for a certificate of this authority.
    pub(super) fn acceptor(&self, name: &str, clients: bool) -> TlsAcceptor {
        let (certificate, key) = self.issue(name);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if clients {
            let mut roots = RootCertStore::empty();
            roots.add(self.issuer.der().clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        } else {
            builder.with_no_client_auth()
        };
        let chain: Vec<CertificateDer<'static>> = vec![certificate.der().clone()];
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        TlsAcceptor::from(Arc::new(builder.with_single_cert(chain, key).unwrap()))
    }

    async fn receiver(&self, name: &str, clients: bool) -> Receiver {
        Receiver::start("127.0.0.1:0", Some(self.acceptor(name, clients)), |_| ok()).await
    }
}

fn config(receiver: &Receiver, tls: Value) -> Value {
    json!({ "url": format!("https://{}/hook", receiver.address), "tls": tls })
}

#[tokio::test]
async fn a_private_authority_is_trusted_when_it_is_named() {
    let authority = Authority::new();
    let receiver = authority.receiver("127.0.0.1", false).await;
    let named = worker(config(&receiver, json!({ "ca-file": authority.file("ca.pem") })));
    assert_eq!(deliver(&named, &events(20)).await, Delivery::Ack);
    assert!(receiver.numbers().into_iter().eq(1..=20));
    assert_eq!(receiver.connections(), 1);

    let other = Authority::new();
    let unnamed = worker(config(&receiver, json!({ "ca-file": other.file("ca.pem") })));
    let place = receiver.address.to_string();
    let says = ["TLS with", &place, "invalid peer certificate"];
    assert_eq!(retry(deliver(&unnamed, &events(2)).await, &says), (0, None));
    assert_eq!(receiver.received().len(), 20);
}

#[tokio::test]
async fn the_name_in_the_certificate_is_checked() {
    let authority = Authority::new();
    let receiver = authority.receiver("hooks.example", false).await;
    let ca = authority.file("ca.pem");
    let wrong = worker(config(&receiver, json!({ "ca-file": ca })));
    let says = ["TLS with", "not valid for"];
    assert_eq!(retry(deliver(&wrong, &events(2)).await, &says), (0, None));
    assert!(receiver.received().is_empty());

    let tls = json!({ "ca-file": ca, "server-name": "hooks.example" });
    let right = worker(config(&receiver, tls));
    assert_eq!(deliver(&right, &events(2)).await, Delivery::Ack);
    assert_eq!(receiver.numbers(), [1, 2]);
}

#[tokio::test]
async fn a_client_certificate_is_shown() {
    let authority = Authority::new();
    authority.write_client();
    let receiver = authority.receiver("127.0.0.1", true).await;
    let ca = authority.file("ca.pem");
    let nobody = worker(config(&receiver, json!({ "ca-file": ca })));
    let place = receiver.address.to_string();
    assert_eq!(retry(deliver(&nobody, &events(2)).await, &[&place]), (0, None));
    assert!(receiver.received().is_empty());

    let shown = json!({
        "ca-file": ca,
        "client-cert-file": authority.file("client.pem"),
        "client-key-file": authority.file("client.key"),
    });
    let known = worker(config(&receiver, shown));
    assert_eq!(deliver(&known, &events(2)).await, Delivery::Ack);
    assert_eq!(receiver.numbers(), [1, 2]);
}

#[tokio::test]
async fn a_client_certificate_that_was_replaced_is_read_again() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    stranger.write_client();
    let receiver = authority.receiver("127.0.0.1", true).await;
    let worker = worker(config(
        &receiver,
        json!({
            "ca-file": authority.file("ca.pem"),
            "client-cert-file": stranger.file("client.pem"),
            "client-key-file": stranger.file("client.key"),
        }),
    ));
    assert_eq!(retry(deliver(&worker, &events(2)).await, &[]), (0, None));
    authority.write_client();
    for name in ["client.pem", "client.key"] {
        std::fs::copy(authority.file(name), stranger.file(name)).unwrap();
    }
    assert_eq!(deliver(&worker, &events(2)).await, Delivery::Ack);
    assert_eq!(receiver.numbers(), [1, 2]);
}

#[test]
fn half_a_client_certificate_is_refused() {
    let authority = Authority::new();
    authority.write_client();
    let why = super::refusal(json!({
        "url": "https://127.0.0.1:1/",
        "tls": { "ca-file": authority.file("ca.pem"), "client-cert-file": authority.file("client.pem") },
    }));
    assert_eq!(why, "`tls.client-key-file` is missing");
    let why = super::refusal(json!({
        "url": "https://127.0.0.1:1/",
        "tls": {
            "ca-file": authority.file("ca.pem"),
            "client-cert-file": authority.file("client.pem"),
            "client-key-file": authority.file("ca.pem"),
        },
    }));
    assert!(why.contains("`tls.client-key-file`: no key in"), "{why}");
}

#[tokio::test]
async fn a_receiver_without_tls_is_an_error_that_says_so() {
    let authority = Authority::new();
    let receiver = Receiver::new(|_| ok()).await;
    let worker = worker(config(&receiver, json!({ "ca-file": authority.file("ca.pem") })));
    let place = receiver.address.to_string();
    retry(deliver(&worker, &events(1)).await, &["TLS with", &place]);
}
