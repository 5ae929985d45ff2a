//! Framing: a big-endian 4-byte length, then that many bytes of JSON.

use serde::Serialize;

/// Bytes before each body.
pub const FRAME_HEADER_LEN: usize = 4;
/// Longest body either side accepts (protocol page "Registry", section 1).
pub const MAX_BODY_LEN: usize = 1_048_576;

/// Capacity kept once the buffer is drained; a larger one is given back.
const KEPT_CAPACITY: usize = 64 * 1024;

/// A frame that breaks the length rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The announced or produced body is longer than [`MAX_BODY_LEN`].
    #[error("registry frame of {0} bytes is longer than {MAX_BODY_LEN}")]
    TooLong(usize),
    /// A message of our own could not be written as JSON.
    #[error("registry message cannot be written as JSON")]
    Unserialisable,
}

/// Collects received bytes and hands out whole bodies. Holds at most one
/// unfinished frame plus what one read added.
#[derive(Debug, Default)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
    start: usize,
}

impl FrameBuffer {
    /// An empty buffer.
    pub const fn new() -> Self {
        Self { bytes: Vec::new(), start: 0 }
    }

    /// Where a reader appends, with at least `room` bytes of spare capacity.
    /// Only append; what stands there is the unfinished frame.
    pub fn space(&mut self, room: usize) -> &mut Vec<u8> {
        if self.start == self.bytes.len() {
            self.bytes.clear();
            if self.bytes.capacity() > KEPT_CAPACITY.max(room) {
                self.bytes.shrink_to(KEPT_CAPACITY.max(room));
            }
        } else if self.start > 0 {
            self.bytes.drain(..self.start);
        }
        self.start = 0;
        self.bytes.reserve(room);
        &mut self.bytes
    }

    /// Appends received bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.space(bytes.len()).extend_from_slice(bytes);
    }

    /// The next whole body, or `None` until more bytes arrive.
    ///
    /// # Errors
    /// When the announced length is too long; the stream cannot be read on.
    pub fn next_body(&mut self) -> Result<Option<&[u8]>, FrameError> {
        let rest = self.bytes.get(self.start..).unwrap_or_default();
        let Some((header, rest)) = rest.split_first_chunk::<FRAME_HEADER_LEN>() else {
            return Ok(None);
        };
        // Saturates on 16-bit targets only, where it is too long as well.
        let len = usize::try_from(u32::from_be_bytes(*header)).unwrap_or(usize::MAX);
        if len > MAX_BODY_LEN {
            return Err(FrameError::TooLong(len));
        }
        let Some(body) = rest.get(..len) else {
            return Ok(None);
        };
        self.start += FRAME_HEADER_LEN + len;
        Ok(Some(body))
    }

    /// Whether part of a frame is waiting for its rest.
    pub const fn is_partial(&self) -> bool {
        self.start < self.bytes.len()
    }
}

/// Appends `message` as one frame.
///
/// # Errors
/// When the body would be too long; `out` is then unchanged.
pub fn append_frame<T: Serialize + ?Sized>(
    out: &mut Vec<u8>,
    message: &T,
) -> Result<(), FrameError> {
    let start = out.len();
    out.extend_from_slice(&[0; FRAME_HEADER_LEN]);
    let written = serde_json::to_writer(&mut *out, message).map_err(|_| FrameError::Unserialisable);
    let len = out.len() - start - FRAME_HEADER_LEN;
    let checked = written.and_then(|()| match u32::try_from(len) {
        Ok(header) if len <= MAX_BODY_LEN => Ok(header),
        _ => Err(FrameError::TooLong(len)),
    });
    match checked {
        Ok(header) => {
            out[start..start + FRAME_HEADER_LEN].copy_from_slice(&header.to_be_bytes());
            Ok(())
        }
        Err(e) => {
            out.truncate(start);
            Err(e)
        }
    }
}
