//! Bytes that cross the edge without a copy.

#![expect(unsafe_code, reason = "a buffer of the C ABI is a pointer with a length")]

use std::ffi::c_void;
use std::fmt;
use std::ops::Deref;

use crate::abi::PilotBuffer;

/// Bytes owned by the plugin or by the host; it does not matter by whom.
pub struct Buffer {
    raw: PilotBuffer,
}

// SAFETY: the ABI lets any thread read and release a buffer, and nobody else
// writes to its bytes while it is held.
unsafe impl Send for Buffer {}
// SAFETY: as above; a shared reference only reads.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Drops the first `n` bytes, or all.
    pub fn advance(&mut self, n: usize) {
        let n = n.min(self.raw.len);
        if n > 0 {
            // SAFETY: `n` is within the bytes.
            self.raw.data = unsafe { self.raw.data.add(n) };
            self.raw.len -= n;
        }
    }

    /// Keeps the first `n` bytes.
    pub fn truncate(&mut self, n: usize) {
        self.raw.len = self.raw.len.min(n);
    }

    /// The buffer as it crosses the ABI; whoever gets it releases it.
    pub(super) fn into_raw(self) -> PilotBuffer {
        let mut this = std::mem::ManuallyDrop::new(self);
        std::mem::replace(&mut this.raw, PilotBuffer::EMPTY)
    }

    /// Takes over a buffer.
    ///
    /// # Safety
    /// `raw` follows the ABI: `len` bytes at `data` stay readable until
    /// `release`, and nobody else releases it.
    pub(super) unsafe fn from_raw(raw: PilotBuffer) -> Self {
        Self { raw }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(release) = self.raw.release.take() {
            // SAFETY: this holds the buffer and releases it once.
            unsafe { release(self.raw.owner) };
        }
    }
}

impl Default for Buffer {
    fn default() -> Self {
        Self { raw: PilotBuffer::EMPTY }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        if self.raw.len == 0 {
            return &[];
        }
        // SAFETY: the holder may read `len` bytes at `data`.
        unsafe { std::slice::from_raw_parts(self.raw.data, self.raw.len) }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.raw.len)
    }
}

impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Self {
        unsafe extern "C" fn release(owner: *mut c_void) {
            // SAFETY: `owner` is the box made below, released once.
            drop(unsafe { Box::from_raw(owner.cast::<Vec<u8>>()) });
        }
        let owner = Box::new(bytes);
        let (data, len) = (owner.as_ptr(), owner.len());
        let owner = Box::into_raw(owner).cast();
        Self { raw: PilotBuffer { data, len, owner, release: Some(release) } }
    }
}

impl From<String> for Buffer {
    fn from(text: String) -> Self {
        text.into_bytes().into()
    }
}

impl From<&'static [u8]> for Buffer {
    fn from(bytes: &'static [u8]) -> Self {
        let raw = PilotBuffer {
            data: bytes.as_ptr(),
            len: bytes.len(),
            owner: std::ptr::null_mut(),
            release: None,
        };
        Self { raw }
    }
}

impl From<&'static str> for Buffer {
    fn from(text: &'static str) -> Self {
        text.as_bytes().into()
    }
}

impl<const N: usize> From<&'static [u8; N]> for Buffer {
    fn from(bytes: &'static [u8; N]) -> Self {
        bytes.as_slice().into()
    }
}
