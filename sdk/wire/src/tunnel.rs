//! Frames of the UDP tunnel (protocol page "Tunnel layer", sections 1 to 5).
//!
//! A datagram whose first byte is below 0x10 is a beacon message and belongs
//! to [`crate::beacon`]; everything else starts with one of five magics.

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
