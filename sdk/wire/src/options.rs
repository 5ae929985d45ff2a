//! The option block in the payload of SYN and SYN-ACK.
//!
//! Published implementations ignore the payload of both, so the block is
//! invisible to them, and its absence in an answer says that the peer is one.
//! Layout: magic `PLO1` (4), length of what follows (2), then options, each
//! kind (1), length (1), value. Unknown kinds are skipped; a known kind with a
//! wrong length makes the whole block invalid.

use crate::reader::Reader;

const MAGIC: [u8; 4] = *b"PLO1";

const KIND_MAX_SEGMENT: u8 = 1;
const KIND_STREAM_ACK: u8 = 2;
const KIND_HALF_CLOSE: u8 = 3;
const KIND_BYTE_WINDOW: u8 = 4;
const KIND_COMPACT: u8 = 5;

/// What one side offers when a stream opens. A feature is in use when both
/// sides offered it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Largest payload this side accepts in one segment, in bytes.
    pub max_segment: Option<u16>,
    /// Acknowledgement ranges travel in packets of their own protocol, so that
    /// no user data can be mistaken for them.
    pub stream_ack: bool,
    /// FIN ends one direction only and is sequenced and acknowledged.
    pub half_close: bool,
    /// The window field is exact, in units of 4096 bytes, and zero means
    /// closed; updates are sent when the application reads.
    pub byte_window: bool,
    /// Stream packets may come in compact frames (`tunnel`).
    pub compact: bool,
}

/// Largest block this implementation writes, in bytes.
pub const MAX_ENCODED_LEN: usize = 4 + 2 + 4 + 2 + 2 + 2 + 2;

impl Options {
    /// Appends the block to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[0, 0]);
        if let Some(max) = self.max_segment {
            out.extend_from_slice(&[KIND_MAX_SEGMENT, 2]);
            out.extend_from_slice(&max.to_be_bytes());
        }
        for (kind, on) in [
            (KIND_STREAM_ACK, self.stream_ack),
            (KIND_HALF_CLOSE, self.half_close),
            (KIND_BYTE_WINDOW, self.byte_window),
            (KIND_COMPACT, self.compact),
        ] {
            if on {
                out.extend_from_slice(&[kind, 0]);
            }
        }
        // At most MAX_ENCODED_LEN, so the length fits its field.
        let len = u16::try_from(out.len() - start - 6).unwrap_or(u16::MAX);
        out[start + 4..start + 6].copy_from_slice(&len.to_be_bytes());
    }

    /// Reads a block. `None` when the payload is not one, which is how a
    /// published peer answers.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let mut r = Reader::new(payload);
        if r.array::<4>()? != MAGIC {
            return None;
        }
        let len = usize::from(r.u16()?);
        let mut r = Reader::new(r.take(len)?);
        let mut options = Self::default();
        while let Some(kind) = r.u8() {
            let len = usize::from(r.u8()?);
            let value = r.take(len)?;
            match kind {
                KIND_MAX_SEGMENT => {
                    options.max_segment = Some(u16::from_be_bytes(value.try_into().ok()?));
                }
                KIND_STREAM_ACK | KIND_HALF_CLOSE | KIND_BYTE_WINDOW | KIND_COMPACT if len != 0 => {
                    return None;
                }
                KIND_STREAM_ACK => options.stream_ack = true,
                KIND_HALF_CLOSE => options.half_close = true,
                KIND_BYTE_WINDOW => options.byte_window = true,
                KIND_COMPACT => options.compact = true,
                _ => {}
            }
        }
        Some(options)
    }
}
