//! Signatures of Standard Webhooks (<https://www.standardwebhooks.com>,
//! specification 1.0.0): `v1,` and the base64 of HMAC-SHA256 over
//! `ID.TIMESTAMP.BODY`.

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::header::HeaderValue;

/// Prefix of a secret that is base64.
const PREFIX: &str = "whsec_";

/// Signs with each of its secrets.
#[derive(Default)]
pub(crate) struct Signer {
    keys: Vec<hmac::Key>,
}

impl Signer {
    /// Adds a secret.
    ///
    /// # Errors
    /// When what follows `whsec_` is not base64; the text does not repeat it.
    pub(crate) fn add(&mut self, secret: &str) -> Result<(), String> {
        let key = match secret.strip_prefix(PREFIX) {
            Some(encoded) => STANDARD
                .decode(encoded)
                .map_err(|_| format!("what follows `{PREFIX}` is not base64"))?,
            None => secret.as_bytes().to_vec(),
        };
        if key.is_empty() {
            return Err("it is empty".to_owned());
        }
        self.keys.push(hmac::Key::new(hmac::HMAC_SHA256, &key));
        Ok(())
    }

    /// The value of `webhook-signature`; `None` without secrets.
    pub(crate) fn sign(&self, id: &str, timestamp: u64, body: &[u8]) -> Option<HeaderValue> {
        if self.keys.is_empty() {
            return None;
        }
        let signatures = self.keys.iter().map(|key| {
            let mut context = hmac::Context::with_key(key);
            context.update(format!("{id}.{timestamp}.").as_bytes());
            context.update(body);
            format!("v1,{}", STANDARD.encode(context.sign()))
        });
        let signatures = signatures.collect::<Vec<_>>().join(" ");
        HeaderValue::from_str(&signatures).ok()
    }
}
