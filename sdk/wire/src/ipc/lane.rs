//! The shape of a lane: memory that a client and the daemon share for one
//! connection, so that its bytes pass no socket.
//!
//! A lane is a file of [`file_len`] bytes. Its first page holds the indices,
//! four bytes each in the byte order of the machine, every one in
//! a cache line of its own:
//!
//! | offset | written by | meaning |
//! |---|---|---|
//! | 0 | client | up: bytes ever written |
//! | 64 | daemon | up: bytes ever read |
//! | 128 | both | up: the daemon sleeps until it is kicked |
//! | 192 | both | up: the client waits for room and is to be kicked |
//! | 256 | daemon | down: bytes ever written |
//! | 320 | client | down: bytes ever read |
//! | 384 | both | down: the client sleeps until it is kicked |
//! | 448 | both | down: the daemon waits for room and is to be kicked |
//!
//! The bytes follow at [`HEADER_LEN`]: first the ring of the direction up
//! (client to daemon), then the one down, [`CAPACITY`] bytes each. Indices wrap
//! at 2^32; a byte's place is its index modulo the capacity. Each side keeps its
//! own index itself and believes the other's only as far as [`filled`] allows.

/// Bytes before the rings: one page.
pub const HEADER_LEN: usize = 4096;
/// Bytes a ring holds. A power of two.
pub const CAPACITY: u32 = 512 << 10;

/// Bytes of the whole file.
pub const fn file_len() -> usize {
    HEADER_LEN + 2 * CAPACITY as usize
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the daemon.
    Up,
    /// From the daemon to the client.
    Down,
}

/// An index that lies in the shared page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Index {
    /// Bytes ever written; the producer's.
    Head,
    /// Bytes ever read; the consumer's.
    Tail,
    /// Not zero while the consumer sleeps.
    Sleeps,
    /// Not zero while the producer waits for room.
    Waits,
}

impl Direction {
    /// Where an index lies.
    pub const fn index(self, index: Index) -> usize {
        let base = match self {
            Self::Up => 0,
            Self::Down => 256,
        };
        base + match index {
            Index::Head => 0,
            Index::Tail => 64,
            Index::Sleeps => 128,
            Index::Waits => 192,
        }
    }

    /// Where the ring begins.
    pub const fn ring(self) -> usize {
        match self {
            Self::Up => HEADER_LEN,
            Self::Down => HEADER_LEN + CAPACITY as usize,
        }
    }
}

/// The other side wrote indices that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("lane: {written} bytes written and {read} read cannot be in a ring of {CAPACITY} bytes")]
pub struct LaneFault {
    /// Bytes ever written, as found.
    pub written: u32,
    /// Bytes ever read, as found.
    pub read: u32,
}

/// Bytes that lie in a ring, from its two indices.
///
/// # Errors
/// When the distance exceeds the capacity: whoever wrote the other index lies.
pub const fn filled(written: u32, read: u32) -> Result<u32, LaneFault> {
    let distance = written.wrapping_sub(read);
    if distance > CAPACITY { Err(LaneFault { written, read }) } else { Ok(distance) }
}

/// Where `len` bytes from `index` on lie in a ring: the offset of a first part,
/// its length, and the length of a second part that lies at the beginning.
/// `len` is cut to the capacity.
pub const fn parts(index: u32, len: u32) -> (usize, usize, usize) {
    let len = if len > CAPACITY { CAPACITY } else { len };
    let offset = index % CAPACITY;
    let to_end = CAPACITY - offset;
    let first = if len < to_end { len } else { to_end };
    (offset as usize, first as usize, (len - first) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_index_leads_outside() {
        for read in [0, 1, CAPACITY - 1, CAPACITY, u32::MAX - 5, u32::MAX] {
            for ahead in [0, 1, 9, CAPACITY - 1, CAPACITY] {
                let written = read.wrapping_add(ahead);
                assert_eq!(filled(written, read), Ok(ahead));
                let (offset, first, second) = parts(read, ahead);
                assert_eq!(first + second, ahead as usize);
                assert!(offset + first <= CAPACITY as usize && second <= CAPACITY as usize);
            }
            for lie in [CAPACITY + 1, u32::MAX, u32::MAX / 2] {
                assert!(filled(read.wrapping_add(lie), read).is_err());
            }
        }
        assert_eq!(parts(7, u32::MAX).1 + parts(7, u32::MAX).2, CAPACITY as usize);
    }

    #[test]
    fn nothing_overlaps() {
        let mut places = Vec::new();
        for direction in [Direction::Up, Direction::Down] {
            for index in [Index::Head, Index::Tail, Index::Sleeps, Index::Waits] {
                places.push(direction.index(index)..direction.index(index) + 4);
            }
            places.push(direction.ring()..direction.ring() + CAPACITY as usize);
        }
        places.sort_by_key(|p| p.start);
        assert!(places.windows(2).all(|w| w[0].end <= w[1].start));
        assert_eq!(places.last().map(|p| p.end), Some(file_len()));
    }
}
