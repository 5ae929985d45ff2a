//! Data exchange frames, port 1001 (protocol page "Services", section 5), and
//! three frame types of our own for files beyond the published frame limit.
//!
//! A sender offers a large file with [`Kind::FileBegin`] and reads the answer:
//! a peer that knows the type says `ACK FILE-BEGIN ...`, a published one
//! `ACK UNKNOWN(...)`. Then come chunks, then [`Kind::FileEnd`] with the
//! SHA-256 of the whole, answered with `ACK FILE <n> bytes` or `ERR FILE ...`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::reader::Reader;

/// Type and length before every payload.
pub const HEADER_LEN: usize = 8;
/// Longest payload; more fails the connection.
pub const MAX_PAYLOAD: usize = 16_777_216;
/// Payload of the chunks this implementation sends.
pub const CHUNK_LEN: usize = 1 << 20;

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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileOffer {
    /// File name; the receiver uses its last component.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
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
