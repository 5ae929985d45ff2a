//! Bytes that were written and are not acknowledged, by stream offset.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::index;

/// Writes up to this size are gathered, so that a tiny slice does not hold a
/// large buffer in memory.
const GATHER: usize = 2048;
const GATHER_CHUNK: usize = 16 << 10;

#[derive(Debug, Default)]
pub(super) struct Buffer {
    chunks: VecDeque<(u64, Bytes)>,
    tail: BytesMut,
    tail_start: u64,
}

impl Buffer {
    /// Appends `data`, which starts at `start`. `busy` says that earlier bytes
    /// are held, so that more small writes are to be expected.
    pub(super) fn write(&mut self, start: u64, data: Bytes, busy: bool) {
        if data.len() <= GATHER {
            if self.tail.capacity() - self.tail.len() < data.len() {
                self.seal_tail();
                let size = if busy { GATHER_CHUNK } else { data.len() };
                self.tail = BytesMut::with_capacity(size);
            }
            if self.tail.is_empty() {
                self.tail_start = start;
            }
            self.tail.extend_from_slice(&data);
        } else {
            self.seal_tail();
            self.chunks.push_back((start, data));
        }
    }

    fn seal_tail(&mut self) {
        if self.tail.is_empty() {
            return;
        }
        self.chunks.push_back((self.tail_start, std::mem::take(&mut self.tail).freeze()));
    }

    /// Copies `out.len()` written bytes from `offset` on.
    pub(super) fn copy(&self, offset: u64, out: &mut [u8]) {
        let mut filled = 0;
        let first = self.chunks.partition_point(|(s, d)| s + d.len() as u64 <= offset);
        for (start, data) in self.chunks.range(first..) {
            if filled == out.len() {
                return;
            }
            let skip = index((offset + filled as u64).saturating_sub(*start));
            let n = (data.len() - skip).min(out.len() - filled);
            out[filled..filled + n].copy_from_slice(&data[skip..skip + n]);
            filled += n;
        }
        if filled < out.len() {
            let skip = index(offset + filled as u64 - self.tail_start);
            let n = out.len() - filled;
            out[filled..].copy_from_slice(&self.tail[skip..skip + n]);
        }
    }

    /// Frees what lies wholly before `una`.
    pub(super) fn free(&mut self, una: u64) {
        while let Some((start, data)) = self.chunks.front() {
            if start + data.len() as u64 > una {
                break;
            }
            self.chunks.pop_front();
        }
        if self.chunks.is_empty() {
            let gone = index(una.saturating_sub(self.tail_start)).min(self.tail.len());
            if gone == self.tail.len() {
                self.tail = BytesMut::new();
            } else if gone > 0 {
                let _ = self.tail.split_to(gone);
                self.tail_start += gone as u64;
            }
        }
    }
}
