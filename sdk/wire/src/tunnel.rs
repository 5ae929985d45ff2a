//! Frames of the UDP tunnel (protocol page "Tunnel layer", sections 1 to 5).
//!
//! A datagram whose first byte is below 0x10 is a beacon message and belongs
//! to [`crate::beacon`]; everything else starts with one of five magics.
//!
//! One frame is ours: the compact one, for stream packets between peers that
//! both offered it when the stream opened (`options`). It starts with
//! [`COMPACT`] instead of a magic:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 1 | 0xC1 |
//! | 1 | 3 | counter of the nonce, low 24 bits |
//! | 4 | 4 | sender |
//! | 8 | 4 | prefix of the nonce |
//! | 12 | n | ciphertext of a compact packet (`packet`), then the tag (16) |
//!
//! The associated data is [`COMPACT_AAD`], so that neither form can be passed
//! off as the other.

use crate::address::NodeId;
use crate::reader::Reader;

/// Magic of a packet in the clear.
pub const MAGIC_PLAIN: [u8; 4] = *b"PILT";
/// Magic of a sealed packet.
pub const MAGIC_SEALED: [u8; 4] = *b"PILS";
/// Magic of an unauthenticated key exchange.
pub const MAGIC_KEY: [u8; 4] = *b"PILK";
/// Magic of an authenticated key exchange.
pub const MAGIC_AUTH_KEY: [u8; 4] = *b"PILA";
/// Magic of a hole punch.
pub const MAGIC_PUNCH: [u8; 4] = *b"PILP";

/// Bytes before the ciphertext of a sealed frame: magic, sender, nonce.
pub const SEALED_HEADER_LEN: usize = 20;
/// First byte of a compact frame.
pub const COMPACT: u8 = 0xC1;
/// Bytes before the ciphertext of a compact frame.
pub const COMPACT_HEADER_LEN: usize = 12;
/// Associated data of compact frames.
pub const COMPACT_AAD: &[u8; 4] = b"PLC1";
/// Bytes of the AES-GCM tag at the end of a sealed frame.
pub const TAG_LEN: usize = 16;
/// Length of an authenticated key exchange frame.
pub const AUTH_KEY_LEN: usize = 136;
/// Length of an unauthenticated key exchange frame.
pub const KEY_LEN: usize = 40;
/// ASCII prefix of the key derivation: key = SHA-256(prefix ‖ shared secret).
pub const KEY_DERIVATION_PREFIX: &[u8; 16] = b"pilot-tunnel-v1:";
/// The largest datagram a receiver must have room for.
pub const MAX_DATAGRAM: usize = 65_573;

/// An X25519 public key as it stands on the wire.
pub type X25519Public = [u8; 32];
/// An Ed25519 public key as it stands on the wire.
pub type Ed25519Public = [u8; 32];

/// AES-GCM nonce: a random prefix of the sender's choice, then a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nonce {
    /// Drawn by the sender once per key.
    pub prefix: [u8; 4],
    /// Starts at 1 and rises by one per frame.
    pub counter: u64,
}

impl Nonce {
    /// The twelve wire bytes.
    pub fn to_bytes(self) -> [u8; 12] {
        let mut out = [0; 12];
        out[..4].copy_from_slice(&self.prefix);
        out[4..].copy_from_slice(&self.counter.to_be_bytes());
        out
    }

    /// The nonce whose counter ends in the 24 bits `low` and lies nearest to
    /// the one after `highest`, the highest counter seen.
    pub fn near(prefix: [u8; 4], low: u32, highest: u64) -> Self {
        const SPAN: u64 = 1 << 24;
        let expected = highest.saturating_add(1);
        let candidate = expected & !(SPAN - 1) | u64::from(low) & (SPAN - 1);
        let counter = if candidate + SPAN / 2 < expected {
            candidate.saturating_add(SPAN)
        } else if candidate > expected + SPAN / 2 && candidate >= SPAN {
            candidate - SPAN
        } else {
            candidate
        };
        Self { prefix, counter }
    }
}

/// One tunnel frame. A sealed frame gives its header only: the receiver opens
/// the ciphertext in place, in the buffer that the datagram arrived in, from
/// [`SEALED_HEADER_LEN`] on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A packet in the clear.
    Plain(&'a [u8]),
    /// A sealed packet: ciphertext and tag follow the header.
    Sealed {
        /// Who claims to have sealed it; selects the key.
        sender: NodeId,
        /// Nonce of the sealing.
        nonce: Nonce,
    },
    /// A sealed compact packet: ciphertext and tag follow the header.
    Compact {
        /// Who claims to have sealed it; selects the key.
        sender: NodeId,
        /// Prefix of the nonce.
        prefix: [u8; 4],
        /// Low 24 bits of its counter; see [`Nonce::near`].
        counter: u32,
    },
    /// Unauthenticated key exchange.
    Key {
        /// Who claims to send it.
        sender: NodeId,
        /// Ephemeral key.
        key: X25519Public,
    },
    /// Authenticated key exchange.
    AuthKey(AuthKey),
    /// Opens a NAT mapping; carries nothing.
    Punch,
}

/// An authenticated key exchange (`PILA`). The signature is not checked here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthKey {
    /// Who claims to send it.
    pub sender: NodeId,
    /// Ephemeral key.
    pub key: X25519Public,
    /// Identity key.
    pub identity: Ed25519Public,
    /// Signature by the identity key over [`auth_challenge`].
    pub signature: [u8; 64],
}

/// The 40 bytes that the identity signs in an authenticated key exchange.
pub fn auth_challenge(sender: NodeId, key: &X25519Public) -> [u8; 40] {
    let mut out = [0; 40];
    out[..4].copy_from_slice(b"auth");
    out[4..8].copy_from_slice(&sender.0.to_be_bytes());
    out[8..].copy_from_slice(key);
    out
}

impl AuthKey {
    /// The whole frame.
    pub fn to_frame(&self) -> [u8; AUTH_KEY_LEN] {
        let mut out = [0; AUTH_KEY_LEN];
        out[..4].copy_from_slice(&MAGIC_AUTH_KEY);
        out[4..8].copy_from_slice(&self.sender.0.to_be_bytes());
        out[8..40].copy_from_slice(&self.key);
        out[40..72].copy_from_slice(&self.identity);
        out[72..].copy_from_slice(&self.signature);
        out
    }
}

/// An unauthenticated key exchange frame (`PILK`).
pub fn key_frame(sender: NodeId, key: &X25519Public) -> [u8; KEY_LEN] {
    let mut out = [0; KEY_LEN];
    out[..4].copy_from_slice(&MAGIC_KEY);
    out[4..8].copy_from_slice(&sender.0.to_be_bytes());
    out[8..].copy_from_slice(key);
    out
}

/// Writes the header of a sealed frame over the first
/// [`SEALED_HEADER_LEN`] bytes of `frame`.
pub fn write_sealed_header(frame: &mut [u8; SEALED_HEADER_LEN], sender: NodeId, nonce: Nonce) {
    frame[..4].copy_from_slice(&MAGIC_SEALED);
    frame[4..8].copy_from_slice(&sender.0.to_be_bytes());
    frame[8..].copy_from_slice(&nonce.to_bytes());
}

/// Writes the header of a compact frame over the first
/// [`COMPACT_HEADER_LEN`] bytes of `frame`.
pub fn write_compact_header(frame: &mut [u8; COMPACT_HEADER_LEN], sender: NodeId, nonce: Nonce) {
    let [.., c2, c1, c0] = nonce.counter.to_be_bytes();
    frame[..4].copy_from_slice(&[COMPACT, c2, c1, c0]);
    frame[4..8].copy_from_slice(&sender.0.to_be_bytes());
    frame[8..].copy_from_slice(&nonce.prefix);
}

/// Why a datagram is not a tunnel frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The first four bytes are no known magic, or fewer than four are there.
    #[error("unknown tunnel magic")]
    Magic,
    /// The magic is known and the frame too short for it.
    #[error("{frame} frame needs {need} bytes, got {got}")]
    Truncated {
        /// The frame's magic.
        frame: &'static str,
        /// Its smallest size.
        need: usize,
        /// Bytes at hand.
        got: usize,
    },
}

impl<'a> Frame<'a> {
    /// Parses one datagram. Bytes after the fixed part of key exchanges and
    /// punches are ignored.
    ///
    /// # Errors
    /// When the magic is unknown or the frame truncated.
    pub fn parse(datagram: &'a [u8]) -> Result<Self, FrameError> {
        let mut r = Reader::new(datagram);
        let magic: [u8; 4] = r.array().ok_or(FrameError::Magic)?;
        let got = datagram.len();
        let need = |frame, need| {
            if got < need { Err(FrameError::Truncated { frame, need, got }) } else { Ok(()) }
        };
        match magic {
            MAGIC_SEALED => {
                need("PILS", SEALED_HEADER_LEN + TAG_LEN)?;
                parse_sealed(r)
            }
            MAGIC_PLAIN => {
                need("PILT", 4 + crate::packet::HEADER_LEN)?;
                Some(Self::Plain(r.rest()))
            }
            MAGIC_AUTH_KEY => {
                need("PILA", AUTH_KEY_LEN)?;
                parse_auth_key(r)
            }
            MAGIC_KEY => {
                need("PILK", KEY_LEN)?;
                parse_key(r)
            }
            MAGIC_PUNCH => Some(Self::Punch),
            [COMPACT, c2, c1, c0] => {
                need("compact", COMPACT_HEADER_LEN + TAG_LEN)?;
                parse_compact(r, u32::from_be_bytes([0, c2, c1, c0]))
            }
            _ => None,
        }
        .ok_or(FrameError::Magic)
    }
}

fn parse_sealed(mut r: Reader<'_>) -> Option<Frame<'_>> {
    let sender = NodeId(r.u32()?);
    let prefix = r.array()?;
    let counter = u64::from_be_bytes(r.array()?);
    Some(Frame::Sealed { sender, nonce: Nonce { prefix, counter } })
}

fn parse_compact(mut r: Reader<'_>, counter: u32) -> Option<Frame<'_>> {
    Some(Frame::Compact { sender: NodeId(r.u32()?), prefix: r.array()?, counter })
}

fn parse_auth_key(mut r: Reader<'_>) -> Option<Frame<'_>> {
    Some(Frame::AuthKey(AuthKey {
        sender: NodeId(r.u32()?),
        key: r.array()?,
        identity: r.array()?,
        signature: r.array()?,
    }))
}

fn parse_key(mut r: Reader<'_>) -> Option<Frame<'_>> {
    Some(Frame::Key { sender: NodeId(r.u32()?), key: r.array()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_found_from_its_low_bits() {
        let near = |counter: u64, highest: u64| {
            let low = u32::try_from(counter & 0xFF_FFFF).expect("24 bits");
            Nonce::near([0; 4], low, highest).counter
        };
        for base in [0, 1, 0xFF_FFFE, 0xFF_FFFF, 0x100_0000, 0x1234_5678_9ABC, u64::MAX >> 8] {
            for ahead in [0, 1, 2, 1000, 0x7F_FFFF] {
                assert_eq!(near(base + ahead, base), base + ahead, "{ahead} ahead of {base}");
            }
            for behind in [1, 2, 8191, 0x7F_FFF0] {
                if let Some(counter) = base.checked_sub(behind) {
                    assert_eq!(near(counter, base), counter, "{behind} behind {base}");
                }
            }
        }
        // Whatever stands there, nothing overflows.
        near(0xFF_FFFF, u64::MAX);
        near(0, u64::MAX);
    }

    #[test]
    fn a_compact_header_reads_as_written() {
        let nonce = Nonce { prefix: [1, 2, 3, 4], counter: 0xAB_CDEF_0123_4567 };
        let mut frame = [0; COMPACT_HEADER_LEN + TAG_LEN];
        let header = frame.first_chunk_mut().expect("long enough");
        write_compact_header(header, NodeId(7), nonce);
        let counter = 0x23_4567;
        let parsed = Frame::parse(&frame);
        assert_eq!(parsed, Ok(Frame::Compact { sender: NodeId(7), prefix: [1, 2, 3, 4], counter }));
        assert!(Frame::parse(&frame[..27]).is_err(), "shorter than header and tag");
    }
}
