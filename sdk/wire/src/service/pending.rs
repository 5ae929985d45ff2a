//! Bytes of a stream that wait until a frame is whole.

/// What an emptied buffer may keep of its memory, so that a stream that once
/// carried a long frame does not hold that much for ever.
const KEEP: usize = 64 * 1024;

/// A queue of bytes, read at the front.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    bytes: Vec<u8>,
    start: usize,
}

impl Pending {
    pub(crate) fn push(&mut self, data: &[u8]) {
        // What was read is dropped before the vector would have to grow.
        if self.start > 0 && self.bytes.len() + data.len() > self.bytes.capacity() {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(data);
    }

    pub(crate) fn peek(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }

    /// Drops `n` bytes, or all if there are fewer.
    pub(crate) fn consume(&mut self, n: usize) {
        self.start = self.start.saturating_add(n).min(self.bytes.len());
        if self.start == self.bytes.len() {
            self.start = 0;
            self.bytes.clear();
            self.bytes.shrink_to(KEEP);
        }
    }
}
