//! One pair of ephemeral keys with one peer: sealing, opening, replay windows.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce as AeadNonce, UnboundKey};
use pilot_wire::NodeId;
use pilot_wire::tunnel::{
    COMPACT_AAD, COMPACT_HEADER_LEN, KEY_DERIVATION_PREFIX, Nonce, SEALED_HEADER_LEN, TAG_LEN,
    X25519Public, write_compact_header, write_sealed_header,
};
use sha2::{Digest, Sha256};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use super::replay::ReplayWindow;
use crate::time::Time;

/// Nonce prefixes of the peer per key. A published peer draws a new one each
/// time it takes a repeated key exchange; beyond this many the key is replaced.
const MAX_PREFIXES: usize = 8;

/// Why a frame was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OpenError {
    /// The counter was seen, or lies below the window.
    Replay,
    /// The tag is wrong.
    Tag,
    /// The peer used too many prefixes under this key; it must be replaced.
    TooManyPrefixes,
}

/// The two forms of a sealed frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// As published, around a whole packet.
    Published,
    /// Ours, around a compact packet.
    Compact,
}

impl Shape {
    /// Bytes before the ciphertext.
    pub(crate) const fn header_len(self) -> usize {
        match self {
            Self::Published => SEALED_HEADER_LEN,
            Self::Compact => COMPACT_HEADER_LEN,
        }
    }

    /// Bytes of a frame that are no payload of its packet.
    pub(crate) const fn overhead(self) -> usize {
        let packet = match self {
            Self::Published => pilot_wire::packet::HEADER_LEN,
            Self::Compact => pilot_wire::packet::COMPACT_LEN,
        };
        self.header_len() + packet + TAG_LEN
    }

    /// So that neither form can be passed off as the other.
    fn aad(self) -> Aad<&'static [u8]> {
        match self {
            Self::Published => Aad::from(&[][..]),
            Self::Compact => Aad::from(&COMPACT_AAD[..]),
        }
    }
}

/// An AES-256-GCM session (protocol page "Tunnel layer", sections 2 and 3).
pub(crate) struct Session {
    pub(crate) local: X25519Public,
    pub(crate) remote: X25519Public,
    pub(crate) born: Time,
    /// A frame of the peer was opened, so the peer holds this key.
    pub(crate) confirmed: bool,
    key: LessSafeKey,
    send: Nonce,
    /// Where the counter stood when this session began to be sent under.
    first: u64,
    windows: Vec<([u8; 4], ReplayWindow)>,
}

impl Session {
    /// Derives the key. `None` when the shared secret is all zero, which means
    /// that the peer sent a low-order point.
    pub(crate) fn derive(
        secret: &StaticSecret,
        local: X25519Public,
        remote: X25519Public,
        prefix: [u8; 4],
        now: Time,
    ) -> Option<Self> {
        let shared = secret.diffie_hellman(&PublicKey::from(remote));
        if !shared.was_contributory() {
            return None;
        }
        let mut hash = Sha256::new();
        hash.update(KEY_DERIVATION_PREFIX);
        hash.update(shared.as_bytes());
        let bytes = Zeroizing::new(<[u8; 32]>::from(hash.finalize()));
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, bytes.as_slice()).ok()?);
        // Both directions share the key. Between two peers of ours the first
        // bit keeps their nonces apart for certain.
        let mut prefix = prefix;
        prefix[0] = prefix[0] & 0x7F | if local > remote { 0x80 } else { 0 };
        let send = Nonce { prefix, counter: 0 };
        Some(Self {
            local,
            remote,
            born: now,
            confirmed: false,
            key,
            send,
            first: 0,
            windows: Vec::new(),
        })
    }

    /// Frames sealed so far.
    pub(crate) fn sealed(&self) -> u64 {
        self.send.counter - self.first
    }

    /// The counter used last.
    pub(crate) fn counter(&self) -> u64 {
        self.send.counter
    }

    /// Goes on above `counter`, if that is higher than the own one.
    pub(crate) fn continue_above(&mut self, counter: u64) {
        if counter > self.send.counter {
            self.first += counter - self.send.counter;
            self.send.counter = counter;
        }
    }

    /// Whether the peer sends under the prefix that we use, so that a nonce
    /// might be used twice.
    pub(crate) fn prefix_collides(&self) -> bool {
        self.windows.iter().any(|(prefix, _)| *prefix == self.send.prefix)
    }

    /// Seals `frame` in place: it holds room for the header, then the packet,
    /// then room for the tag.
    pub(crate) fn seal(&mut self, sender: NodeId, shape: Shape, frame: &mut [u8]) {
        self.send.counter += 1;
        let nonce = self.send;
        let Some((header, rest)) = frame.split_at_mut_checked(shape.header_len()) else { return };
        match shape {
            Shape::Published => {
                header.first_chunk_mut().map(|h| write_sealed_header(h, sender, nonce));
            }
            Shape::Compact => {
                header.first_chunk_mut().map(|h| write_compact_header(h, sender, nonce));
            }
        }
        let Some(split) = rest.len().checked_sub(TAG_LEN) else { return };
        let (packet, tag_room) = rest.split_at_mut(split);
        let nonce = AeadNonce::assume_unique_for_key(nonce.to_bytes());
        // Fails only for inputs of 64 GiB; the tag left then opens nowhere.
        match self.key.seal_in_place_separate_tag(nonce, shape.aad(), packet) {
            Ok(tag) => tag_room.copy_from_slice(tag.as_ref()),
            Err(_) => tag_room.fill(0),
        }
    }

    /// The highest counter seen under `prefix`.
    pub(crate) fn highest(&self, prefix: [u8; 4]) -> Option<u64> {
        self.windows.iter().find(|(p, _)| *p == prefix).map(|(_, w)| w.highest())
    }

    /// The highest counter seen under any prefix.
    pub(crate) fn highest_of_all(&self) -> u64 {
        self.windows.iter().map(|(_, w)| w.highest()).max().unwrap_or(0)
    }

    /// Whether frames under this prefix were opened by this session before.
    pub(crate) fn knows_prefix(&self, prefix: [u8; 4]) -> bool {
        self.windows.iter().any(|(p, _)| *p == prefix)
    }

    /// Whether this session opens `copy`, which is spoiled.
    pub(crate) fn trial(
        &self,
        nonce: Nonce,
        shape: Shape,
        copy: &mut [u8],
    ) -> Result<(), OpenError> {
        if self.windows.len() >= MAX_PREFIXES && !self.knows_prefix(nonce.prefix) {
            return Err(OpenError::TooManyPrefixes);
        }
        let nonce = AeadNonce::assume_unique_for_key(nonce.to_bytes());
        self.key.open_in_place(nonce, shape.aad(), copy).map(|_| ()).map_err(|_| OpenError::Tag)
    }

    /// Opens `body` (ciphertext and tag) in place and records the counter.
    /// Returns the packet and whether its counter is the highest yet. `body`
    /// is spoiled when this fails.
    pub(crate) fn open<'a>(
        &mut self,
        nonce: Nonce,
        shape: Shape,
        body: &'a mut [u8],
    ) -> Result<(&'a mut [u8], bool), OpenError> {
        let window = self.windows.iter().position(|(p, _)| *p == nonce.prefix);
        match window {
            Some(i) if !self.windows[i].1.allows(nonce.counter) => return Err(OpenError::Replay),
            None if nonce.counter == 0 => return Err(OpenError::Replay),
            None if self.windows.len() >= MAX_PREFIXES => return Err(OpenError::TooManyPrefixes),
            _ => {}
        }
        let aead_nonce = AeadNonce::assume_unique_for_key(nonce.to_bytes());
        let packet =
            self.key.open_in_place(aead_nonce, shape.aad(), body).map_err(|_| OpenError::Tag)?;
        let i = window.unwrap_or_else(|| {
            self.windows.push((nonce.prefix, ReplayWindow::new()));
            self.windows.len() - 1
        });
        let newest = self.windows[i].1.record(nonce.counter) && i + 1 == self.windows.len();
        self.confirmed = true;
        Ok((packet, newest))
    }
}

#[cfg(test)]
mod tests;
