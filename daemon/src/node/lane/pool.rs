//! Buffers that come back when the core lets go of them, so that the allocator
//! does not return their pages to the system and fetch them again.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Buffers kept, 64 KiB each: as much as one ring holds.
const KEPT: usize = 8;

/// Buffers of one lane.
#[derive(Default)]
pub(super) struct Pool {
    free: Mutex<Vec<Vec<u8>>>,
}

/// Bytes in a buffer of a pool.
struct Pooled {
    bytes: Vec<u8>,
    pool: Arc<Pool>,
}

impl Pool {
    /// An empty buffer.
    pub(super) fn buffer(&self) -> Vec<u8> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.pop().unwrap_or_default()
    }

    /// Makes `bytes` of a buffer, which comes back when they are dropped.
    pub(super) fn lend(self: &Arc<Self>, bytes: Vec<u8>) -> Bytes {
        Bytes::from_owner(Pooled { bytes, pool: Arc::clone(self) })
    }
}

impl AsRef<[u8]> for Pooled {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        let mut buffer = std::mem::take(&mut self.bytes);
        buffer.clear();
        let mut free = self.pool.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < KEPT {
            free.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_empty_and_not_too_many_do() {
        let pool = Arc::new(Pool::default());
        let lent = pool.lend(vec![7; 1000]);
        let part = lent.slice(10..20);
        drop(lent);
        assert_eq!(pool.buffer().capacity(), 0, "a part is still held");
        drop(part);
        let buffer = pool.buffer();
        assert!(buffer.is_empty() && buffer.capacity() >= 1000);
        let many: Vec<_> = (0..KEPT * 2).map(|_| pool.lend(vec![0; 10])).collect();
        drop(many);
        assert_eq!(pool.free.lock().unwrap().len(), KEPT);
    }
}
