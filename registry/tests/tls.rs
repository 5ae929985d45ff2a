//! TLS on the registry's port and on that of the administration, in this
//! process and as the real binary.

mod client;
mod site;

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use client::{Client, Identity, Program, eventually};
use pilot_registry::Config;
use pilot_registry::config::TlsFiles;
use pilot_tls::{Pin, Stream, WrongPin};
use pilot_wire::registry::{FrameBuffer, append_frame};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use serde_json::{Value, json};
use site::{PATIENCE, Reply, Site, config, connect};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const REGISTRY: &str = env!("CARGO_BIN_EXE_pilot-registry");

fn with_tls() -> Config {
    Config { tls: Some(TlsFiles::default()), ..config() }
}

async fn ask(stream: &mut Stream, request: &Value) -> Value {
    let mut out = Vec::new();
    append_frame(&mut out, request).unwrap();
    stream.write_all(&out).await.unwrap();
    stream.flush().await.unwrap();
    let mut input = FrameBuffer::new();
    loop {
        if let Some(body) = input.next_body().unwrap() {
            return serde_json::from_slice(body).unwrap();
        }
        let mut chunk = [0; 4096];
        let read = tokio::time::timeout(PATIENCE, stream.read(&mut chunk)).await;
        let n = read.expect("an answer").unwrap();
        assert!(n > 0, "the connection was closed");
        input.push(&chunk[..n]);
    }
}

#[test]
fn a_pinned_registry_is_spoken_to() {
    let site = Site::start(with_tls());
    let (addr, pin) = (site.addr.to_string(), site.fingerprint.unwrap());
    site.runtime.block_on(async {
        let mut stream = pilot_tls::connect(&addr, Some(&pin)).await.unwrap();
        let reply = ask(&mut stream, &Identity::new(1).register()).await;
        assert_eq!((&reply["type"], &reply["node_id"]), (&json!("register_ok"), &json!(1)));
        // An answer of more than one record, and one after it.
        let many = ask(&mut stream, &json!({ "type": "list_networks" })).await;
        assert_eq!(many["networks"][0]["members"], 1);

        let other: Pin = "cd".repeat(32).parse().unwrap();
        let error = pilot_tls::connect(&addr, Some(&other)).await.unwrap_err();
        let wrong = error.get_ref().unwrap().downcast_ref::<WrongPin>().unwrap();
        assert_eq!(wrong.found, pin);
    });
    site.end();
}

#[test]
fn who_does_not_speak_tls_is_closed_and_who_is_silent_holds_up_nobody() {
    let site = Site::start(with_tls());
    // As many as there are handshakes at a time, and more.
    let silent: Vec<_> = (0..600).map(|_| connect(site.addr)).collect();
    let mut halves = Vec::new();
    for _ in 0..20 {
        let mut half = connect(site.addr);
        half.write_all(&[0x16, 3, 1]).unwrap();
        halves.push(half);
    }
    let mut plain = Client::connect(site.addr);
    plain.send_raw(br#"{"type":"list_networks"}"#);
    assert_eq!(plain.receive(), None);
    let (addr, pin) = (site.addr.to_string(), site.fingerprint.unwrap());
    site.runtime.block_on(async {
        let mut stream = pilot_tls::connect(&addr, Some(&pin)).await.unwrap();
        let reply = ask(&mut stream, &json!({ "type": "list_networks" })).await;
        assert_eq!(reply["type"], "list_networks_ok");
    });
    drop((silent, halves));
    site.end();
}

/// A CA in `path`, and what it signs.
fn ca(path: &Path) -> Issuer<'static, KeyPair> {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    std::fs::write(path, params.self_signed(&key).unwrap().pem()).unwrap();
    Issuer::new(params, key)
}

/// A client that shows a certificate of `ca` under this name.
fn tls_client(ca: &Issuer<'_, KeyPair>, name: &str) -> rustls::ClientConnection {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    let cert = params.signed_by(&key, ca).unwrap().der().clone();
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_client_auth_cert(vec![cert], key.into())
        .unwrap();
    rustls::ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").unwrap())
        .unwrap()
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

#[test]
fn a_certificate_of_the_ca_makes_an_administrator_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ca.pem");
    let (ours, others) = (ca(&path), ca(&dir.path().join("others.pem")));
    let site = Site::start(Config { admin_ca: Some(path), ..with_tls() });
    let ask = |ca, name, method, path, body: &str| {
        let mut stream = rustls::StreamOwned::new(tls_client(ca, name), connect(site.http));
        let json = [("Content-Type", "application/json")];
        let head = site::head(method, path, &json, body.len()) + "Connection: close\r\n\r\n";
        stream.write_all(head.as_bytes())?;
        stream.write_all(body.as_bytes())?;
        let mut all = Vec::new();
        stream.read_to_end(&mut all)?;
        Ok::<_, std::io::Error>(Reply::read(&all[..]))
    };
    let reply = ask(&ours, "Ada Lovelace", "GET", "/api/v1/nodes", "").unwrap();
    assert_eq!((reply.status, reply.json()["nodes"].clone()), (200, json!([])));
    assert!(ask(&others, "Eve", "GET", "/api/v1/nodes", "").is_err());

    let (addr, pin) = (site.addr.to_string(), site.fingerprint.unwrap());
    site.runtime.block_on(async {
        let mut stream = pilot_tls::connect(&addr, Some(&pin)).await.unwrap();
        ask_ok(&mut stream).await;
    });
    let body = r#"{"type":"node_revoke","node_id":1}"#;
    let revoked = ask(&ours, "Ada Lovelace", "POST", "/api/v1/request", body).unwrap();
    assert_eq!(revoked.status, 200, "{revoked:?}");
    eventually("the audit log names her", || {
        let path = "/api/v1/audit?operation=node_revoke";
        let page = ask(&ours, "Bob", "GET", path, "").unwrap().json();
        page["records"][0]["actor"]["name"] == "Ada Lovelace"
    });
    site.end();
}

async fn ask_ok(stream: &mut Stream) {
    let reply = ask(stream, &Identity::new(1).register()).await;
    assert_eq!(reply["type"], "register_ok", "{reply}");
}

#[test]
fn the_fingerprint_is_told_and_lasts() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("r.db");
    let args = ["-addr", "127.0.0.1:0", "-tls", "-store", store.to_str().unwrap()];
    let first = Program::start(REGISTRY, &args);
    let pin = first.ready["fingerprint"].as_str().unwrap().to_owned();
    assert_eq!(pin.parse::<Pin>().unwrap().to_string(), pin);
    assert!(first.terminate());
    let second = Program::start(REGISTRY, &args);
    assert_eq!(second.ready["fingerprint"], pin.as_str());
    assert!(second.terminate());
    assert!(dir.path().join("tls-key.pem").exists());
}

fn write_certificate(cert: &Path, key: &Path) -> Pin {
    let pair = KeyPair::generate().unwrap();
    let made = CertificateParams::default().self_signed(&pair).unwrap();
    std::fs::write(key, pair.serialize_pem()).unwrap();
    std::fs::write(cert, made.pem()).unwrap();
    Pin::of(made.der())
}

#[test]
fn a_hangup_brings_a_new_certificate_and_keeps_connections() {
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    let old = write_certificate(&cert, &key);
    let args = [
        "-addr",
        "127.0.0.1:0",
        "-tls",
        "-tls-cert",
        cert.to_str().unwrap(),
        "-tls-key",
        key.to_str().unwrap(),
    ];
    let program = Program::start(REGISTRY, &args);
    let addr = program.addr("addr").to_string();
    let hangup = || {
        let pid = program.child.id().to_string();
        assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let connects = |pin: &Pin| runtime.block_on(pilot_tls::connect(&addr, Some(pin)));
    let mut stream = connects(&old).unwrap();

    // A certificate without its key changes nothing.
    std::fs::write(&cert, "nonsense").unwrap();
    hangup();
    let new = write_certificate(&cert, &key);
    assert_ne!(new, old);
    hangup();
    eventually("the new certificate is shown", || connects(&new).is_ok());
    assert!(connects(&old).is_err());
    runtime.block_on(ask_ok(&mut stream));
    assert!(program.terminate());
}

#[test]
fn files_that_do_not_serve_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    write_certificate(&dir.path().join("a.pem"), &dir.path().join("a-key.pem"));
    write_certificate(&dir.path().join("b.pem"), &dir.path().join("b-key.pem"));
    for (cert, key, wanted) in [
        ("a.pem", "b-key.pem", "b-key.pem"),
        ("none.pem", "a-key.pem", "none.pem"),
        ("a-key.pem", "a-key.pem", "no certificate"),
        ("a.pem", "b.pem", "no private key"),
    ] {
        let args =
            ["-addr", "127.0.0.1:0", "-tls", "-tls-cert", &path(cert), "-tls-key", &path(key)];
        let output = Command::new(REGISTRY).args(args).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && text.contains(wanted), "{wanted}: {text}");
    }
}
