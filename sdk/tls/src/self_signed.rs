//! A certificate that nobody else signs, and the folder that keeps it.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::{Duration, OffsetDateTime};

use crate::identity::{TlsError, content, pem_error};
use crate::pin::Pin;

/// Names in the folder.
const CERT: &str = "tls-cert.pem";
const KEY: &str = "tls-key.pem";
/// As published.
const ORGANISATION: &str = "Pilot Protocol";
/// Published clients do not look at dates; whoever does gets ten years. A
/// renewed certificate has another fingerprint, which everybody must pin anew.
const VALID: Duration = Duration::days(3650);
/// For clocks that are behind.
const BACKDATED: Duration = Duration::days(1);
/// When less is left, the log says so at each start.
const WARN: Duration = Duration::days(365);
/// When less is left, another one is made.
const RENEW: Duration = Duration::days(30);

/// Paths of certificate and key in `folder`, made or renewed as needed.
pub(crate) fn kept_in(folder: &Path) -> Result<(PathBuf, PathBuf), TlsError> {
    kept_at(folder, OffsetDateTime::now_utc())
}

fn kept_at(folder: &Path, now: OffsetDateTime) -> Result<(PathBuf, PathBuf), TlsError> {
    let (cert, key) = (folder.join(CERT), folder.join(KEY));
    match (exists(&cert)?, exists(&key)?) {
        (true, true) => renew_if_due(&cert, &key, now)?,
        (true, false) => {
            let problem = format!(
                "is there, but its key {} is not; restore the key, or remove the certificate to \
                 make another, whose fingerprint clients must then pin",
                key.display()
            );
            return Err(content(&cert, problem));
        }
        // The key is written first: a start that was interrupted in between goes
        // on with it.
        (false, true) => write(&cert, &make(&read_key(&key)?, now)?)?,
        (false, false) => {
            let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
            write(&key, &pair.serialize_pem())?;
            write(&cert, &make(&pair, now)?)?;
            tracing::info!("made the self-signed certificate {}", cert.display());
        }
    }
    Ok((cert, key))
}

/// A certificate that is not kept.
pub(crate) fn ephemeral() -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), TlsError> {
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let cert = params(OffsetDateTime::now_utc()).self_signed(&pair)?;
    let key = PrivatePkcs8KeyDer::from(pair.serialize_der());
    Ok((cert.der().clone(), key.into()))
}

fn renew_if_due(cert: &Path, key: &Path, now: OffsetDateTime) -> Result<(), TlsError> {
    let der = CertificateDer::from_pem_file(cert).map_err(|e| pem_error(cert, e))?;
    let left = expiry(cert, &der)? - now;
    if left > WARN {
        return Ok(());
    }
    let (days, path) = (left.whole_days(), cert.display());
    if left > RENEW {
        tracing::warn!(
            "certificate {path} expires in {days} days; a start with less than {} days left makes \
             another, whose fingerprint clients must then pin",
            RENEW.whole_days()
        );
        return Ok(());
    }
    let renewed = make(&read_key(key)?, now)?;
    write(cert, &renewed)?;
    let new = CertificateDer::from_pem_slice(renewed.as_bytes()).map_err(|e| pem_error(cert, e))?;
    tracing::warn!(
        "certificate {path} had {days} days left and is another one now: clients that pin the \
         fingerprint {} must pin {}",
        Pin::of(&der),
        Pin::of(&new)
    );
    Ok(())
}

fn expiry(path: &Path, der: &CertificateDer<'_>) -> Result<OffsetDateTime, TlsError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(der)
        .map_err(|e| content(path, format_args!("is not a sound certificate: {e}")))?;
    Ok(parsed.validity().not_after.to_datetime())
}

fn params(now: OffsetDateTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, ORGANISATION);
    params.subject_alt_names = [[127, 0, 0, 1].into(), std::net::Ipv6Addr::LOCALHOST.into()]
        .map(SanType::IpAddress)
        .into();
    if let Ok(localhost) = "localhost".try_into() {
        params.subject_alt_names.insert(0, SanType::DnsName(localhost));
    }
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.not_before = now - BACKDATED;
    params.not_after = now + VALID;
    params
}

/// PEM of a certificate of this key.
fn make(pair: &KeyPair, now: OffsetDateTime) -> Result<String, TlsError> {
    Ok(params(now).self_signed(pair)?.pem())
}

fn read_key(path: &Path) -> Result<KeyPair, TlsError> {
    let text = fs::read_to_string(path).map_err(|e| file(path, e))?;
    KeyPair::from_pem(&text).map_err(|e| {
        content(path, format_args!("is not a private key in PEM: {e}; restore it, or remove it"))
    })
}

fn exists(path: &Path) -> Result<bool, TlsError> {
    path.try_exists().map_err(|e| file(path, e))
}

/// Whole or not at all, and for the owner's eyes.
fn write(path: &Path, text: &str) -> Result<(), TlsError> {
    let write = || -> io::Result<()> {
        let unfinished = path.with_extension("pem.new");
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut out = options.open(&unfinished)?;
        out.set_permissions(fs::Permissions::from_mode(0o600))?;
        out.write_all(text.as_bytes())?;
        out.sync_all()?;
        fs::rename(&unfinished, path)?;
        // The name as well has to last.
        let folder = path.parent().filter(|f| !f.as_os_str().is_empty());
        fs::File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    };
    write().map_err(|e| file(path, e))
}

fn file(path: &Path, source: io::Error) -> TlsError {
    TlsError::File { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ServerIdentity;

    fn print(folder: &Path, now: OffsetDateTime) -> Pin {
        let (cert, key) = kept_at(folder, now).unwrap();
        ServerIdentity::from_pem(&cert, &key).unwrap().fingerprint()
    }

    #[test]
    fn the_certificate_lasts_until_shortly_before_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let start = OffsetDateTime::now_utc();
        let first = print(dir.path(), start);
        for days in [1, 3000, 3619] {
            assert_eq!(print(dir.path(), start + Duration::days(days)), first, "{days}");
        }
        let second = print(dir.path(), start + Duration::days(3621));
        assert_ne!(second, first);
        assert_eq!(print(dir.path(), start + Duration::days(3622)), second);
        for name in [CERT, KEY] {
            let mode = fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn it_is_as_published() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, _) = kept_in(dir.path()).unwrap();
        let der = CertificateDer::from_pem_file(&cert).unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
        assert_eq!(parsed.subject().to_string(), format!("O={ORGANISATION}"));
        let names = parsed.subject_alternative_name().unwrap().unwrap().value.general_names.len();
        assert_eq!(names, 3);
        assert_eq!(parsed.public_key().parsed().unwrap().key_size(), 256);
    }

    #[test]
    fn an_interrupted_start_goes_on_and_a_lost_key_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = kept_in(dir.path()).unwrap();
        let text = fs::read(&key).unwrap();
        fs::remove_file(&cert).unwrap();
        kept_in(dir.path()).unwrap();
        assert_eq!(fs::read(&key).unwrap(), text);
        fs::remove_file(&key).unwrap();
        let refused = kept_in(dir.path()).unwrap_err().to_string();
        assert!(refused.contains(CERT) && refused.contains("restore the key"), "{refused}");
        fs::write(&key, "nonsense").unwrap();
        let refused = ServerIdentity::self_signed_in(dir.path()).unwrap_err().to_string();
        assert!(refused.contains(KEY), "{refused}");
    }
}
