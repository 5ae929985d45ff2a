//! Data exchange frames, port 1001 (protocol page "Services", section 5), and
//! three frame types of our own for files that are checked, may exceed the
//! published frame limit, and may be continued after a broken connection.
//!
//! # The exchange of a file
//!
//! 1. The sender offers it: [`Kind::FileBegin`] with a [`FileOffer`] as JSON,
//!    with `sha256` and `resume` if it can continue.
//! 2. The receiver answers in a TEXT frame, read by [`BeginAnswer`]:
//!    - `ACK FILE-BEGIN <n> bytes`: send it from the start (n is the length of
//!      the offer);
//!    - `ACK FILE-BEGIN <n> bytes HAVE <m> <hash>`: the first m bytes are here,
//!      and this is their SHA-256. Said only to an offer with `sha256` and
//!      `resume`, for what the *same node* sent of a file with the same name,
//!      size and SHA-256. m is at most the size;
//!    - `ACK UNKNOWN(20481) ...`: a published peer; send [`Kind::File`] on the
//!      same connection if the file fits a frame;
//!    - `ERR FILE-BEGIN ...`: it will not be taken.
//! 3. After `HAVE` the sender hashes its own first m bytes. If they agree, the
//!    chunks begin at m. If not, it offers again without `resume`: a new offer
//!    replaces the one before, and the receiver throws away what it has.
//! 4. [`Kind::FileChunk`] frames, no answers; then [`Kind::FileEnd`] with the
//!    SHA-256 of the *whole* file, answered `ACK FILE <size> bytes` or
//!    `ERR FILE ...`. An end whose hash is not that of the offer is an error.
//! 5. When the connection breaks before the end, the receiver keeps what it has
//!    of an offer with `sha256` for a while, and answers the next such offer
//!    with `HAVE`. What failed the check at the end is not kept.
//!
//! 6. The connection can break when only the last answer is missing. A sender
//!    that tries again says so with `retry`; a receiver that has finished this
//!    very file of this node in the last minutes then says `HAVE` with the whole
//!    size, and answers the end without keeping the file twice.
//!
//! Either side may be older: a receiver that does not know the extra keys of an
//! offer ignores them and never says `HAVE`; a sender that does not know `HAVE`
//! never sends the keys, so it is never said to it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::reader::Reader;

/// Type and length before every payload.
pub const HEADER_LEN: usize = 8;
/// Longest payload; more fails the connection.
pub const MAX_PAYLOAD: usize = 16_777_216;
/// Payload of the chunks this implementation sends.
pub const CHUNK_LEN: usize = 1 << 20;
/// Bytes of a SHA-256.
pub const HASH_LEN: usize = 32;
/// Longest JSON of a [`FileOffer`], in bytes.
pub const MAX_OFFER: usize = 64 << 10;
/// The port of data exchange.
pub const PORT: u16 = 1001;

/// Type of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// UTF-8 text; also every answer.
    Text,
    /// Bytes.
    Binary,
    /// JSON text.
    Json,
    /// Name length (2), name, contents.
    File,
    /// JSON [`FileOffer`]; ours.
    FileBegin,
    /// The next bytes of the offered file; ours.
    FileChunk,
    /// SHA-256 (32 bytes) of the offered file; ours.
    FileEnd,
    /// Accepted and ignored.
    Unknown(u32),
}

impl Kind {
    /// The number on the wire.
    pub const fn number(self) -> u32 {
        match self {
            Self::Text => 1,
            Self::Binary => 2,
            Self::Json => 3,
            Self::File => 4,
            Self::FileBegin => 0x5001,
            Self::FileChunk => 0x5002,
            Self::FileEnd => 0x5003,
            Self::Unknown(n) => n,
        }
    }

    /// The type with this number.
    pub const fn from_number(n: u32) -> Self {
        match n {
            1 => Self::Text,
            2 => Self::Binary,
            3 => Self::Json,
            4 => Self::File,
            0x5001 => Self::FileBegin,
            0x5002 => Self::FileChunk,
            0x5003 => Self::FileEnd,
            n => Self::Unknown(n),
        }
    }
}

/// The name as it stands in answers.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "TEXT",
            Self::Binary => "BINARY",
            Self::Json => "JSON",
            Self::File => "FILE",
            Self::FileBegin => "FILE-BEGIN",
            Self::FileChunk => "FILE-CHUNK",
            Self::FileEnd => "FILE-END",
            Self::Unknown(n) => return write!(f, "UNKNOWN({n})"),
        })
    }
}

/// What [`Kind::FileBegin`] announces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileOffer {
    /// File name; the receiver uses its last component.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// SHA-256 of the whole file, lower-case hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Whether the sender can continue what the receiver has already; means
    /// nothing without `sha256`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub resume: bool,
    /// Whether the sender has tried before and may have missed the answer to
    /// the end.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub retry: bool,
}

impl FileOffer {
    /// An offer of a file that is sent from the start and checked at the end.
    pub fn new(name: impl Into<String>, size: u64) -> Self {
        Self { name: name.into(), size, ..Self::default() }
    }

    /// The hash by which what has come of this file can be found again, if the
    /// sender can continue it.
    pub fn resumable(&self) -> Option<[u8; HASH_LEN]> {
        self.sha256.as_deref().filter(|_| self.resume).and_then(hash_from_hex)
    }
}

/// What a receiver has of an offered file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Have {
    /// Bytes from the start.
    pub bytes: u64,
    /// Their SHA-256.
    pub sha256: [u8; HASH_LEN],
}

/// The answer to a [`Kind::FileBegin`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BeginAnswer {
    /// Send it, from where the receiver is.
    Accepted(Option<Have>),
    /// The peer knows no offers.
    Unknown,
    /// The peer does not take it, and says why.
    Refused(String),
}

impl BeginAnswer {
    /// Reads the text of the answer. A `HAVE` that cannot be read counts as
    /// none: the file is then sent from the start, which is always right as
    /// long as the sender offers it again.
    pub fn parse(text: &str) -> Self {
        let accepted = format!("ACK {}", Kind::FileBegin);
        if let Some(rest) = text.strip_prefix(&accepted) {
            return Self::Accepted(have(rest));
        }
        match text.starts_with("ACK UNKNOWN") {
            true => Self::Unknown,
            false => Self::Refused(text.to_owned()),
        }
    }

    /// The text that accepts an offer whose JSON has `len` bytes.
    pub fn accept(len: usize, have: Option<Have>) -> String {
        match have {
            Some(Have { bytes, sha256 }) => {
                let hash = hash_to_hex(&sha256);
                format!("ACK {} {len} bytes HAVE {bytes} {hash}", Kind::FileBegin)
            }
            None => format!("ACK {} {len} bytes", Kind::FileBegin),
        }
    }
}

/// What stands after the first words of an accepting answer.
fn have(rest: &str) -> Option<Have> {
    let mut words = rest.split_whitespace().skip_while(|w| *w != "HAVE").skip(1);
    let bytes = words.next()?.parse().ok()?;
    Some(Have { bytes, sha256: hash_from_hex(words.next()?)? })
}

/// A hash as lower-case hex.
pub fn hash_to_hex(hash: &[u8; HASH_LEN]) -> String {
    let digit = |n: u8| char::from_digit(u32::from(n), 16).unwrap_or('0');
    hash.iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]).collect()
}

/// A hash from hex of either case.
pub fn hash_from_hex(text: &str) -> Option<[u8; HASH_LEN]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * HASH_LEN {
        return None;
    }
    let mut hash = [0; HASH_LEN];
    for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
        let value = |d: u8| char::from(d).to_digit(16).and_then(|v| u8::try_from(v).ok());
        *byte = value(pair[0])? << 4 | value(pair[1])?;
    }
    Some(hash)
}

/// Type and length of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Type.
    pub kind: Kind,
    /// Payload length in bytes.
    pub len: usize,
}

/// The length field exceeds [`MAX_PAYLOAD`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("data exchange length field says {0} bytes, the limit is 16777216")]
pub struct TooLong(pub u32);

impl FrameHeader {
    /// Reads a header.
    ///
    /// # Errors
    /// When the length exceeds the limit; the connection must then be closed.
    pub fn decode(bytes: [u8; HEADER_LEN]) -> Result<Self, TooLong> {
        let [k0, k1, k2, k3, l0, l1, l2, l3] = bytes;
        let len = u32::from_be_bytes([l0, l1, l2, l3]);
        if len as usize > MAX_PAYLOAD {
            return Err(TooLong(len));
        }
        Ok(Self {
            kind: Kind::from_number(u32::from_be_bytes([k0, k1, k2, k3])),
            len: len as usize,
        })
    }

    /// The eight header bytes.
    pub fn encode(self) -> [u8; HEADER_LEN] {
        let k = self.kind.number().to_be_bytes();
        let l = u32::try_from(self.len).unwrap_or(u32::MAX).to_be_bytes();
        [k[0], k[1], k[2], k[3], l[0], l[1], l[2], l[3]]
    }
}

/// Splits a [`Kind::File`] payload into name and contents. A payload shorter
/// than its name length says has no name and is kept whole.
pub fn split_file(payload: &[u8]) -> (Option<&[u8]>, &[u8]) {
    let mut r = Reader::new(payload);
    match r.u16().and_then(|len| r.take(usize::from(len))) {
        Some(name) => (Some(name), r.rest()),
        None => (None, payload),
    }
}

/// What stands before the contents in a [`Kind::File`] payload. A name longer
/// than the length field can say is cut.
pub fn file_prefix(name: &str) -> Vec<u8> {
    let len = u16::try_from(name.len()).unwrap_or(u16::MAX);
    let mut out = len.to_be_bytes().to_vec();
    out.extend_from_slice(&name.as_bytes()[..usize::from(len)]);
    out
}
