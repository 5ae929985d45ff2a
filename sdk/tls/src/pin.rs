//! The fingerprint of a certificate: what it is, how it is written.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;

/// SHA-256 of a DER leaf certificate. Written in lower-case hex, which is what
/// published clients compare with.
#[derive(Clone, Copy)]
pub struct Pin([u8; 32]);

/// A text that is no fingerprint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no certificate fingerprint; expected the 64 hex digits that the registry \
     prints when it starts (SHA-256 of its certificate)"
)]
pub struct BadPin {
    text: String,
}

impl Pin {
    /// The fingerprint of `certificate`.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest(&SHA256, certificate).as_ref());
        Self(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Takes the same time wherever the two differ.
impl PartialEq for Pin {
    fn eq(&self, other: &Self) -> bool {
        verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}

impl Eq for Pin {}

impl FromStr for Pin {
    type Err = BadPin;

    /// Upper case, colons between bytes and space around are all right.
    fn from_str(text: &str) -> Result<Self, BadPin> {
        let digits: String = text.trim().chars().filter(|c| *c != ':').collect();
        let mut bytes = [0; 32];
        match hex::decode_to_slice(&digits, &mut bytes) {
            Ok(()) => Ok(Self(bytes)),
            // A long text that is something else entirely need not be repeated whole.
            Err(_) => Err(BadPin { text: text.chars().take(100).collect() }),
        }
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pin({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_usual_writing_is_read_and_one_is_written() {
        let lower = "00ff".repeat(16);
        let pin: Pin = lower.parse().unwrap();
        let colons: Vec<String> = pin.as_bytes().iter().map(|b| format!("{b:02X}")).collect();
        assert_eq!(colons.join(":").parse(), Ok(pin));
        assert_eq!(format!(" {}\n", lower.to_uppercase()).parse(), Ok(pin));
        assert_eq!(pin.to_string(), lower);
        for bad in ["", "00ff", &lower[1..], &format!("{lower}0"), &lower.replace('f', "g")] {
            assert!(bad.parse::<Pin>().is_err(), "{bad}");
        }
    }

    #[test]
    fn it_is_sha_256_of_the_certificate() {
        let pin = Pin::of(&CertificateDer::from(b"abc".to_vec()));
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(pin.to_string(), expected);
    }
}
