//! Tunnel cryptography written from the protocol page "Tunnel layer" alone, so
//! that what a core seals and opens is checked against code it does not share.

use aes_gcm::aead::{Aead, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce};
use ed25519_dalek::{Signer, SigningKey};
use sha2::{Digest, Sha256};
use x25519_dalek::{PublicKey, StaticSecret};

/// Bytes before the ciphertext of a sealed frame.
const SEALED_HEADER: usize = 20;

/// An X25519 pair.
pub(crate) struct KeyPair {
    secret: StaticSecret,
    pub(crate) public: [u8; 32],
}

impl KeyPair {
    pub(crate) fn new(secret: [u8; 32]) -> Self {
        let secret = StaticSecret::from(secret);
        let public = PublicKey::from(&secret).to_bytes();
        Self { secret, public }
    }

    /// What both sides seal under; `prefix` is the sender's own.
    pub(crate) fn channel(&self, remote: [u8; 32], prefix: [u8; 4]) -> Channel {
        let shared = self.secret.diffie_hellman(&PublicKey::from(remote));
        let mut hash = Sha256::new();
        hash.update(b"pilot-tunnel-v1:");
        hash.update(shared.as_bytes());
        let key: [u8; 32] = hash.finalize().into();
        Channel { cipher: Aes256Gcm::new(&key.into()), prefix, counter: 0, remote }
    }

    /// The frame that offers this pair as `node`'s, signed by `identity`.
    pub(crate) fn offer(&self, node: u32, identity: &SigningKey) -> Vec<u8> {
        let mut challenge = b"auth".to_vec();
        challenge.extend_from_slice(&node.to_be_bytes());
        challenge.extend_from_slice(&self.public);
        let mut frame = b"PILA".to_vec();
        frame.extend_from_slice(&challenge[4..]);
        frame.extend_from_slice(identity.verifying_key().as_bytes());
        frame.extend_from_slice(&identity.sign(&challenge).to_bytes());
        frame
    }
}

/// The X25519 key that a key exchange frame carries.
pub(crate) fn offered_key(frame: &[u8]) -> Option<[u8; 32]> {
    frame.starts_with(b"PILA").then(|| frame.get(8..40)?.try_into().ok()).flatten()
}

/// One AES-256-GCM key.
pub(crate) struct Channel {
    cipher: Aes256Gcm,
    prefix: [u8; 4],
    counter: u64,
    pub(crate) remote: [u8; 32],
}

impl Channel {
    /// The next frame, with `packet` inside.
    pub(crate) fn seal(&mut self, node: u32, packet: &[u8]) -> Vec<u8> {
        self.counter += 1;
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(&self.prefix);
        nonce[4..].copy_from_slice(&self.counter.to_be_bytes());
        let mut frame = b"PILS".to_vec();
        frame.extend_from_slice(&node.to_be_bytes());
        frame.extend_from_slice(&nonce);
        frame.extend(self.cipher.encrypt(&Nonce::from(nonce), packet).expect("seals"));
        frame
    }

    /// The packet in a sealed frame, and the counter, when this key opens it.
    pub(crate) fn open(&self, frame: &[u8]) -> Option<(u64, Vec<u8>)> {
        let nonce: [u8; 12] = frame.get(8..SEALED_HEADER)?.try_into().ok()?;
        let counter = u64::from_be_bytes(nonce[4..].try_into().ok()?);
        let packet = self.cipher.decrypt(&Nonce::from(nonce), frame.get(SEALED_HEADER..)?).ok()?;
        Some((counter, packet))
    }
}
