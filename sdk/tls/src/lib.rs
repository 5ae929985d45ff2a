//! TLS as the published protocol uses it at a registry's port: a certificate
//! that nobody signed, known by its fingerprint. Clients pin it ([`connect`]),
//! servers keep it ([`ServerIdentity`]). Knows nothing of what is spoken inside.

mod client;
mod identity;
mod pin;
mod self_signed;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

pub use client::{Stream, WrongPin, connect};
pub use identity::{ServerIdentity, TlsError, common_name};
pub use pin::{BadPin, Pin};
pub use rustls::pki_types::CertificateDer;
pub use tokio_rustls::TlsAcceptor;
/// One connection from the server's side.
pub type ServerStream<S> = tokio_rustls::server::TlsStream<S>;

/// The provider of all cryptography here, named at each place so that no
/// process-wide choice of somebody else's counts.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
