//! Keys of simulated nodes, derived from a seed whenever they are needed.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use pilot_wire::registry::{PublicKey, Signature};
use sha2::{Digest, Sha256};

/// The keys of one seed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keys {
    seed: u64,
}

/// One node's key.
pub(crate) struct Key(Ed25519KeyPair);

impl Keys {
    pub(crate) const fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// The key at this place; the same for the same seed.
    pub(crate) fn key(&self, place: u64) -> Key {
        let hash = Sha256::new()
            .chain_update(b"pilot fleet\0")
            .chain_update(self.seed.to_le_bytes())
            .chain_update(place.to_le_bytes())
            .finalize();
        match Ed25519KeyPair::from_seed_unchecked(&hash) {
            Ok(pair) => Key(pair),
            // Every 32 bytes are a seed (RFC 8032, section 5.1.5).
            Err(e) => unreachable!("32 bytes refused as a seed: {e}"),
        }
    }
}

impl Key {
    pub(crate) fn public(&self) -> PublicKey {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.0.public_key().as_ref());
        PublicKey(bytes)
    }

    pub(crate) fn sign(&self, text: &str) -> Signature {
        let mut bytes = [0; 64];
        bytes.copy_from_slice(self.0.sign(text.as_bytes()).as_ref());
        Signature(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_keys_and_another_seed_others() {
        let key = |seed, place| Keys::new(seed).key(place).public();
        assert_eq!(key(1, 7), key(1, 7));
        assert_ne!(key(1, 7), key(1, 8));
        assert_ne!(key(1, 7), key(2, 7));
    }
}
