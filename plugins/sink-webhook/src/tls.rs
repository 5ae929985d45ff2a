//! TLS: whom we trust and what we show, from files.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

use crate::config::Tls;
use crate::target::Target;

/// What it takes to speak TLS to the receiver.
pub(crate) struct Secure {
    pub(crate) connector: TlsConnector,
    /// Expected in the receiver's certificate.
    pub(crate) name: ServerName<'static>,
}

impl Secure {
    /// Reads the files.
    ///
    /// # Errors
    /// When one cannot be read or used, and when there is nobody to trust; the
    /// text names the key and the file.
    pub(crate) fn new(tls: &Tls, target: &Target) -> Result<Self, String> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|why| format!("`tls`: {why}"))?
            .with_root_certificates(roots(tls.ca_file.as_deref())?);
        let config = match (&tls.client_cert_file, &tls.client_key_file) {
            (None, None) => config.with_no_client_auth(),
            (Some(chain), Some(key)) => {
                let chain_certificates = certificates("tls.client-cert-file", chain)?;
                let key = PrivateKeyDer::from_pem_file(key).map_err(|why| {
                    format!("`tls.client-key-file`: no key in {}: {why}", key.display())
                })?;
                config.with_client_auth_cert(chain_certificates, key).map_err(|why| {
                    format!("`tls.client-cert-file`: cannot use {}: {why}", chain.display())
                })?
            }
            (Some(_), None) => return Err("`tls.client-key-file` is missing".to_owned()),
            (None, Some(_)) => return Err("`tls.client-cert-file` is missing".to_owned()),
        };
        let name = tls.server_name.as_deref().unwrap_or(&target.host);
        let name = ServerName::try_from(name.to_owned()).map_err(|_| {
            format!("`tls.server-name`: {name:?} is neither a host name nor an address")
        })?;
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name })
    }
}

/// The system's authorities, and those of `file`.
fn roots(file: Option<&Path>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    // One that cannot be parsed does not make the others useless.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(file) = file {
        for certificate in certificates("tls.ca-file", file)? {
            roots
                .add(certificate)
                .map_err(|why| format!("`tls.ca-file`: cannot use {}: {why}", file.display()))?;
        }
    }
    if roots.is_empty() {
        return Err("this system has no certificate authorities: install its package of \
                    them (ca-certificates), or set `tls.ca-file`"
            .to_owned());
    }
    Ok(roots)
}

fn certificates(key: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let failed = |why| format!("`{key}`: cannot read {}: {why}", file.display());
    let read = CertificateDer::pem_file_iter(file).map_err(failed)?;
    let certificates = read.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    if certificates.is_empty() {
        return Err(format!("`{key}`: no certificate in {}", file.display()));
    }
    Ok(certificates)
}
