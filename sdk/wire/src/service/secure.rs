//! Secure channel, port 443 (protocol page "Services", section 4): frame
//! format and nonce rules, and how two of ours bind the channel to who they
//! are. The cryptography itself is the user's: X25519, SHA-256, AES-256-GCM.
//!
//! The client sends its ephemeral X25519 key (32 bytes), the server answers
//! with its own. Key of both directions: SHA-256 of [`KDF_PREFIX`] and the
//! shared secret; an all-zero secret must be refused (RFC 7748, section 6.1).
//! Then frames: length (4), nonce (12), ciphertext and tag (16). The published
//! receiver takes any nonce; here [`NonceCheck`] takes only the peer's prefix
//! and the next counter, which every published sender satisfies, so replayed,
//! reordered and reflected frames are found.
//!
//! # Bound to the tunnel's identities
//!
//! The handshake has no version and proves nothing. But the stream runs in a
//! tunnel that has proven both nodes' Ed25519 keys, so it is enough to make
//! sure that the two ends of the *channel* are the two ends of the *tunnel*:
//! that nobody in between passes the handshake on to a third node.
//!
//! - **Announcement.** The top bit of an X25519 key is always 0 when made and
//!   ignored when used (RFC 7748, section 5). A client of ours sets it
//!   ([`announce`]); a published server computes the same secret and never
//!   knows. A server of ours that sees it sets it in its answer; to a published
//!   client it answers as published. The two therefore know of each other
//!   before the first frame, and a published peer is never sent anything else.
//! - **Confirmation.** When both keys are announced, the first frame of each
//!   direction carries [`Binding::confirmation`]: role, both keys as they went
//!   over the wire and the node numbers of both ends as the sender's tunnel has
//!   proven them. The receiver compares it with its own view
//!   ([`Binding::is_confirmed_by`]) before it gives any data to its user, and
//!   ends the channel if it differs. The frame is sealed under the channel's
//!   key, so only the other end of the key exchange can have made it.
//!
//! What this finds: a node that forwards the handshake. The client says
//! "between me and M", the server expects "between M and me". What it leaves to
//! the tunnel: that M is M. Removing the announcement takes an attacker inside
//! the tunnel, that is, one of its ends; who wants a binding for certain
//! refuses a peer that does not announce.

use super::pending::Pending;
use crate::address::NodeId;
use crate::reader::Reader;

/// The port of the secure channel.
pub const PORT: u16 = 443;
/// Bytes of an X25519 key.
pub const KEY_LEN: usize = 32;
/// How long the exchange of keys may take, in seconds.
pub const HANDSHAKE_SECS: u64 = 10;
/// Hashed before the shared secret to make the key.
pub const KDF_PREFIX: &[u8] = b"pilot-secure-v1:";
/// Bytes of a nonce.
pub const NONCE_LEN: usize = 12;
/// Bytes of an AES-GCM tag.
pub const TAG_LEN: usize = 16;
/// Longest frame after its length field, in bytes; more fails the channel.
pub const MAX_FRAME: usize = 16_777_216;
/// Longest plaintext of one frame, in bytes.
pub const MAX_PLAINTEXT: usize = MAX_FRAME - NONCE_LEN - TAG_LEN;
/// Bytes of a confirmation.
pub const CONFIRMATION_LEN: usize = 8 + 1 + 2 * KEY_LEN + 2 * 4;

/// Begins a confirmation.
const CONFIRMATION_MAGIC: &[u8; 8] = b"\0PILOTC1";

/// An end of the channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Who dialled.
    Client,
    /// Who was dialled.
    Server,
}

impl Role {
    /// The other end.
    pub const fn peer(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }

    const fn number(self) -> u8 {
        match self {
            Self::Server => 1,
            Self::Client => 2,
        }
    }

    /// The nonce of the frame with this counter; the first frame has 1.
    pub const fn nonce(self, counter: u64) -> [u8; NONCE_LEN] {
        let [c0, c1, c2, c3, c4, c5, c6, c7] = counter.to_be_bytes();
        [0, 0, 0, self.number(), c0, c1, c2, c3, c4, c5, c6, c7]
    }
}

/// Why a frame was not taken. The channel must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length field is out of range.
    #[error("secure channel length field says {0} bytes, 12 to 16777216 are allowed")]
    Length(u32),
    /// The frame is longer than the receiver takes.
    #[error("secure channel frame of {0} bytes, the limit here is {1}")]
    Limit(usize, usize),
    /// The nonce is not the peer's next one: the frame was replayed, left out,
    /// moved, or is one of ours sent back.
    #[error("secure channel frame out of order: its nonce is not the peer's number {expected}")]
    Nonce {
        /// The counter that was to come.
        expected: u64,
    },
}

/// Nonces of the frames that one end sends.
#[derive(Debug)]
pub struct NonceSource {
    role: Role,
    next: u64,
}

impl NonceSource {
    /// The nonces of `role`, from 1.
    pub const fn new(role: Role) -> Self {
        Self { role, next: 1 }
    }

    /// The next nonce; `None` when all are used up and the channel must end.
    pub fn next_nonce(&mut self) -> Option<[u8; NONCE_LEN]> {
        let nonce = self.role.nonce(self.next);
        self.next = self.next.checked_add(1)?;
        Some(nonce)
    }
}

/// Checks the nonces of the frames that the peer sends.
#[derive(Debug)]
pub struct NonceCheck {
    role: Role,
    next: u64,
}

impl NonceCheck {
    /// For a peer in this role.
    pub const fn new(peer: Role) -> Self {
        Self { role: peer, next: 1 }
    }

    /// Takes the nonce of a frame. Open the frame too before its contents are
    /// used; a frame that does not open ends the channel.
    ///
    /// # Errors
    /// When it is not the peer's next one.
    pub fn accept(&mut self, nonce: &[u8; NONCE_LEN]) -> Result<(), FrameError> {
        let error = FrameError::Nonce { expected: self.next };
        if *nonce != self.role.nonce(self.next) {
            return Err(error);
        }
        self.next = self.next.checked_add(1).ok_or(error)?;
        Ok(())
    }
}

/// A sealed frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its nonce.
    pub nonce: [u8; NONCE_LEN],
    /// Ciphertext and tag.
    pub sealed: Vec<u8>,
}

impl Frame {
    /// The bytes on the wire, for one write.
    ///
    /// # Errors
    /// When the frame is too long.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        let len = NONCE_LEN + self.sealed.len();
        let field = u32::try_from(len).ok().filter(|_| len <= MAX_FRAME);
        let field = field.ok_or(FrameError::Limit(len, MAX_FRAME))?;
        let mut out = Vec::with_capacity(4 + len);
        out.extend_from_slice(&field.to_be_bytes());
        out.extend_from_slice(&self.nonce);
        out.extend_from_slice(&self.sealed);
        Ok(out)
    }
}

/// Takes frames out of a stream, however it is cut. Holds at most one frame
/// that is not whole yet and what was pushed last.
#[derive(Debug)]
pub struct Decoder {
    pending: Pending,
    max_frame: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new(MAX_FRAME)
    }
}

impl Decoder {
    /// A decoder of frames up to `max_frame` bytes after the length field, at
    /// most [`MAX_FRAME`].
    pub fn new(max_frame: usize) -> Self {
        Self { pending: Pending::default(), max_frame: max_frame.min(MAX_FRAME) }
    }

    /// Takes the next bytes of the stream.
    pub fn push(&mut self, data: &[u8]) {
        self.pending.push(data);
    }

    /// The next whole frame, if there is one.
    ///
    /// # Errors
    /// When a length is out of range; every later call fails too.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let mut r = Reader::new(self.pending.peek());
        let Some(field) = r.u32() else { return Ok(None) };
        let len = usize::try_from(field).unwrap_or(usize::MAX);
        let Some(sealed_len) = len.checked_sub(NONCE_LEN).filter(|_| len <= MAX_FRAME) else {
            return Err(FrameError::Length(field));
        };
        if len > self.max_frame {
            return Err(FrameError::Limit(len, self.max_frame));
        }
        let Some(nonce) = r.array::<NONCE_LEN>() else { return Ok(None) };
        let Some(sealed) = r.take(sealed_len) else { return Ok(None) };
        let frame = Frame { nonce, sealed: sealed.to_vec() };
        self.pending.consume(4 + len);
        Ok(Some(frame))
    }

    /// Whether a part of a frame has come, so that an end now cuts it.
    pub fn is_inside(&self) -> bool {
        !self.pending.peek().is_empty()
    }
}

/// The key with the announcement that its sender can bind the channel.
pub fn announce(mut key: [u8; KEY_LEN]) -> [u8; KEY_LEN] {
    key[KEY_LEN - 1] |= 0x80;
    key
}

/// Whether the sender of the key can bind the channel.
pub fn is_announced(key: &[u8; KEY_LEN]) -> bool {
    key[KEY_LEN - 1] & 0x80 != 0
}

/// The key without announcement, for X25519 implementations that would not
/// ignore the bit themselves.
pub fn without_announcement(mut key: [u8; KEY_LEN]) -> [u8; KEY_LEN] {
    key[KEY_LEN - 1] &= 0x7f;
    key
}

/// One end's view of a channel that is to be bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The client's key as it went over the wire, announcement included.
    pub client_key: [u8; KEY_LEN],
    /// The server's.
    pub server_key: [u8; KEY_LEN],
    /// The client's node.
    pub client: NodeId,
    /// The server's.
    pub server: NodeId,
}

impl Binding {
    /// Whether both ends have announced, so that both must confirm.
    pub fn is_due(&self) -> bool {
        is_announced(&self.client_key) && is_announced(&self.server_key)
    }

    /// Plaintext of the first frame that `sender` sends.
    pub fn confirmation(&self, sender: Role) -> [u8; CONFIRMATION_LEN] {
        let (client, server) = (self.client.0.to_be_bytes(), self.server.0.to_be_bytes());
        let parts: [&[u8]; 6] = [
            CONFIRMATION_MAGIC,
            &[sender.number()],
            &self.client_key,
            &self.server_key,
            &client,
            &server,
        ];
        let mut out = [0; CONFIRMATION_LEN];
        for (to, from) in out.iter_mut().zip(parts.into_iter().flatten()) {
            *to = *from;
        }
        out
    }

    /// Whether the plaintext of the first frame of `sender` says the same as
    /// this end sees. It needs no constant time: nothing in it is secret.
    pub fn is_confirmed_by(&self, sender: Role, plaintext: &[u8]) -> bool {
        plaintext == self.confirmation(sender)
    }
}
