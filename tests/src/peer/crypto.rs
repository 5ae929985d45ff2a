//! Tunnel cryptography as published: static X25519 keys, one AES-256-GCM key
//! for both directions, a replay window that is moved before the tag is
//! checked. Its faults are deliberate; it must not share code with the core.

use aes_gcm::aead::{Aead as _, KeyInit as _};
use aes_gcm::{Aes256Gcm, Nonce as GcmNonce};
use ed25519_dalek::{Signature, Signer as _, SigningKey, Verifier as _, VerifyingKey};
use pilot_wire::NodeId;
use pilot_wire::tunnel::{
    AUTH_KEY_LEN, AuthKey, Nonce, SEALED_HEADER_LEN, auth_challenge, write_sealed_header,
};
use sha2::{Digest as _, Sha256};
use x25519_dalek::{PublicKey, StaticSecret};

/// The X25519 pair of one process: made at its start, never stored or changed.
pub(crate) struct ProcessKey {
    secret: StaticSecret,
    pub(crate) public: [u8; 32],
}

impl ProcessKey {
    pub(crate) fn from_bytes(secret: [u8; 32]) -> Self {
        let secret = StaticSecret::from(secret);
        let public = PublicKey::from(&secret).to_bytes();
        Self { secret, public }
    }

    /// SHA-256(prefix ‖ shared secret); `None` for an all-zero secret.
    pub(crate) fn session_key(&self, peer: &[u8; 32]) -> Option<[u8; 32]> {
        let shared = self.secret.diffie_hellman(&PublicKey::from(*peer));
        if shared.as_bytes() == &[0; 32] {
            return None;
        }
        let mut hash = Sha256::new();
        hash.update(b"pilot-tunnel-v1:");
        hash.update(shared.as_bytes());
        Some(hash.finalize().into())
    }

    /// The authenticated key exchange frame of `node`.
    pub(crate) fn auth_frame(&self, node: NodeId, identity: &SigningKey) -> [u8; AUTH_KEY_LEN] {
        let challenge = auth_challenge(node, &self.public);
        AuthKey {
            sender: node,
            key: self.public,
            identity: identity.verifying_key().to_bytes(),
            signature: identity.sign(&challenge).to_bytes(),
        }
        .to_frame()
    }
}

/// Whether the frame's signature is by the key in the frame.
pub(crate) fn signature_holds(frame: &AuthKey) -> bool {
    let Ok(key) = VerifyingKey::from_bytes(&frame.identity) else { return false };
    let challenge = auth_challenge(frame.sender, &frame.key);
    key.verify(&challenge, &Signature::from_bytes(&frame.signature)).is_ok()
}

/// Why a sealed frame was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The counter was seen, or is too old.
    Replay,
    /// The tag does not match.
    Tag,
}

/// What is held for one peer after a key exchange.
pub(crate) struct Session {
    pub(crate) peer_key: [u8; 32],
    cipher: Aes256Gcm,
    prefix: [u8; 4],
    counter: u64,
    window: ReplayWindow,
}

impl Session {
    pub(crate) fn new(key: [u8; 32], peer_key: [u8; 32], prefix: [u8; 4]) -> Self {
        Self {
            peer_key,
            cipher: Aes256Gcm::new(&key.into()),
            prefix,
            counter: 0,
            window: ReplayWindow::default(),
        }
    }

    /// A whole sealed frame from `sender` with `packet` inside.
    pub(crate) fn seal(&mut self, sender: NodeId, packet: &[u8]) -> Vec<u8> {
        self.counter += 1;
        let nonce = Nonce { prefix: self.prefix, counter: self.counter };
        let mut header = [0; SEALED_HEADER_LEN];
        write_sealed_header(&mut header, sender, nonce);
        let sealed = self.cipher.encrypt(&GcmNonce::from(nonce.to_bytes()), packet);
        let mut frame = header.to_vec();
        frame.extend(sealed.expect("AES-GCM seals any packet that fits a datagram"));
        frame
    }

    /// Opens a sealed frame. The counter is recorded first, as published.
    pub(crate) fn open(&mut self, nonce: Nonce, frame: &[u8]) -> Result<Vec<u8>, Refused> {
        if !self.window.accept(nonce.counter) {
            return Err(Refused::Replay);
        }
        let sealed = frame.get(SEALED_HEADER_LEN..).unwrap_or_default();
        self.cipher.decrypt(&GcmNonce::from(nonce.to_bytes()), sealed).map_err(|_| {
            self.window.forget(nonce.counter);
            Refused::Tag
        })
    }
}

/// 256 counters behind the highest one; the prefix plays no part.
#[derive(Default)]
pub(crate) struct ReplayWindow {
    max: u64,
    seen: [u64; 4],
}

impl ReplayWindow {
    const WIDTH: u64 = 256;

    /// The verdict on a counter, which is recorded at once.
    pub(crate) fn accept(&mut self, counter: u64) -> bool {
        if self.max == 0 {
            self.max = counter;
        } else if counter > self.max {
            if counter - self.max >= Self::WIDTH {
                self.seen = [0; 4];
            } else {
                for passed in self.max + 1..counter {
                    self.set(passed, false);
                }
            }
            self.max = counter;
        } else if self.max - counter >= Self::WIDTH || self.is_set(counter) {
            return false;
        }
        self.set(counter, true);
        true
    }

    /// Takes a record back after a failed decryption; the maximum stays.
    fn forget(&mut self, counter: u64) {
        self.set(counter, false);
    }

    fn is_set(&self, counter: u64) -> bool {
        let bit = counter % Self::WIDTH;
        self.seen[(bit / 64) as usize] >> (bit % 64) & 1 == 1
    }

    fn set(&mut self, counter: u64, on: bool) {
        let bit = counter % Self::WIDTH;
        let word = &mut self.seen[(bit / 64) as usize];
        *word = *word & !(1 << (bit % 64)) | u64::from(on) << (bit % 64);
    }
}
